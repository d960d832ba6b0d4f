// Relays that can be killed, for the tests of deploy/examples/resume.js.
'use strict';

const { spawn } = require('node:child_process');
const fs = require('node:fs');
const http = require('node:http');
const net = require('node:net');
const path = require('node:path');

const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

async function until(what, condition) {
    for (const start = Date.now(); !(await condition()); await sleep(10)) {
        if (Date.now() - start > 60_000) throw new Error(`not after 60 s: ${what}`);
    }
}

const freePort = () => new Promise((resolve) => {
    const server = net.createServer().listen(0, '127.0.0.1', () => {
        const { port } = server.address();
        server.close(() => resolve(port));
    });
});

/** A way to a relay that is slow for streams. What is on it when it is cut is lost, although the relay has written it. */
async function slowWay(port) {
    const server = http.createServer((incoming, client) => {
        const { method, headers, url } = incoming;
        const outgoing = http.request({ host: '127.0.0.1', port, method, headers, path: url }, (answer) => {
            client.writeHead(answer.statusCode, answer.headers);
            client.flushHeaders();
            answer.on('error', () => client.destroy());
            if (answer.headers['content-type'] !== 'text/event-stream') return answer.pipe(client);
            answer.on('data', (data) => setTimeout(() => client.write(data), 20));
            answer.on('end', () => setTimeout(() => client.end(), 20));
        });
        outgoing.on('error', () => client.destroy());
        client.on('close', () => outgoing.destroy());
        incoming.pipe(outgoing);
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    return {
        url: `http://127.0.0.1:${server.address().port}`,
        cut: () => server.closeAllConnections(),
        end: () => server.closeAllConnections() || server.close(),
    };
}

/** `serve`, at the same address each time it is started, at the end of a slow way. */
async function serve(program, data) {
    const port = await freePort();
    const way = await slowWay(port);
    const { url } = way;
    let child;
    const start = async () => {
        // --pdeathsig: when this process is killed, so is the server.
        const command = ['--pdeathsig', 'KILL', '--', program, 'serve', '--quiet', '--listen', `127.0.0.1:${port}`, '--data', data];
        child = spawn('setpriv', command, { stdio: ['ignore', 'ignore', 'inherit'] });
        await until('the relay answers', async () => {
            if (child.exitCode !== null) throw new Error(`the relay has ended with ${child.exitCode}`);
            return fetch(`${url}?action=ping`, { method: 'POST' }).then((answer) => answer.ok, () => false);
        });
    };
    const kill = async () => {
        const gone = new Promise((resolve) => child.once('exit', resolve));
        child.kill('SIGKILL');
        await gone;
    };
    await start();
    return {
        url,
        start,
        kill,
        end: async () => {
            await kill();
            way.end();
        },
        /** Kills and restarts it. No request is in the middle then, so whether one was carried out is never in doubt. */
        async interrupt(talk) {
            await talk.hold();
            way.cut();
            await kill();
            // Those who send now are refused, and try again.
            await talk.release();
            await sleep(100);
            await start();
        },
    };
}

/** The CGI programs of a web server, of which those that feed streams are killed, in the middle of everything. */
function cgi(url, folder) {
    const program = path.join(folder, 'cgi-bin/relay.cgi');
    const streams = () => fs.readdirSync('/proc').filter((pid) => {
        try {
            return /^\d+$/.test(pid) && fs.readlinkSync(`/proc/${pid}/exe`) === program
                && fs.readFileSync(`/proc/${pid}/environ`, 'latin1').split('\0').includes('REQUEST_METHOD=GET');
        } catch {
            return false; // it has ended
        }
    });
    return {
        url,
        end: () => {},
        async interrupt() {
            await until('both streams are there', () => streams().length === 2);
            for (const pid of streams()) process.kill(Number(pid), 'SIGKILL');
        },
    };
}

/** What is on the command line: `serve PROGRAM DATA`, or `cgi URL FOLDER`. */
async function relayOf([kind, ...rest]) {
    if (kind === 'serve') return serve(...rest);
    if (kind === 'cgi') return cgi(...rest);
    throw new Error('usage: serve PROGRAM DATA, or cgi URL FOLDER');
}

/** Interrupts a talk so many times, evenly, and waits for its end. Returns what the parties have heard. */
async function interrupted(relay, talk, times, total) {
    for (let time = 1; time <= times; time++) {
        await until(`interruption ${time}`, async () => (await talk.arrived()) >= (2 * total * time) / (times + 1));
        await relay.interrupt(talk);
    }
    await until('everything has arrived', async () => (await talk.arrived()) >= 2 * total).catch(async (error) => {
        const { toHost, toClient, ended, counts } = await talk.state();
        throw new Error(`${error.message}: ${toHost.length}, ${toClient.length}, ${ended}, ${JSON.stringify(counts)}`);
    });
    // A message that came twice would come now.
    await sleep(300);
    return talk.state();
}

/** Nothing lost, nothing twice, nothing out of order, and nobody has noticed; although both streams were really interrupted. */
function check({ toHost, toClient, ended, counts }, times, total) {
    const wanted = Array.from({ length: total }, (_, number) => number).join();
    for (const [who, heard] of [['host', toHost], ['client', toClient]]) {
        if (heard.join() !== wanted) {
            const at = heard.findIndex((number, place) => number !== place);
            throw new Error(`the ${who} heard ${heard.length} numbers; at ${at}: ${heard.slice(Math.max(at - 2, 0), at + 5)}`);
        }
    }
    if (ended.length > 0) throw new Error(`it has ended for ${ended}`);
    if (counts.interrupted < 2 * times || counts.resumed !== counts.interrupted) {
        throw new Error(`${counts.interrupted} interruptions, ${counts.resumed} resumed, of two streams and ${times} kills`);
    }
}

/** A server whose stream goes wrong in every way that a client can meet, once each, and then is good again. */
async function moody() {
    const asked = [];
    const begin = (answer) => answer.writeHead(200, { 'Content-Type': 'text/event-stream', 'Access-Control-Allow-Origin': '*' });
    const moods = [
        (answer) => answer.destroy(), // before it was ever open
        (answer) => begin(answer).write(': Connected.\n') && setTimeout(() => answer.destroy(), 50), // without an event
        (answer) => begin(answer).end('id: 5\ndata: first\n\nid: 6\ndata: half'), // in the middle of one
        (answer) => answer.writeHead(503, { 'Content-Type': 'text/html' }).end('<h1>Service Unavailable</h1>'),
        (answer) => answer.writeHead(502).end(),
        (answer) => answer.writeHead(200, { 'Content-Type': 'text/html', 'Access-Control-Allow-Origin': '*' }).end('<h1>Welcome</h1>'),
        (answer) => answer.writeHead(204).end(),
        (answer) => begin(answer).write('id: 6\ndata: second\n\nid: 7\nevent: relay_event\ndata: last\n\n'),
    ];
    const server = http.createServer((request, answer) => {
        if (!request.url.includes('token=')) return answer.writeHead(404).end();
        asked.push(new URL(request.url, 'http://moody').searchParams.get('lastEventId'));
        moods[Math.min(asked.length, moods.length) - 1](answer);
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    return {
        url: `http://127.0.0.1:${server.address().port}`,
        end: () => server.closeAllConnections() || server.close(),
        check: (heard) => {
            const found = JSON.stringify([heard, asked]);
            const wanted = JSON.stringify([
                ['open', 'resumed', 'first', 'resumed', 'second', 'event last'],
                [null, '0', '0', '5', '5', '5', '5', '5'],
            ]);
            if (found !== wanted) throw new Error(`a server with moods was heard as ${found}, not ${wanted}`);
        },
    };
}

module.exports = { relayOf, interrupted, check, moody, sleep, until };

// A proxy in front of the relay, under a path of its own, that does one thing wrong: what servers and proxies are found
// to do out there. The page must say what it is.

import http from 'node:http';

export const PREFIX = '/behind/a/proxy';

/** Calls `event` for each whole event (or comment) of a stream, as text with its end. */
function events(stream, event) {
    let text = '';
    stream.setEncoding('utf8');
    stream.on('data', (more) => {
        text += more;
        for (let end; (end = text.indexOf('\n')) >= 0; ) {
            // A comment is a line, an event ends with an empty one.
            if (!text.startsWith(':')) {
                end = text.indexOf('\n\n') + 1;
                if (end === 0) return;
            }
            event(text.slice(0, end + 1));
            text = text.slice(end + 1);
        }
    });
}

const isMessage = (event) => event.includes('data: ') && !event.includes('event: ');

/** Hands a stream on; `change` gets the number of a message, the message, and how to send. */
function messages(change) {
    return (answer, client) => {
        let number = 0;
        client.writeHead(answer.statusCode, answer.headers);
        client.flushHeaders();
        events(answer, (event) => {
            if (isMessage(event)) change(++number, event, (...all) => all.forEach((one) => client.write(one)), client);
            else client.write(event);
        });
        answer.on('end', () => client.end());
    };
}

const plain = (answer, client) => {
    client.writeHead(answer.statusCode, answer.headers);
    client.flushHeaders();
    answer.pipe(client);
};

const later = (delay, then) => setTimeout(then, delay).unref();

/**
 * What each fault does to a stream, and to other requests before they reach the relay (true: it has answered); and which
 * files it publishes of the data folder beside the relay.
 */
export const FAULTS = {
    none: {},
    'holds streams back': { stream: () => {} },
    'opens streams late': { stream: (answer, client) => later(4000, () => plain(answer, client)) },
    'sends in lumps': {
        stream: (answer, client) => {
            client.writeHead(answer.statusCode, answer.headers);
            client.flushHeaders();
            const lump = [];
            answer.on('data', (data) => lump.push(data));
            const timer = setInterval(() => client.write(Buffer.concat(lump.splice(0))), 4000);
            client.on('close', () => clearInterval(timer));
        },
    },
    'delays every event': {
        stream: (answer, client) => {
            client.writeHead(answer.statusCode, answer.headers);
            client.flushHeaders();
            answer.on('data', (data) => later(200, () => client.write(data)));
        },
    },
    'cuts streams': { stream: messages((number, event, send, client) => (number === 10 ? client.destroy() : send(event))) },
    'cuts streams after 3 s': {
        stream: (answer, client) => {
            plain(answer, client);
            later(3000, () => client.destroy());
        },
    },
    'loses a message': {
        // Only on the way to the host: of the client's messages the fifth would be another one.
        stream: messages((number, event, send) => (number === 5 && event.includes('responseToken')) || send(event)),
    },
    'repeats a message': { stream: messages((number, event, send) => (number === 5 ? send(event, event) : send(event))) },
    'swaps messages': {
        stream: (() => {
            const held = new WeakMap();
            return messages((number, event, send, client) => {
                // Only on the way to the client: swapped twice is in order.
                if (number === 40 && !event.includes('responseToken')) held.set(client, event);
                else send(event, ...(number === 41 && held.has(client) ? [held.get(client)] : []));
            });
        })(),
    },
    'answers streams with a page': {
        stream: (answer, client) => {
            answer.destroy();
            client.writeHead(200, { 'Content-Type': 'text/html' }).end('<h1>Welcome</h1>');
        },
    },
    'refuses streams': {
        stream: (answer, client) => {
            answer.destroy();
            client.writeHead(503, { 'Content-Type': 'text/html' }).end('<h1>Service Unavailable</h1>');
        },
    },
    'answers with its own error': {
        request: (client) => client.writeHead(500, { 'Content-Type': 'text/html' }).end('<h1>Internal Server Error</h1>'),
    },
    'has a full disk': {
        request: (client) => client.writeHead(507, { 'Content-Type': 'application/json' }).end('{"error":"The disk is full."}'),
    },
    'answers nothing while streams are open': { request: (client, streams) => streams < 2 ? false : true },
    'publishes the data folder': { files: { 'index.html': '<!DOCTYPE html><title></title><!-- Empty on purpose -->', secret: 'ab'.repeat(32) } },
    'publishes the secret': { files: { secret: 'ab'.repeat(32) } },
    'is gone': { request: (client) => client.destroy() },
};

/** Starts the proxy; gives its URL and how to end it. */
export async function faultyProxy(relay, fault) {
    const { stream = plain, request = () => false, files = {} } = FAULTS[fault];
    const target = new URL(relay);
    let streams = 0;
    const server = http.createServer((incoming, client) => {
        if (!incoming.url.startsWith(PREFIX)) {
            const file = files[incoming.url.split('/data/')[1]];
            client.writeHead(file === undefined ? 404 : 200).end(file);
            return;
        }
        if (incoming.method === 'POST' && request(client, streams)) return;
        const options = {
            host: target.hostname, port: target.port || 80, method: incoming.method, headers: incoming.headers,
            path: target.pathname + incoming.url.slice(PREFIX.length),
        };
        const outgoing = http.request(options, (answer) => {
            const isStream = (answer.headers['content-type'] || '').startsWith('text/event-stream');
            streams += isStream;
            (isStream ? stream : plain)(answer, client);
        });
        outgoing.on('error', () => client.destroy());
        client.on('close', () => outgoing.destroy());
        incoming.pipe(outgoing);
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    return {
        url: `http://127.0.0.1:${server.address().port}${PREFIX}`,
        end: () => {
            server.closeAllConnections();
            server.close();
        },
    };
}

// A host and three clients of the published `uhst` package, through the relay whose URL is given; or the clients through another
// one of the same Redis.
// Exits with 0 when everything a page relies on has happened, else with 1 and the first thing that did not.
'use strict';

const { EventSource } = require('eventsource');
globalThis.EventSource = EventSource; // what a browser has and the client expects
const { UHST, HostIdAlreadyInUse, InvalidHostId, InvalidClientOrHostId } = require('uhst/uhst.umd.js');

const STEP = 60_000; // a hang is caught here; a web server may need ten seconds to notice a hang-up
const [, , relayUrl, otherUrl = relayUrl] = process.argv;

function fail(reason) {
    console.error(`FAILED: ${reason}`);
    process.exit(1);
}
process.on('unhandledRejection', (error) => fail(`unhandled rejection: ${error && error.stack}`));

/** Waits for a promise, and says what was awaited when it does not come. */
function within(what, promise) {
    return new Promise((resolve) => {
        const timer = setTimeout(() => fail(`${what}: nothing after ${STEP / 1000} s`), STEP);
        promise.then((value) => {
            clearTimeout(timer);
            console.log(`ok: ${what}`);
            resolve(value);
        });
    });
}

function equal(what, found, expected) {
    if (JSON.stringify(found) !== JSON.stringify(expected)) {
        fail(`${what}: found ${JSON.stringify(found)}, expected ${JSON.stringify(expected)}`);
    }
}

const once = (emitter, name) => new Promise((resolve) => emitter.once(name, resolve));

/** A client of the host, with everything that it was told, in order. */
function join(uhst, hostId) {
    const socket = uhst.join(hostId);
    const client = { socket, messages: [], diagnostics: [], closed: 0, ready: once(socket, 'open') };
    socket.on('message', (message) => client.messages.push(message));
    socket.on('diagnostic', (text) => client.diagnostics.push(text));
    socket.on('close', () => (client.closed += 1));
    socket.on('error', (error) => fail(`a client had an error: ${error && error.message} (${error && error.name})`));
    return client;
}

async function until(what, condition) {
    await within(what, (async () => {
        while (!condition()) await new Promise((resolve) => setTimeout(resolve, 10));
    })());
}

async function main() {
    if (!relayUrl) fail('usage: node client.cjs RELAY_URL [OTHER_URL]');
    const uhst = new UHST({ relayUrl, debug: true });
    const other = new UHST({ relayUrl: otherUrl, debug: true });

    const host = uhst.host();
    host.on('error', (error) => fail(`the host had an error: ${error && error.message} (${error && error.name})`));
    const sockets = new Map(); // the host's end of each client, by client id
    const errors = []; // what went wrong on the host's ends
    const closed = []; // client ids, in the order in which they left
    host.on('connection', (socket) => {
        sockets.set(socket.remoteId, socket);
        let sent = Promise.resolve(); // one after the other: requests that run side by side may overtake each other
        socket.on('message', (message) => (sent = sent.then(() => socket.send(`echo: ${message}`))));
        socket.on('error', (error) => errors.push(error));
        socket.on('close', () => closed.push(socket.remoteId));
    });
    await within('the host is ready', once(host, 'ready'));
    if (!/^\d{6}$/.test(host.hostId)) fail(`the host id ${host.hostId} is not six digits`);

    // An id in use, and one that nobody has, are told apart by name.
    const rival = uhst.host(host.hostId);
    const refused = await within('a second host with the id is refused', once(rival, 'error'));
    if (!(refused instanceof HostIdAlreadyInUse)) fail(`the second host got ${refused && refused.name}`);
    const lost = other.join('nobody-has-this-id');
    const unknown = await within('joining an unknown host is refused', once(lost, 'error'));
    if (!(unknown instanceof InvalidHostId)) fail(`joining an unknown host got ${unknown && unknown.name}`);

    const clients = [0, 1, 2].map(() => join(other, host.hostId));
    await within('three clients are open', Promise.all(clients.map((client) => client.ready)));

    // Echo: each client hears the answers to its own messages, in order, and nobody else's.
    const words = (n) => ['first', 'zweite', '第三'].map((word) => `${word} from ${n}`);
    for (const [n, client] of clients.entries()) {
        for (const word of words(n)) await client.socket.send(word);
    }
    await until('every client has three echoes', () => clients.every((client) => client.messages.length >= 3));
    clients.forEach((client, n) => {
        equal(`the echoes of client ${n}`, client.messages, words(n).map((word) => `echo: ${word}`));
    });
    equal('connections that the host saw', sockets.size, 3);

    // Broadcast: everybody hears it, once.
    await host.broadcast('to all');
    await until('every client has the broadcast', () => clients.every((client) => client.messages.length >= 4));
    clients.forEach((client, n) => equal(`client ${n} heard`, client.messages.slice(3), ['to all']));

    // A client leaves: the host's end of it closes, and only that one; what is sent to it is refused.
    const ids = new Map(); // client number -> client id, learned by sending
    for (const [id, socket] of sockets) {
        await socket.send(`you are ${id}`);
    }
    await until('every client knows its id', () => clients.every((client) => client.messages.length >= 5));
    clients.forEach((client, n) => ids.set(n, client.messages[4].slice('you are '.length)));
    clients[0].socket.close();
    await until('the host learns that a client left', () => closed.length > 0);
    equal('who left', closed, [ids.get(0)]);
    await sockets.get(ids.get(0)).send('too late');
    await until('a message to it is refused', () => errors.length > 0);
    if (errors.length !== 1 || !(errors[0] instanceof InvalidClientOrHostId)) {
        fail(`sending to a client that left got ${errors.map((error) => error && error.name)}`);
    }

    // Life goes on for the others.
    await host.broadcast('to both');
    await until('the other two hear the next broadcast', () => clients.slice(1).every((client) => client.messages.length >= 6));
    equal('the client that left hears nothing more', clients[0].messages.length, 5);

    // The host leaves: both remaining clients close, because they were told so and not because a stream broke.
    host.disconnect();
    await until('both clients learn that the host left', () => clients.slice(1).every((client) => client.closed > 0));
    for (const n of [1, 2]) {
        equal(`client ${n} closed`, clients[n].closed, 1);
        if (!clients[n].diagnostics.includes('Host disconnected from relay.')) {
            fail(`client ${n} closed for another reason: ${clients[n].diagnostics.slice(-2).join(' | ')}`);
        }
    }
    console.log('PASSED');
    process.exit(0);
}

main().catch((error) => fail(error && error.stack));

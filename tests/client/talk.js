// A host and a client of the `uhst` package that send each other numbers, whatever happens to the relay. For a page (as a script) and for Node.
'use strict';

(() => {
    const WINDOW = 100; // so many numbers may be on their way to each

    const sleep = (ms) => new Promise((resolve) => setTimeout(resolve, ms));

    /** An EventSource that is `Source`, and counts its interruptions in `counts`. */
    const counted = (Source, counts) => class extends Source {
        constructor(...all) {
            super(...all);
            this.addEventListener('interrupted', () => (counts.interrupted += 1));
            this.addEventListener('resumed', () => (counts.resumed += 1));
        }
    };

    /** Lets them talk; `state` is what has happened so far, in values that can be handed out of a page. */
    async function talk(UHST, relayUrl, total) {
        const app = new UHST({ relayUrl });
        const state = { toHost: [], toClient: [], ended: [], failures: 0 };
        const within = (what, promise) => Promise.race([
            promise,
            sleep(60_000).then(() => Promise.reject(new Error(`${what}: nothing after 60 s`))),
        ]);
        const once = (emitter, name) => new Promise((resolve) => emitter.once(name, resolve));
        let gate, openGate, idle;
        let underway = 0;

        const host = app.host();
        host.on('error', (error) => state.ended.push(`the host: ${error && error.name}`));
        await within('the host', once(host, 'ready'));
        const connection = new Promise((resolve) => host.once('connection', (guest) => {
            // At once: the message that it came with follows.
            guest.on('close', () => state.ended.push("the host's end of the client"));
            guest.on('message', (text) => state.toHost.push(Number(text)));
            resolve(guest);
        }));
        const client = app.join(host.hostId);
        await within('the client', once(client, 'open'));
        client.on('close', () => state.ended.push('the client'));
        client.on('message', (text) => state.toClient.push(Number(text)));
        // The host hears of its client with the first message.
        const sentHello = client.send('0');
        const guest = await within('the connection', connection);
        await sentHello;

        /** One after the other: requests side by side may overtake each other. What was refused is sent again. */
        async function sendAll(socket, from, arrived) {
            let failure;
            socket.on('error', (error) => (failure = error));
            for (let number = from; number < total; ) {
                while (gate || number - arrived.length >= WINDOW) await (gate ?? sleep(5));
                failure = undefined;
                underway += 1;
                await socket.send(String(number));
                underway -= 1;
                if (underway === 0) idle?.();
                if (failure) {
                    state.failures += 1;
                    await sleep(20);
                } else {
                    number += 1;
                }
            }
        }
        sendAll(client, 1, state.toHost);
        sendAll(guest, 0, state.toClient);
        return {
            state,
            arrived: () => state.toHost.length + state.toClient.length,
            /** From now on nobody sends; resolves when no request is on its way. */
            hold: async () => {
                gate = new Promise((resolve) => (openGate = resolve));
                if (underway > 0) await new Promise((resolve) => (idle = resolve));
            },
            release: () => {
                gate = undefined;
                openGate();
            },
            leave: () => {
                client.close();
                host.disconnect();
            },
        };
    }

    /** What a stream behind `Resumable` tells of a server that does everything wrong once, see moody() in relays.cjs. */
    async function listenToMoody(Resumable, url) {
        const heard = [];
        const source = new Resumable(`${url}/?token=t`);
        source.onopen = () => heard.push('open');
        source.onerror = () => heard.push('error');
        source.onmessage = ({ data }) => heard.push(data);
        source.addEventListener('resumed', () => heard.push('resumed'));
        source.addEventListener('relay_event', ({ data }) => heard.push(`event ${data}`));
        for (let rounds = 0; rounds < 6000 && heard.at(-1) !== 'event last'; rounds++) await sleep(10);
        source.close();
        return heard;
    }

    Object.assign(globalThis, { talk, counted, listenToMoody });
    if (typeof module !== 'undefined') module.exports = { talk, counted, listenToMoody };
})();

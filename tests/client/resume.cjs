// The published `uhst` client behind deploy/examples/resume.js, while its relay is killed again and again.
//
//     node resume.cjs serve PROGRAM DATA      RELAY_GRACE is 60 in the settings
//     node resume.cjs cgi URL FOLDER          FOLDER/cgi-bin/relay.cgi is the program
//
// Says PASSED and exits with 0 when all is well, else with 1 and the first thing that is not.
'use strict';

const { EventSource } = require('eventsource');
const { UHST } = require('uhst/uhst.umd.js');
const { resumable } = require('../../deploy/examples/resume.js');
const { talk, counted, listenToMoody } = require('./talk.js');
const { relayOf, interrupted, check, moody, sleep, until } = require('./relays.cjs');

const [KILLS, TOTAL, GRACE] = [10, 1000, 60];

async function nothingIsLost(relay) {
    const counts = { interrupted: 0, resumed: 0 };
    globalThis.EventSource = counted(resumable(EventSource, GRACE), counts);
    const parties = await talk(UHST, relay.url, TOTAL);
    const state = () => ({ ...parties.state, counts });
    check(await interrupted(relay, { ...parties, state }, KILLS, TOTAL), KILLS, TOTAL);
    parties.leave();
}

async function everyFaultIsHidden() {
    const server = await moody();
    server.check(await listenToMoody(resumable(EventSource, GRACE), server.url));
    server.end();
}

/** What the client does by itself, and what it does when the time is over. */
async function itEnds(relay, Source, atLeast) {
    globalThis.EventSource = Source;
    const { state } = await talk(UHST, relay.url, 1);
    await relay.kill();
    const start = Date.now();
    await until('both have noticed', () => state.ended.length >= 2);
    const took = Date.now() - start;
    if (took < atLeast) throw new Error(`it ended after ${took} ms, not ${atLeast}`);
    await relay.start();
}

async function main() {
    const relay = await relayOf(process.argv.slice(2));
    await nothingIsLost(relay);
    if (relay.kill) {
        await itEnds(relay, EventSource, 0);
        await itEnds(relay, resumable(EventSource, 1), 950);
        await everyFaultIsHidden();
    }
    await relay.end();
    await sleep(10);
    console.log('PASSED');
}

const fail = (error) => {
    console.error(`FAILED: ${error && error.stack}`);
    process.exit(1);
};
setTimeout(() => fail(new Error('not done after 150 s')), 150_000).unref();
process.on('unhandledRejection', fail);
main().then(() => process.exit(0), fail);

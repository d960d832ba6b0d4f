// As tests/client/resume.cjs, with Chromium's own EventSource, for several relays at once.
//
//     node resume.mjs serve PROGRAM DATA -- cgi URL FOLDER
//
// Says PASSED and exits with 0 when all is well, else with 1 and the first thing that is not. CHROMIUM names another browser than
// /usr/bin/chromium.

import http from 'node:http';
import { createRequire } from 'node:module';
import { fileURLToPath } from 'node:url';
import { chromium } from 'playwright-core';

const require = createRequire(import.meta.url);
const { relayOf, interrupted, check, moody } = require('../client/relays.cjs');

const [KILLS, TOTAL, GRACE] = [10, 1000, 60];
const LIMIT = 150_000; // ms for everything

const scripts = [
    require.resolve('uhst/uhst.min.js'),
    ...['../../deploy/examples/resume.js', '../client/talk.js'].map((file) => fileURLToPath(new URL(file, import.meta.url))),
];

/** A page of another origin than the relay's, with the scripts in it. */
async function pageWithScripts(browser) {
    const site = http.createServer((_, answer) => {
        answer.writeHead(200, { 'Content-Type': 'text/html' }).end('<!doctype html><title>App</title><link rel="icon" href="data:,">');
    });
    await new Promise((resolve) => site.listen(0, '127.0.0.1', resolve));
    const page = await (await browser.newContext()).newPage();
    await page.goto(`http://127.0.0.1:${site.address().port}/`);
    for (const path of scripts) await page.addScriptTag({ path });
    site.closeAllConnections();
    site.close();
    return page;
}

async function nothingIsLost(browser, kind) {
    const relay = await relayOf(kind);
    const page = await pageWithScripts(browser);
    await page.evaluate(async ([url, total, grace]) => {
        window.counts = { interrupted: 0, resumed: 0 };
        window.EventSource = counted(resumable(EventSource, grace), window.counts);
        window.parties = await talk(uhst.UHST, url, total);
    }, [relay.url, TOTAL, GRACE]);
    const parties = {
        arrived: () => page.evaluate(() => window.parties.arrived()),
        hold: () => page.evaluate(() => window.parties.hold()),
        release: () => page.evaluate(() => window.parties.release()),
        state: () => page.evaluate(() => ({ ...window.parties.state, counts: window.counts })),
    };
    check(await interrupted(relay, parties, KILLS, TOTAL), KILLS, TOTAL);
    await page.close();
    await relay.end();
}

async function everyFaultIsHidden(browser) {
    const server = await moody();
    const page = await pageWithScripts(browser);
    server.check(await page.evaluate(([url, grace]) => listenToMoody(resumable(EventSource, grace), url), [server.url, GRACE]));
    await page.close();
    server.end();
}

async function look(what, task) {
    try {
        await task();
        console.log(`ok: ${what}`);
    } catch (error) {
        throw new Error(`${what}: ${error.message}`);
    }
}

let browser;

async function main() {
    const kinds = process.argv.slice(2).join(' ').split(' -- ').map((kind) => kind.split(' '));
    browser = await chromium.launch({
        executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
        args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-sync'],
    });
    await Promise.all([
        ...kinds.map((kind) => look(`nothing is lost through ${kind[0]}`, () => nothingIsLost(browser, kind))),
        look('every fault is hidden', () => everyFaultIsHidden(browser)),
    ]);
    console.log('PASSED');
}

async function finish(status) {
    // The browser ends with this process if it does not by itself.
    await Promise.race([browser?.close(), new Promise((resolve) => setTimeout(resolve, 5000))]);
    process.exit(status);
}

setTimeout(() => {
    console.error(`FAILED: not done after ${LIMIT / 1000} s`);
    finish(1);
}, LIMIT).unref();

main().then(() => finish(0), (error) => {
    console.error(`FAILED: ${error.message}`);
    finish(1);
});

// Two tabs of headless Chromium in a chat, and a word from the shell.
//
//     node chat.mjs RELAY_URL COMMAND…      the relay's handler is deploy/examples/chat.py; COMMAND gives lines to the channel "room"
//
// Says PASSED and exits with 0 when everything is as it should be, else with 1 and the first thing that is not. CHROMIUM
// names another browser than /usr/bin/chromium.

import { spawn } from 'node:child_process';
import { chromium } from 'playwright-core';

const LIMIT = 120_000; // ms for everything
const [relay, command, ...rest] = process.argv.slice(2);

if (!command) {
    console.error('usage: node chat.mjs RELAY_URL COMMAND…');
    process.exit(2);
}
const timer = setTimeout(() => {
    console.error(`not done after ${LIMIT} ms`);
    process.exit(1);
}, LIMIT);

/** A tab with a WebSocket in it, and everything it has heard. */
async function tab(context, name) {
    const page = await context.newPage();
    await page.goto(relay);
    await page.evaluate(
        ([url, name]) =>
            new Promise((resolve, reject) => {
                window.heard = [];
                window.socket = new WebSocket(`${url.replace(/^http/, 'ws').replace(/\/$/, '')}/ws/room?name=${name}`);
                window.socket.onopen = resolve;
                window.socket.onerror = () => reject(new Error('no connection'));
                window.socket.onmessage = ({ data }) => window.heard.push(data);
                window.socket.onclose = ({ code, wasClean }) => window.heard.push(`closed ${code} ${wasClean}`);
            }),
        [relay, name],
    );
    return {
        say: (text) => page.evaluate((text) => window.socket.send(text), text),
        hears: (text) => page.waitForFunction((text) => window.heard.includes(text), text),
        leave: () => page.evaluate(() => window.socket.close(1000, 'bye')),
    };
}

function notify(line) {
    return new Promise((resolve, reject) => {
        const child = spawn(command, rest, { stdio: ['pipe', 'inherit', 'inherit'] });
        child.on('error', reject);
        child.on('exit', (code) => (code === 0 ? resolve() : reject(new Error(`${command} has ended with ${code}`))));
        child.stdin.end(`${line}\n`);
    });
}

const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-dev-shm-usage'],
});
try {
    const context = await browser.newContext();
    const anna = await tab(context, 'Anna');
    const bert = await tab(context, 'Bert');
    await anna.hears('* Bert has come');
    await anna.say('hello, Bert \u{1f600}');
    await Promise.all([anna, bert].map((one) => one.hears('Anna: hello, Bert \u{1f600}')));
    await bert.say('x'.repeat(9000));
    await Promise.all([anna, bert].map((one) => one.hears(`Bert: ${'x'.repeat(9000)}`)));
    await notify('the shop closes');
    await Promise.all([anna, bert].map((one) => one.hears('the shop closes')));
    await bert.leave();
    await bert.hears('closed 1000 true');
    await anna.hears('* Bert has left');
    console.log('PASSED');
} catch (error) {
    console.error(error.message);
    process.exitCode = 1;
} finally {
    await browser.close();
    clearTimeout(timer);
}

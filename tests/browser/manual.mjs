// Runs programs of the manuals in a page of another origin, each as a module.
//
//     node manual.mjs RELAY_URL FILE      FILE: [{"line", "code", "says"}]; "…" in what it says is any text
//
// Says PASSED and exits with 0 when each has said what it should and nothing went wrong, else with 1 and what did.

import { readFileSync } from 'node:fs';
import { createServer } from 'node:http';
import { chromium } from 'playwright-core';

const STEP = 30_000; // ms for a program; slowness is no fault, a hang is
const [relay, file] = process.argv.slice(2);
const programs = JSON.parse(readFileSync(file, 'utf8'));

const address = new URL(relay);
const at = (code) =>
    code
        .replaceAll('https://example.org/cgi-bin/relay.cgi', relay.replace(/\/$/, ''))
        .replaceAll('wss://example.org/cgi-bin/relay.cgi', `ws://${address.host}${address.pathname.replace(/\/$/, '')}`);

/** A line of a manual as a pattern. */
const pattern = (line) =>
    new RegExp(`^${line.split('…').map((piece) => piece.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')).join('.*')}$`);

const server = createServer((request, response) => {
    const program = programs[Number(new URL(request.url, 'http://page').searchParams.get('program'))];
    response.setHeader('Content-Type', 'text/html; charset=utf-8');
    response.end(program ? `<!doctype html><title>A manual</title><script type="module">\n${at(program.code)}</script>` : '');
});
await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));

const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-dev-shm-usage'],
});
let failed = false;
for (const [number, { line, says }] of programs.entries()) {
    const expected = says.split('\n').filter(Boolean).map(pattern);
    const page = await browser.newPage();
    const said = [];
    const wrong = [];
    page.on('console', (message) => (message.type() === 'error' ? wrong : said).push(message.text()));
    page.on('pageerror', (error) => wrong.push(String(error)));
    await page.goto(`http://127.0.0.1:${server.address().port}/?program=${number}`);
    const isDone = () => expected.every((line) => said.some((text) => line.test(text)));
    const until = Date.now() + STEP;
    // Those that say nothing get a moment in which they may fail.
    const atLeast = Date.now() + 1_000;
    while (!wrong.length && Date.now() < until && (!isDone() || (!says && Date.now() < atLeast))) {
        await new Promise((resolve) => setTimeout(resolve, 20));
    }
    if (wrong.length || !isDone()) {
        console.error(`line ${line}: ${wrong.join('; ') || 'it did not say what it should'}; it said: ${said.join(' | ')}`);
        failed = true;
    }
    await page.close();
}
await browser.close();
server.close();
if (failed) {
    process.exitCode = 1;
} else {
    console.log('PASSED');
}

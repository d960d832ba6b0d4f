// The relay's page in headless Chromium, and the published client in a page of another origin.
//
//     node page.mjs RELAY_URL SERVER [FOLDER]
//
// SERVER is the web server as the page names it (lighttpd, serve). Screenshots are put into FOLDER, if there is one.
//
// Exits with 0 when everything is as it should be, else with 1 and the first thing that is not. CHROMIUM names another
// browser than /usr/bin/chromium.

import { execFile } from 'node:child_process';
import { mkdir, readFile } from 'node:fs/promises';
import http from 'node:http';
import { createRequire } from 'node:module';
import path from 'node:path';
import { promisify } from 'node:util';
import { chromium } from 'playwright-core';
import { faultyProxy } from './faults.mjs';

const MESSAGES = 30; // what the page draws
const ALL = 50; // what it sends
const LIMIT = 180_000; // ms for everything
const [relay, software, shots] = process.argv.slice(2);

if (!relay || !software) {
    console.error('usage: node page.mjs RELAY_URL SERVER [FOLDER]');
    process.exit(2);
}

function insist(condition, sentence) {
    if (!condition) throw new Error(sentence);
}

/** What a page must never do: write errors to its console, or talk to others. */
function guard(page, origin) {
    const faults = [];
    page.on('console', (message) => {
        // The page looks whether these are refused, and a browser says so when they are.
        if (/\/data\/(secret|index\.html)$/.test(message.location().url)) return;
        if (['error', 'warning'].includes(message.type())) faults.push(`console: ${message.text()}`);
    });
    page.on('pageerror', (error) => faults.push(`exception: ${error.message}`));
    page.on('request', (request) => {
        const url = new URL(request.url());
        if (url.protocol !== 'data:' && url.origin !== origin) faults.push(`request to ${url}`);
    });
    return () => insist(faults.length === 0, faults.join('\n'));
}

const state = (page) => page.locator('#test').getAttribute('data-state');

/** Presses the button; gives how the test ended and what the page says then. */
async function test(page) {
    await page.click('#start');
    await page.waitForSelector('#test:not([data-state=running]):not([data-state=ready])', { timeout: 60_000 });
    return { state: await state(page), verdict: await page.innerText('#verdict') };
}

async function fits(page, what) {
    const [content, screen] = await page.evaluate(() => [document.documentElement.scrollWidth, document.documentElement.clientWidth]);
    insist(content <= screen, `${what}: ${content} px wide on a screen of ${screen} px`);
}

async function shoot(page, name) {
    if (shots) await page.screenshot({ path: path.join(shots, `${name}.png`), fullPage: true });
}

// ---- What is looked at

async function withoutHtmlItIsTheRelay() {
    for (const accept of ['*/*', 'application/json', 'text/event-stream']) {
        const answer = await fetch(relay, { headers: { Accept: accept } });
        insist(answer.status === 401, `GET with Accept: ${accept} got ${answer.status}`);
        const { error } = await answer.json();
        insist(/^This is uhst-relay [\d.]+( \([0-9a-f]+\))?, .*open this URL in a browser/.test(error), `Accept: ${accept} got ${error}`);
    }
}

async function theAnswerIsLockedDown() {
    for (const method of ['GET', 'HEAD']) {
        const answer = await fetch(relay, { method, headers: { Accept: 'text/html' } });
        const policy = answer.headers.get('content-security-policy') || '';
        insist(answer.status === 200, `${method} got ${answer.status}`);
        insist(answer.headers.get('content-type') === 'text/html; charset=utf-8', `${method}: not HTML`);
        insist(answer.headers.get('cache-control') === 'no-store', `${method}: may be stored`);
        insist(policy.startsWith("default-src 'none'") && !policy.includes('unsafe'), `${method}: policy is ${policy}`);
    }
}

async function itLoadsTestsItselfAndDraws(browser) {
    const origin = new URL(relay).origin;
    const context = await browser.newContext({ viewport: { width: 1100, height: 900 } });
    await context.grantPermissions(['clipboard-read', 'clipboard-write'], { origin });
    const page = await context.newPage();
    const open = new Set();
    page.on('request', (request) => open.add(request));
    page.on('requestfinished', (request) => open.delete(request));
    page.on('requestfailed', (request) => open.delete(request));
    const check = guard(page, origin);
    await page.goto(relay);
    insist(await page.innerText('#summary') === 'This relay is healthy.', `it says ${await page.innerText('#summary')}`);
    await page.waitForSelector('#private.ok');
    insist(await page.locator('.health li.ok').count() === 6, 'not six checks are passed');
    insist(await page.locator('.health li.bad').count() === 0, 'a check is not passed');
    insist(/uhst-relay \d+\.\d+\.\d+/.test(await page.innerText('footer')), 'it does not say its version');
    insist(await page.inputValue('#url') === relay, `the URL to use is ${await page.inputValue('#url')}`);
    insist((await page.innerText('#sample')).includes(`relayUrl: "${relay}"`), 'the sample has another URL');
    await page.click('#copy');
    await page.waitForSelector('#copied:not([hidden])');
    const copied = await page.evaluate(() => navigator.clipboard.readText());
    insist(copied === relay, `copied was ${copied}`);
    for (const time of ['first', 'second']) {
        const { state, verdict } = await test(page);
        insist(state === 'passed', `the ${time} test ${state}: ${verdict}`);
        const measured = new RegExp(`^It works: ${ALL} of ${ALL} messages came back in order, .* the slowest after [\\d.]+ ms\\.`);
        insist(measured.test(verdict), `the verdict is ${verdict}`);
        insist(await page.locator('#chart .bar').count() === MESSAGES, 'it drew another number of messages');
        insist(/^[\d.]+ ms$/.test(await page.innerText('#half')), 'there is no median');
        insist(await page.locator('#streams.ok').count() === 1, 'the streams are not found good');
    }
    insist(await page.innerText('#summary') === 'This relay is healthy.', 'it is not healthy after the test');
    await shoot(page, 'light');
    await page.setViewportSize({ width: 600, height: 900 });
    await page.waitForTimeout(100);
    const farthest = await page.locator('#chart .bar').last().getAttribute('x');
    insist(await page.locator('#chart .bar').count() === MESSAGES && farthest < 600, 'it does not fit a smaller window');
    await page.waitForTimeout(500);
    insist(open.size === 0, `the test has left open: ${[...open].map((request) => request.url()).join(' ')}`);
    check();
    await context.close();
}

async function itFitsEveryScreen(browser) {
    for (const colorScheme of ['light', 'dark']) {
        for (const width of [320, 390, 768]) {
            const context = await browser.newContext({ viewport: { width, height: 740 }, colorScheme, deviceScaleFactor: 2 });
            const page = await context.newPage();
            const check = guard(page, new URL(relay).origin);
            await page.goto(relay);
            await fits(page, `${colorScheme}, before the test`);
            const { state, verdict } = await test(page);
            insist(state === 'passed', `the test ${state}: ${verdict}`);
            await fits(page, `${colorScheme}, after the test`);
            if (width === 390) await shoot(page, colorScheme === 'light' ? 'phone' : 'phone-dark');
            if (width === 768 && colorScheme === 'dark') await shoot(page, 'dark');
            const [text, back] = await page.evaluate(() => {
                const style = getComputedStyle(document.body);
                return [style.color, style.backgroundColor].map((color) => Math.max(...color.match(/\d+/g).map(Number)));
            });
            insist(colorScheme === 'light' ? text < back : text > back, `${colorScheme} is not ${colorScheme}`);
            check();
            await context.close();
        }
    }
}

async function itIsReadWithoutJavaScript(browser) {
    const context = await browser.newContext({ javaScriptEnabled: false });
    const page = await context.newPage();
    await page.goto(relay);
    const text = await page.innerText('body');
    insist(text.includes('This relay is healthy.') && text.includes('The test needs JavaScript.'), text);
    await context.close();
}

async function aDeviceWithAWrongClockIsTold(browser) {
    const context = await browser.newContext();
    await context.addInitScript(() => {
        const now = Date.now;
        Date.now = () => now() - 600_000;
    });
    const page = await context.newPage();
    await page.goto(relay);
    const text = await page.innerText('.health');
    insist(text.includes('The clocks of the relay and of this device are 10 minutes apart.'), text);
    await context.close();
}

/** The five ways: each line on the page does what it says, as it stands there. */
async function everyWayWorksAsPrinted(browser) {
    const context = await browser.newContext();
    const page = await context.newPage();
    const heard = [];
    await page.goto(relay);
    const sample = (name) => page.locator(`#sample${name}`).textContent();
    const url = relay.replace(/\/$/, '');
    const run = (line) => promisify(execFile)('sh', ['-c', `${line.replace(/^curl/, 'curl --silent --show-error --max-time 20')}`]);
    insist((await sample('')).includes(`relayUrl: "${relay}"`), 'the first way has another URL');

    const empty = await context.newPage();
    empty.on('console', (message) => message.type() === 'log' && heard.push(message.text()));
    await empty.goto(`${url}/frontend/relay_up_check`);
    await empty.evaluate(() => {
        window.made = [];
        for (const name of ['EventSource', 'WebSocket']) {
            window[name] = class extends window[name] {
                constructor(...all) {
                    super(...all);
                    window.made.push(this);
                }
            };
        }
    });
    const opens = async (line) => {
        await empty.evaluate(line);
        await empty.waitForFunction(() => window.made.at(-1).readyState === 1);
    };
    await opens(await sample('-bus'));
    const { user } = JSON.parse((await run(await sample('-hello'))).stdout);
    const posted = await fetch(`${url}/bus/room?user=${user}`, { method: 'POST', body: '"hello"' });
    insist(posted.status === 200, `a post got ${posted.status}`);
    for (const start = Date.now(); !heard.some((text) => text.includes('hello')); await empty.waitForTimeout(20)) {
        insist(Date.now() - start < 20_000, `nobody on the bus hears: ${heard}`);
    }
    const pipe = (await run(await sample('-pipe'))).stdout;
    insist(/ 201 /.test(pipe) && /^location: .*\/cama\/session\/./im.test(pipe), `a pipe got ${pipe}`);
    const servers = JSON.parse((await run(await sample('-servers'))).stdout);
    insist(Array.isArray(servers.servers), `the servers are ${JSON.stringify(servers)}`);
    const socket = await sample('-socket');
    insist(socket.includes(`"${url.replace(/^http/, 'ws')}/ws/room"`), `the socket is ${socket}`);
    await opens(socket);
    insist(await page.locator('a[href="?page=chat"]').count() === 1, 'there is no way to the chat');
    const guests = new URL(await page.locator('#uhst').evaluate((link) => link.href));
    // Not beside the relay: what is in a cgi-bin is run, and not shown.
    insist(guests.href === `${new URL(relay).origin}/uhst.html?relay=${encodeURIComponent(url)}`, `the guests are at ${guests}`);
    await context.close();
}

/** An error, and the list of servers, in a browser: pages of the same look, with the sentence that programs get. */
async function errorsArePagesToo(browser) {
    const context = await browser.newContext({ viewport: { width: 800, height: 600 } });
    const page = await context.newPage();
    const url = relay.replace(/\/$/, '');
    for (const [what, status] of [
        ['/nowhere', 404], ['/bus/a/b', 404], ['/cama/session/none', 404], ['/frontend/servers/none/', 404],
        ['/ws/room', 426], ['?token=bad', 401], ['?action=none', 400],
    ]) {
        const { error } = await (await fetch(url + what)).json();
        const answer = await page.goto(url + what);
        // Where the web server hands no upgrade on, it is 501.
        insist(answer.status() === status || (status === 426 && answer.status() === 501), `${what} got ${answer.status()}`);
        const text = await page.innerText('main');
        insist(text.includes(error) && text.includes(String(answer.status())), `${what} shows ${text}, not ${error}`);
        insist(answer.headers()['content-security-policy'].startsWith("default-src 'none'"), `${what} has no policy`);
        await fits(page, what);
        if (what === '/nowhere') await shoot(page, 'error');
        await page.click('main a');
        await page.waitForSelector('#summary');
    }
    const answer = await page.goto(`${url}/frontend/servers/`);
    insist(answer.status() === 200 && (await page.innerText('main')).includes('Servers'), 'there is no list of servers');
    const back = await page.evaluate(() => getComputedStyle(document.querySelector('section')).borderRadius);
    insist(back !== '0px', 'the list has another look');
    await shoot(page, 'servers');
    await context.close();
}

/** What a stranger can read of the data folder turns the banner red, whatever else is fine. */
async function aPublishedDataFolderTurnsItRed(browser) {
    for (const fault of ['publishes the data folder', 'publishes the secret']) {
        const proxy = await faultyProxy(relay, fault);
        const context = await browser.newContext({ viewport: { width: 800, height: 900 } });
        try {
            const page = await context.newPage();
            await page.goto(proxy.url);
            await page.waitForSelector('#private.bad');
            insist(await page.innerText('#summary') === 'This relay has a problem.', `the banner is ${await page.innerText('#summary')}`);
            const said = await page.innerText('#private');
            insist(said.includes('data/secret') && said.includes(CURE_OF_PUBLISHED), `it says ${said}`);
            await namesNoOtherServer(page, said);
            const { state } = await test(page);
            insist(state === 'passed', `the test ${state}`);
            insist(await page.innerText('#summary') === 'This relay has a problem.', 'a passed test has made it healthy');
            await shoot(page, 'red');
        } finally {
            await context.close();
            proxy.end();
        }
    }
}

const isLighttpd = software === 'lighttpd';
const CURE_OF_PUBLISHED = isLighttpd ? 'lighttpd/relay.conf' : 'the proxy in front';
const BUSY = isLighttpd ? 'server.max-connections' : 'RELAY_MAX_CONNECTIONS';

/** A cure for another server is none. */
async function namesNoOtherServer(page, said) {
    for (const other of ['Apache', 'lighttpd', 'nginx', 'thttpd', 'mini_httpd', 'fcgiwrap'].filter((name) => name !== software)) {
        insist(!said.includes(other), `'${other}' is named under ${software}: ${said}`);
    }
}

/** What the page says of each fault: how the test ends, and what the sentence and its cures contain. */
const SAID = {
    'none': ['passed', 'It works'],
    'holds streams back': ['failed', 'did not open within 12 s', isLighttpd ? 'server.stream-response-body = 1' : 'proxy'],
    'opens streams late': ['failed', 's to open: something holds it back', 'CDN'],
    'sends in lumps': ['failed', 'arrive in lumps', isLighttpd ? 'server.stream-response-body = 1' : 'proxy'],
    'delays every event': ['slow', 'each event is held back by', 'proxy'],
    'cuts streams': ['failed', 'stream was cut after', 'RELAY_KEEP_ALIVE'],
    'cuts streams after 3 s': ['failed', 'stream was cut after 3.', 'RELAY_KEEP_ALIVE'],
    'loses a message': ['failed', 'Message 5 was lost on its way', 'in between'],
    'repeats a message': ['failed', 'Message 5 came twice', 'in between'],
    'swaps messages': ['failed', 'out of order', 'in between'],
    'answers streams with a page': ['failed', 'comes from the web server or something in between', isLighttpd ? 'relay.conf' : 'in between answers'],
    'refuses streams': ['failed', '(503) comes from the web server', BUSY],
    'answers with its own error': ['failed', '(500) comes from the web server', isLighttpd ? 'chmod 755' : 'proxy in front'],
    'has a full disk': ['failed', 'The relay answers with 507: The disk is full.', 'Make room'],
    'answers nothing while streams are open': ['failed', 'not answered within 5 s', BUSY],
    'is gone': ['failed', 'cannot be reached', 'online'],
};

async function itNamesTheCureFor(fault, browser) {
    const proxy = await faultyProxy(relay, fault);
    const context = await browser.newContext({ viewport: { width: 800, height: 900 } });
    try {
        const page = await context.newPage();
        await page.goto(proxy.url);
        insist(await page.inputValue('#url') === proxy.url, `the URL to use is ${await page.inputValue('#url')}`);
        if (fault === 'cuts streams after 3 s') await page.check('#watch');
        const [wanted, ...words] = SAID[fault];
        const { state, verdict } = await test(page);
        insist(state === wanted, `the test ${state}: ${verdict}`);
        for (const word of words) insist(verdict.includes(word), `'${word}' is not in: ${verdict}`);
        await namesNoOtherServer(page, verdict);
        const [banner, colour] = await page.evaluate(() => [document.getElementById('summary').textContent.trim(), document.getElementById('summary').className]);
        const worst = { passed: 'ok', slow: 'warn', failed: 'bad' }[state];
        insist(colour === worst, `the banner is ${colour} (${banner}) after a test that ${state}`);
        insist(await page.locator('#start').isEnabled(), 'there is no second try');
        if (fault === 'delays every event') await shoot(page, 'warn');
    } finally {
        await context.close();
        proxy.end();
    }
}

async function theClientWorksFromAnotherOrigin(browser) {
    const library = await readFile(createRequire(import.meta.url).resolve('uhst/uhst.min.js'));
    const server = http.createServer((request, response) => {
        if (request.url === '/') {
            response.writeHead(200, { 'Content-Type': 'text/html' });
            response.end('<!doctype html><title>App</title><link rel="icon" href="data:,"><script src="uhst.js"></script>');
        } else {
            response.writeHead(200, { 'Content-Type': 'text/javascript' }).end(library);
        }
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    const context = await browser.newContext();
    try {
        const page = await context.newPage();
        const faults = [];
        page.on('console', (message) => message.type() === 'error' && faults.push(message.text()));
        page.on('pageerror', (error) => faults.push(error.message));
        await page.goto(`http://127.0.0.1:${server.address().port}/`);
        const heard = await page.evaluate(async (relayUrl) => {
            const within = (what, promise) => Promise.race([
                promise,
                new Promise((_, reject) => setTimeout(() => reject(new Error(`${what}: nothing after 20 s`)), 20_000)),
            ]);
            const app = new uhst.UHST({ relayUrl });
            const host = app.host();
            const failed = new Promise((_, reject) => host.on('error', reject));
            // One after the other: requests side by side may overtake each other.
            let turn = Promise.resolve();
            host.on('connection', (socket) => socket.on('message', (message) => {
                turn = turn.then(() => socket.send(`echo: ${message}`));
            }));
            await within('the host', Promise.race([failed, new Promise((resolve) => host.once('ready', resolve))]));
            const client = app.join(host.hostId);
            client.on('error', (error) => console.error(String(error)));
            await within('the client', new Promise((resolve) => client.once('open', resolve)));
            const heard = [];
            const all = new Promise((resolve) => client.on('message', (message) => heard.push(message) === 4 && resolve()));
            for (const word of ['one', 'zwei', '三']) await client.send(word);
            await within('three echoes', (async () => {
                while (heard.length < 3) await new Promise((resolve) => setTimeout(resolve, 5));
            })());
            await host.broadcast('to all');
            await within('the broadcast', all);
            client.close();
            host.disconnect();
            return heard;
        }, relay);
        insist(JSON.stringify(heard) === '["echo: one","echo: zwei","echo: 三","to all"]', `it heard ${JSON.stringify(heard)}`);
        insist(faults.length === 0, faults.join('\n'));
    } finally {
        await context.close();
        server.closeAllConnections();
        server.close();
    }
}

/** As the README has it: a token in a header field, because a browser refuses the cookies of third parties. */
async function aPipeWorksFromAnotherOrigin(browser) {
    const server = http.createServer((_, answer) => answer.end('<!doctype html>'));
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    const context = await browser.newContext();
    try {
        const page = await context.newPage();
        await page.goto(`http://127.0.0.1:${server.address().port}/`);
        const got = await page.evaluate(async (relay) => {
            const made = await fetch(`${relay}/cama/session`, { method: 'PUT' });
            const url = new URL(made.headers.get('Location'), relay);
            const headers = { Token: made.headers.get('Token') };
            const receiving = fetch(url, { headers: { ...headers, 'X-Timeout': '20' } });
            const sent = await fetch(url, { method: 'POST', body: new Blob(['für dich'], { type: 'text/plain' }) });
            const received = await receiving;
            const deleted = await fetch(url, { method: 'DELETE', headers });
            return [
                await received.text(), received.headers.get('Content-Type'), sent.headers.get('X-Bytes-Delivered'),
                made.headers.get('X-Type'), deleted.status,
            ];
        }, relay.replace(/\/$/, ''));
        insist(JSON.stringify(got) === '["für dich","text/plain","9","basic",200]', `it got ${JSON.stringify(got)}`);
    } finally {
        await context.close();
        server.closeAllConnections();
        server.close();
    }
}

// ---- All of it

let browser;

async function look(what, task) {
    try {
        await task();
        console.log(`ok: ${what}`);
    } catch (error) {
        throw new Error(`${what}: ${error.message}`);
    }
}

async function main() {
    if (shots) await mkdir(shots, { recursive: true });
    // Without a list of its own, each test has a profile that nobody has used.
    browser = await chromium.launch({
        executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
        args: [
            '--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking',
            '--disable-component-update', '--disable-sync',
        ],
    });
    await look('who does not ask for HTML gets the relay', withoutHtmlItIsTheRelay);
    await look('the page may load nothing and is not stored', theAnswerIsLockedDown);
    await look('the page loads, tests itself and draws', () => itLoadsTestsItselfAndDraws(browser));
    await look('it fits every screen, light and dark', () => itFitsEveryScreen(browser));
    await look('every way works as printed', () => everyWayWorksAsPrinted(browser));
    await look('errors are pages too', () => errorsArePagesToo(browser));
    await look('a published data folder turns it red', () => aPublishedDataFolderTurnsItRed(browser));
    await look('it can be read without JavaScript', () => itIsReadWithoutJavaScript(browser));
    await look('a device with a wrong clock is told', () => aDeviceWithAWrongClockIsTold(browser));
    await look('the uhst client works from another origin', () => theClientWorksFromAnotherOrigin(browser));
    await look('a pipe works from another origin', () => aPipeWorksFromAnotherOrigin(browser));
    const faults = Object.keys(SAID).filter((fault) => fault !== 'none');
    await look('it works behind a proxy', () => itNamesTheCureFor('none', browser));
    // They mostly wait.
    await Promise.all(faults.map((fault) => (
        look(`a proxy that ${fault} is found out`, () => itNamesTheCureFor(fault, browser))
    )));
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

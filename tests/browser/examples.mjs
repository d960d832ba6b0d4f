// The pages of deploy/examples in headless Chromium, each in tabs of several people.
//
//     node examples.mjs RELAY_URL [PAGES_URL [FOLDER]]
//
// PAGES_URL is a folder of a web site in which the pages are, beside a relay or its cgi-bin; without it, or with -, they come from another
// origin, and are told where the relay is. Puts screenshots into FOLDER, if there is one. Says PASSED and exits with 0 when everything
// is as it should be, else with 1 and the first thing that is not. CHROMIUM names another browser than /usr/bin/chromium.

import { execFile } from 'node:child_process';
import { randomBytes } from 'node:crypto';
import { mkdtemp, readFile, rm, writeFile } from 'node:fs/promises';
import http from 'node:http';
import { createRequire } from 'node:module';
import os from 'node:os';
import path from 'node:path';
import { fileURLToPath } from 'node:url';
import { promisify } from 'node:util';
import { chromium } from 'playwright-core';

const LIMIT = 150_000; // ms for everything
const [relay, pagesUrl = '-', shots] = process.argv.slice(2);
const examples = fileURLToPath(new URL('../../deploy/examples', import.meta.url));

if (!relay) {
    console.error('usage: node examples.mjs RELAY_URL [PAGES_URL [FOLDER]]');
    process.exit(2);
}

function insist(condition, sentence) {
    if (!condition) throw new Error(sentence);
}

/** The pages on a web site of their own. */
async function site() {
    const library = createRequire(import.meta.url).resolve('uhst/uhst.min.js');
    const server = http.createServer(async (request, answer) => {
        const name = path.basename(new URL(request.url, 'http://site').pathname);
        try {
            const content = await readFile(name === 'uhst.min.js' ? library : path.join(examples, name));
            answer.writeHead(200, { 'Content-Type': name.endsWith('.js') ? 'text/javascript' : 'text/html' }).end(content);
        } catch {
            answer.writeHead(404).end();
        }
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    return { url: `http://127.0.0.1:${server.address().port}/`, end: () => server.closeAllConnections() || server.close() };
}

/** A way to the relay that can be broken. */
async function breakable() {
    const target = new URL(relay);
    const way = { answers: 'relay' };
    const server = http.createServer((incoming, client) => {
        if (way.answers === 'nothing') return client.destroy();
        if (way.answers === '503') return client.writeHead(503, { 'Content-Type': 'text/html' }).end('<h1>Back soon</h1>');
        const outgoing = http.request({
            host: target.hostname, port: target.port, method: incoming.method, headers: incoming.headers,
            path: target.pathname.replace(/\/$/, '') + incoming.url,
        }, (answer) => {
            client.writeHead(answer.statusCode, answer.headers);
            client.flushHeaders();
            answer.on('error', () => client.destroy());
            answer.pipe(client);
        });
        outgoing.on('error', () => client.destroy());
        client.on('close', () => outgoing.destroy());
        incoming.pipe(outgoing);
    });
    await new Promise((resolve) => server.listen(0, '127.0.0.1', resolve));
    return Object.assign(way, {
        url: `http://127.0.0.1:${server.address().port}`,
        /** Cuts what there is, and from now on answers in this way. */
        break: (answers) => {
            way.answers = answers;
            server.closeAllConnections();
        },
        end: () => server.closeAllConnections() || server.close(),
    });
}

let browser, pages;
const run = randomBytes(3).toString('hex'); // rooms of its own: they remember the last minute

/** A person with a browser of their own, and what the page must never do: write errors to its console. */
async function person(url, { options = {}, mayFail = false, prepare } = {}) {
    const context = await browser.newContext({ viewport: { width: 900, height: 700 }, acceptDownloads: true, ...options });
    if (prepare) await context.addInitScript(prepare);
    const page = await context.newPage();
    const faults = [];
    page.on('pageerror', (error) => faults.push(`exception: ${error.message}`));
    page.on('console', (message) => {
        // A page that looks for its relay asks where none is, too.
        const isSearch = /relay\.cgi\?action=ping/.test(message.location().url);
        if (message.type() === 'error' && !mayFail && !isSearch) faults.push(`${message.text()} ${message.location().url}`);
    });
    await page.goto(url);
    return Object.assign(page, {
        leave: async () => {
            await page.close();
            await context.close();
            insist(faults.length === 0, faults.join('\n'));
        },
    });
}

/** The address of a page, where it knows the relay. */
function at(name, parameters = {}) {
    const url = new URL(name, pages);
    if (pagesUrl === '-') url.searchParams.set('relay', parameters.relay ?? relay);
    for (const [key, value] of Object.entries(parameters)) url.searchParams.set(key, value);
    return url.href;
}

/** The address of a page that the relay itself serves. */
const served = (name, parameters) => `${relay}?${new URLSearchParams({ page: name, ...parameters })}`;

const shoot = async (page, name) => shots && page.screenshot({ path: path.join(shots, `${name}.png`) });

// ---- The chat

const connected = (page) => page.waitForSelector('#state[data-state=connected]');
const hears = (page, text) => page.locator('.said .text', { hasText: text }).first().waitFor();

async function say(page, text) {
    await page.fill('#text', text);
    await page.press('#text', 'Enter');
}

/** Somebody types until another one sees it. */
async function isSeenTyping(typist, name, page) {
    const sign = page.locator('#typing', { hasText: `${name} is writing` });
    while (!await sign.isVisible()) {
        await typist.locator('#text').pressSequentially('x');
        await page.waitForTimeout(300);
    }
}

const texts = (page) => page.locator('.said .text').allInnerTexts();

async function twoChat(address) {
    const anna = await person(address({ room: `r1-${run}`, name: 'Anna' }));
    await connected(anna);
    await say(anna, 'Is anybody here?');
    await anna.waitForSelector('.said:not(.waiting)');
    // Whoever comes later sees the last minute, and who is here.
    const bert = await person(address({ room: `r1-${run}`, name: 'Bert' }));
    await hears(bert, 'Is anybody here?');
    await bert.locator('#people', { hasText: 'Anna is here' }).waitFor();
    await anna.locator('.note', { hasText: 'Bert has come' }).waitFor();
    await anna.locator('#people', { hasText: 'Bert is here' }).waitFor();
    await isSeenTyping(bert, 'Bert', anna);
    // Markup of others is text, in messages as in names.
    const markup = '<img src=x onerror="document.title=1"> & <b>bold</b>\n&lt;line two';
    await say(bert, markup);
    await hears(anna, '<b>bold</b>');
    insist((await texts(anna)).includes(markup), `it shows ${JSON.stringify(await texts(anna))}`);
    insist(await anna.locator('#log img, #log .text b').count() === 0, 'a message became markup');
    // A burst arrives whole and in order on both sides, and each message once.
    for (let number = 0; number < 20; number++) await say(anna, `number ${number}`);
    await hears(bert, 'number 19');
    await anna.waitForFunction(() => document.querySelectorAll('.waiting').length === 0);
    const numbers = Array.from({ length: 20 }, (_, number) => `number ${number}`);
    for (const page of [anna, bert]) {
        const found = (await texts(page)).filter((text) => text.startsWith('number'));
        insist(JSON.stringify(found) === JSON.stringify(numbers), `it shows ${JSON.stringify(found)}`);
    }
    // Another room is another room.
    const carl = await person(address({ room: `r2-${run}`, name: 'Carl' }));
    await connected(carl);
    await bert.close();
    await anna.locator('.note', { hasText: 'Bert has left' }).waitFor();
    insist((await texts(carl)).length === 0, 'one room is heard in another');
    await carl.leave();
    await anna.leave();
}

async function theChatComesBack() {
    const way = await breakable();
    const anna = await person(`${pages}chat.html?${new URLSearchParams({ relay: way.url, room: `r3-${run}`, name: 'Anna' })}`, { mayFail: true });
    const bert = await person(served('chat', { room: `r3-${run}`, name: 'Bert' }));
    await Promise.all([anna, bert].map(connected));
    for (const [number, answers] of ['nothing', '503', 'nothing'].entries()) {
        way.break(answers);
        await anna.waitForSelector('#state[data-state=waiting]');
        // Whatever is said on either side in the meantime is not lost, nor doubled.
        await say(anna, `from Anna ${number}`);
        await say(bert, `from Bert ${number}`);
        await anna.waitForTimeout(700);
        way.answers = 'relay';
        await connected(anna);
        await Promise.all([hears(anna, `from Bert ${number}`), hears(bert, `from Anna ${number}`)]);
    }
    await anna.waitForFunction(() => document.querySelectorAll('.waiting').length === 0);
    for (const page of [anna, bert]) {
        const found = (await texts(page)).sort();
        const wanted = [0, 1, 2].flatMap((number) => [`from Anna ${number}`, `from Bert ${number}`]).sort();
        insist(JSON.stringify(found) === JSON.stringify(wanted), `it shows ${JSON.stringify(found)}`);
    }
    await anna.leave();
    await bert.leave();
    way.end();
}

async function theKeyboardIsEnough() {
    // A browser that keeps nothing asks for a name each time, and works.
    const prepare = () => Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no', 'SecurityError'); } });
    const dora = await person(served('chat', { room: `r4-${run}` }), { prepare });
    await dora.waitForSelector('dialog[open]');
    await dora.keyboard.type('Dora');
    await dora.keyboard.press('Enter');
    await connected(dora);
    await dora.waitForFunction(() => document.activeElement.id === 'text');
    await dora.keyboard.type('one');
    await dora.keyboard.press('Shift+Enter');
    await dora.keyboard.type('two');
    await dora.keyboard.press('Enter');
    await dora.waitForFunction(() => document.querySelectorAll('.said:not(.waiting)').length === 1);
    insist((await texts(dora))[0] === 'one\ntwo', 'Shift and Enter are no new line');
    // What a screen reader says of each thing that can be used.
    for (const [role, label] of [['textbox', 'Your message'], ['button', 'Send'], ['button', 'Invite'], ['button', 'Name'], ['log', 'Messages']]) {
        insist(await dora.getByRole(role, { name: label, exact: true }).count() === 1, `there is no ${role} "${label}"`);
    }
    await dora.leave();
}

async function thePagesFit() {
    const summer = shots ? 'Summer trip' : `summer-${run}`;
    const eva = await person(served('chat', { room: summer, name: 'Eva' }));
    await connected(eva);
    await say(eva, 'Who brings the boat?');
    for (const [name, colorScheme, width, height] of [
        ['light', 'light', 900, 700], ['dark', 'dark', 900, 700], ['phone', 'light', 390, 800], ['phone-dark', 'dark', 320, 640],
    ]) {
        const options = { colorScheme, viewport: { width, height }, deviceScaleFactor: 2 };
        const finn = await person(served('chat', { room: summer, name: 'Finn' }), { options });
        await hears(finn, 'boat');
        if (name === 'light') {
            await say(finn, 'I do. It has room for four, and for the dog.');
            await say(eva, 'Wonderful! Then I make sandwiches.');
            await say(eva, 'Cheese, or tomatoes?');
            await say(finn, 'Both :-)');
        }
        await hears(finn, 'Both');
        await isSeenTyping(eva, 'Eva', finn);
        await shoot(finn, `chat-${name}`);
        const drop = await person(served('drop'), { options });
        await drop.setInputFiles('#file', { name: 'boat.jpg', mimeType: 'image/jpeg', buffer: randomBytes(100_000) });
        await drop.waitForFunction(() => document.getElementById('code').textContent !== '');
        await shoot(drop, `drop-${name}`);
        const uhst = await person(at('uhst.html'), { options });
        await uhst.waitForSelector('#state.good');
        await shoot(uhst, `uhst-${name}`);
        for (const [page, what] of [[finn, 'chat'], [drop, 'drop'], [uhst, 'uhst']]) {
            const [content, screen, back] = await page.evaluate(() => [
                document.documentElement.scrollWidth, document.documentElement.clientWidth,
                Math.max(...getComputedStyle(document.body).backgroundColor.match(/\d+/g).map(Number)),
            ]);
            insist(content <= screen, `${what}: ${content} px wide on a screen of ${screen} px`);
            insist(colorScheme === 'light' ? back > 128 : back < 128, `${what}: ${colorScheme} is not ${colorScheme}`);
            await page.leave();
        }
    }
    await eva.leave();
}

// ---- A host and its guests

async function guestsJoinAHost() {
    const host = await person(at('uhst.html'));
    await host.waitForFunction(() => document.getElementById('link').value !== '');
    const link = await host.inputValue('#link');
    const guests = await Promise.all([person(link), person(link)]);
    await host.locator('#state', { hasText: '2 guests' }).waitFor();
    for (const guest of guests) await guest.waitForSelector('#state.good');
    const log = (page, text) => page.locator('#log', { hasText: text }).waitFor();
    await say(guests[0], '<b>hello</b>');
    await log(host, '<b>hello</b>');
    await say(host, 'welcome, all of you');
    for (const guest of guests) await log(guest, 'Host: welcome, all of you');
    await guests[1].leave();
    await host.locator('#state', { hasText: '1 guest' }).waitFor();
    await host.leave();
    await guests[0].locator('#state', { hasText: 'The host has left' }).waitFor();
    await guests[0].leave();
}

// ---- Files

/** Waits for the page to have saved a file; gives its name and content. */
async function saved(page, action) {
    const [download] = await Promise.all([page.waitForEvent('download'), action()]);
    return [download.suggestedFilename(), await readFile(await download.path())];
}

async function filesGoThrough(address) {
    const name = "it's 100 % \u{e4}.bin";
    const content = randomBytes(3_000_000);
    const folder = await mkdtemp(path.join(os.tmpdir(), 'uhst-relay-drop-'));
    const sh = (command) => promisify(execFile)('sh', ['-c', command.replace(/^curl /, 'curl -sS ')], { cwd: folder, timeout: 60_000 });
    try {
        const sender = await person(address());
        const offer = async () => {
            await sender.setInputFiles('#file', { name, mimeType: 'text/html', buffer: content });
            await sender.waitForFunction(() => document.getElementById('code').textContent !== '');
        };
        const delivered = () => sender.locator('#send-told', { hasText: 'Delivered: all 3.00 MB' }).waitFor();
        const other = () => sender.click('#other');
        // By the link, which shows what is offered.
        await offer();
        const byLink = await person(await sender.inputValue('#link'));
        await byLink.locator('#announced', { hasText: name }).waitFor();
        const [linkName, linkContent] = await saved(byLink, () => byLink.click('#take'));
        insist(content.equals(linkContent), `by the link came ${linkContent.length} other bytes`);
        insist(linkName.startsWith("it's 100 "), `it is called ${linkName}`);
        await delivered();
        await byLink.leave();
        // By the code.
        await other();
        await offer();
        const byCode = await person(address(), { mayFail: true }); // an unknown code is a 400
        await byCode.fill('#asked', await sender.innerText('#code'));
        const [, codeContent] = await saved(byCode, () => byCode.press('#asked', 'Enter'));
        insist(content.equals(codeContent), `by the code came ${codeContent.length} other bytes`);
        await delivered();
        // A code that nobody has.
        await byCode.fill('#asked', 'nobody');
        await byCode.press('#asked', 'Enter');
        await byCode.locator('#receive-told', { hasText: 'Nobody offers a file' }).waitFor();
        // From a terminal to the browser, as it is printed.
        await writeFile(path.join(folder, 'FILE'), content);
        await byCode.click('#terminal');
        await byCode.waitForFunction(() => document.getElementById('curl-up').value !== '');
        const upload = await byCode.inputValue('#curl-up');
        const [, uploaded] = await saved(byCode, () => sh(upload));
        insist(content.equals(uploaded), `from the terminal came ${uploaded.length} other bytes`);
        await byCode.leave();
        // And from the browser to the terminal.
        await other();
        await offer();
        await sh(await sender.inputValue('#curl'));
        insist(content.equals(await readFile(path.join(folder, name))), 'in the terminal came other bytes');
        await delivered();
        await sender.leave();
    } finally {
        await rm(folder, { recursive: true, force: true });
    }
}

// ---- All of it

async function look(what, task) {
    const start = Date.now();
    try {
        await task();
        console.log(`ok: ${what} (${((Date.now() - start) / 1000).toFixed(1)} s)`);
    } catch (error) {
        throw new Error(`${what}: ${error.message}`);
    }
}

async function main() {
    browser = await chromium.launch({
        executablePath: process.env.CHROMIUM || '/usr/bin/chromium',
        args: ['--no-sandbox', '--disable-gpu', '--disable-quic', '--no-first-run', '--disable-background-networking', '--disable-sync'],
    });
    const own = await site();
    pages = pagesUrl === '-' ? own.url : pagesUrl;
    // They mostly wait for the relay, and not for each other.
    await Promise.all(pagesUrl === '-' ? [
        look('two chat on the page that the relay serves', () => twoChat((parameters) => served('chat', parameters))),
        look('the chat comes back by itself', theChatComesBack),
        look('the keyboard is enough', theKeyboardIsEnough),
        look('guests join a host of another origin', guestsJoinAHost),
        look('files go through the page that the relay serves', () => filesGoThrough(() => served('drop'))),
        look('the pages fit, light and dark', thePagesFit),
    ] : [
        look('two chat on the page beside the relay', () => twoChat((parameters) => at('chat.html', parameters))),
        look('guests join a host', guestsJoinAHost),
        look('files go through the page beside the relay', () => filesGoThrough(() => at('drop.html'))),
    ]);
    own.end();
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

// Makes the README's picture: two windows of the chat, side by side.
//
//     node picture.mjs RELAY_URL FILE        FILE: deploy/examples/chat.png, with a relay that nobody else is using
//
// Says PASSED and exits with 0 when FILE is written, else with 1 and what went wrong. CHROMIUM names another browser than
// /usr/bin/chromium.

import { chromium } from 'playwright-core';

const [relay, file] = process.argv.slice(2);
const LIMIT = 60_000; // ms for each wait: a hang is caught, slowness is not
const [WIDTH, HEIGHT] = [560, 590]; // of a window
const NOON = Date.UTC(2025, 5, 21, 12, 0);

if (!file) {
    console.error('usage: node picture.mjs RELAY_URL FILE');
    process.exit(2);
}

const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-dev-shm-usage'],
});

async function open(name) {
    const options = { viewport: { width: WIDTH, height: HEIGHT }, colorScheme: 'light', locale: 'en-GB', timezoneId: 'UTC' };
    const page = await (await browser.newContext(options)).newPage();
    page.setDefaultTimeout(LIMIT);
    // Whenever it is made, it is noon in the picture.
    await page.addInitScript(`const now = Date.now; Date.now = () => ${NOON} + (now() - ${Date.now()});`);
    await page.goto(`${relay}?${new URLSearchParams({ page: 'chat', room: 'Summer trip', name })}`);
    await page.waitForSelector('#state[data-state=connected]');
    return page;
}

try {
    const [anna, bert] = [await open('Anna'), await open('Bert')];
    await anna.locator('.note', { hasText: 'Bert has come' }).waitFor();
    for (const [page, text] of [
        [anna, 'Who brings the boat?'],
        [bert, 'I do. It has room for four, and for the dog.'],
        [anna, 'Wonderful! Then I make sandwiches.'],
        [anna, 'Cheese, or tomatoes?'],
        [bert, 'Both, please.'],
    ]) {
        await page.fill('#text', text);
        await page.press('#text', 'Enter');
        for (const each of [anna, bert]) await each.locator('.said:not(.waiting) .text', { hasText: text }).waitFor();
    }
    const sign = bert.locator('#typing', { hasText: 'Anna is writing' });
    while (!await sign.isVisible()) {
        await anna.locator('#text').pressSequentially('S');
        await anna.waitForTimeout(300);
    }
    await anna.fill('#text', 'See you at ten');
    const windows = [];
    for (const page of [anna, bert]) windows.push((await page.screenshot()).toString('base64'));
    const picture = await browser.newPage({ viewport: { width: 1200, height: HEIGHT + 60 } });
    await picture.setContent(`<!doctype html><style>
        body { display: flex; justify-content: center; gap: 20px; margin: 0; padding: 30px 0; background: #dfe7ec; }
        img { border-radius: 12px; box-shadow: 0 6px 24px rgb(22 32 44 / .18); }
    </style>${windows.map((window) => `<img src="data:image/png;base64,${window}" width="${WIDTH}" height="${HEIGHT}">`).join('')}`);
    await picture.waitForFunction(() => [...document.images].every((image) => image.complete && image.naturalWidth));
    await picture.screenshot({ path: file });
    console.log('PASSED');
} catch (error) {
    console.error(error.message);
    process.exitCode = 1;
} finally {
    await browser.close();
}

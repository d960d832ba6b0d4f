// Two people who have never seen the relay: one opens its address and presses the button that the README names, the other one opens
// the address that the first one sees then. They talk.
//
//     node five-minutes.mjs ADDRESS BUTTON
//
// Says PASSED and exits with 0 when both have heard each other, else with 1 and the first thing that is not so.

import { chromium } from 'playwright-core';

const LIMIT = 60_000; // ms for each wait: a hang is caught, slowness is not
const [address, button] = process.argv.slice(2);

const browser = await chromium.launch({
    executablePath: process.env.CHROMIUM ?? '/usr/bin/chromium',
    args: ['--no-sandbox', '--disable-dev-shm-usage'],
});

async function visitor() {
    const page = await (await browser.newContext()).newPage();
    page.setDefaultTimeout(LIMIT);
    return page;
}

/** Says who one is, as the chat asks everybody who comes. */
async function enter(page, name) {
    await page.getByRole('textbox', { name: /name/i }).fill(name);
    await page.keyboard.press('Enter');
}

async function say(page, text) {
    await page.getByRole('textbox', { name: /message/i }).fill(text);
    await page.keyboard.press('Enter');
}

try {
    const anna = await visitor();
    await anna.goto(address);
    await anna.locator('#summary.ok').waitFor();
    await anna.getByRole('link', { name: button }).click();
    await enter(anna, 'Anna');
    const bert = await visitor();
    await bert.goto(anna.url());
    await enter(bert, 'Bert');
    await say(bert, 'Is somebody there?');
    await anna.getByText('Is somebody there?').waitFor();
    await say(anna, 'Yes: it works.');
    await bert.getByText('Yes: it works.').waitFor();
    console.log('PASSED');
} catch (error) {
    console.error(error.message);
    process.exitCode = 1;
} finally {
    await browser.close();
}

// A proxy that compresses whatever it may, before the relay whose URL is given. Exits with 0 when an event arrives through it
// while its stream goes on, else with 1.
'use strict';

const http = require('node:http');
const compress = require('compression')({ threshold: 0 });

const STEP = 30_000; // a hang is caught here
const relay = new URL(process.argv[2]);

function fail(reason) {
    console.error(`FAILED: ${reason}`);
    process.exit(1);
}
process.on('unhandledRejection', (error) => fail(`unhandled rejection: ${error && error.stack}`));
setTimeout(() => fail(`no event within ${STEP / 1000} s`), STEP);

const proxy = http.createServer((request, response) => compress(request, response, () => {
    const target = new URL(relay);
    target.search = new URL(request.url, relay).search;
    const asked = http.request(target, { method: request.method, headers: request.headers }, (answer) => {
        response.writeHead(answer.statusCode, answer.headers);
        answer.pipe(response);
    });
    asked.on('error', (error) => fail(`the relay: ${error.message}`));
    request.pipe(asked);
}));

/** Calls the relay through the proxy, as a browser that takes compressed answers does. */
const call = (method, query, body) => new Promise((resolve) => {
    const { port } = proxy.address();
    const headers = { 'Accept-Encoding': 'gzip, deflate, br', 'Content-Length': Buffer.byteLength(body) };
    http.request({ host: '127.0.0.1', port, method, path: `/?${query}`, headers }, resolve).end(body);
});

async function json(query, body = '') {
    const answer = await call('POST', query, body);
    let text = '';
    const encoding = answer.headers['content-encoding'];
    const plain = encoding === 'gzip' ? answer.pipe(require('node:zlib').createGunzip())
        : encoding === 'br' ? answer.pipe(require('node:zlib').createBrotliDecompress()) : answer;
    for await (const part of plain) text += part;
    return { encoding, ...JSON.parse(text) };
}

async function main() {
    await new Promise((resolve) => proxy.listen(0, '127.0.0.1', resolve));
    const { hostId, hostToken, encoding } = await json('action=host');
    if (!encoding) fail('the proxy compresses nothing, so this shows nothing');
    const stream = await call('GET', `token=${hostToken}`, '');
    stream.setEncoding('latin1');
    const { clientToken } = await json(`action=join&hostId=${hostId}`);
    await json(`token=${clientToken}`, '"through the proxy"');
    let heard = '';
    for await (const part of stream) {
        heard += part;
        if (heard.includes('"through the proxy"')) break;
    }
    if (!heard.includes('"through the proxy"')) fail(`the stream ended: ${JSON.stringify(heard)}`);
    console.log('PASSED');
    process.exit(0);
}

main();

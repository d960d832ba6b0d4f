// node echo.cjs PORT FOLDER: an echo with the ws that is installed in FOLDER.
const { createRequire } = require('node:module');
const path = require('node:path');

const [port, folder] = process.argv.slice(2);
const { WebSocketServer } = createRequire(path.join(folder, 'package.json'))('ws');
new WebSocketServer({ host: '127.0.0.1', port: Number(port), perMessageDeflate: false }).on('connection', (socket) => {
    socket.on('message', (data, isBinary) => socket.send(data, { binary: isBinary }));
});

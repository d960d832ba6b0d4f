// uhst-server 2.1.1 prints HOST but listens on every interface; what is measured here is nobody else's business.
const { Server } = require("node:net");
const listen = Server.prototype.listen;
Server.prototype.listen = function (port, ...rest) {
  return listen.call(this, port, "127.0.0.1", ...rest);
};

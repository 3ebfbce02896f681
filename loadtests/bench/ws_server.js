// The `ws` package as its own documentation uses it for a broadcast; a client's first message is its name.
//   node ws_server.js PORT      GET /blast?size=N, GET /to?size=N&ids=a,b
const http = require("http");
const { WebSocketServer, WebSocket } = require("ws");

const names = new Map();
const server = http.createServer((request, response) => {
  const url = new URL(request.url, "http://localhost");
  const data = Buffer.alloc(Number(url.searchParams.get("size")), "x");
  const clients = url.pathname === "/blast" ? wss.clients : url.searchParams.get("ids").split(",").map((id) => names.get(id));
  for (const client of clients) {
    if (client && client.readyState === WebSocket.OPEN) client.send(data, { binary: true });
  }
  response.writeHead(200, { "content-length": 0 });
  response.end();
});
const wss = new WebSocketServer({ server });
wss.on("connection", (client) => {
  client.on("error", () => {});
  client.once("message", (name) => names.set(name.toString(), client));
});
server.listen({ port: Number(process.argv[2]), host: "127.0.0.1", backlog: 4096 });

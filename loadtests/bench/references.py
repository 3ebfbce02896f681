"""What the gateway is measured against, each as a process of its own.

    python -m loadtests.bench.references bare PORT        a loop of `socket.send`: what the kernel takes
    python -m loadtests.bench.references stock PORT       Starlette on uvicorn, `for ws: await ws.send_bytes()`
    python -m loadtests.bench.references socketio PORT    python-socketio on uvicorn, `emit`

`GET /blast?size=N` sends one message of N bytes to all sockets, then answers. But for `bare`, `GET
/to?size=N&ids=a,b` sends one to each of these, who said their names (`stock`: a text message; `socketio`: `join`).
"""

import base64
import contextlib
import hashlib
import selectors
import socket
import struct
import sys
from urllib.parse import parse_qs, urlsplit

GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def frame(payload: bytes) -> bytes:
    """One unmasked binary frame."""
    size = len(payload)
    head = struct.pack("!BB", 0x82, size) if size < 126 else struct.pack("!BBH", 0x82, 126, size)
    return head + payload


def bare(port: int) -> None:
    """No event loop, no protocol objects: the floor for anything that sends with one system call a socket."""
    listener = socket.create_server(("127.0.0.1", port), backlog=4096)
    listener.setblocking(False)
    selector = selectors.DefaultSelector()
    selector.register(listener, selectors.EVENT_READ)
    clients: dict[int, socket.socket] = {}
    while True:
        for key, _ in selector.select():
            if key.fileobj is listener:
                with contextlib.suppress(BlockingIOError):
                    while True:
                        connection, _ = listener.accept()
                        connection.setblocking(False)
                        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                        selector.register(connection, selectors.EVENT_READ)
                continue
            connection = key.fileobj  # type: ignore[assignment]
            try:
                request = connection.recv(65536)
            except OSError:
                request = b""
            if not request:
                selector.unregister(connection)
                clients.pop(connection.fileno(), None)
                connection.close()
            elif request.startswith(b"GET /blast"):
                size = int(parse_qs(urlsplit(request.split(b" ")[1]).query)[b"size"][0])
                data = frame(b"x" * size)
                for client in clients.values():
                    client.send(data)
                connection.send(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
            else:
                marker = b"Sec-WebSocket-Key: "
                found = request.index(marker) + len(marker)
                nonce = request[found : request.index(b"\r\n", found)]
                accept = base64.b64encode(hashlib.sha1(nonce + GUID, usedforsecurity=False).digest())
                connection.send(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
                )
                clients[connection.fileno()] = connection


def stock(port: int) -> None:
    """The way that everybody starts with."""
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route, WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect

    clients: set[WebSocket] = set()
    names: dict[str, WebSocket] = {}

    async def connect(ws: WebSocket) -> None:
        await ws.accept()
        clients.add(ws)
        try:
            while True:
                names[await ws.receive_text()] = ws
        except WebSocketDisconnect:
            clients.discard(ws)

    async def blast(request: Request) -> Response:
        data = b"x" * int(request.query_params["size"])
        for ws in list(clients):
            await ws.send_bytes(data)
        return Response()

    async def to(request: Request) -> Response:
        data = b"x" * int(request.query_params["size"])
        for name in request.query_params["ids"].split(","):
            await names[name].send_bytes(data)
        return Response()

    app = Starlette(routes=[Route("/blast", blast), Route("/to", to), WebSocketRoute("/", connect)])
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", backlog=4096, ws_ping_interval=None)


def with_socketio(port: int) -> None:
    """As its documentation begins; CORS is off because no browser comes."""
    import socketio
    import uvicorn
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    sio = socketio.AsyncServer(async_mode="asgi", cors_allowed_origins=[])

    async def join(sid: str, name: str) -> None:
        await sio.enter_room(sid, name)

    async def blast(request: Request) -> Response:
        await sio.emit("event", "x" * int(request.query_params["size"]))
        return Response()

    async def to(request: Request) -> Response:
        data = "x" * int(request.query_params["size"])
        for name in request.query_params["ids"].split(","):
            await sio.emit("event", data, room=name)
        return Response()

    sio.on("join", join)
    app = socketio.ASGIApp(sio, Starlette(routes=[Route("/blast", blast), Route("/to", to)]))
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="error", backlog=4096)


if __name__ == "__main__":
    {"bare": bare, "stock": stock, "socketio": with_socketio}[sys.argv[1]](int(sys.argv[2]))

"""The wire: from an HTTP connection to a session, and the bytes between them.

Starlette and uvicorn do the handshake like any other ASGI server would: routing, Origin, limits, the answer. Then the
endpoint takes the connection through the scope extension `vestnik.handoff`, and from there on bytes go straight from
the transport to the session: one `Connection`, one `Session`, no task, no queue, no parser that waits. On a server
without the extension the endpoint carries messages itself (`Carrier`); the sessions cannot tell the difference.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import functools
import hashlib
import time
import types
import urllib.parse
from collections import deque
from collections.abc import Callable, Coroutine, Generator, MutableMapping, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple

import httptools
from starlette.types import Receive, Scope, Send
from starlette.websockets import WebSocket, WebSocketDisconnect
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from gateway.errors import Problem
from gateway.limits import Buckets
from gateway.logs import get_logger
from gateway.problems import problem_response
from gateway.protocol import frames
from gateway.protocol.codec import Codec, choose
from gateway.proxies import Proxies
from gateway.session import Gate, Session
from gateway.settings import normal_origin

if TYPE_CHECKING:
    from gateway.hub import Hub

log = get_logger("wire")

HANDOFF = "vestnik.handoff"
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455, 1.3
_SWITCHING = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
_NO_REQUEST = (
    b"HTTP/1.1 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n"
    b"Content-Length: 31\r\n\r\nInvalid HTTP request received.\n"
)
_HEAD_KEPT = 65_536  # bytes of a first request head that we keep; a longer one is uvicorn's to refuse
_PONGS_KEPT = 65_536  # bytes of outgoing buffer above which pings are not answered: who reads nothing gets no more


class Entrance:
    """Where the connections of one server begin: uvicorn's protocol factory, and what they all share.

    Nearly all of them become sockets. So a connection is a `Connection` from its first byte, and becomes uvicorn's only
    when it asks for something else: a storm of reconnects does not pay for what an HTTP connection needs.
    """

    config: Config
    server_state: ServerState
    app_state: dict[str, Any]
    loop: asyncio.AbstractEventLoop

    def __init__(self, deadlines: Deadlines, address: tuple[str, int] | None = None, proxies: Proxies | None = None):
        self.deadlines = deadlines
        self.address = address  # that the server listens on
        self.proxies = proxies

    def __call__(
        self,
        config: Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> Connection:
        self.config, self.server_state, self.app_state = config, server_state, app_state
        self.loop = _loop or asyncio.get_running_loop()
        return Connection(self)

    def upgrade(self, connection: Connection, request: Upgrade, rest: bytes) -> None:
        """Begin the handshake that was asked for; `rest` came behind the request in the same read."""
        try:
            url = httptools.parse_url(request.url)
            raw_path = url.path or b"/"
            path = urllib.parse.unquote(raw_path.decode("ascii"))
        except (httptools.HttpParserInvalidURLError, UnicodeDecodeError):
            connection.transport.write(_NO_REQUEST)
            connection.transport.close()
            return
        handshake = connection.receiver = Handshake(connection, rest)
        config = self.config
        scope: dict[str, Any] = {
            "type": "websocket",
            "asgi": {"version": config.asgi_version, "spec_version": "2.4"},
            "http_version": request.version,
            "scheme": "ws",  # TLS ends at the proxy
            "server": self.address,
            "client": None,  # of no use to anybody here; whoever wants to log it asks the transport
            "root_path": config.root_path,
            "path": config.root_path + path,
            "raw_path": raw_path,
            "query_string": url.query or b"",
            "headers": request.headers,
            "subprotocols": _offered(request.headers),
            "state": self.app_state.copy(),
            "extensions": {"websocket.http.response": {}, HANDOFF: handshake},
        }
        if self.proxies is not None and (peer := connection.peer()) is not None:
            scope["client"] = self.proxies.client(peer, request.headers), 0
        handshake.begin(config.loaded_app, scope, request.method, self.server_state)


class Upgrade(NamedTuple):
    """A request that asks for a WebSocket."""

    url: bytes
    headers: list[tuple[bytes, bytes]]  # names in lower case
    method: str
    version: str


class Doorstep:
    """Reads the first request of a connection: a WebSocket's goes to the handshake, any other to uvicorn as it came."""

    __slots__ = ("connection", "data", "entrance", "headers", "parser", "plain", "requests", "upgrade", "url")

    def __init__(self, entrance: Entrance, connection: Connection):
        self.entrance, self.connection = entrance, connection
        self.parser = httptools.HttpRequestParser(self)
        self.data = b""
        self.url = b""
        self.headers: list[tuple[bytes, bytes]] = []
        self.upgrade = b""
        self.requests = 0
        self.plain = False  # a whole head was read, and it was no upgrade's

    def early(self, data: bytes) -> None:
        self.data = self.data + data if self.data else data
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self.requests == 1 and self.upgrade == b"websocket":
                return self._socket(data[upgrade.args[0] :])
            self.plain = True
        except httptools.HttpParserError:
            self.plain = True  # uvicorn says what is wrong
        if self.plain or self.requests > 1 or len(self.data) > _HEAD_KEPT:
            self._http()
        return None

    def _socket(self, rest: bytes) -> None:
        entrance, connection, parser = self.entrance, self.connection, self.parser
        entrance.deadlines.done(connection.transport)
        method, version = parser.get_method().decode("ascii"), parser.get_http_version()
        self.parser = None  # type: ignore[assignment]  # it holds us
        entrance.upgrade(connection, Upgrade(self.url, self.headers, method, version), rest)

    def _http(self) -> None:
        entrance, connection = self.entrance, self.connection
        transport = connection.transport
        connection.receiver = self.parser = None  # type: ignore[assignment]
        connection.connections.discard(connection)
        edge = Edge(entrance)
        transport.set_protocol(edge)
        edge.connection_made(transport)
        edge.data_received(self.data)

    def lost(self, code: int) -> None:
        """The peer went before it had asked for anything."""
        self.entrance.deadlines.done(self.connection.transport)
        self.parser = None  # type: ignore[assignment]

    # What the parser calls

    def on_message_begin(self) -> None:
        self.requests += 1

    def on_url(self, url: bytes) -> None:
        self.url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        name = name.lower()
        if name == b"upgrade":
            self.upgrade = value.lower()
        self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.plain = not self.parser.should_upgrade()


class Edge(HttpToolsProtocol):
    """uvicorn's HTTP protocol, with a deadline for request heads, and an upgrade that hands its parsed request on.

    uvicorn has no deadline for a connection that sends nothing or half a head; such a socket would stay for ever.
    """

    def __init__(self, entrance: Entrance):
        super().__init__(entrance.config, entrance.server_state, entrance.app_state, entrance.loop)
        self.entrance = entrance

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.scheme = "http"  # TLS ends at the proxy

    def _should_upgrade(self) -> bool:
        return self._get_upgrade() == b"websocket"

    def connection_lost(self, exc: Exception | None) -> None:
        self.entrance.deadlines.done(self.transport)
        super().connection_lost(exc)

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self.entrance.deadlines.begin(self.transport)

    def on_headers_complete(self) -> None:
        self.entrance.deadlines.done(self.transport)
        proxies = self.entrance.proxies
        if proxies is not None and self.client is not None:
            self.scope["client"] = proxies.client(self.client[0], self.headers), 0
        super().on_headers_complete()

    def data_received(self, data: bytes) -> None:
        self._unset_keepalive_if_required()
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade as upgrade:
            if self._should_upgrade():
                self.upgrade(data[upgrade.args[0] :])
            else:
                self._unsupported_upgrade_warning()
        except httptools.HttpParserError:
            self.send_400_response("Invalid HTTP request received.")

    def upgrade(self, rest: bytes) -> None:
        """A later request of this connection asks for a WebSocket: put a `Connection` in our place."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()  # sent behind a request whose answer is still on its way
            return
        self.connections.discard(self)
        connection = Connection(self.entrance)
        connection.take_over(self.transport)
        request = Upgrade(self.url, self.headers, self.scope["method"], self.scope["http_version"])
        # The request is over; what uvicorn kept of it must not stay with the connection.
        self.parser = None  # type: ignore[assignment]
        self.flow = None  # type: ignore[assignment]
        self.entrance.upgrade(connection, request, rest)


def _offered(headers: list[tuple[bytes, bytes]]) -> list[str]:
    values = [value.decode("latin-1") for name, value in headers if name == b"sec-websocket-protocol"]
    return [part.strip() for value in values for part in value.split(",") if part.strip()]


class Deadlines:
    """Connections whose request head is not complete, in the order in which they began."""

    def __init__(self, seconds: float):
        self.seconds = seconds
        self._begun: dict[asyncio.Transport, float] = {}

    def begin(self, transport: asyncio.Transport) -> None:
        self._begun.pop(transport, None)
        self._begun[transport] = time.monotonic()

    def done(self, transport: asyncio.Transport) -> None:
        self._begun.pop(transport, None)

    def expire(self, now: float) -> int:
        """Drop the connections that took too long; how many there were. `now` is monotonic."""
        late = []
        for transport, begun in self._begun.items():
            if now - begun < self.seconds:
                break
            late.append(transport)
        for transport in late:
            del self._begun[transport]
            transport.abort()
        return len(late)


class Connection(asyncio.Protocol):
    """A socket: bytes in both directions, framing, and the close handshake of RFC 6455.

    `receiver` is a Doorstep, then a Handshake, then a Session, then nothing (after a close was sent: read on and
    discard).
    """

    __slots__ = ("closing", "connections", "parser", "receiver", "transport")

    def __init__(self, entrance: Entrance):
        self.connections: set[Any] = entrance.server_state.connections
        self.transport: asyncio.Transport = None  # type: ignore[assignment]  # until `connection_made`
        self.receiver: Doorstep | Handshake | Session | None = Doorstep(entrance, self)
        self.parser: frames.Parser | None = None
        self.closing: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        self.transport = transport
        self.connections.add(self)
        assert isinstance(self.receiver, Doorstep)
        self.receiver.entrance.deadlines.begin(transport)

    def take_over(self, transport: asyncio.Transport) -> None:
        """Go on with a connection that began as HTTP; what comes next is given by `Entrance.upgrade`."""
        self.transport = transport
        self.connections.add(self)
        self.receiver = None
        transport.set_protocol(self)

    def peer(self) -> str | None:
        """The address at the other end, while there is one."""
        found = self.transport.get_extra_info("peername")
        return found[0] if isinstance(found, tuple) else None

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        if self.closing is not None:
            self.closing.cancel()
        if self.receiver is not None:
            receiver, self.receiver = self.receiver, None
            receiver.lost(1006)

    def data_received(self, data: bytes) -> None:
        receiver = self.receiver
        if type(receiver) is Session:
            message = frames.single(data) if self.parser is None else None
            if message is not None and message[0] < frames.CLOSE:
                receiver.received(*message)
                return
        elif isinstance(receiver, Doorstep | Handshake):
            receiver.early(data)
            return
        self._parse(data)

    def _parse(self, data: bytes) -> None:
        """Everything that is not one small whole message."""
        parser = self.parser
        if parser is None:
            session = self.receiver
            if not isinstance(session, Session):
                return None  # the connection is ending and nothing more is of interest
            parser = self.parser = frames.Parser(session.gate.settings.message_bytes, session.deflate)
        fault: frames.FrameError | None = None
        try:
            found = parser.feed(data)
        except frames.FrameError as error:
            fault, found = error, error.before
        for opcode, payload in found:
            if opcode == frames.CLOSE:
                return self._closed(payload)
            session = self.receiver
            if not isinstance(session, Session):
                continue  # the peer's close may come behind what made us close
            if opcode == frames.PING and self.transport.get_write_buffer_size() < _PONGS_KEPT:
                self.transport.write(frames.frame(frames.PONG, payload))
            session.received(opcode, payload)
        if fault is not None:
            if isinstance(self.receiver, Session):
                self.receiver.close(fault.code, fault.reason)
            self._parse(b"")  # what came behind the fault may hold the peer's close
        elif self.parser is not None and self.parser.idle:
            self.parser = None
        return None

    def _closed(self, payload: bytes) -> None:
        """The peer's close frame: the answer to ours, or answered with the same code (RFC 6455, 5.5.1)."""
        code, _ = frames.close_of(payload)
        if isinstance(self.receiver, Session):
            session, self.receiver = self.receiver, None
            session.lost(code)
            self.transport.write(frames.frame(frames.CLOSE, payload[:2]))
            if self.transport.get_write_buffer_size():
                self._end_soon(session)
        self.transport.close()

    def close(self, code: int, reason: str) -> None:
        """ "After sending a close the gateway reads on and discards until the peer answers, 5 s at most."""
        session, self.receiver = self.receiver, None
        if not isinstance(session, Session) or self.transport.is_closing():
            return
        self.transport.write(frames.close_frame(code, reason))
        if self.parser is None:
            self.parser = frames.Parser(session.gate.settings.message_bytes, session.deflate)
        self.parser.discard()
        self._end_soon(session)

    def _end_soon(self, session: Session) -> None:
        """The socket goes at the close deadline, whatever the peer does or leaves unread."""
        loop = asyncio.get_running_loop()
        self.closing = loop.call_later(session.gate.settings.close_deadline_s, self.transport.abort)

    def eof_received(self) -> bool:
        """Close our side too: half-open sockets deliver nothing, and nobody may read what is still buffered."""
        if self.transport.get_write_buffer_size():
            self.transport.abort()
        return False

    def pause_writing(self) -> None:
        if isinstance(self.receiver, Session):
            self.receiver.paused()

    def resume_writing(self) -> None:
        if isinstance(self.receiver, Session):
            self.receiver.resumed()

    def shutdown(self) -> None:
        """uvicorn stops: sessions have been told long before (`Hub.drain`), so whoever is still here is cut."""
        if isinstance(self.receiver, Session):
            self.receiver.close(4512, "node going away")
        elif self.receiver is not None:
            self.transport.close()


class Handshake:
    """The ASGI side of an upgrade request, from `websocket.connect` to the accept or the refusal."""

    __slots__ = ("accepted", "connect_sent", "connection", "early_data", "key", "response")

    def __init__(self, connection: Connection, rest: bytes):
        self.connection = connection
        self.early_data = rest
        self.accepted = self.connect_sent = False
        self.key = b""
        self.response: tuple[int, list[tuple[bytes, bytes]]] | None = None

    def begin(self, app: Any, scope: dict[str, Any], method: str, server_state: ServerState) -> None:
        """RFC 6455, 4.2.1: check the request, then ask the application."""
        headers: dict[bytes, bytes] = {}
        for name, value in scope["headers"]:
            headers[name] = headers[name] + b", " + value if name in headers else value
        self.key = headers.get(b"sec-websocket-key", b"").strip()
        if method != "GET" or scope["http_version"] != "1.1" or b"host" not in headers:
            return self._refuse(400, "a WebSocket handshake is a GET of HTTP/1.1 with a Host")
        if headers.get(b"sec-websocket-version", b"").strip() != b"13":
            return self._refuse(426, "only version 13 of WebSocket is spoken here", (b"sec-websocket-version", b"13"))
        if not _is_key(self.key):
            return self._refuse(400, "Sec-WebSocket-Key must be 16 bytes in base64")
        work = self._run(app, scope)
        try:
            # The door decides without waiting for anything, so a connect needs no task; an application that does wait
            # gets one for the rest.
            waited = work.send(None)
        except StopIteration:
            return None
        except Exception:
            log.exception("handshake_failed")
            return None
        task = asyncio.get_running_loop().create_task(_finish(work, waited))
        server_state.tasks.add(task)
        task.add_done_callback(server_state.tasks.discard)
        return None

    async def _run(self, app: Any, scope: dict[str, Any]) -> None:
        try:
            await app(scope, self.receive, self.send)
        finally:
            # Neither refused nor handed over: the application failed.
            if self.connection.receiver is self:
                if self.accepted:
                    self.connection.transport.abort()
                else:
                    self._refuse(500, "the gateway failed")

    async def receive(self) -> dict[str, Any]:
        if self.connect_sent:
            return {"type": "websocket.disconnect", "code": 1006}
        self.connect_sent = True
        return {"type": "websocket.connect"}

    async def send(self, message: MutableMapping[str, Any]) -> None:
        match message["type"]:
            case "websocket.accept":
                self.accept(message.get("subprotocol"))
            case "websocket.close":
                self._refuse(403, "forbidden")
            case "websocket.http.response.start":
                self.response = message["status"], list(message["headers"])
            case "websocket.http.response.body" if self.response is not None:
                status, headers = self.response
                self._answer(status, headers, message.get("body", b""))

    def accept(self, subprotocol: str | None, extension: str | None = None) -> None:
        """RFC 6455, 4.2.2: say yes."""
        if self.connection.transport.is_closing():
            return
        digest = base64.b64encode(hashlib.sha1(self.key + _GUID, usedforsecurity=False).digest())
        chosen = b"\r\nSec-WebSocket-Protocol: " + subprotocol.encode("latin-1") if subprotocol else b""
        if extension:
            chosen += b"\r\nSec-WebSocket-Extensions: " + extension.encode("latin-1")
        self.accepted = True
        self.connection.transport.write(_SWITCHING + digest + chosen + b"\r\n\r\n")

    def take(self, make: Callable[[Connection], Session]) -> None:
        """Hand the accepted connection over: from now on bytes go to the session, and the ASGI application is done."""
        connection = self.connection
        if connection.transport.is_closing():
            return
        connection.receiver = make(connection)
        if self.early_data:
            connection.data_received(self.early_data)

    def early(self, data: bytes) -> None:
        """A client that did not wait for the answer; kept, up to what one message may be."""
        self.early_data += data
        if len(self.early_data) > frames.MAX_MESSAGE:
            self.connection.transport.abort()

    def lost(self, code: int) -> None:
        """The peer went before it was answered."""

    def _refuse(self, status: int, detail: str, *headers: tuple[bytes, bytes]) -> None:
        body = f"{detail}\n".encode()
        self._answer(status, [(b"content-type", b"text/plain; charset=utf-8"), *headers], body)

    def _answer(self, status: int, headers: list[tuple[bytes, bytes]], body: bytes) -> None:
        self.connection.receiver = None
        if self.connection.transport.is_closing():
            return
        lines = [f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\nConnection: close\r\n".encode()]
        names = {name.lower() for name, _ in headers}
        if b"content-length" not in names:
            headers = [*headers, (b"content-length", str(len(body)).encode())]
        lines += [name + b": " + value + b"\r\n" for name, value in headers]
        self.connection.transport.write(b"".join([*lines, b"\r\n", body]))
        self.connection.transport.close()


async def _finish(work: Coroutine[Any, Any, None], waited: Any) -> None:
    """Go on with a coroutine that was begun outside of a task and waits for `waited`."""
    await _rest(work, waited)


@types.coroutine
def _rest(work: Coroutine[Any, Any, None], waited: Any) -> Generator[Any, Any, None]:
    while True:
        try:
            sent = yield waited
        except BaseException as error:
            step = functools.partial(work.throw, error)
        else:
            step = functools.partial(work.send, sent)
        try:
            waited = step()
        except StopIteration:
            return


def _is_key(key: bytes) -> bool:
    try:
        return len(base64.b64decode(key, validate=True)) == 16
    except ValueError:
        return False


class Carrier:
    """Stands for transport and connection on a server without the hand-off: a bounded buffer and a writer task."""

    HIGH, LOW = 65_536, 16_384  # bytes waiting: above HIGH the session pauses, below LOW it goes on

    def __init__(self, websocket: WebSocket):
        self.websocket = websocket
        self.session: Session | None = None
        self._waiting: deque[bytes] = deque()
        self._bytes = 0
        self._paused = False
        self._wanted = asyncio.Event()
        self._close: tuple[int, str] | None = None
        self._tasks: tuple[asyncio.Task[None], ...] = ()
        self._deadline: asyncio.TimerHandle | None = None

    def write(self, data: bytes) -> None:
        """Whole frames, as a transport takes them; they are taken apart again, because ASGI speaks in messages."""
        self._waiting.append(data)
        self._bytes += len(data)
        self._wanted.set()
        if self._bytes > self.HIGH and not self._paused:
            self._paused = True
            if self.session is not None:
                self.session.paused()

    def close(self, code: int, reason: str) -> None:
        """ "After sending a close the gateway reads on and discards until the peer answers, 5 s at most."""
        session, self.session = self.session, None
        self._close = code, frames.close_of(frames.payload_of(frames.close_frame(code, reason)).tobytes())[1]
        self._wanted.set()
        if session is not None:
            deadline_s = session.gate.settings.close_deadline_s
            self._deadline = asyncio.get_running_loop().call_later(deadline_s, self._cancel)

    def peer(self) -> str | None:
        """The address at the other end, as the server below says it."""
        return self.websocket.client.host if self.websocket.client else None

    def _cancel(self) -> None:
        for task in self._tasks:
            task.cancel()

    async def run(self, session: Session) -> None:
        """Carry messages until one side closes."""
        self.session = session
        writer = asyncio.create_task(self._write())
        reader = asyncio.create_task(self._read(session))
        self._tasks = writer, reader
        try:
            await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED)
            if self._close is not None:
                await asyncio.wait((reader,))  # the deadline ends it
        finally:
            self._cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)
            if self._deadline is not None:
                self._deadline.cancel()
            session.lost(1006)

    async def _read(self, session: Session) -> None:
        while True:
            message = await self.websocket.receive()
            if message["type"] == "websocket.disconnect":
                session.lost(message.get("code") or 1005)
                return
            text = message.get("text")
            opcode, payload = (frames.BINARY, message["bytes"]) if text is None else (frames.TEXT, text.encode())
            if self.session is None:
                continue
            if len(payload) > session.gate.settings.message_bytes:
                session.close(4400, f"message over {session.gate.settings.message_bytes} bytes")
            else:
                session.received(opcode, payload)

    async def _write(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            while self._waiting:
                data = self._waiting.popleft()
                with contextlib.suppress(WebSocketDisconnect, RuntimeError):  # gone: `_read` says so
                    for opcode, payload in frames.split(data):
                        if opcode == frames.TEXT:
                            await self.websocket.send_text(str(payload, "utf-8"))
                        elif opcode == frames.BINARY:
                            await self.websocket.send_bytes(bytes(payload))
                        elif self.session is not None:
                            # A ping. The server below sends its own, and ends a connection that does not answer them.
                            self.session.heard = self.session.hub.now
                self._bytes -= len(data)
                if self._paused and self._bytes < self.LOW:
                    self._paused = False
                    if self.session is not None:
                        self.session.resumed()
            if self._close is not None:
                with contextlib.suppress(WebSocketDisconnect, RuntimeError):
                    await self.websocket.close(*self._close)
                return


class Door:
    """`GET /v1/socket` as an ASGI application: decide over the handshake, then hand the connection over, or carry it
    where that cannot be."""

    def __init__(self, gate: Gate, origins: frozenset[str]):
        self.gate = gate
        self.origins = origins  # of browsers that may connect, see `Settings.allowed_origins`
        settings = gate.settings
        self.credit = Buckets(settings.accept_rate, settings.accept_burst)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        gate, origin, offers = self.gate, None, []
        for name, value in scope["headers"]:
            if name == b"origin":
                origin = value.decode("latin-1")
            elif name == b"sec-websocket-extensions":
                offers.append(value.decode("latin-1"))
        subprotocols = scope["subprotocols"]
        try:
            codec = self.admit(origin, subprotocols)
        except Problem as problem:
            return await WebSocket(scope, receive, send).send_denial_response(problem_response(problem))
        gate.counts.handshakes += 1
        client = scope["client"][0] if scope.get("client") else None
        # A subprotocol is answered only when one was offered (RFC 6455, 4.2.2).
        subprotocol = codec.subprotocol if subprotocols else None
        handshake: Handshake | None = (scope.get("extensions") or {}).get(HANDOFF)
        if handshake is not None:
            extension = frames.negotiate(", ".join(offers)) if offers else None
            handshake.accept(subprotocol, extension)
            return handshake.take(
                lambda connection: Session(
                    gate, codec, connection, connection.transport, deflate=bool(extension), client=client
                )
            )
        websocket = WebSocket(scope, receive, send)
        await websocket.accept(subprotocol)
        carrier = Carrier(websocket)
        return await carrier.run(Session(gate, codec, carrier, carrier, client=client))

    def admit(self, origin: str | None, subprotocols: Sequence[str]) -> Codec:
        """Contract, section 3: Origin on the list or absent, a known subprotocol or none, and room for one more.
        Raises Problem."""
        settings, hub, rejects = self.gate.settings, self.gate.hub, self.gate.counts.rejects
        if origin is not None and normal_origin(origin) not in self.origins:
            rejects["origin"] += 1
            raise Problem(
                403, "forbidden", "Forbidden origin", "This page may not connect; add its origin to VESTNIK_ORIGINS."
            )
        codec = choose(subprotocols)
        if codec is None:
            rejects["subprotocol"] += 1
            raise Problem(400, "malformed", "Unknown subprotocol", "Offer vestnik.v1.json, vestnik.v1.msgpack or none.")
        if hub.draining:
            rejects["draining"] += 1
            raise busy("This node is going away.", 1)
        if hub.sessions + hub.opening >= settings.max_sessions or hub.opening >= settings.max_opening:
            rejects["full"] += 1
            raise busy("This node has as many connections as it takes.", settings.busy_retry_s)
        if self.credit.take(None, time.monotonic()):
            rejects["rate"] += 1
            raise busy("More want to connect at once than this node takes.", settings.busy_retry_s)
        return codec


def busy(detail: str, retry_after_s: int) -> Problem:
    return Problem(503, "unavailable", "Try again later", detail, headers={"Retry-After": str(retry_after_s)})


async def expire_heads(deadlines: Deadlines, hub: Hub) -> None:
    """Close what did not send its request head in time, for ever."""
    while True:
        await asyncio.sleep(min(1.0, deadlines.seconds / 4))
        hub.counts.rejects["deadline"] += deadlines.expire(time.monotonic())

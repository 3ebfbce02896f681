"""From the bytes of a request to a session and back, over a transport that is held in the hand."""

import asyncio
import base64
import gc
import hashlib
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import orjson
import pytest
import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route, WebSocketRoute
from starlette.websockets import WebSocket
from uvicorn.server import ServerState

from gateway import wire
from gateway.protocol import frames
from gateway.protocol.codec import JSON
from gateway.session import Session
from gateway.wire import Carrier, Connection, Deadlines, Doorstep, Edge, Handshake
from tests.kit import Bench, Clock, offsets, token, use_clock

A = "account:a"
KEY = base64.b64encode(b"0123456789abcdef").decode()
ACCEPT = base64.b64encode(hashlib.sha1(KEY.encode() + b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11").digest()).decode()
MASK = b"\x11\x22\x33\x44"


class Transport(asyncio.Transport):
    """A socket's transport: what was written can be read, its buffer can be filled, it ends as real ones do."""

    def __init__(self, protocol: Any):
        super().__init__()
        self.protocol, self.written, self.buffered = protocol, b"", 0
        self.closing = self.aborted = self.lost = False

    def write(self, data: bytes) -> None:  # type: ignore[override]
        # As uvloop does.
        assert not self.lost, "unable to perform operation on <TCPTransport closed=True>; the handler is closed"
        self.written += data

    def get_write_buffer_size(self) -> int:
        return self.buffered

    def is_closing(self) -> bool:
        return self.closing

    def close(self) -> None:
        if not self.closing:
            self.closing = True
            if not self.buffered:
                asyncio.get_running_loop().call_soon(self._lose)

    def abort(self) -> None:
        self.aborted = self.closing = True
        self.buffered = 0
        asyncio.get_running_loop().call_soon(self._lose)

    def _lose(self) -> None:
        if not self.lost:
            self.lost = self.closing = True
            protocol, self.protocol = self.protocol, None
            protocol.connection_lost(None)

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def get_protocol(self) -> Any:
        return self.protocol

    def get_extra_info(self, name: str, default: Any = None) -> Any:
        return {"peername": ("127.0.0.1", 5000), "sockname": ("127.0.0.1", 80)}.get(name, default)

    def pause_reading(self) -> None: ...

    def resume_reading(self) -> None: ...

    # What a test does

    def receive(self, data: bytes) -> None:
        self.protocol.data_received(data)

    def take(self) -> bytes:
        written, self.written = self.written, b""
        return written

    def messages(self) -> list[dict[str, Any]]:
        return [JSON.read(bytes(payload)) for opcode, payload in frames.split(self.take()) if opcode == frames.TEXT]


def framed(opcode: int, payload: bytes, *, first: int | None = None) -> bytes:
    """A frame as a client sends it."""
    size = len(payload)
    length = bytes([0x80 | size]) if size < 126 else b"\xfe" + size.to_bytes(2, "big")
    if size > 65535:
        length = b"\xff" + size.to_bytes(8, "big")
    masked = bytes(byte ^ MASK[n % 4] for n, byte in enumerate(payload))
    return bytes([0x80 | opcode if first is None else first]) + length + MASK + masked


def said(t: str, **fields: Any) -> bytes:
    return framed(frames.TEXT, orjson.dumps({"t": t, **fields}))


def request(*lines: str, path: str = "/v1/socket", method: str = "GET", leave: str = "") -> bytes:
    head = {
        "Host": "gateway",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": KEY,
    }
    head.pop(leave, None)
    every = [f"{method} {path} HTTP/1.1", *(f"{name}: {value}" for name, value in head.items()), *lines]
    return "\r\n".join([*every, "", ""]).encode()


class Server:
    """The protocol classes as uvicorn makes them, and an application with the endpoint."""

    def __init__(self, bench: Bench):
        self.bench, self.state = bench, ServerState()
        self.deadlines = Deadlines(10.0)
        self.answers = asyncio.Event()

        async def page(request: Request) -> PlainTextResponse:
            await self.answers.wait()
            return PlainTextResponse("here")

        async def broken(websocket: WebSocket) -> None:
            raise ValueError("a fault of ours")

        async def half(websocket: WebSocket) -> None:
            await websocket.accept()
            raise ValueError("a fault of ours")

        async def forgetful(websocket: WebSocket) -> None:
            return None

        door = wire.Door(bench.gate, frozenset({"https://lk.example.ru"}))

        class Slow:
            """An application that waits before it decides, as ours never does."""

            async def __call__(self, *asgi: Any) -> None:
                await asyncio.sleep(0)
                await door(*asgi)

        self.app = Starlette(
            routes=[
                WebSocketRoute("/v1/socket", door),
                WebSocketRoute("/slow", Slow()),
                WebSocketRoute("/broken", broken),
                WebSocketRoute("/half", half),
                WebSocketRoute("/forgetful", forgetful),
                Route("/page", page),
            ]
        )
        self.config = uvicorn.Config(self.app, ws="none", log_config=None, server_header=False, date_header=False)
        self.config.load()
        self.entrance = wire.Entrance(self.deadlines)

    def connect(self) -> Transport:
        protocol = self.entrance(self.config, self.state, {}, asyncio.get_running_loop())
        transport = Transport(protocol)
        protocol.connection_made(transport)
        return transport

    async def upgrade(self, *lines: str, **given: str) -> Transport:
        transport = self.connect()
        transport.receive(request(*lines, **given))
        await self.bench.settle()
        return transport

    async def session(self, account: str = "a", **fields: Any) -> Transport:
        """A welcomed session; what it was told is read."""
        transport = await self.upgrade()
        assert transport.take().startswith(b"HTTP/1.1 101 ")
        transport.receive(said("hello", token=token(account, self.bench.clock), device="d1", **fields))
        await self.bench.settle()
        assert next(message["t"] for message in transport.messages()) == "welcome"
        return transport


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return use_clock(monkeypatch)


@pytest.fixture
async def server(clock: Clock) -> AsyncIterator[Server]:
    bench = Bench(clock, close_deadline_s=0.05)
    yield Server(bench)
    await bench.stop()


def head_of(data: bytes) -> tuple[int, dict[str, str], bytes]:
    head, _, body = data.partition(b"\r\n\r\n")
    first, *lines = head.decode().split("\r\n")
    return int(first.split()[1]), {line.split(": ")[0].lower(): line.split(": ")[1] for line in lines}, body


def close_code(data: bytes) -> int | None:
    closes = [bytes(payload) for opcode, payload in frames.split(data) if opcode == frames.CLOSE]
    return int.from_bytes(closes[0][:2], "big") if closes and closes[0] else None


# The handshake


async def test_the_answer_to_an_upgrade(server: Server) -> None:
    transport = await server.upgrade()
    status, headers, rest = head_of(transport.take())
    assert status == 101
    assert headers == {"upgrade": "websocket", "connection": "Upgrade", "sec-websocket-accept": ACCEPT}
    assert rest == b""
    assert type(transport.protocol) is Connection
    assert type(transport.protocol.receiver) is Session
    assert server.state.connections == {transport.protocol}
    assert not server.state.tasks


@pytest.mark.parametrize(
    ("offer", "chosen"),
    [
        ("vestnik.v1.json", "vestnik.v1.json"),
        ("vestnik.v1.msgpack, vestnik.v1.json", "vestnik.v1.msgpack"),
        ("chat, vestnik.v1.json", "vestnik.v1.json"),
        ("", None),
    ],
)
async def test_the_subprotocol(server: Server, offer: str, chosen: str | None) -> None:
    transport = await server.upgrade(f"Sec-WebSocket-Protocol: {offer}")
    status, headers, _ = head_of(transport.take())
    assert (status, headers.get("sec-websocket-protocol")) == (101, chosen)
    assert transport.protocol.receiver.codec.subprotocol == (chosen or "vestnik.v1.json")


async def test_deflate_is_agreed_on_when_it_is_offered(server: Server) -> None:
    transport = await server.upgrade("Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits")
    _, headers, _ = head_of(transport.take())
    assert headers["sec-websocket-extensions"].startswith("permessage-deflate; server_no_context_takeover")
    assert transport.protocol.receiver.deflate


@pytest.mark.parametrize(
    ("given", "lines", "status"),
    [
        ({"leave": "Sec-WebSocket-Key"}, [], 400),
        ({"leave": "Sec-WebSocket-Key"}, ["Sec-WebSocket-Key: short"], 400),
        ({"leave": "Sec-WebSocket-Key"}, ["Sec-WebSocket-Key: !!!!"], 400),
        ({"leave": "Sec-WebSocket-Version"}, ["Sec-WebSocket-Version: 8"], 426),
        ({"leave": "Host"}, [], 400),
        ({"method": "POST"}, [], 400),
        ({}, ["Sec-WebSocket-Protocol: chat"], 400),
        ({}, ["Origin: https://elsewhere.example"], 403),
        ({"path": "/nowhere"}, [], 403),
        ({"path": "/broken"}, [], 500),
        ({"path": "/forgetful"}, [], 500),
        ({"path": "/v1/socket%"}, [], 403),
    ],
)
async def test_a_bad_handshake(server: Server, given: dict[str, str], lines: list[str], status: int) -> None:
    transport = server.connect()
    transport.receive(request(*lines, **given))
    tasks = list(server.state.tasks)
    await server.bench.settle()
    for task in tasks:
        task.exception()  # looked at: the server logs it
    found, headers, body = head_of(transport.take())
    assert found == status
    assert headers["connection"] == "close"
    assert int(headers["content-length"]) == len(body) > 0
    if status == 426:
        assert headers["sec-websocket-version"] == "13"
    assert transport.lost
    assert not server.state.connections
    assert server.bench.hub.opening == 0


async def test_an_origin_on_the_list(server: Server) -> None:
    transport = await server.upgrade("Origin: https://LK.example.ru")
    assert head_of(transport.take())[0] == 101


@pytest.mark.parametrize("case", ["sessions", "opening", "draining"])
async def test_a_node_at_its_limit(clock: Clock, case: str) -> None:
    bench = Bench(clock, **({"max_sessions": 1} if case == "sessions" else {"max_opening": 1}))
    server = Server(bench)
    if case == "sessions":
        await server.session()
    elif case == "opening":
        await server.upgrade()
    else:
        bench.hub.draining = True
    transport = await server.upgrade()
    status, headers, body = head_of(transport.take())
    assert (status, headers["retry-after"]) == (503, "1" if case == "draining" else "5")
    assert headers["content-type"] == "application/problem+json"
    assert orjson.loads(body)["status"] == 503
    await bench.stop()


async def test_a_path_that_is_no_text(server: Server) -> None:
    transport = server.connect()
    transport.receive(request().replace(b"/v1/socket", b"/v1/\xd0\xbf"))
    await server.bench.settle()
    assert head_of(transport.take())[0] == 400
    assert transport.lost


async def test_accepted_and_then_broken(server: Server) -> None:
    transport = server.connect()
    transport.receive(request(path="/half"))
    assert not server.state.tasks
    assert transport.aborted
    await server.bench.settle()
    assert not server.state.connections


async def test_a_client_that_left_before_the_answer(server: Server) -> None:
    for path, tasks in (("/v1/socket", 0), ("/nowhere", 0), ("/broken", 0), ("/slow", 1)):
        transport = server.connect()
        transport.receive(request(path=path))
        assert len(server.state.tasks) == tasks
        transport._lose()
        await server.bench.settle()
        assert bool(transport.written) == (not tasks)
        assert (server.bench.hub.opening, server.state.connections) == (0, set())


async def test_an_upgrade_behind_a_request_that_is_not_answered(server: Server) -> None:
    transport = server.connect()
    transport.receive(b"GET /page HTTP/1.1\r\nHost: gateway\r\n\r\n")
    await server.bench.settle()
    transport.receive(request())
    assert transport.aborted
    server.answers.set()
    await server.bench.settle()
    assert server.bench.hub.opening == 0


async def test_an_upgrade_behind_one_that_is(server: Server) -> None:
    server.answers.set()
    transport = server.connect()
    transport.receive(b"GET /page HTTP/1.1\r\nHost: gateway\r\n\r\n")
    await server.bench.settle()
    assert transport.take().endswith(b"here")
    transport.receive(request())
    await server.bench.settle()
    assert head_of(transport.take())[0] == 101


PAGE = b"GET /page HTTP/1.1\r\nHost: gateway\r\n\r\n"


@pytest.mark.parametrize("step", [1, 3, 40])
async def test_a_request_that_comes_in_pieces(server: Server, step: int) -> None:
    server.answers.set()
    for sent, status in ((request("Origin: https://lk.example.ru"), 101), (PAGE, 200), (b"?" * 50, 400)):
        transport = server.connect()
        for start in range(0, len(sent), step):
            if not transport.lost:
                transport.receive(sent[start : start + step])
        await server.bench.settle()
        assert head_of(transport.take())[0] == status


async def test_two_requests_in_one_read(server: Server) -> None:
    server.answers.set()
    transport = server.connect()
    transport.receive(PAGE + PAGE)
    await server.bench.settle()
    assert transport.take().count(b"HTTP/1.1 200 ") == 2
    transport = server.connect()
    transport.receive(PAGE + request())
    assert transport.aborted, "an upgrade does not stand behind a request whose answer is on its way"


async def test_a_first_request_with_a_body(server: Server) -> None:
    transport = server.connect()
    transport.receive(b"POST /page HTTP/1.1\r\nHost: gateway\r\nContent-Length: 4\r\n\r\nab")
    transport.receive(b"cd")
    await server.bench.settle()
    assert head_of(transport.take())[0] == 405


async def test_a_first_head_that_is_too_long_to_keep(server: Server) -> None:
    server.answers.set()
    transport = server.connect()
    transport.receive(PAGE[:-2] + b"X: " + b"x" * 70_000)
    assert type(transport.protocol) is Edge
    transport.receive(b"\r\n\r\n")
    await server.bench.settle()
    assert head_of(transport.take())[0] == 200


async def test_another_upgrade_is_an_ordinary_request(server: Server) -> None:
    server.answers.set()
    transport = server.connect()
    transport.receive(b"GET /page HTTP/1.1\r\nHost: gateway\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
    await server.bench.settle()
    assert head_of(transport.take())[0] == 200


async def test_frames_right_behind_the_request(server: Server) -> None:
    transport = server.connect()
    hello = said("hello", token=token("a", server.bench.clock), device="d1")
    transport.receive(request() + hello + said("ping", ref=1)[:5])
    transport.receive(said("ping", ref=1)[5:])
    await server.bench.settle()
    status, _, rest = head_of(transport.take())
    transport.written = rest
    assert (status, [message["t"] for message in transport.messages()]) == (101, ["welcome", "live", "pong"])


async def test_too_much_before_the_answer(server: Server) -> None:
    transport = server.connect()
    transport.receive(request(path="/slow"))
    transport.receive(b"x" * 20_000)
    assert transport.aborted
    await server.bench.settle()
    assert server.bench.hub.opening == 0
    assert transport.written == b""


# Request heads


async def test_heads_that_do_not_come_in_time(server: Server) -> None:
    silent, half, whole = server.connect(), server.connect(), server.connect()
    half.receive(b"GET /page HTTP/1.1\r\nHost: ga")
    whole.receive(b"GET /page HTTP/1.1\r\nHost: gateway\r\n\r\n")
    assert server.deadlines.expire(time.monotonic() + 9) == 0
    assert server.deadlines.expire(time.monotonic() + 11) == 2
    assert [silent.aborted, half.aborted, whole.aborted] == [True, True, False]
    server.answers.set()
    await server.bench.settle()
    assert whole.take().endswith(b"here")
    whole.receive(b"GET /page HT")
    assert server.deadlines.expire(time.monotonic() + 11) == 1, "the next request of a connection has its own time"
    assert not server.deadlines._begun


# Frames in


@pytest.mark.parametrize("step", [1, 2, 3, 7, 1000])
async def test_any_slicing_gives_the_same(server: Server, step: int) -> None:
    transport = await server.session()
    data = said("ping", ref=1) + framed(frames.PING, b"hey") + said("ping", ref=2, filler="x" * 3000) + said("ping")
    for start in range(0, len(data), step):
        transport.receive(data[start : start + step])
    found = [(opcode, bytes(payload)) for opcode, payload in frames.split(transport.take())]
    assert [opcode for opcode, _ in found] == [frames.TEXT, frames.PONG, frames.TEXT, frames.TEXT]
    assert found[1][1] == b"hey"
    assert transport.protocol.parser is None, "a silent connection keeps no parser"


async def test_a_small_whole_message_makes_no_parser(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    transport = await server.session()

    class None_:
        def __init__(self, *_: Any) -> None:
            raise AssertionError("a parser was made")

    monkeypatch.setattr(frames, "Parser", None_)
    transport.receive(said("ping"))
    assert [message["t"] for message in transport.messages()] == ["pong"]


async def test_fragments_with_a_ping_between(server: Server) -> None:
    transport = await server.session()
    text = orjson.dumps({"t": "ping", "ref": 5})
    transport.receive(
        framed(frames.TEXT, text[:5], first=0x01) + framed(frames.PING, b"") + framed(0, text[5:9], first=0x00)
    )
    transport.receive(framed(0, text[9:], first=0x80))
    assert [opcode for opcode, _ in frames.split(transport.written)] == [frames.PONG, frames.TEXT]
    assert transport.messages() == [{"t": "pong", "ref": 5}]


async def test_who_reads_nothing_gets_no_pongs(server: Server) -> None:
    transport = await server.session()
    transport.buffered = 100_000
    transport.receive(framed(frames.PING, b"x"))
    assert transport.take() == b""


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (b"\x81\x02{}", 1002),
        (framed(frames.TEXT, b"x", first=0xF1), 1002),
        (framed(frames.TEXT, b"\xff\xfe"), 1007),
        (framed(frames.TEXT, b"x" * 20_000), 4400),
        (framed(frames.TEXT, b"[]"), 4400),
        (framed(frames.BINARY, b"{}"), 4400),
    ],
)
async def test_what_breaks_the_protocol_closes_with_its_code(server: Server, data: bytes, code: int) -> None:
    transport = await server.session()
    transport.receive(said("ping") + data + said("ping"))
    written = transport.take()
    assert [opcode for opcode, _ in frames.split(written)] == [frames.TEXT, frames.CLOSE]
    assert close_code(written) == code
    assert server.bench.counts.closed == {code: 1}
    assert not transport.closing, "it reads on until the peer answers"
    transport.receive(framed(frames.CLOSE, code.to_bytes(2, "big")))
    await server.bench.settle()
    assert transport.lost or code == 1002, "after a broken frame nothing is readable any more"


# The close handshake


async def test_the_peer_closes_first(server: Server) -> None:
    transport = await server.session()
    transport.receive(framed(frames.CLOSE, (1001).to_bytes(2, "big") + b"going"))
    assert transport.take() == frames.frame(frames.CLOSE, (1001).to_bytes(2, "big"))
    await server.bench.settle()
    assert transport.lost
    assert not transport.aborted
    assert server.bench.counts.closed == {1001: 1}
    assert server.bench.hub.sessions == 0


async def test_the_peer_closes_without_a_code(server: Server) -> None:
    transport = await server.session()
    transport.receive(framed(frames.CLOSE, b""))
    assert transport.take() == frames.frame(frames.CLOSE, b"")
    assert server.bench.counts.closed == {1005: 1}


async def test_we_close_first_and_discard_until_the_answer(server: Server) -> None:
    transport = await server.session()
    session = transport.protocol.receiver
    session.close(4410, "revoked")
    assert close_code(transport.take()) == 4410
    transport.receive(said("ping") + said("ack", feed=A, offset=99) + framed(frames.PING, b"x"))
    assert transport.take() == b""
    transport.receive(framed(frames.CLOSE, (4410).to_bytes(2, "big")))
    assert transport.take() == b""
    await server.bench.settle()
    assert transport.lost
    assert not transport.aborted


async def test_a_peer_that_does_not_answer_our_close(server: Server) -> None:
    transport = await server.session()
    transport.protocol.receiver.close(4410, "revoked")
    await asyncio.sleep(0.03)
    transport.receive(said("ping"))
    assert not transport.aborted
    await asyncio.sleep(0.05)
    assert transport.aborted


async def test_the_peers_close_behind_what_made_us_close(server: Server) -> None:
    transport = await server.session()
    transport.receive(framed(frames.TEXT, b"[]") + said("ping") + framed(frames.CLOSE, (1000).to_bytes(2, "big")))
    await server.bench.settle()
    assert transport.lost
    assert not transport.aborted
    assert server.bench.counts.closed == {4400: 1}


async def test_a_peer_that_closes_and_reads_nothing_more(server: Server) -> None:
    transport = await server.session()
    transport.buffered = 50_000
    transport.receive(framed(frames.CLOSE, b""))
    await asyncio.sleep(0.08)
    assert transport.aborted


async def test_the_peers_half_of_the_connection_ends(server: Server) -> None:
    idle, full = await server.session("a"), await server.session("b")
    full.buffered = 50_000
    for transport in (idle, full):
        if not transport.protocol.eof_received():
            transport.close()
    await server.bench.settle()
    assert [idle.lost, full.lost, full.aborted] == [True, True, True]
    assert server.bench.counts.closed == {1006: 2}


async def test_the_connection_breaks(server: Server) -> None:
    transport = await server.session()
    connection = transport.protocol
    transport._lose()
    assert server.bench.counts.closed == {1006: 1}
    assert not server.state.connections
    connection.close(4410, "revoked")
    assert transport.take() == b""


async def test_the_server_stops(server: Server) -> None:
    transport = await server.session()
    waiting = server.connect()
    waiting.receive(request(path="/slow"))
    for connection in list(server.state.connections):
        connection.shutdown()
    await server.bench.settle()
    assert close_code(transport.take()) == 4512
    assert waiting.lost


# Back-pressure


async def test_pause_and_resume(server: Server) -> None:
    transport = await server.session()
    transport.protocol.pause_writing()
    await server.bench.publish(A, 2)
    assert transport.take() == b""
    transport.protocol.resume_writing()
    assert offsets(transport.messages()) == [1, 2]
    transport.protocol.receiver.close(4410, "revoked")
    transport.protocol.pause_writing()
    transport.protocol.resume_writing()


# Memory


def alive(*kinds: type) -> Iterator[str]:
    for thing in gc.get_objects():
        if isinstance(thing, kinds):
            yield type(thing).__name__


async def test_nothing_of_a_connection_stays_and_nothing_of_http_while_it_lives(server: Server) -> None:
    """Counted without the collector: what waits for it costs memory, and time when it comes."""
    (await server.session("first")).abort()  # the class keeps what all its connections share
    await server.bench.settle()
    server.bench.hub._wheel.clear()
    gc.collect()
    before = sorted(alive(Doorstep, Edge, Handshake, Connection, Session))
    gc.disable()
    try:
        transport = await server.session("a", feeds=["agency:fns"])
        await server.bench.publish(A)
        transport.receive(said("ack", feed=A, offset=1))
        kinds = (Doorstep, Edge, Handshake, Connection, Session)
        assert sorted(alive(*kinds)) == sorted([*before, "Connection", "Session"])
        transport.receive(framed(frames.CLOSE, b""))
        del transport
        await server.bench.settle()
        await server.bench.hub._flush()
        server.bench.hub._wheel.clear()
        assert sorted(alive(Doorstep, Edge, Handshake, Connection, Session)) == before
    finally:
        gc.enable()
    assert not server.state.connections
    assert not server.state.tasks
    assert not server.deadlines._begun


@pytest.mark.parametrize("end", ["refused", "left early", "we close", "silent"])
async def test_nothing_stays_however_it_ends(server: Server, end: str) -> None:
    (await server.session("first")).abort()
    await server.bench.settle()
    server.bench.hub._wheel.clear()
    gc.collect()
    before = sorted(alive(Edge, Handshake, Connection, Session, Transport))
    gc.disable()
    try:
        if end == "refused":
            await server.upgrade(path="/nowhere")
        elif end == "left early":
            transport = server.connect()
            transport.receive(request())
            transport._lose()
            del transport
        elif end == "we close":
            transport = await server.session()
            transport.protocol.receiver.close(4410, "revoked")
            transport.receive(framed(frames.CLOSE, b""))
            del transport
        else:
            transport = server.connect()
            server.deadlines.expire(asyncio.get_running_loop().time() + 11)
            del transport
        await server.bench.settle()
        await server.bench.hub._flush()
        server.bench.hub._wheel.clear()
        assert sorted(alive(Edge, Handshake, Connection, Session, Transport)) == before
    finally:
        gc.enable()


# Without the hand-off


class Far:
    """The ASGI server's side of a socket, as `Carrier` uses it."""

    client = None

    def __init__(self) -> None:
        self.sent: list[Any] = []
        self.closed: tuple[int, str] | None = None
        self.coming: asyncio.Queue[dict[str, Any]] = asyncio.Queue()
        self.open = asyncio.Event()
        self.open.set()

    async def receive(self) -> dict[str, Any]:
        return await self.coming.get()

    async def send_text(self, data: str) -> None:
        await self.open.wait()
        self.sent.append(orjson.loads(data))

    async def send_bytes(self, data: bytes) -> None:
        await self.open.wait()
        self.sent.append(data)

    async def close(self, code: int, reason: str) -> None:
        await self.open.wait()
        self.closed = code, reason

    def say(self, t: str, **fields: Any) -> None:
        self.coming.put_nowait({"type": "websocket.receive", "text": orjson.dumps({"t": t, **fields}).decode()})

    def leave(self, code: int = 1000) -> None:
        self.coming.put_nowait({"type": "websocket.disconnect", "code": code})


async def carried(server: Server) -> tuple[Far, Carrier, Session, "asyncio.Task[None]"]:
    far = Far()
    carrier = Carrier(far)  # type: ignore[arg-type]
    session = Session(server.bench.gate, JSON, carrier, carrier)
    task = asyncio.create_task(carrier.run(session))
    far.say("hello", token=token("a", server.bench.clock), device="d1")
    for _ in range(3):
        await server.bench.settle()
    assert [message["t"] for message in far.sent] == ["welcome", "live"]
    far.sent.clear()
    return far, carrier, session, task


async def test_carried_both_ways(server: Server) -> None:
    far, _, session, task = await carried(server)
    await server.bench.publish(A, 2)
    far.say("ping", ref=1)
    await server.bench.settle()
    assert [message["t"] for message in far.sent] == ["event", "event", "pong"]
    far.leave(1001)
    await task
    assert server.bench.counts.closed == {1001: 1}
    assert not session.open


async def test_carried_back_pressure(server: Server) -> None:
    far, carrier, session, task = await carried(server)
    far.open.clear()
    await server.bench.publish(A, 100, data="x" * 2000)
    await server.bench.settle()
    assert not session.writable
    assert carrier._bytes < 2 * Carrier.HIGH
    far.open.set()
    for _ in range(30):
        await server.bench.settle()
    assert offsets(far.sent) == list(range(1, 101))
    assert session.writable
    far.leave()
    await task


async def test_carried_close_waits_for_the_peer_but_not_long(server: Server) -> None:
    far, _, session, task = await carried(server)
    await server.bench.publish(A)
    session.close(4410, "revoked " * 40)
    await server.bench.settle()
    assert far.closed
    assert far.closed[0] == 4410
    assert len(far.closed[1].encode()) <= 123
    assert not task.done()
    far.say("ping")
    await asyncio.wait_for(task, 1)
    assert [message["t"] for message in far.sent] == ["event"]


async def test_carried_close_of_a_peer_that_reads_nothing(server: Server) -> None:
    far, _, session, task = await carried(server)
    far.open.clear()
    await server.bench.publish(A)
    await server.bench.settle()
    session.close(4508, "slow")
    await asyncio.wait_for(task, 1)
    assert far.closed is None


async def test_carried_beats_keep_the_session(server: Server) -> None:
    """Pongs do not come through ASGI: the server below pings by itself, and what it takes counts as being heard."""
    far, _, session, task = await carried(server)
    for _ in range(40):
        server.bench.tick(10)
        await server.bench.settle()
    assert session.open
    assert {message["t"] for message in far.sent} == {"beat"}
    far.open.clear()
    for _ in range(10):
        server.bench.tick(10)
        await server.bench.settle()
    assert not session.open
    far.leave(1006)
    await asyncio.wait_for(task, 1)


async def test_carried_messages_are_bounded(server: Server) -> None:
    far, _, _, task = await carried(server)
    far.coming.put_nowait({"type": "websocket.receive", "bytes": b"x" * 20_000})
    await server.bench.settle()
    assert far.closed
    assert far.closed[0] == 4400
    far.leave(4400)
    await task

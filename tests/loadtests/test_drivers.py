"""The same devices against any server: each driver's words, and the servers that come from PyPI for real."""

import asyncio
import os
from pathlib import Path

import orjson
import pytest
from click.testing import CliRunner

from gateway.protocol.frames import TEXT, Parser, frame
from loadtests.bench.agency import Connections, Http
from loadtests.bench.drivers import Centrifugo, CentrifugoPhone, SocketIo, SocketIoPhone, StarletteLoop
from loadtests.bench.others import Found, driver, main, measure, middle
from loadtests.bench.phones import Broken, Phone, Swarm
from loadtests.bench.processes import Failed, listener


class Wire:
    """What a phone writes."""

    def __init__(self, phone: Phone):
        self.phone, self.data = phone, b""
        phone._transport = self  # type: ignore[assignment]
        phone._rest = b""

    def write(self, data: bytes) -> None:
        self.data += data

    def hear(self, text: bytes) -> list[bytes]:
        self.phone.data_received(frame(TEXT, text))
        said, self.data = Parser(16384, False).feed(self.data), b""
        return [payload for _, payload in said]


def centrifugo() -> Wire:
    driver = Centrifugo("ws://127.0.0.1:1")
    return Wire(CentrifugoPhone(driver, driver.swarm(), "a1"))


def commands(said: list[bytes]) -> list[dict[str, object]]:
    return [orjson.loads(line) for payload in said for line in payload.split(b"\n")]


CONNECTED = b'{"id":1,"connect":{"client":"c","version":"6.9.1 OSS","ping":25,"pong":true}}'


def test_the_words_of_centrifugo() -> None:
    wire, swarm = (made := centrifugo()), made.phone.swarm
    wire.phone.opened()
    wire.data = b""
    assert commands(wire.hear(CONNECTED)) == [
        {"id": 2, "subscribe": {"channel": "bench"}},
        {"id": 3, "subscribe": {"channel": "bench:a1"}},
    ]
    wire.hear(b'{"id":2,"subscribe":{}}\n{"id":3,"subscribe":{}}')
    assert swarm.ready == 1
    assert wire.hear(b"{}") == [b"{}"]
    wire.hear(b'{"push":{"channel":"bench","pub":{"data":{"id":"1"}}}}\n{"push":{"channel":"bench","pub":{"data":{}}}}')
    assert swarm.count == 2
    wire.hear(b'{"id":4,"error":{"code":103,"message":"permission denied"}}')
    with pytest.raises(Broken, match="permission denied"):
        swarm.check()


def test_centrifugo_is_asked_for_what_was_missed() -> None:
    wire, swarm = (made := centrifugo()), made.phone.swarm
    with_history = b'{"recoverable":true,"positioned":true,"epoch":"e","offset":7}'
    wire.hear(CONNECTED)
    wire.hear(b'{"id":2,"subscribe":%b}\n{"id":3,"subscribe":{"recoverable":true,"epoch":"f"}}' % with_history)
    wire.hear(b'{"push":{"channel":"bench","pub":{"data":{},"offset":8}}}')
    assert commands(wire.hear(CONNECTED)) == [
        {"id": 2, "subscribe": {"channel": "bench", "recover": True, "epoch": "e", "offset": 8}},
        {"id": 3, "subscribe": {"channel": "bench:a1", "recover": True, "epoch": "f", "offset": 0}},
    ]
    back = b'"recoverable":true,"recovered":true,"was_recovering":true'
    wire.hear(b'{"id":2,"subscribe":{%b,"epoch":"e","offset":8}}' % back)
    wire.hear(b'{"id":3,"subscribe":{%b,"epoch":"f","publications":[{"offset":1},{"offset":2}],"offset":2}}' % back)
    assert (swarm.ready, swarm.count, swarm.broken) == (2, 3, None)
    wire.hear(b'{"push":{"channel":"bench:a1","pub":{"data":{},"offset":4}}}')
    with pytest.raises(Broken, match="a hole: 4 after 2"):
        swarm.check()


def test_a_history_that_centrifugo_lost_is_noticed() -> None:
    wire, swarm = (made := centrifugo()), made.phone.swarm
    wire.hear(b'{"id":2,"subscribe":{"recoverable":true,"epoch":"e"}}')
    wire.hear(CONNECTED)
    wire.hear(b'{"id":2,"subscribe":{"recoverable":true,"epoch":"g","recovered":false,"was_recovering":true}}')
    with pytest.raises(Broken, match="could not recover bench"):
        swarm.check()


def test_the_words_of_socketio() -> None:
    swarm = Swarm("test", 1, "/")
    wire = Wire(SocketIoPhone(swarm, "a1", ""))
    assert wire.hear(b'0{"sid":"s","upgrades":[],"pingInterval":25000,"pingTimeout":20000}') == [b"40"]
    assert wire.hear(b'40{"sid":"n"}') == [b'42["join","a1"]']
    assert wire.hear(b"2") == [b"3"]
    wire.hear(b'42["event","xxx"]')
    assert (swarm.ready, swarm.count) == (1, 1)


def test_a_server_by_its_url() -> None:
    with pytest.raises(Failed, match="centrifugo=ws"):
        driver("centrifugo", None, Path("data"), "")
    there = driver("centrifugo", "ws://127.0.0.1:8123/connection/websocket", Path("data"), "k")
    assert (there.host, there.port, there.path) == ("127.0.0.1", 8123, "/connection/websocket")
    there = driver("socketio", "ws://push.example?x=1", Path("data"), "")
    assert (there.host, there.port, there.path) == ("push.example", 80, "/socket.io/?EIO=4&transport=websocket")
    for wrong in ("wss://push.example", "127.0.0.1:80"):
        with pytest.raises(Failed, match="is no URL"):
            driver("stock", wrong, Path("data"), "")


async def test_the_process_behind_a_url() -> None:
    async with await asyncio.start_server(lambda *_: None, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        assert listener("127.0.0.1", port) == os.getpid()
        assert listener("192.0.2.1", port) is None
    assert listener("127.0.0.1", port) is None


async def test_an_answer_in_chunks() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(2):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(
                b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nWiki\r\nb;x=1\r\npedia in ch\r\n0\r\n\r\n"
            )
        writer.close()

    async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
        connections = Connections(server.sockets[0].getsockname()[1], count=1)
        for _ in range(2):
            assert await connections.request("GET", "/") == b"Wikipedia in ch"
        connections.close()


async def test_a_connection_that_was_idle_too_long_is_opened_anew() -> None:
    opened: list[asyncio.StreamWriter] = []

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        opened.append(writer)
        await reader.readuntil(b"\r\n\r\n")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        writer.close()

    async with (
        await asyncio.start_server(answer, "127.0.0.1", 0) as server,
        Http(server.sockets[0].getsockname()[1]) as http,
    ):
        for _ in range(3):
            assert await http.request("GET", "/") == b"ok"
            assert http._streams is not None
            assert await http._streams[0].read() == b"", "the end has arrived"
    assert len(opened) == 3


def test_rounds_make_medians() -> None:
    rounds = [Found({"idle_kb": value, "storm_s": value}, "v1") for value in (9.0, 1.0, 2.0)]
    assert middle(rounds) == Found({"idle_kb": 9.0, "storm_s": 2.0}, "v1")
    assert middle([*rounds, Found(why="closed")]).why == "closed"


@pytest.mark.parametrize("kind", [StarletteLoop, SocketIo])
async def test_servers_from_pypi_are_measured(kind: type[StarletteLoop | SocketIo]) -> None:
    found = await measure(kind(), 20, 1)
    assert found.values["personal_rate"] > 0
    assert found.values["storm_caught_up"] == 0
    assert found.version.startswith(kind.packages[0])
    assert {"connect_us", "idle_kb", "fan_out_s", "storm_s"} <= found.values.keys()


def test_a_server_that_nobody_knows() -> None:
    said = CliRunner().invoke(main, ["ours", "mercure=ws://127.0.0.1:1"])
    assert (said.exit_code, "there is no driver 'mercure'" in said.output) == (2, True)

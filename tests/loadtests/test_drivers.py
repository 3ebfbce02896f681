"""The same devices against any server: each driver's words, and the servers that come from PyPI for real."""

import orjson
import pytest

from gateway.protocol.frames import TEXT, Parser, frame
from loadtests.bench.drivers import Centrifugo, CentrifugoPhone, SocketIo, SocketIoPhone, StarletteLoop
from loadtests.bench.others import Found, measure
from loadtests.bench.phones import Broken, Phone, Swarm
from loadtests.bench.processes import Failed


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


def test_the_words_of_centrifugo() -> None:
    swarm = Swarm("test", 1, "/")
    wire = Wire(CentrifugoPhone(swarm, "a1", ""))
    wire.phone.opened()
    wire.data = b""
    said = wire.hear(b'{"id":1,"connect":{"client":"c","version":"6","ping":25,"pong":true}}')
    commands = [orjson.loads(line) for line in said[0].split(b"\n")]
    assert commands == [{"id": 2, "subscribe": {"channel": "bench"}}, {"id": 3, "subscribe": {"channel": "bench:a1"}}]
    wire.hear(b'{"id":2,"subscribe":{}}\n{"id":3,"subscribe":{}}')
    assert swarm.ready == 1
    assert wire.hear(b"{}") == [b"{}"]
    wire.hear(b'{"push":{"channel":"bench","pub":{"data":{"id":"1"}}}}\n{"push":{"channel":"bench","pub":{"data":{}}}}')
    assert swarm.count == 2
    wire.hear(b'{"id":4,"error":{"code":103,"message":"permission denied"}}')
    with pytest.raises(Broken, match="permission denied"):
        swarm.check()


def test_the_words_of_socketio() -> None:
    swarm = Swarm("test", 1, "/")
    wire = Wire(SocketIoPhone(swarm, "a1", ""))
    assert wire.hear(b'0{"sid":"s","upgrades":[],"pingInterval":25000,"pingTimeout":20000}') == [b"40"]
    assert wire.hear(b'40{"sid":"n"}') == [b'42["join","a1"]']
    assert wire.hear(b"2") == [b"3"]
    wire.hear(b'42["event","xxx"]')
    assert (swarm.ready, swarm.count) == (1, 1)


def test_centrifugo_needs_a_url() -> None:
    with pytest.raises(Failed, match="--url"):
        Centrifugo()
    there = Centrifugo("ws://127.0.0.1:8123/connection/websocket", key="k")
    assert (there.host, there.port, there.path) == ("127.0.0.1", 8123, "/connection/websocket")


@pytest.mark.parametrize("kind", [StarletteLoop, SocketIo])
async def test_servers_from_pypi_are_measured(kind: type[StarletteLoop | SocketIo]) -> None:
    found: Found = await measure(kind(), 20, 1, None)
    assert found.values["personal_rate"] > 0
    assert found.values["storm_caught_up"] == 0
    assert {"connect_us", "idle_kb", "fan_out_s", "storm_s"} <= found.values.keys()

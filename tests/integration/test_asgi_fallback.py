"""The same application handed off by our protocol class, and carried by stock uvicorn with its own WebSocket code.

A device cannot tell the difference: every scenario here runs against all of them, over real sockets.
"""

import asyncio
import contextlib
import json
import socket
import time
import uuid
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest
import uvicorn
import websockets
from websockets.asyncio.client import ClientConnection, connect

from client_sim.agencies import sign
from gateway import verify, wire
from gateway.app import Gateway, create_app
from gateway.settings import Settings, load
from gateway.store.sqlite import SqliteStore
from gateway.tokens import LocalKey

A = "account:a"
BATCH = "application/cloudevents-batch+json"

Map = dict[str, Any]


class Quiet(uvicorn.Server):
    """Leaves the signals to pytest."""

    @contextlib.contextmanager
    def capture_signals(self):  # type: ignore[no-untyped-def]
        yield


class Address:
    """A gateway that runs: how to reach it, sign for it and sign in to it."""

    def __init__(self, data: Path, port: int, secret: str):
        self.port, self.secret, self.key = port, secret, LocalKey.open(data)
        self.http = httpx.AsyncClient(base_url=f"http://127.0.0.1:{port}", trust_env=False)
        self.stop = asyncio.Event()

    async def post(self, *events: Map) -> list[Map]:
        body = json.dumps([event(**fields) for fields in events]).encode()
        headers = {"content-type": BATCH, "webhook-id": uuid.uuid4().hex, "webhook-timestamp": str(int(time.time()))}
        headers["webhook-signature"] = sign(self.secret, headers["webhook-id"], int(headers["webhook-timestamp"]), body)
        answer = await self.http.post("/v1/agencies/fns/events", content=body, headers=headers)
        assert answer.status_code == 202, answer.text
        results: list[Map] = answer.json()["results"]
        return results

    def connect(self, **given: Any) -> Any:
        given = {"subprotocols": ["vestnik.v1.json"], "proxy": None, "ping_interval": None, **given}
        return connect(f"ws://127.0.0.1:{self.port}/v1/socket", **given)

    @contextlib.asynccontextmanager
    async def device(self, name: str = "d1", account: str = "a", **fields: Any) -> AsyncIterator["Device"]:
        async with self.connect() as socket:
            device = Device(socket)
            await device.say("hello", token=self.key.issue(account), device=name, **fields)
            device.welcome = await device.hear("welcome")
            yield device


def event(**fields: Any) -> Map:
    text = fields.pop("text", "Привет")
    made = {
        "specversion": "1.0",
        "id": uuid.uuid4().hex,
        "source": "/agencies/fns",
        "type": "gov.notice.sent",
        "time": "2026-11-22T10:00:00Z",
        "account": "a",
        "data": {"title": "Письмо", "text": text},
        **fields,
    }
    return {name: value for name, value in made.items() if value is not None}


class Device:
    def __init__(self, socket: ClientConnection):
        self.socket = socket
        self.welcome: Map = {}

    async def say(self, t: str, **fields: Any) -> None:
        await self.socket.send(json.dumps({"t": t, **fields}))

    async def next(self) -> Map:
        message: Map = json.loads(await asyncio.wait_for(self.socket.recv(), 10))
        return message

    async def hear(self, t: str) -> Map:
        """The next message, beats left out, which must be of this type."""
        while (message := await self.next())["t"] == "beat" and t != "beat":
            pass
        assert message["t"] == t, message
        return message

    async def events(self, count: int) -> list[int]:
        """The offsets of so many events, as they came."""
        found: list[int] = []
        while len(found) < count:
            message = await self.next()
            if message["t"] == "event":
                found.append(message["offset"])
            elif message["t"] == "batch":
                found += [offset for offset, _ in message["events"]]
            else:
                assert message["t"] in ("live", "beat"), message
        return found

    async def closed(self) -> int:
        return await closed(self.socket)


async def closed(socket: ClientConnection) -> int:
    """The code with which the gateway closes; what it still says before is passed over."""
    with contextlib.suppress(websockets.ConnectionClosed):
        while True:
            await asyncio.wait_for(socket.recv(), 10)
    assert socket.close_code is not None
    return socket.close_code


@contextlib.asynccontextmanager
async def serving(way: str, data: Path, **given: Any) -> AsyncIterator[Address]:
    settings = load(env_file=None, data=data, origins="https://lk.example.ru", **given)
    secret, key = verify.new_secret("hmac", time.time())
    store = SqliteStore(data / "vestnik.db")
    await store.open()
    await store.add_agency_key("fns", key, None, time.time())
    await store.close()
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    server, gateway = await _server(way, settings, sock)
    task = asyncio.create_task(server.serve([sock]))
    try:
        while not server.started:
            assert not task.done(), task
            await asyncio.sleep(0.005)
        address = Address(data, sock.getsockname()[1], secret)
        stopping = asyncio.create_task(_stop(address, server, gateway))
        yield address
        stopping.cancel()
        await address.http.aclose()
    finally:
        server.should_exit = True
        await task
        if gateway is not None:
            await gateway.stop()


async def _server(way: str, settings: Settings, sock: socket.socket) -> tuple[Quiet, Gateway | None]:
    common: Map = {"log_config": None, "server_header": False, "loop": "none", "timeout_graceful_shutdown": 3}
    if way != "hand-off":
        return Quiet(uvicorn.Config(create_app(settings), ws=way, lifespan="on", **common)), None
    gateway = Gateway(settings)
    await gateway.start()
    http = wire.Entrance(gateway.deadlines, sock.getsockname()[:2])
    return Quiet(uvicorn.Config(gateway.asgi, http=http, ws="none", lifespan="off", **common)), gateway


async def _stop(address: Address, server: Quiet, gateway: Gateway | None) -> None:
    """What `vestnik serve` does at a signal, without waiting."""
    await address.stop.wait()
    if gateway is not None:
        await gateway.drain(0)
    server.should_exit = True


WAYS = ["hand-off", "websockets-sansio"]


@pytest.fixture(params=WAYS)
async def gateway(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Address]:
    async with serving(request.param, tmp_path) as address:
        yield address


async def test_events_acks_and_a_resume(gateway: Address) -> None:
    await gateway.post({}, {}, {})
    async with gateway.device(ref=1) as device:
        assert device.welcome["new"] is True
        assert device.welcome["ref"] == 1
        assert await device.events(3) == [1, 2, 3]
        await device.hear("live")
        await device.say("ack", feed=A, offset=2)
        await gateway.post({})
        assert (await device.hear("event"))["offset"] == 4
    async with gateway.device() as device:
        assert device.welcome["new"] is False
        assert await device.events(2) == [3, 4]
    epoch = device.welcome["feeds"][0]["epoch"]
    async with gateway.device(resume={A: {"epoch": epoch, "offset": 3}}) as device:
        assert (await device.hear("event"))["offset"] == 4
        await device.hear("live")
    async with gateway.device(resume={A: {"epoch": "another", "offset": 3}}) as device:
        assert (await device.hear("resync"))["offset"] == 4
        await device.hear("live")


async def test_the_same_event_in_both_subprotocols(gateway: Address) -> None:
    await gateway.post({"text": "Слово 🙂"})
    async with gateway.device() as device:
        told = await device.hear("event")
    async with gateway.connect(subprotocols=["chat", "vestnik.v1.msgpack", "vestnik.v1.json"]) as packed:
        assert packed.subprotocol == "vestnik.v1.msgpack"
        await packed.send(msgpack.packb({"t": "hello", "token": gateway.key.issue("a"), "device": "d2"}))
        welcome, message = msgpack.unpackb(await packed.recv()), msgpack.unpackb(await packed.recv())
        assert welcome["t"] == "welcome"
        assert message == told
        await packed.send('{"t":"ping"}')
        assert await closed(packed) == 4400


async def test_no_subprotocol_is_json(gateway: Address) -> None:
    async with gateway.connect(subprotocols=None) as plain:
        assert plain.subprotocol is None
        await plain.send(json.dumps({"t": "hello", "token": gateway.key.issue("a"), "device": "d1"}))
        assert json.loads(await plain.recv())["t"] == "welcome"


async def test_requests_and_errors(gateway: Address) -> None:
    await gateway.post({}, {})
    async with gateway.device("d1") as one, gateway.device("d2") as two:
        for device in (one, two):
            await device.hear("batch")
            await device.hear("live")
        await one.say("ping", ref="r")
        assert await one.hear("pong") == {"t": "pong", "ref": "r"}
        await one.say("subscribe", feed="agency:fns")
        await one.hear("subscribed")
        assert (await one.hear("live"))["feed"] == "agency:fns"
        await one.say("unsubscribe", feed="agency:fns")
        await one.hear("unsubscribed")
        await one.say("ack", feed=A, offset=3, ref=9)
        error = await one.hear("error")
        assert (error["code"], error["feed"], error["ref"]) == ("invalid", A, 9)
        await one.say("nonsense")
        assert (await one.hear("error"))["code"] == "unknown_type"
        await one.say("seen", feed=A, offsets=[1])
        assert await two.hear("seen") == {"t": "seen", "feed": A, "offsets": [1]}


async def test_a_saver_gets_its_batch_with_the_urgent_one(gateway: Address) -> None:
    async with gateway.device(mode="saver") as device:
        await device.hear("live")
        await gateway.post({}, {})
        code = {"purpose": "Вход", "code": "123456", "until": "2026-11-22T10:05:00Z"}
        await gateway.post({"type": "gov.code.sent", "data": code})
        batch = await device.hear("batch")
        assert [offset for offset, _ in batch["events"]] == [1, 2, 3]
        await device.say("mode", mode="full")
        await device.hear("mode")
        await gateway.post({})
        assert (await device.hear("event"))["offset"] == 4


async def test_a_backlog_beyond_window_and_socket(gateway: Address) -> None:
    for _ in range(6):
        await gateway.post(*({"text": "x" * 4000} for _ in range(100)))
    async with gateway.device() as device:
        await asyncio.sleep(0.2)  # the socket fills up meanwhile
        got: list[int] = []
        while len(got) < 600:
            got += await device.events(1)
            await device.say("ack", feed=A, offset=got[-1])
        assert got == list(range(1, 601))


@pytest.mark.parametrize(
    ("first", "code"),
    [
        ('{"t":"ping"}', 4400),
        ("not json", 4400),
        (b"bytes", 4400),
        ('{"t":"hello","token":"x.y.z","device":"d1"}', 4401),
        ('{"t":"hello","token":"x","device":"d1","filler":"' + "x" * 20_000 + '"}', 4400),
        ('{"t":"hello","token":"x","device":"d1","resume":{"account:' + "a" * 64 + '":{"epoch":1}}}', 4400),
    ],
    ids=["no hello", "no json", "binary", "token", "long", "long reason"],
)
async def test_a_bad_beginning(gateway: Address, first: str | bytes, code: int) -> None:
    async with gateway.connect() as raw:
        await raw.send(first)
        assert await Device(raw).closed() == code


async def test_the_newest_session_wins(gateway: Address) -> None:
    async with gateway.device() as old, gateway.device() as new:
        assert await old.closed() == 4409
        await new.hear("live")
        await gateway.post({})
        assert (await new.hear("event"))["offset"] == 1


async def test_signing_out_ends_the_sessions(gateway: Address) -> None:
    token = gateway.key.issue("a")
    async with gateway.device("d1") as one, gateway.device("d2") as two:
        answer = await gateway.http.delete("/v1/devices/d1", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 204
        assert await one.closed() == 4410
        answer = await gateway.http.delete("/v1/sessions", headers={"authorization": f"Bearer {token}"})
        assert answer.status_code == 204
        assert await two.closed() == 4410


async def test_who_goes_without_a_word_is_noticed(gateway: Address) -> None:
    async with gateway.device() as device:
        device.socket.transport.abort()
    headers = {"authorization": f"Bearer {gateway.key.issue('a')}"}
    async with asyncio.timeout(5):
        while (await gateway.http.get("/v1/devices", headers=headers)).json()[0]["connected"]:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("given", "status"),
    [
        ({"subprotocols": ["chat"]}, 400),
        ({"origin": "https://elsewhere.example"}, 403),
    ],
)
async def test_a_refused_handshake(gateway: Address, given: Map, status: int) -> None:
    with pytest.raises(websockets.InvalidStatus) as caught:
        async with gateway.connect(**given):
            pass
    response = caught.value.response
    assert response.status_code == status
    assert response.headers["content-type"] == "application/problem+json"
    assert json.loads(response.body)["status"] == status


async def test_an_origin_on_the_list(gateway: Address) -> None:
    async with gateway.connect(origin="https://lk.example.ru"):
        pass


@pytest.mark.parametrize("way", WAYS)
async def test_a_node_at_its_limit(way: str, tmp_path: Path) -> None:
    async with serving(way, tmp_path, max_sessions=1) as gateway, gateway.device():
        with pytest.raises(websockets.InvalidStatus) as caught:
            async with gateway.connect():
                pass
        assert caught.value.response.status_code == 503
        assert caught.value.response.headers["retry-after"] == "5"


@pytest.mark.parametrize("way", WAYS)
async def test_beats_keep_a_silent_device(way: str, tmp_path: Path) -> None:
    """It answers pings, and does nothing else, for longer than two beats."""
    async with serving(way, tmp_path, beat_s=0.2, sweep_s=0.1) as gateway, gateway.device() as device:
        await gateway.post({})
        await device.events(1)
        heads = [(await device.hear("beat"))["heads"][A] for _ in range(8)]
        assert heads[-1] == 1
        await device.say("ping")
        await device.hear("pong")


@pytest.mark.parametrize("way", WAYS)
async def test_a_node_that_stops(way: str, tmp_path: Path) -> None:
    """With a code that says: reconnect. A server that closes sockets by itself says 1012 for it."""
    async with serving(way, tmp_path) as gateway, gateway.device() as device:
        await device.hear("live")
        gateway.stop.set()
        assert await device.closed() == (4512 if way == "hand-off" else 1012)

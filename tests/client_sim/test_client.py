"""The client against a scripted gateway over real sockets; its decisions without any."""

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import ServerConnection, serve
from websockets.http11 import Request, Response

from client_sim import client as module
from client_sim.client import (
    Client,
    Feed,
    Hole,
    Message,
    NotConnected,
    Notebook,
    Numbered,
    Position,
    Stopped,
    advice,
)
from gateway.protocol import schema
from gateway.protocol.codec import by_subprotocol

ACCOUNT = "account:anna"


def event(n: int, source: str = "/agencies/mvd") -> dict[str, Any]:
    return {
        "specversion": "1.0",
        "id": f"e{n}",
        "source": source,
        "type": "gov.notice.sent",
        "time": "2026-03-01T09:00:00Z",
        "account": "anna",
        "data": {"title": "Title", "text": "Text"},
        "recordedtime": "2026-03-01T09:00:00.250Z",
    }


# Decisions


def feed(start: int = 10, **more: Any) -> Feed:
    return Feed(ACCOUNT, "e1", start, received=start, kept=start, acked=start, **more)


def test_a_feed_takes_what_is_next_and_drops_repeats():
    one = feed()
    assert one.take([(11, event(11)), (12, None)]) == [(11, event(11)), (12, None)]
    assert one.take([(11, event(11)), (12, None), (13, event(13))]) == [(13, event(13))]


def test_a_feed_never_skips():
    with pytest.raises(Hole):
        feed().take([(12, event(12))])


def test_what_is_kept_already_is_acknowledged_and_not_kept_again():
    one = feed()
    one.kept = 12
    assert one.take([(11, event(11)), (12, event(12)), (13, event(13))]) == [(13, event(13))]
    assert one.due() == 12
    one.kept = 13
    assert one.due() == 13


def test_while_a_snapshot_is_due_nothing_is_kept_or_acknowledged():
    one = feed(loading=True)
    assert one.take([(11, event(11)), (12, event(12))]) == []
    assert one.due() is None
    assert one.loaded(11) == [(12, event(12))]
    one.kept = 12
    assert one.due() == 12


def test_an_ack_never_passes_what_came():
    one = feed(loading=True)
    one.acked = 9
    assert one.loaded(50) == []  # the snapshot is ahead of the socket
    assert one.due() == 10


def test_two_beats_with_a_head_above_show_a_loss():
    one = feed()
    assert [one.stuck(10), one.stuck(11), one.stuck(11)] == [False, False, True]


def test_events_or_an_owed_ack_between_beats_are_no_loss():
    one = feed()
    assert not one.stuck(12)
    one.take([(11, event(11))])
    assert not one.stuck(12)
    one.kept = 11  # an ack is owed: the gateway may be waiting for it
    assert not one.stuck(12)
    one.acked = 11
    assert [one.stuck(12), one.stuck(12)] == [False, True]


@pytest.mark.parametrize(
    ("code", "what"),
    [(4400, "once"), (4401, "token")]
    + [(code, "stop") for code in (4403, 4409, 4410, 4426, 4499)]
    + [(code, "again") for code in (None, 1000, 1001, 1006, 1011, 1012, 4503, 4508, 4512, 4529, 4599)],
)
def test_the_range_of_a_close_code_says_what_to_do(code, what):
    assert advice(code) == what


def test_a_notebook_survives_a_restart(tmp_path: Path):
    path = tmp_path / "phone.json"
    one = Notebook(path)
    one.keep("agency:mchs", Position("e1", 4), [(4, event(4, "/agencies/mchs"))])
    one.replace(ACCOUNT, Position("e1", 9), {"positions": {}})
    other = Notebook(path)
    assert other.positions() == {"agency:mchs": Position("e1", 4), ACCOUNT: Position("e1", 9)}
    assert other.knows("/agencies/mchs", "e4")
    assert not other.knows("/agencies/mchs", "e5")


# A gateway that follows a script: one function for each connection


class Peer:
    """The gateway's end of one connection."""

    def __init__(self, connection: ServerConnection):
        self.connection = connection
        assert connection.subprotocol is not None
        self.codec = by_subprotocol[connection.subprotocol]

    async def send(self, t: str, **fields: Any) -> None:
        if t != "something-new":
            schema.check("gateway", {"t": t, **fields})
        await self.connection.send(self.codec.encode({"t": t, **fields}), text=self.codec.opcode == 1)

    async def receive(self) -> Message:
        async with asyncio.timeout(5):
            message = self.codec.decode(await self.connection.recv(decode=False))
        schema.check("device", message)
        return message

    async def welcome(self, start: int = 0, head: int = 0, new: bool = False, feed: str = ACCOUNT) -> Message:
        """Take the hello, welcome it to one feed; the hello."""
        hello = await self.receive()
        feeds = [{"feed": feed, "epoch": "e1", "head": head, "from": start}]
        limits = {"feeds": 32, "message": 16384, "rate": 120, "backoff": 60}
        times = {"time": "2026-03-01T09:00:00Z", "expires": "2026-03-01T10:00:00Z"}
        about = {"session": "s1", "account": "anna", "new": new, "window": 256}
        await self.send("welcome", **about, **times, limits=limits, feeds=feeds)
        return hello

    async def events(self, *offsets: int, feed: str = ACCOUNT) -> None:
        for offset in offsets:
            await self.send("event", feed=feed, offset=offset, event=event(offset))

    async def acked(self, offset: int) -> None:
        """Read until the ack of `offset` has come."""
        while True:
            message = await self.receive()
            assert message["t"] == "ack"
            assert message["offset"] <= offset
            if message["offset"] == offset:
                return

    async def closed(self) -> None:
        async with asyncio.timeout(5):
            await self.connection.wait_closed()


Script = Sequence[Callable[[Peer], Awaitable[None]]]


class Kept(Notebook):
    """A keeper that writes down what it was given."""

    def __init__(self) -> None:
        super().__init__()
        self.events: list[Numbered] = []

    def keep(self, feed: str, position: Position, events: Sequence[Numbered]) -> None:
        self.events += events
        super().keep(feed, position, events)


class Rig:
    def __init__(self, script: Script):
        self.script = list(script)
        self.keeper = Kept()
        self.told: list[Message] = []
        self.tokens = [f"token-{n}" for n in range(9)]
        self.answers: dict[str, list[Message]] = {}  # path: the answers in turn
        self.refusals: list[tuple[int, dict[str, str]]] = []  # handshakes to refuse first
        self.failure: BaseException | None = None
        self.finished = asyncio.Event()
        self.client: Client

    async def token(self) -> str:
        return self.tokens.pop(0)

    def http(self, connection: ServerConnection, request: Request) -> Response | None:
        if request.path == "/v1/socket":
            if not self.refusals:
                return None
            status, headers = self.refusals.pop(0)
            response = connection.respond(HTTPStatus(status), "")
            for name, value in headers.items():
                response.headers[name] = value
            return response
        answers = self.answers[request.path]
        response = connection.respond(HTTPStatus.OK, json.dumps(answers.pop(0) if len(answers) > 1 else answers[0]))
        del response.headers["Content-Type"]
        response.headers["Content-Type"] = "application/json"
        return response

    async def serve(self, connection: ServerConnection) -> None:
        act = self.script.pop(0)
        try:
            await act(Peer(connection))
        except BaseException as error:
            self.failure = error
        if not self.script or self.failure:
            self.finished.set()

    def lost(self) -> list[tuple[int | None, float]]:
        return [(message["code"], message["wait"]) for message in self.told if message["t"] == "lost"]


@contextlib.asynccontextmanager
async def running(rig: Rig, **options: Any) -> AsyncIterator[asyncio.Task[None]]:
    """The client at work against the script; at the end of the block it is cancelled."""
    async with serve(
        rig.serve,
        "127.0.0.1",
        0,
        subprotocols=list(by_subprotocol),  # type: ignore[arg-type]
        process_request=rig.http,
    ) as server:
        host, port = server.sockets[0].getsockname()[:2]
        rig.client = Client(
            f"http://{host}:{port}",
            device="d1",
            token=rig.token,
            keeper=rig.keeper,
            observe=lambda t, message: rig.told.append(message),
            rng=random.Random(1),
            **options,
        )
        task = asyncio.create_task(rig.client.run())
        try:
            yield task
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)


async def play(*script: Callable[[Peer], Awaitable[None]], rig: Rig | None = None, **options: Any) -> Rig:
    """Run the client until the script is at its end."""
    rig = rig or Rig(script)
    rig.script = list(script)
    async with running(rig, **options):
        async with asyncio.timeout(10):
            await rig.finished.wait()
    if rig.failure is not None:
        raise rig.failure
    return rig


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "ACK_AFTER_S", 0.01)
    monkeypatch.setattr(module, "full_jitter", lambda rng, cap: itertools.repeat(0.0))


@pytest.mark.parametrize("subprotocol", by_subprotocol)
async def test_it_keeps_what_comes_and_acknowledges_it(subprotocol: str):
    async def act(peer: Peer) -> None:
        assert peer.connection.subprotocol == subprotocol
        hello = await peer.welcome()
        assert hello == {
            "t": "hello",
            "token": "token-0",
            "device": "d1",
            "mode": "full",
            "agent": "vestnik-sim/1.0",
            "fresh": True,
        }
        await peer.events(1, 2)
        await peer.send("batch", feed=ACCOUNT, events=[[3, event(3)], [4, None]])
        await peer.send("something-new", x=1)
        await peer.acked(4)

    rig = await play(act, subprotocol=subprotocol)
    assert rig.keeper.events == [(1, event(1)), (2, event(2)), (3, event(3)), (4, None)]
    assert rig.keeper.positions() == {ACCOUNT: Position("e1", 4)}


async def test_it_resumes_after_what_it_keeps():
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.events(1, 2, 3)
        await peer.acked(3)
        await peer.connection.close(4503, "restored")

    async def second(peer: Peer) -> None:
        hello = await peer.welcome(3, 5)
        assert hello["resume"] == {ACCOUNT: {"epoch": "e1", "offset": 3}}
        assert "fresh" not in hello
        await peer.events(3, 4, 5)
        await peer.acked(5)

    rig = await play(first, second)
    assert [offset for offset, _ in rig.keeper.events] == [1, 2, 3, 4, 5]
    assert rig.lost() == [(4503, 0.0)]


async def test_it_acknowledges_at_least_every_64_events(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ACK_AFTER_S", 3600)

    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.events(*range(1, 65))
        await peer.acked(64)

    await play(act)


async def test_leaving_sends_the_acks_that_are_owed(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "ACK_AFTER_S", 3600)
    kept = asyncio.Event()
    got = []

    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.events(1)
        await peer.send("live", feed=ACCOUNT)
        kept.set()
        got.append(await peer.receive())
        await peer.closed()

    rig = Rig([act])
    async with running(rig):
        async with asyncio.timeout(5):
            await kept.wait()
            while not any(message["t"] == "live" for message in rig.told):
                await asyncio.sleep(0)
    await rig.finished.wait()
    assert got == [{"t": "ack", "feed": ACCOUNT, "offset": 1}]


async def test_a_new_device_loads_a_snapshot_that_covers_its_start():
    rig = Rig([])
    rig.answers["/v1/snapshot"] = [
        {"positions": {ACCOUNT: {"epoch": "e1", "offset": 4}}},  # too old: fetch again
        {"positions": {ACCOUNT: {"epoch": "e1", "offset": 7}}},
    ]

    async def act(peer: Peer) -> None:
        await peer.welcome(5, 8, new=True)
        await peer.events(6, 7, 8)
        await peer.acked(8)

    await play(act, rig=rig)
    assert rig.keeper.snapshot == {"positions": {ACCOUNT: {"epoch": "e1", "offset": 7}}}
    assert rig.keeper.events == [(8, event(8))]


async def test_a_resync_loads_the_snapshot_and_only_then_acknowledges():
    rig = Rig([])
    rig.keeper.keep(ACCOUNT, Position("e0", 3), [])
    rig.answers["/v1/snapshot"] = [{"positions": {ACCOUNT: {"epoch": "e1", "offset": 20}}}]

    async def act(peer: Peer) -> None:
        hello = await peer.welcome(20, 20)
        assert hello["resume"] == {ACCOUNT: {"epoch": "e0", "offset": 3}}
        await peer.send("resync", feed=ACCOUNT, epoch="e1", offset=20, reason="epoch")
        await peer.acked(20)
        await peer.events(21)
        await peer.acked(21)

    await play(act, rig=rig)
    assert rig.keeper.positions() == {ACCOUNT: Position("e1", 21)}
    assert rig.keeper.events == [(21, event(21))]


async def test_a_resync_of_an_agency_feed_pages_through_its_history():
    name = "agency:mchs"
    rig = Rig([])
    rig.keeper.keep(ACCOUNT, Position("e1", 0), [])
    rig.keeper.keep(name, Position("e0", 2), [(2, event(2))])
    rig.keeper.events.clear()
    head = {"feed": name, "epoch": "e1", "oldest": 1, "head": 4}
    rig.answers[f"/v1/feeds/{name}/events?after=0&limit=500"] = [
        head | {"events": [[1, event(1)], [2, event(2)]], "next": "p2"}
    ]
    rig.answers[f"/v1/feeds/{name}/events?page=p2"] = [head | {"events": [[3, event(3)], [4, None]], "next": None}]

    async def act(peer: Peer) -> None:
        hello = await peer.welcome(4, 4, feed=name)
        assert hello["feeds"] == [name]
        await peer.send("resync", feed=name, epoch="e1", offset=4, reason="epoch")
        await peer.events(5, feed=name)
        await peer.acked(5)

    await play(act, rig=rig, feeds=[name])
    assert rig.keeper.events == [(1, event(1)), (3, event(3)), (4, None), (5, event(5))]


async def test_a_fresh_device_that_keeps_an_agency_feed_resumes_it_after_the_welcome():
    """`fresh` makes the gateway ignore every position of the hello; without this the feed would go on at its head."""
    name = "agency:mchs"
    rig = Rig([])
    rig.keeper.keep(name, Position("e1", 2), [(2, event(2))])
    rig.keeper.events.clear()
    rig.answers["/v1/snapshot"] = [{"positions": {ACCOUNT: {"epoch": "e1", "offset": 5}}}]

    async def act(peer: Peer) -> None:
        hello = await peer.welcome(5, 5, new=True)
        assert hello["fresh"]
        assert not hello.keys() & {"resume", "feeds"}
        assert await peer.receive() == {"t": "subscribe", "feed": name, "resume": {"epoch": "e1", "offset": 2}}
        await peer.send("subscribed", feed=name, epoch="e1", head=4, **{"from": 2})
        await peer.events(3, 4, feed=name)
        acks = [await peer.receive() for _ in range(2)]
        assert {ack["feed"]: ack["offset"] for ack in acks} == {ACCOUNT: 5, name: 4}

    await play(act, rig=rig, feeds=[name])
    assert rig.keeper.events == [(3, event(3)), (4, event(4))]
    assert rig.keeper.positions()[name] == Position("e1", 4)


async def test_a_hole_makes_it_reconnect_and_resume():
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.events(1, 3)
        await peer.acked(1)
        await peer.closed()

    async def second(peer: Peer) -> None:
        hello = await peer.receive()
        assert hello["resume"] == {ACCOUNT: {"epoch": "e1", "offset": 1}}

    rig = await play(first, second)
    assert rig.keeper.events == [(1, event(1))]


async def test_two_beats_above_what_came_make_it_reconnect():
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("beat", heads={ACCOUNT: 1}, next=25)
        await peer.send("beat", heads={ACCOUNT: 1}, next=25)
        await peer.closed()

    async def second(peer: Peer) -> None:
        await peer.welcome()

    await play(first, second)


async def test_silence_makes_it_reconnect(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "SILENCE_S", 0.05)

    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("beat", heads={}, next=0.05)
        await peer.closed()

    async def second(peer: Peer) -> None:
        await peer.welcome()

    rig = await play(first, second)
    assert [message["reason"] for message in rig.told if message["t"] == "lost"] == ["silence"]


@pytest.mark.parametrize("code", [4403, 4409, 4410, 4426])
async def test_it_stops_where_reconnecting_would_not_help(code: int):
    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.connection.close(code, "why")

    async with running(Rig([act])) as task:
        with pytest.raises(Stopped) as caught:
            await asyncio.wait_for(task, 5)
    assert (caught.value.code, caught.value.reason) == (code, "why")


async def test_a_bad_message_is_tried_once_more_after_a_minute(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "BAD_MESSAGE_S", 0.01)

    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.connection.close(4400, "what?")

    rig = Rig([act, act])
    async with running(rig) as task:
        with pytest.raises(Stopped):
            await asyncio.wait_for(task, 5)
    assert rig.lost() == [(4400, 0.01)]


async def test_a_refused_token_is_replaced_at_once():
    async def first(peer: Peer) -> None:
        assert (await peer.receive())["token"] == "token-0"
        await peer.connection.close(4401, "ended")

    async def second(peer: Peer) -> None:
        assert (await peer.receive())["token"] == "token-1"

    rig = await play(first, second)
    assert rig.lost() == [(4401, 0.0)]


async def test_tokens_that_stay_refused_stop_it():
    async def act(peer: Peer) -> None:
        await peer.receive()
        await peer.connection.close(4401, "wrong")

    async with running(Rig([act, act, act])) as task:
        with pytest.raises(Stopped):
            await asyncio.wait_for(task, 5)


async def test_an_expiring_token_is_renewed_and_used_from_then_on():
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("expiring", **{"in": 60})
        assert await peer.receive() == {"t": "token", "token": "token-1"}
        await peer.send("renewed", expires="2026-03-01T09:00:00Z")
        await peer.connection.close(1012)

    async def second(peer: Peer) -> None:
        assert (await peer.receive())["token"] == "token-1"

    await play(first, second)


async def test_a_drain_moves_it_on_within_the_announced_time():
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("drain", after=0.05)
        await peer.events(1)
        await peer.acked(1)
        await peer.closed()

    async def second(peer: Peer) -> None:
        assert (await peer.receive())["resume"] == {ACCOUNT: {"epoch": "e1", "offset": 1}}

    rig = await play(first, second)
    assert rig.lost() == [(None, 0)]


async def test_retry_after_outranks_the_backoff(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "full_jitter", lambda rng, cap: itertools.repeat(3600.0))
    rig = Rig([])
    rig.refusals = [(503, {"Retry-After": "0"})]

    async def act(peer: Peer) -> None:
        await peer.welcome()

    await play(act, rig=rig)
    assert rig.lost() == [(None, 0.0)]


async def test_a_gateway_that_is_away_is_tried_again():
    rig = Rig([])
    client = Client(
        "http://127.0.0.1:1",
        device="d1",
        token=rig.token,
        keeper=rig.keeper,
        observe=lambda t, message: rig.told.append(message),
    )
    task = asyncio.create_task(client.run())
    async with asyncio.timeout(5):
        while len(rig.told) < 3:
            await asyncio.sleep(0)
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)
    assert {code for code, _ in rig.lost()} == {None}


async def test_it_follows_more_agencies_while_it_runs():
    name = "agency:mchs"
    ready = asyncio.Event()

    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("live", feed=ACCOUNT)
        ready.set()
        asked = await peer.receive()
        assert asked == {"t": "subscribe", "ref": asked["ref"], "feed": name}
        await peer.send("subscribed", ref=asked["ref"], feed=name, epoch="e1", head=7, **{"from": 7})
        await peer.events(8, feed=name)
        await peer.acked(8)

    rig = Rig([act])
    async with running(rig):
        with pytest.raises(NotConnected):
            await rig.client.send("ping")
        async with asyncio.timeout(5):
            await ready.wait()
            while not any(message["t"] == "live" for message in rig.told):
                await asyncio.sleep(0)
            await rig.client.subscribe(name)
            await rig.finished.wait()
    assert rig.failure is None
    assert rig.keeper.positions()[name] == Position("e1", 8)
    assert not len(rig.client.outbox)

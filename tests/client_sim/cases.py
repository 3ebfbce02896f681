"""What the contract asks of a device, as one table for every client program: in each case a gateway follows a script,
and then something is true of the device. `test_client.py` holds our own client to it, and
`tests/browser/test_client_script.py` the one in JavaScript.

A script has one function for each connection. It speaks the contract, checked by its schemas in both directions, and
fails on whatever the device should not have said.
"""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any, Protocol
from urllib.parse import parse_qsl, urlsplit

from websockets.asyncio.server import ServerConnection
from websockets.http11 import Request, Response

from gateway.protocol import schema
from gateway.protocol.codec import by_subprotocol

Message = dict[str, Any]
ACCOUNT, AGENCY = "account:anna", "agency:mchs"
BEGUN: Mapping[str, tuple[str, int]] = {ACCOUNT: ("e1", 0)}  # a device that is not new
PAGE = 2  # events of a page of the history: so few that there are several
PATIENCE_S = 10.0


def event(n: int, source: str = "/agencies/mvd") -> Message:
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


class Hand(Protocol):
    """The person's side: what a script asks of the device beside the socket."""

    async def subscribe(self, feed: str) -> None: ...

    async def unsubscribe(self, feed: str) -> None: ...

    async def seen(self, feed: str, offsets: list[int]) -> None: ...

    async def leave(self) -> None: ...


class Peer:
    """The gateway's end of one connection."""

    def __init__(self, connection: ServerConnection, hand: Hand):
        self.connection, self.hand = connection, hand
        assert connection.subprotocol is not None
        self.codec = by_subprotocol[connection.subprotocol]

    async def send(self, t: str, **fields: Any) -> None:
        schema.check("gateway", {"t": t, **fields})
        await self.later(t, **fields)

    async def later(self, t: str, **fields: Any) -> None:
        """A message as a later version of the contract may have it."""
        await self.connection.send(self.codec.encode({"t": t, **fields}), text=self.codec.opcode == 1)

    async def receive(self) -> Message:
        async with asyncio.timeout(PATIENCE_S):
            message = self.codec.decode(await self.connection.recv(decode=False))
        schema.check("device", message)
        return message

    async def told(self, t: str) -> Message:
        """The next message that is no ack; it must be such a one."""
        while (message := await self.receive())["t"] == "ack":
            pass
        assert message["t"] == t, message
        return message

    async def welcome(
        self, start: int = 0, head: int = 0, *, new: bool = False, feed: str = ACCOUNT, backoff: int = 60
    ) -> Message:
        """Take the hello, welcome it to one feed; the hello."""
        hello = await self.told("hello")
        feeds = [{"feed": feed, "epoch": "e1", "head": max(head, start), "from": start}]
        limits = {"feeds": 32, "message": 16384, "rate": 120, "backoff": backoff}
        times = {"time": "2026-03-01T09:00:00Z", "expires": "2026-03-01T10:00:00Z"}
        about = {"session": "s1", "account": "anna", "new": new, "window": 256}
        await self.send("welcome", **about, **times, limits=limits, feeds=feeds)
        return hello

    async def subscribed(self, start: int, head: int = 0, feed: str = AGENCY) -> Message:
        """Take a `subscribe` and answer it; the message without its `ref`."""
        asked = await self.told("subscribe")
        item = {"epoch": "e1", "head": max(head, start), "from": start}
        await self.send("subscribed", feed=feed, **item, **_ref(asked))
        return _without_ref(asked)

    async def events(self, *offsets: int, feed: str = ACCOUNT) -> None:
        for offset in offsets:
            await self.send("event", feed=feed, offset=offset, event=event(offset))

    async def acked(self, offset: int, feed: str = ACCOUNT) -> None:
        """Read until the ack of `offset` has come; acks of other feeds may come before."""
        while True:
            message = await self.receive()
            assert message["t"] == "ack", message
            if message["feed"] == feed:
                assert message["offset"] <= offset
                if message["offset"] == offset:
                    return

    async def quiet(self, seconds: float) -> None:
        """Nothing comes."""
        try:
            async with asyncio.timeout(seconds):
                message = await self.connection.recv()
        except TimeoutError:
            return
        raise AssertionError(f"it said {message!r}")

    async def closed(self) -> None:
        """Read on until it has left."""
        async with asyncio.timeout(PATIENCE_S):
            await self.connection.wait_closed()


def _ref(message: Message) -> Message:
    return {"ref": message["ref"]} if "ref" in message else {}


def _without_ref(message: Message) -> Message:
    return {name: value for name, value in message.items() if name != "ref"}


Act = Callable[[Peer], Awaitable[None]]


@dataclass
class Outcome:
    """What became of a device, whichever program it is."""

    kept: list[tuple[str, int]]  # every event that was kept, in order
    positions: Mapping[str, tuple[str, int]]
    lost: list[tuple[int, float]]  # sessions that ended: close code, 0 for none, and seconds until the next try
    stopped: int | None  # the code that it stopped with


@dataclass
class Case:
    """A script, the device that meets it, and what must be true of the device afterwards, as far as it is said."""

    acts: Sequence[Act]
    # The device
    has: Mapping[str, tuple[str, int]] = field(default_factory=lambda: BEGUN)  # the positions that it keeps at first
    knows: Sequence[int] = ()  # events of the agency that it keeps at first
    feeds: Sequence[str] = ()
    mode: str = "full"
    subprotocol: str = "vestnik.v1.json"
    hurry: float = 0.1  # its waits last so much of what they should
    chance: float = 0.0  # what its dice show, from 0 to 1
    # The gateway, beside the socket. A snapshot is its position, or a status with headers; the last comes for ever.
    snapshots: Sequence[tuple[str, int] | tuple[int, dict[str, str]]] = ()
    history: Mapping[str, Sequence[tuple[int, Message | None]]] = field(default_factory=dict)
    refusals: Sequence[tuple[int, dict[str, str]]] = ()  # of handshakes, before the script begins
    # Afterwards
    keeps: Sequence[int] | None = None  # offsets of the account's feed
    keeps_public: Sequence[int] = ()  # and of the agency's
    positions: Mapping[str, tuple[str, int]] | None = None
    lost: Sequence[tuple[int, float]] | None = None
    stopped: int | None = None

    def judge(self, outcome: Outcome) -> None:
        """Raises AssertionError."""
        if self.keeps is not None:
            assert [offset for feed, offset in outcome.kept if feed == ACCOUNT] == list(self.keeps)
            assert [offset for feed, offset in outcome.kept if feed == AGENCY] == list(self.keeps_public)
        if self.positions is not None:
            assert outcome.positions == self.positions
        if self.lost is not None:
            assert outcome.lost == list(self.lost)
        assert outcome.stopped == self.stopped


class Rig:
    """The gateway of one case: `serve` and `http` are what a WebSocket server is given."""

    def __init__(self, case: Case):
        self.case = case
        self.hand: Hand
        self.script = list(case.acts)
        self.snapshots, self.refusals = list(case.snapshots), list(case.refusals)
        self.failure: BaseException | None = None
        self.played = asyncio.Semaphore(0)  # a session may begin before the one before it has ended

    async def finished(self) -> None:
        """Until the script is at its end. Raises what an act raised."""
        async with asyncio.timeout(2 * PATIENCE_S):
            for _ in self.case.acts:
                await self.played.acquire()
                self.check()

    def check(self) -> None:
        if self.failure is not None:
            raise self.failure

    async def serve(self, connection: ServerConnection) -> None:
        try:
            assert self.script, "it came once more"
            await self.script.pop(0)(Peer(connection, self.hand))
        except BaseException as error:
            self.failure = self.failure or error
        finally:
            self.played.release()

    def http(self, connection: ServerConnection, request: Request) -> Response | None:
        asked = urlsplit(request.path)
        if asked.path == "/v1/socket":
            if not self.refusals:
                return None
            status, headers = self.refusals.pop(0)
            return _answer(connection, status, headers, None)
        if asked.path == "/v1/snapshot":
            return self._snapshot(connection)
        feed = asked.path.removeprefix("/v1/feeds/").removesuffix("/events")
        return _answer(connection, 200, {}, self._page(feed, dict(parse_qsl(asked.query))))

    def _snapshot(self, connection: ServerConnection) -> Response:
        first, second = self.snapshots.pop(0) if len(self.snapshots) > 1 else self.snapshots[0]
        if isinstance(first, int):
            assert isinstance(second, dict)
            return _answer(connection, first, second, None)
        lists: Message = {"applications": [], "records": [], "notices": [], "agencies": []}
        return _answer(connection, 200, {}, {"positions": {ACCOUNT: {"epoch": first, "offset": second}}, **lists})

    def _page(self, feed: str, query: Mapping[str, str]) -> Message:
        events = self.case.history.get(feed, ())
        at = int(query["page"]) if "page" in query else int(query.get("after", "0"))
        found = [numbered for numbered in events if numbered[0] > at][:PAGE]
        head = events[-1][0] if events else 0
        following = str(found[-1][0]) if found and found[-1][0] < head else None
        return {"feed": feed, "epoch": "e1", "oldest": 1, "head": head, "events": found, "next": following}


def _answer(connection: ServerConnection, status: int, headers: Mapping[str, str], body: Any) -> Response:
    response = connection.respond(HTTPStatus(status), json.dumps(body))
    del response.headers["Content-Type"]
    for name, value in {"Content-Type": "application/json", **headers}.items():
        response.headers[name] = value
    return response


# The table

CASES: dict[str, Case] = {}


def case(make: Callable[[], Case]) -> Callable[[], Case]:
    CASES[make.__name__] = make()
    return make


async def _stay(peer: Peer) -> None:
    await peer.welcome()


def closing(code: int, **welcome: Any) -> Act:
    """A session that is welcomed and closed."""

    async def act(peer: Peer) -> None:
        await peer.welcome(**welcome)
        await peer.connection.close(code, "why")

    return act


# Where a feed starts


def _first(subprotocol: str) -> Case:
    async def act(peer: Peer) -> None:
        assert peer.connection.subprotocol == subprotocol
        hello = await peer.welcome(new=True)
        assert hello.pop("agent").startswith("vestnik-")
        assert hello == {"t": "hello", "token": "token-0", "device": "d1", "mode": "full", "fresh": True}
        await peer.events(1, 2)
        await peer.send("batch", feed=ACCOUNT, events=[[3, event(3)], [4, None]])
        await peer.later("something-new", x=1)
        await peer.later("live", feed=ACCOUNT, something=[1])
        await peer.acked(4)

    at = {ACCOUNT: ("e1", 4)}
    return Case([act], has={}, subprotocol=subprotocol, snapshots=[("e1", 0)], keeps=[1, 2, 3, 4], positions=at)


for _subprotocol in by_subprotocol:
    CASES[f"a_new_device_keeps_what_comes_and_acknowledges_it ({_subprotocol})"] = _first(_subprotocol)


@case
def it_resumes_after_what_it_keeps() -> Case:
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

    return Case([first, second], keeps=[1, 2, 3, 4, 5], lost=[(4503, 0)])


@case
def a_new_device_loads_a_snapshot_that_covers_its_start() -> Case:
    async def act(peer: Peer) -> None:
        await peer.welcome(5, 8, new=True)
        await peer.events(6, 7, 8)
        await peer.acked(8)

    older = [("e1", 4), ("e1", 7)]  # fetched again
    return Case([act], has={}, snapshots=older, keeps=[8], positions={ACCOUNT: ("e1", 8)})


@case
def a_snapshot_may_be_ahead_of_the_socket() -> Case:
    async def act(peer: Peer) -> None:
        await peer.welcome(5, 10, new=True)
        await peer.acked(5)  # an ack never passes what came
        await peer.events(6, 7, 8, 9, 10)
        await peer.acked(10)

    return Case([act], has={}, snapshots=[("e1", 9)], keeps=[10])


@case
def a_resync_loads_the_snapshot_and_only_then_acknowledges() -> Case:
    async def act(peer: Peer) -> None:
        hello = await peer.welcome(20)
        assert hello["resume"] == {ACCOUNT: {"epoch": "e0", "offset": 3}}
        await peer.send("resync", feed=ACCOUNT, epoch="e1", offset=20, reason="epoch")
        await peer.acked(20)
        await peer.events(21)
        await peer.acked(21)

    before = {ACCOUNT: ("e0", 3)}
    return Case([act], has=before, snapshots=[("e1", 20)], keeps=[21], positions={ACCOUNT: ("e1", 21)})


@case
def a_snapshot_older_than_the_resync_or_of_another_epoch_is_fetched_again() -> Case:
    async def act(peer: Peer) -> None:
        await peer.welcome(20, 22)
        await peer.send("resync", feed=ACCOUNT, epoch="e1", offset=20, reason="retention")
        await peer.events(21, 22)
        await peer.acked(22)

    older = [("e1", 19), ("e0", 40), ("e1", 21)]
    return Case([act], has={ACCOUNT: ("e1", 3)}, snapshots=older, keeps=[22], positions={ACCOUNT: ("e1", 22)})


@case
def until_the_snapshot_is_kept_nothing_is_acknowledged_and_the_position_stays() -> Case:
    async def first(peer: Peer) -> None:
        await peer.welcome(20)
        await peer.send("resync", feed=ACCOUNT, epoch="e1", offset=20, reason="retention")
        await peer.events(*range(21, 91))
        await peer.quiet(0.2)
        await peer.connection.close(4512, "going away")

    async def second(peer: Peer) -> None:
        assert (await peer.told("hello"))["resume"] == {ACCOUNT: {"epoch": "e1", "offset": 3}}

    return Case([first, second], has={ACCOUNT: ("e1", 3)}, snapshots=[("e1", 19)], keeps=[], chance=1)


@case
def a_snapshot_that_fails_is_tried_in_another_session() -> Case:
    async def first(peer: Peer) -> None:
        await peer.welcome(5, new=True)
        await peer.closed()

    async def second(peer: Peer) -> None:
        assert (await peer.welcome(5, new=True))["fresh"]
        await peer.acked(5)

    return Case([first, second], has={}, snapshots=[(500, {}), ("e1", 5)], keeps=[], lost=[(0, 0.5)], chance=0.5)


@case
def a_snapshot_that_says_when_to_come_again_outranks_the_backoff() -> Case:
    async def first(peer: Peer) -> None:
        await peer.welcome(5, new=True)
        await peer.closed()

    async def second(peer: Peer) -> None:
        await peer.welcome(5, new=True)
        await peer.acked(5)

    busy = (503, {"Retry-After": "7"})
    return Case([first, second], has={}, snapshots=[busy, ("e1", 5)], lost=[(0, 7)], chance=0.5, hurry=0.04)


@case
def a_snapshot_that_refuses_the_token_asks_for_another() -> Case:
    async def first(peer: Peer) -> None:
        assert (await peer.welcome(5, new=True))["token"] == "token-0"
        await peer.closed()

    async def second(peer: Peer) -> None:
        assert (await peer.welcome(5, new=True))["token"] == "token-1"
        await peer.acked(5)

    return Case([first, second], has={}, snapshots=[(401, {}), ("e1", 5)], lost=[(4401, 0)], chance=0.5)


@case
def a_resync_of_an_agency_feed_pages_through_its_history() -> Case:
    async def act(peer: Peer) -> None:
        hello = await peer.welcome(4, feed=AGENCY)
        assert hello["feeds"] == [AGENCY]
        await peer.send("resync", feed=AGENCY, epoch="e1", offset=4, reason="epoch")
        await peer.events(5, feed=AGENCY)
        await peer.acked(5, AGENCY)

    before = {**BEGUN, AGENCY: ("e0", 2)}
    history = {AGENCY: [(1, event(1)), (2, event(2)), (3, event(3)), (4, None)]}
    after = {**BEGUN, AGENCY: ("e1", 5)}
    public = [1, 3, 4, 5]
    common: Any = {"feeds": [AGENCY], "knows": [2], "history": history}
    return Case([act], has=before, keeps=[], keeps_public=public, positions=after, **common)


@case
def a_fresh_device_that_keeps_an_agency_feed_resumes_it_after_the_welcome() -> Case:
    """`fresh` makes the gateway ignore every position of the hello; without this the feed would go on at its head."""

    async def act(peer: Peer) -> None:
        hello = await peer.welcome(5, new=True)
        assert hello["fresh"]
        assert not hello.keys() & {"resume", "feeds"}
        asked = await peer.subscribed(2, 4)
        assert asked == {"t": "subscribe", "feed": AGENCY, "resume": {"epoch": "e1", "offset": 2}}
        await peer.events(3, 4, feed=AGENCY)
        acked: dict[str, int] = {}
        while acked != {ACCOUNT: 5, AGENCY: 4}:
            ack = await peer.receive()
            acked[ack["feed"]] = ack["offset"]

    at = {ACCOUNT: ("e1", 5), AGENCY: ("e1", 4)}
    common: Any = {"feeds": [AGENCY], "snapshots": [("e1", 5)]}
    return Case([act], has={AGENCY: ("e1", 2)}, keeps=[], keeps_public=[3, 4], positions=at, **common)


# Acks, repeats, holes


@case
def an_ack_comes_within_a_second_of_keeping() -> Case:
    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.events(1)
        sent = time.monotonic()
        await peer.acked(1)
        assert time.monotonic() - sent < 2  # its seconds last two here, so that a busy machine is no fault

    return Case([act], hurry=2)


@case
def it_acknowledges_at_least_every_64_events() -> Case:
    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.events(*range(1, 65))
        await peer.acked(64)
        await peer.send("batch", feed=ACCOUNT, events=[[offset, event(offset)] for offset in range(65, 129)])
        await peer.acked(128)

    return Case([act], hurry=100)  # its timers are too late


@case
def saver_mode_is_said_at_the_start_and_its_batches_are_acknowledged() -> Case:
    async def act(peer: Peer) -> None:
        assert (await peer.welcome())["mode"] == "saver"
        await peer.send("batch", feed=ACCOUNT, events=[[1, event(1)], [2, event(2)]])
        await peer.acked(2)

    return Case([act], mode="saver", subprotocol="vestnik.v1.msgpack", keeps=[1, 2])


@case
def leaving_sends_the_acks_that_are_owed() -> Case:
    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.events(1)
        await peer.send("expiring", **{"in": 60})
        await peer.told("token")  # it has read as far as here
        await peer.hand.leave()
        await peer.acked(1)
        await peer.closed()

    return Case([act], hurry=100)


@case
def repeats_are_dropped() -> Case:
    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.events(1, 2, 1, 2)
        await peer.send("batch", feed=ACCOUNT, events=[[2, event(2)], [3, event(3)]])
        await peer.acked(3)

    return Case([act], keeps=[1, 2, 3])


@case
def a_hole_makes_it_reconnect_and_resume() -> Case:
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.events(1, 3)
        await peer.acked(1)
        await peer.closed()

    async def second(peer: Peer) -> None:
        assert (await peer.told("hello"))["resume"] == {ACCOUNT: {"epoch": "e1", "offset": 1}}

    return Case([first, second], keeps=[1])


@case
def what_nobody_can_read_makes_it_reconnect() -> Case:
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.connection.send("{")
        await peer.closed()

    return Case([first, _stay], lost=[(0, 0.5)], chance=0.5)


# Silence


def _beat(head: int, following: float = 25) -> dict[str, Any]:
    return {"heads": {ACCOUNT: head}, "next": following}


@case
def two_beats_above_what_came_make_it_reconnect() -> Case:
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("beat", **_beat(1))
        await peer.send("beat", **_beat(1))
        await peer.closed()

    return Case([first, _stay])


@case
def beats_are_no_loss_while_events_come_between() -> Case:
    async def act(peer: Peer) -> None:
        await peer.welcome(0, 5)
        for offset in (1, 2, 3):
            await peer.send("beat", **_beat(5))
            await peer.events(offset)
            await peer.acked(offset)
        await peer.send("beat", **_beat(5))
        await peer.events(4, 5)
        await peer.acked(5)

    return Case([act], lost=[])


@case
def beats_are_no_loss_while_an_ack_is_owed() -> Case:
    async def act(peer: Peer) -> None:
        await peer.welcome(0, 5)
        await peer.events(1)
        for _ in range(3):
            await peer.send("beat", **_beat(5))
        await peer.events(*range(2, 65))
        await peer.acked(64)

    return Case([act], lost=[], hurry=100)


@case
def silence_of_the_time_that_the_beat_said_and_ten_seconds_makes_it_reconnect() -> Case:
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("beat", **_beat(0, 5))
        last = time.monotonic()
        await peer.closed()
        assert time.monotonic() - last > 0.9 * 15 * 0.05

    return Case([first, _stay], hurry=0.05)


@case
def any_frame_ends_the_silence() -> Case:
    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("beat", **_beat(0, 10))
        for offset in (1, 2):
            await asyncio.sleep(1.2)  # of the 20 s, which are two
            await peer.events(offset)
        await peer.acked(2)

    return Case([act], hurry=0.1, lost=[])


# Close codes: "the range says what to do"

for _code in (4403, 4409, 4410, 4426, 4499):
    CASES[f"it_stops_at_{_code}"] = Case([closing(_code)], lost=[], stopped=_code)

for _code in (1000, 1001, 1002, 1007, 1011, 1012, 1013, 4500, 4503, 4508, 4512, 4529, 4599):
    CASES[f"it_comes_again_after_{_code}"] = Case([closing(_code), _stay], lost=[(_code, 0.5)], chance=0.5)


@case
def it_comes_again_after_no_code() -> Case:
    async def lost(peer: Peer) -> None:
        await peer.welcome()
        peer.connection.transport.abort()

    async def bare(peer: Peer) -> None:
        await peer.welcome()
        await peer.connection.send("{")  # it closes, and says no code that anybody else could have
        await peer.closed()

    return Case([lost, bare, _stay], lost=[(0, 0.5), (0, 1)], chance=0.5)


@case
def a_bad_message_is_tried_once_more_after_a_minute() -> Case:
    return Case([closing(4400), closing(4400)], lost=[(4400, 60)], stopped=4400, hurry=0.04)


@case
def the_pauses_double_up_to_what_the_gateway_says_with_full_jitter() -> Case:
    waits = (0.5, 1, 2, 2.5, 2.5)
    return Case([closing(1012, backoff=5)] * 5 + [_stay], lost=[(1012, wait) for wait in waits], chance=0.5, hurry=0.04)


@case
def a_minute_of_life_resets_the_pauses() -> Case:
    async def long(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("beat", **_beat(0, 600))
        await asyncio.sleep(2.8)  # 70 of its seconds
        await peer.connection.close(1012)

    lost = [(1012, wait) for wait in (0.5, 1, 2, 0.5)]
    return Case([closing(1012)] * 3 + [long, _stay], lost=lost, chance=0.5, hurry=0.04)


@case
def a_refused_handshake_is_tried_again() -> Case:
    lost = [(0, 0.5), (0, 1), (0, 2)]
    return Case([_stay], refusals=[(503, {}), (403, {}), (500, {})], lost=lost, chance=0.5, hurry=0.04)


# Tokens


@case
def a_refused_token_is_replaced_at_once() -> Case:
    async def first(peer: Peer) -> None:
        assert (await peer.told("hello"))["token"] == "token-0"
        await peer.connection.close(4401, "ended")

    async def second(peer: Peer) -> None:
        assert (await peer.told("hello"))["token"] == "token-1"

    return Case([first, second], lost=[(4401, 0)], chance=0.5)


@case
def tokens_that_stay_refused_stop_it() -> Case:
    async def act(peer: Peer) -> None:
        await peer.told("hello")
        await peer.connection.close(4401, "wrong")

    return Case([act, act, act], stopped=4401)


@case
def an_expiring_token_is_renewed_and_used_from_then_on() -> Case:
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("expiring", **{"in": 60})
        assert await peer.told("token") == {"t": "token", "token": "token-1"}
        await peer.send("renewed", expires="2026-03-01T09:00:00Z")
        await peer.connection.close(1012)

    async def second(peer: Peer) -> None:
        assert (await peer.told("hello"))["token"] == "token-1"

    return Case([first, second])


@case
def a_refused_renewal_leaves_the_session_and_the_next_token_is_another() -> Case:
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("expiring", **{"in": 60})
        assert (await peer.told("token"))["token"] == "token-1"
        await peer.send("error", code="forbidden", detail="the token is of another account")
        await peer.events(1)
        await peer.acked(1)
        await peer.connection.close(4401, "ended")

    async def second(peer: Peer) -> None:
        assert (await peer.told("hello"))["token"] == "token-2"

    return Case([first, second], keeps=[1], lost=[(4401, 0)])


# Going away


@case
def a_drain_moves_it_on_within_the_announced_time() -> Case:
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("drain", after=10)
        began = time.monotonic()
        await peer.events(1)  # "delivery goes on until then"
        await peer.acked(1)
        await peer.closed()
        assert time.monotonic() - began > 0.9 * 5 * 0.1

    async def second(peer: Peer) -> None:
        assert (await peer.told("hello"))["resume"] == {ACCOUNT: {"epoch": "e1", "offset": 1}}

    return Case([first, second], lost=[(0, 0)], chance=0.5)


# Feeds of agencies


@case
def it_follows_an_agency_while_it_runs_and_in_the_next_session() -> Case:
    async def first(peer: Peer) -> None:
        assert "feeds" not in await peer.welcome()
        await peer.send("live", feed=ACCOUNT)
        await peer.events(1)
        await peer.acked(1)
        await peer.hand.subscribe(AGENCY)
        assert await peer.subscribed(7) == {"t": "subscribe", "feed": AGENCY}
        await peer.events(8, feed=AGENCY)
        await peer.acked(8, AGENCY)
        await peer.connection.close(1012)

    async def second(peer: Peer) -> None:
        hello = await peer.told("hello")
        assert hello["feeds"] == [AGENCY]
        assert hello["resume"][AGENCY] == {"epoch": "e1", "offset": 8}

    return Case([first, second], keeps=[1], keeps_public=[8], positions={ACCOUNT: ("e1", 1), AGENCY: ("e1", 8)})


@case
def what_is_followed_or_left_during_the_welcome_is_asked_after_it() -> Case:
    other = "agency:fns"

    async def act(peer: Peer) -> None:
        hello = await peer.told("hello")
        assert hello["feeds"] == [other]
        await peer.hand.subscribe(AGENCY)
        await peer.hand.unsubscribe(other)
        item = {"feed": ACCOUNT, "epoch": "e1", "head": 0, "from": 0}
        limits = {"feeds": 32, "message": 16384, "rate": 120, "backoff": 60}
        times = {"time": "2026-03-01T09:00:00Z", "expires": "2026-03-01T10:00:00Z"}
        about = {"session": "s1", "account": "anna", "new": False, "window": 256}
        await peer.send("welcome", **about, **times, limits=limits, feeds=[item, {**item, "feed": other}])
        asked = [_without_ref(await peer.receive()) for _ in range(2)]
        assert {(one["t"], one["feed"]) for one in asked} == {("subscribe", AGENCY), ("unsubscribe", other)}

    return Case([act], feeds=[other])


@case
def what_is_left_comes_no_more_and_begins_anew_when_it_is_followed_again() -> Case:
    async def first(peer: Peer) -> None:
        await peer.welcome(3, feed=AGENCY)
        await peer.events(4, feed=AGENCY)
        await peer.acked(4, AGENCY)
        await peer.hand.unsubscribe(AGENCY)
        asked = await peer.told("unsubscribe")
        assert asked["feed"] == AGENCY
        await peer.events(5, feed=AGENCY)  # was on its way
        await peer.send("unsubscribed", feed=AGENCY, **_ref(asked))
        await peer.hand.subscribe(AGENCY)
        assert await peer.subscribed(9) == {"t": "subscribe", "feed": AGENCY}
        await peer.events(10, feed=AGENCY)
        await peer.acked(10, AGENCY)
        await peer.hand.unsubscribe(AGENCY)
        await peer.send("unsubscribed", feed=AGENCY, **_ref(await peer.told("unsubscribe")))
        await peer.connection.close(1012)

    async def second(peer: Peer) -> None:
        hello = await peer.told("hello")
        assert "feeds" not in hello
        assert set(hello["resume"]) == {ACCOUNT}

    before = {**BEGUN, AGENCY: ("e1", 3)}
    return Case([first, second], has=before, feeds=[AGENCY], keeps=[], keeps_public=[4, 10], positions=BEGUN)


@case
def a_feed_that_there_is_not_is_no_fault() -> Case:
    async def act(peer: Peer) -> None:
        assert (await peer.welcome())["feeds"] == [AGENCY]
        await peer.send("error", code="unknown_feed", detail="there is no such feed", feed=AGENCY)
        await peer.events(1)
        await peer.acked(1)

    return Case([act], feeds=[AGENCY], keeps=[1], lost=[])


# What was shown


@case
def what_was_shown_is_told_again_until_the_gateway_has_heard_it() -> Case:
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.events(1, 2)
        await peer.send("live", feed=ACCOUNT)
        await peer.acked(2)
        await peer.hand.seen(ACCOUNT, [1, 2])
        assert (await peer.told("seen"))["offsets"] == [1, 2]
        await peer.connection.close(1012)  # nobody knows whether it arrived

    async def second(peer: Peer) -> None:
        await peer.welcome(2)
        await peer.send("live", feed=ACCOUNT)
        assert (await peer.told("seen"))["offsets"] == [1, 2]
        await peer.send("pong", **_ref(await peer.told("ping")))  # after it, so that it was heard
        await peer.events(3)
        await peer.acked(3)
        await peer.connection.close(1012)

    async def third(peer: Peer) -> None:
        await peer.welcome(3)
        await peer.send("live", feed=ACCOUNT)
        await peer.quiet(0.2)

    return Case([first, second, third], keeps=[1, 2, 3])

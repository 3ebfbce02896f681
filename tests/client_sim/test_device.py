"""One device of a fleet, byte by byte: what it says, what it notes, when it comes back."""

import asyncio
from collections.abc import Coroutine, Iterator
from random import Random
from typing import Any

import pytest

from client_sim.attacks import ATTACKS
from client_sim.behaviours import BEHAVIOURS, Step
from client_sim.client import Position
from client_sim.device import Device
from client_sim.measure import Tally
from client_sim.pool import Unanswered
from gateway.protocol import frames, schema
from gateway.protocol.codec import JSON

FEED = "account:anna"
SWITCH = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"


class Line(asyncio.Transport):
    """The device's end of a connection: keeps what was written."""

    def __init__(self, device: Device) -> None:
        super().__init__()
        self.device, self.protocol = device, device
        self.written = b""
        self.ended = ""
        self.reading = True

    def write(self, data: Any) -> None:
        assert not self.ended
        self.written += data

    def set_protocol(self, protocol: Any) -> None:
        self.protocol = protocol

    def close(self) -> None:
        self.ended = self.ended or "closed"

    def abort(self) -> None:
        self.ended = self.ended or "aborted"

    def pause_reading(self) -> None:
        self.reading = False

    def resume_reading(self) -> None:
        self.reading = True

    def is_closing(self) -> bool:
        return bool(self.ended)

    def said(self) -> list[dict[str, Any]]:
        """The messages that were written since the last look, each as the contract wants it."""
        data, self.written = self.written, b""
        if data.startswith(b"GET "):
            data = data.partition(b"\r\n\r\n")[2]
        messages = [JSON.decode(payload) for opcode, payload in frames.Parser().feed(data) if opcode == frames.TEXT]
        for message in messages:
            schema.check("device", message)
        return messages

    def tell(self, *messages: dict[str, Any]) -> None:
        for message in messages:
            schema.check("gateway", message)
        self.protocol.data_received(b"".join(JSON.message_frame(message) for message in messages))


class Room:
    """A world of one device, without sockets: time and timers stand still until a test moves them."""

    def __init__(self) -> None:
        self.loop: Any = self
        self.tally = Tally()
        self.dirty: set[Device] = set()
        self.notes: list[dict[str, Any]] = []
        self.time_now = 1_800_000_000.0
        self.timers: list[tuple[float, Any]] = []
        self.lines: list[Line] = []
        self.left: list[Line] = []
        self.tokens = 0
        self.refuse = False
        self.works: list[Coroutine[Any, Any, None]] = []
        self.snapshots: list[tuple[int, Any]] = []
        self.device: Device

    # The world

    def now(self) -> float:
        return self.time_now

    def note(self, record: dict[str, Any]) -> None:
        self.notes.append(record)

    def token(self, account: str) -> str:
        self.tokens += 1
        return f"token-{self.tokens}"

    def route(self, network: str) -> tuple[str, int]:
        return "127.0.0.1", 1

    async def get(self, device: Device, path: str, query: Any = None) -> tuple[int, Any]:
        if not self.snapshots:
            raise Unanswered("nobody")
        return self.snapshots.pop(0)

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        self.works.append(work)

    def half_open(self, transport: Any, seconds: float) -> None:
        self.left.append(transport)

    # The loop

    def call_later(self, seconds: float, call: Any) -> Any:
        self.timers.append((seconds, call))
        return asyncio.get_running_loop().call_later(1e6, lambda: None)

    async def create_connection(self, make: Any, host: str, port: int) -> Any:
        if self.refuse:
            raise ConnectionRefusedError
        line = Line(make())
        self.lines.append(line)
        line.device.connection_made(line)

    # The test

    async def work(self) -> None:
        works, self.works = self.works, []
        for one in works:
            await one

    async def connect(self) -> Line:
        """A connection up to the hello."""
        self.device.online()
        await self.work()
        line = self.lines[-1]
        line.protocol.data_received(SWITCH)
        return line

    def welcome(self, line: Line, start: int = 0, head: int = 0, new: bool = False, **more: Any) -> None:
        item = {"feed": FEED, "epoch": "e1", "head": max(head, start), "from": start}
        limits = {"feeds": 32, "message": 16384, "rate": 120, "backoff": 60}
        times = {"time": "2027-01-15T08:00:00.000Z", "expires": "2027-01-15T09:00:00.000Z"}
        about = {"session": f"s{len(self.lines)}", "account": "anna", "new": new, "window": 256}
        line.tell({"t": "welcome", **about, **times, "limits": limits, "feeds": [item], **more})

    async def live(self, start: int = 0) -> Line:
        line = await self.connect()
        line.said()
        self.welcome(line, start)
        line.tell({"t": "live", "feed": FEED})
        return line

    def noted(self, *words: str) -> list[dict[str, Any]]:
        return [note for note in self.notes if note["t"] in words]


def event(offset: int) -> dict[str, Any]:
    made = {
        "specversion": "1.0",
        "id": f"e{offset}",
        "source": "/agencies/mvd",
        "type": "gov.notice.sent",
        "time": "2027-01-15T07:59:59.000Z",
        "account": "anna",
        "data": {"title": "T", "text": "T"},
        "recordedtime": "2027-01-15T07:59:59.500Z",
    }
    return {"t": "event", "feed": FEED, "offset": offset, "event": made}


@pytest.fixture
def room() -> Iterator[Room]:
    it = Room()
    it.device = Device(it, 7, "anna", BEHAVIOURS["steady"], "perfect", Random(1))
    it.device.positions[FEED] = Position("e1", 0)
    yield it
    for work in it.works:
        work.close()


def close(line: Line, code: int) -> None:
    line.protocol.data_received(frames.close_frame(code, "because"))


async def test_it_resumes_from_what_it_keeps(room):
    line = await room.live()
    line.tell(event(1), event(2))
    room.device.cut()
    room.device.connection_lost(ConnectionResetError())
    [(wait, again)] = room.timers
    assert 0 <= wait <= 1
    again()
    await room.work()
    room.lines[-1].protocol.data_received(SWITCH)
    [hello] = room.lines[-1].said()
    assert hello["resume"] == {FEED: {"epoch": "e1", "offset": 2}}
    assert [note["t"] for note in room.notes] == ["hello", "welcome", "event", "event", "keep", "lost", "hello"]


async def test_acks_go_when_the_world_asks_and_after_64_events(room):
    line = await room.live()
    line.tell(event(1))
    assert line.said() == []
    assert room.dirty == {room.device}
    room.device.acknowledge()
    assert line.said() == [{"t": "ack", "feed": FEED, "offset": 1}]
    line.tell(*(event(offset) for offset in range(2, 70)))
    assert line.said() == [{"t": "ack", "feed": FEED, "offset": 65}]
    assert [(note["first"], note["offset"]) for note in room.noted("keep")] == [(1, 1), (2, 65)]


async def test_repeats_are_noted_and_not_kept(room):
    line = await room.live()
    line.tell(event(1), event(1), event(2))
    assert room.tally.counts["repeats"] == 1
    assert room.device.positions[FEED] == Position("e1", 2)
    room.device.acknowledge()
    assert [note["events"] for note in room.noted("keep")] == [2]


async def test_a_hole_ends_the_connection(room):
    line = await room.live()
    line.tell(event(2))
    assert line.ended
    assert room.device.state == "waiting"
    assert room.device.positions[FEED].offset == 0
    assert room.tally.counts["faults"] == 1


@pytest.mark.parametrize(
    ("code", "state"),
    [(4503, "waiting"), (1001, "waiting"), (4508, "waiting"), (4403, "stopped"), (4410, "stopped"), (4409, "waiting")],
)
async def test_the_close_code_says_what_to_do(room, code, state):
    line = await room.live()
    close(line, code)
    assert room.device.state == state
    assert [note["code"] for note in room.noted("lost")] == [code]


async def test_after_4401_a_new_token_at_once_but_not_for_ever(room):
    for attempt in range(3):
        line = await room.connect()
        assert line.said()[0]["token"] == f"token-{attempt + 1}"
        close(line, 4401)
        if attempt < 2:
            assert room.timers[-1][0] == 0
            room.timers.pop()[1]()
    assert room.device.state == "stopped"


async def test_a_refusal_says_when_to_come_back(room):
    room.device.online()
    await room.work()
    answer = b"HTTP/1.1 503 Service Unavailable\r\nRetry-After: 9\r\nContent-Length: 0\r\n\r\n"
    room.lines[-1].protocol.data_received(answer)
    assert room.timers[-1][0] == 9


async def test_a_gateway_that_is_away_is_tried_again(room):
    room.refuse = True
    room.device.online()
    await room.work()
    assert room.device.state == "waiting"


async def test_in_a_tunnel_nobody_is_told(room):
    line = await room.live()
    line.said()
    room.device.perform(Step(1, "tunnel"))
    assert room.left == [line]
    assert not line.ended
    assert line.written == b""
    assert room.device.state == "away"
    line.tell(event(1))  # goes to nobody
    assert not room.noted("event")


async def test_a_connection_that_comes_too_late_is_dropped(room):
    room.device.online()
    room.device.perform(Step(1, "tunnel"))
    room.device.online()
    await room.work()  # both attempts come through
    assert [line.ended for line in room.lines] == ["", "aborted"]


async def test_a_new_device_loads_the_snapshot_before_it_keeps_anything(room):
    room.device.positions.clear()
    line = await room.connect()
    [hello] = line.said()
    assert hello["fresh"] is True
    room.welcome(line, 3, new=True)
    line.tell(event(4), event(5))
    room.device.acknowledge()
    assert line.said() == []
    room.snapshots = [(200, {"positions": {FEED: {"epoch": "e1", "offset": 4}}})]
    await room.work()
    room.device.acknowledge()
    assert line.said() == [{"t": "ack", "feed": FEED, "offset": 5}]
    order = [note["t"] for note in room.notes]
    assert order == ["hello", "welcome", "event", "event", "snapshot", "keep", "ack"]
    assert room.noted("keep")[0]["first"] == 5


async def test_without_a_snapshot_it_comes_again(room):
    room.device.positions.clear()
    line = await room.connect()
    room.welcome(line, 3, new=True)
    await room.work()
    assert room.device.state == "waiting"
    assert not room.device.positions


async def test_a_resync_replaces_what_was_kept(room):
    room.device.positions[FEED] = Position("e0", 9)
    line = await room.connect()
    room.welcome(line, 20)
    line.tell({"t": "resync", "feed": FEED, "epoch": "e1", "offset": 20, "reason": "epoch"})
    room.snapshots = [(200, {"positions": {FEED: {"epoch": "e1", "offset": 20}}})]
    await room.work()
    assert room.device.positions[FEED] == Position("e1", 20)
    assert room.tally.counts["resyncs"] == 1


async def test_silence_ends_a_connection(room):
    await room.live()
    room.device.check(room.time_now + 34)
    assert room.device.state == "live"
    room.device.check(room.time_now + 36)
    assert room.device.state == "waiting"
    assert room.tally.closes["silence"] == 1


async def test_two_beats_that_show_more_than_came_end_it(room):
    line = await room.live()
    beat = {"t": "beat", "heads": {FEED: 1}, "next": 25}
    line.tell(beat)
    assert room.device.state == "live"
    line.tell(beat)
    assert room.device.state == "waiting"
    assert room.tally.counts["holes_noticed"] == 1


async def test_a_drain_moves_it_within_the_time(room):
    line = await room.live()
    line.tell({"t": "drain", "after": 30}, event(1))
    wait, move = room.timers.pop()
    assert 0 <= wait <= 30
    move()
    assert line.ended
    assert line.said() == [{"t": "ack", "feed": FEED, "offset": 1}]
    assert room.device.state == "connecting"


async def test_frozen_it_reads_nothing_and_thaws_on_the_same_socket(room):
    line = await room.live()
    room.device.perform(Step(1, "freeze"))
    room.device.check(room.time_now + 1000)
    assert (line.reading, room.device.state, line.ended) == (False, "frozen", "")
    room.device.perform(Step(2, "thaw"))
    assert (line.reading, room.device.state) == (True, "live")


async def test_looking_reports_what_was_kept_and_pings_answer(room):
    line = await room.live()
    line.tell(event(1), event(2))
    room.device.perform(Step(1, "look"))
    room.device.perform(Step(2, "refresh", "mvd"))
    room.device.perform(Step(3, "saver"))
    said = line.said()
    assert said[0] == {"t": "seen", "feed": FEED, "offsets": [1, 2]}
    assert [message["t"] for message in said[1:]] == ["refresh", "mode"]
    line.protocol.data_received(frames.frame(frames.PING, b"hi"))
    assert frames.Parser().feed(line.written) == [(frames.PONG, b"hi")]


async def test_looked_at_it_finds_out_whether_the_connection_lives(room):
    line = await room.live()
    room.device.perform(Step(1, "saver"))
    room.device.perform(Step(2, "full"))
    assert [message["t"] for message in line.said()] == ["mode", "mode", "ping"]
    room.device.check(room.time_now + 11)
    assert room.device.state == "waiting"


async def test_installed_again_it_is_another_device(room):
    await room.live()
    room.device.perform(Step(1, "reinstall"))
    await room.work()
    room.lines[-1].protocol.data_received(SWITCH)
    [hello] = room.lines[-1].said()
    assert hello["device"] == "d7.1"
    assert hello["fresh"] is True
    assert [note["device"] for note in room.noted("away")] == ["anna/d7"]


async def test_who_never_acks_neither_acks_nor_resumes_until_the_end(room):
    room.device = Device(room, 8, "anna", BEHAVIOURS["never_acks"], "perfect", Random(1))
    room.device.positions[FEED] = Position("e1", 0)
    line = await room.connect()
    assert "resume" not in line.said()[0]
    room.welcome(line)
    line.tell(*(event(offset) for offset in range(1, 100)))
    room.device.acknowledge()
    assert line.said() == []
    room.device.settle()
    room.device.connection_lost(None)
    room.timers.pop()[1]()
    await room.work()
    room.lines[-1].protocol.data_received(SWITCH)
    assert room.lines[-1].said()[0]["resume"] == {FEED: {"epoch": "e1", "offset": 99}}


async def test_a_wrong_clock_does_not_show_in_what_it_measures(room):
    room.device = Device(room, 8, "anna", BEHAVIOURS["clock_wrong"], "perfect", Random(1))
    room.device.positions[FEED] = Position("e1", 0)
    room.time_now = 1_800_000_000.0  # 2027-01-15T08:00:00Z, as the welcome says
    line = await room.live()
    line.tell(event(1))
    room.tally.sample(1)
    assert room.tally.wire.percentile(1) == pytest.approx(0.5, abs=0.01)
    assert room.tally.latency.percentile(1) == pytest.approx(1.0, abs=0.05)


async def test_an_old_version_is_updated_when_it_is_told_to_be(room):
    room.device = Device(room, 8, "anna", BEHAVIOURS["old_version"], "perfect", Random(1))
    line = await room.connect()
    assert line.said()[0]["agent"] == "vestnik-sim/0.9"
    close(line, 4426)
    assert room.device.state == "stopped"
    room.device.perform(Step(1, "update"))
    await room.work()
    room.lines[-1].protocol.data_received(SWITCH)
    assert room.lines[-1].said()[0]["agent"] == "vestnik-sim/1.0"


@pytest.mark.parametrize(
    ("name", "answer", "outcome", "allowed"),
    [
        ("not_json", frames.close_frame(4400, "no"), "closed 4400", True),
        ("not_json", frames.close_frame(1011, "oops"), "closed 1011", False),
        ("wrong_token", frames.close_frame(4401, "no"), "closed 4401", True),
        ("unknown_type", None, "error unknown_type", True),
    ],
)
async def test_an_attack_knows_what_became_of_it(room, name, answer, outcome, allowed):
    room.device = Device(room, 9, "anna", BEHAVIOURS["hostile"], "perfect", Random(1))
    room.device.perform(Step(1, "attack", name))
    await room.work()
    line = room.lines[-1]
    line.protocol.data_received(SWITCH)
    if ATTACKS[name].moment == "welcomed":
        room.welcome(line, new=True)
        line.tell(event(1))
    if answer is None:
        line.tell({"t": "error", "code": "unknown_type", "detail": "no"})
    else:
        line.protocol.data_received(answer)
    assert dict(room.tally.attacks) == {f"{name}: {outcome}": 1}
    assert [(note["outcome"], note["allowed"]) for note in room.noted("attack")] == [(outcome, allowed)]
    assert room.device.state == "away"
    assert not room.noted("event", "welcome", "keep")
    assert room.tally.counts["attacks_got_through"] == (0 if allowed else 1)


async def test_an_attack_that_nobody_answers_is_an_outcome_too(room):
    room.device = Device(room, 9, "anna", BEHAVIOURS["hostile"], "perfect", Random(1))
    room.device.perform(Step(1, "attack", "half_head"))
    await room.work()
    room.device.check(room.time_now + 100)
    assert dict(room.tally.attacks) == {"half_head: nothing": 1}

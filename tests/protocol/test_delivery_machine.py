"""The delivery core against everything that a network, a bus and a store may do to it (invariants 4 to 12).

The real hub, sessions and memory store; around them a bus that loses, repeats and reorders, a store that is slow or
fails, sockets that fill up and break at any moment, and devices that come back right, stale, wiped or with the position
of another log. Three oracles that know nothing of each other: what was committed (`Machine.truth`), what each device
received (`Device.journal`), and the cursors in the store. Invariants are looked at after every step; in the end the
faults stop, and everybody must be level.

`python -m tests.protocol.test_delivery_machine 2000` tries that many examples.
"""

import asyncio
import contextlib
import copy
import sys
from collections.abc import Callable, Iterable
from typing import Any

import orjson
import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import gateway.hub
import gateway.session
import gateway.store.joining
import gateway.store.memory
from gateway.errors import StoreUnavailable
from gateway.hub import Feed, Follow, Hub
from gateway.protocol import frames
from gateway.protocol.codec import JSON, MSGPACK, Codec
from gateway.protocol.delivery import Beginning, Track
from gateway.publisher import as_message
from gateway.session import Session
from gateway.store.base import ERASED_TYPE, Draft, Start
from gateway.tail import Entry, Tail
from tests.kit import Air, Bench, Clock, Held, Phone, draft

WINDOW = 4
OWN = {"a1": "account:a", "a2": "account:a", "b1": "account:b"}
AGENCIES = ("agency:fns", "agency:mvd")
FEEDS = ("account:a", "account:b", *AGENCIES)
FREE = {"window": WINDOW, "rate": 1_000_000, "burst": 1_000_000, "hellos": 1_000_000}

devices = st.sampled_from(sorted(OWN))
feeds = st.sampled_from(FEEDS)
agencies = st.sampled_from(AGENCIES)

Position = tuple[str, int]  # (epoch, offset)


class Faults:
    """In place of the hub's log: what the hub caught and lived on with is a failure here."""

    def __init__(self) -> None:
        self.caught: list[str] = []

    def exception(self, event: str, **_: Any) -> None:
        error = sys.exc_info()[1]
        self.caught.append(f"{event}: {type(error).__name__} {error}")

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *_, **__: None


class Trip:
    """What a device knows of one feed in one session."""

    def __init__(self, start: int):
        self.start = self.received = self.acked = start
        self.lives = 0
        self.lives_due = 1


class Device:
    """A model device: keeps event and position together, drops what it has, and believes nothing it can check."""

    def __init__(self, machine: "Machine", name: str, codec: Codec):
        self.machine, self.name, self.own, self.codec = machine, name, OWN[name], codec
        self.phone: Phone | None = None
        self.paused = False
        self.wanted: tuple[str, ...] = ()  # agency feeds
        self.kept: dict[str, Position] = {}
        self.journal: dict[tuple[str, str, int], Any] = {}
        self.claimed: dict[str, Position] = {}  # the highest that it ever acknowledged
        self.ever = False  # said hello before
        self.unexplained: dict[str, Trip] = {}  # feeds whose start only a `resync` or `new` can justify
        self.trips: dict[str, Trip] | None = None  # None before the welcome was read
        self.leaving: dict[str, int] = {}  # unsubscribes under way
        self.taking: dict[str, int] = {}  # subscribes under way
        self.resume: dict[str, Position] = {}
        self.broken_at_hello: set[str] = set()

    # The hello

    def hello(self, how: str, back: int, mode: str) -> None:
        machine, store = self.machine, self.machine.store
        if self.own not in self.kept and self.ever:
            how = "fresh"  # "the device keeps nothing": then it has to say so
        if how == "fresh":
            self.kept.clear()
            self.claimed.clear()
        if how == "older":
            self.kept = {feed: (epoch, max(0, offset - back)) for feed, (epoch, offset) in self.kept.items()}
        wanted = (self.own, *self.wanted)
        if how == "plain" and any(self.kept.get(feed, position) < position for feed, position in self.claimed.items()):
            how = "right"  # it went back in time, so only its own position is right
        self.resume = {}
        if how not in ("fresh", "plain"):
            self.resume = {feed: position for feed, position in self.kept.items() if feed in wanted}
            for feed, position in self.resume.items():
                self.claimed[feed] = max(self.claimed.get(feed, position), position)  # "it counts as an ack"
        if how == "other epoch":
            self.resume = {feed: ("another", offset) for feed, (_, offset) in self.resume.items()}
        if how == "past the head":
            self.resume = {feed: (store.epoch, store._feed(feed).head + 1000) for feed in self.resume}
        self.how, self.ever = how, True
        self.broken_at_hello = {feed for feed, position in self.resume.items() if machine.broken(feed, position)}
        self.trips, self.paused = None, False
        self.leaving, self.taking = {}, {}
        self.phone = machine.bench.phone(self.codec, deflate=True)
        self.phone.on_write = self.written
        machine.bench.hello(
            self.own.partition(":")[2],
            self.name,
            phone=self.phone,
            resume={feed: {"epoch": epoch, "offset": offset} for feed, (epoch, offset) in self.resume.items()},
            feeds=list(self.wanted),
            fresh=how == "fresh",
            mode=mode,
        )

    # What is written, at the moment it is

    def written(self, data: bytes) -> None:
        for _, payload in frames.split(data):
            if self.paused and (b'"event"' in bytes(payload) or b"events" in bytes(payload)):
                self.machine.faults.caught.append(f"{self.name}: an event was written to a full socket")

    # What is read

    def read(self, count: int) -> None:
        phone = self.phone
        assert phone is not None
        for _ in range(min(count, len(phone.inbox))):
            opcode, payload = phone.inbox.popleft()
            if opcode == frames.PING:
                if self.connected:
                    phone.session.received(frames.PONG, b"")
                continue
            message = self.codec.read(payload)
            if self.trips is None:
                assert message["t"] == "welcome", message
                self.welcomed(message)
            else:
                getattr(self, f"on_{message['t']}", self.other)(message)

    @property
    def connected(self) -> bool:
        return self.phone is not None and self.phone.session.open and self.phone.closed is None

    def welcomed(self, message: dict[str, Any]) -> None:
        self.trips = {}
        assert [item["feed"] for item in message["feeds"]] == [self.own, *self.wanted]
        for item in message["feeds"]:
            self.begin(item)
        if self.how == "fresh":
            assert message["new"]
        self.new = message["new"]
        if self.new:
            self.load(self.own, message["feeds"][0]["epoch"], message["feeds"][0]["from"])

    def begin(self, item: dict[str, Any]) -> None:
        feed, epoch, start = item["feed"], item["epoch"], item["from"]
        assert epoch == self.machine.store.epoch
        assert start <= item["head"]
        assert self.trips is not None
        trip = self.trips[feed] = Trip(start)
        # Where a feed starts must be explained: by the device's own position, by `new`, or by a `resync` that follows.
        if feed in self.resume and feed not in self.broken_at_hello and start == self.resume[feed][1]:
            return
        kept = self.kept.get(feed)
        if feed not in self.resume and (kept is None or (kept[0] == epoch and start <= kept[1])):
            return
        if item.get("t") != "subscribed" and feed == self.own and self.how == "fresh":
            return
        self.unexplained[feed] = trip

    def explained(self) -> None:
        """Whatever comes after the start, comes when all starts are explained (invariant 9)."""
        for feed, trip in self.unexplained.items():
            assert self.trips is None or self.trips.get(feed) is not trip, (
                f"{self.name}: {feed} starts after {trip.start}, kept {self.kept.get(feed)}, and no resync"
            )

    def load(self, feed: str, epoch: str, least: int) -> None:
        """Fetch and keep the snapshot: it covers all that is committed by now."""
        head = self.machine.store._feed(feed).head
        assert epoch != self.machine.store.epoch or head >= least
        self.kept[feed] = (epoch, max(head, least) if epoch == self.machine.store.epoch else least)
        self.unexplained.pop(feed, None)

    def on_resync(self, message: dict[str, Any]) -> None:
        assert self.trips is not None
        feed, epoch, offset, trip = message["feed"], message["epoch"], message["offset"], self.trips[message["feed"]]
        assert trip.start == trip.received == offset, "resync comes before the events, and `from` is its offset"
        if message["reason"] == "epoch":
            # Exactly once after a change: a device that is of this epoch is told only when it says nonsense itself.
            honest = self.resume.get(feed) == self.kept.get(feed) and feed in self.kept
            assert not (honest and self.kept[feed][0] == epoch), f"{self.name} resyncs {feed} for nothing"
        else:
            assert feed in self.broken_at_hello or self.machine.retained, "nothing was removed yet"
        self.load(feed, epoch, offset)

    def on_event(self, message: dict[str, Any]) -> None:
        self.event(message["feed"], message["offset"], message["event"])

    def on_batch(self, message: dict[str, Any]) -> None:
        assert len(message["events"]) > 1
        for offset, event in message["events"]:
            self.event(message["feed"], offset, event)

    def event(self, feed: str, offset: int, event: Any) -> None:
        self.explained()
        assert self.trips is not None
        trip, epoch = self.trips[feed], self.phone.epoch  # type: ignore[union-attr]
        assert offset == trip.received + 1, f"{self.name}: {feed} {offset} after {trip.received}"
        trip.received = offset
        assert trip.received - trip.acked <= WINDOW
        self.machine.compare(epoch, feed, offset, event)
        before = self.journal.setdefault((feed, epoch, offset), event)
        assert before == event or event is None or before is None, "one position is one event"
        kept = self.kept.get(feed)
        if kept is None or kept[0] != epoch:
            self.kept[feed] = (epoch, offset)  # an agency feed that began at its head
        elif offset > kept[1]:
            assert offset == kept[1] + 1, f"{self.name}: {feed} {offset} is kept after {kept[1]}"
            self.kept[feed] = (epoch, offset)

    def on_live(self, message: dict[str, Any]) -> None:
        self.explained()
        assert self.trips is not None
        trip = self.trips[message["feed"]]
        trip.lives += 1
        assert trip.lives <= trip.lives_due, "live comes once"

    def on_subscribed(self, message: dict[str, Any]) -> None:
        feed = message["feed"]
        assert self.trips is not None
        self.taking[feed] -= 1
        if feed in self.trips:
            assert message["from"] == self.trips[feed].received  # asked twice: it goes on from where it is
            self.trips[feed].lives_due = self.trips[feed].lives + 1  # one `live` follows them all
            return
        self.resume.pop(feed, None)
        self.begin(message)

    def on_unsubscribed(self, message: dict[str, Any]) -> None:
        assert self.trips is not None
        self.leaving[message["feed"]] -= 1
        self.trips.pop(message["feed"], None)
        self.forget(message["feed"])

    def forget(self, feed: str) -> None:
        """The feed was left, or perhaps: followed again it begins at its head."""
        self.kept.pop(feed, None)
        self.claimed.pop(feed, None)

    def on_beat(self, message: dict[str, Any]) -> None:
        for feed, head in message["heads"].items():
            assert head <= self.machine.heads(self.phone.epoch)[feed]  # type: ignore[union-attr]

    def on_error(self, message: dict[str, Any]) -> None:
        assert message["code"] in ("invalid", "unavailable"), message
        if message["code"] == "unavailable":
            self.machine.store_failed = True

    def other(self, message: dict[str, Any]) -> None:
        assert message["t"] in ("seen", "mode", "expiring", "welcome")
        assert message["t"] != "welcome"

    # What it says

    def due(self, feed: str) -> int:
        """The highest offset that it may acknowledge honestly."""
        assert self.trips is not None
        trip, kept = self.trips[feed], self.kept.get(feed)
        return min(trip.received, kept[1]) if kept is not None and kept[0] == self.phone.epoch else 0  # type: ignore[union-attr]

    def ack(self, feed: str, offset: int) -> None:
        assert self.phone is not None
        assert self.trips is not None
        self.trips[feed].acked = max(self.trips[feed].acked, offset)
        self.claimed[feed] = max(self.claimed.get(feed, ("", 0)), (self.phone.epoch, offset))  # type: ignore[attr-defined]
        self.phone.ack(feed, offset)

    def lose(self) -> None:
        """The connection breaks; what was not read is gone."""
        if self.phone is not None:
            self.phone.session.lost(1006)
        self.phone, self.trips = None, None
        self.unexplained = {}
        self.forget_left()

    def forget_left(self) -> None:
        for feed, asked in self.leaving.items():
            if asked:
                self.forget(feed)
        self.leaving.clear()


class Machine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.loop = asyncio.new_event_loop()
        self.clock = Clock()
        self.faults = Faults()
        self.undo = contextlib.ExitStack()
        for module, name, value in (
            (gateway.hub, "time", self.clock),
            (gateway.session, "time", self.clock),
            (gateway.hub, "log", self.faults),
            (gateway.session, "log", self.faults),
            (gateway.hub, "SLICE", 2),
            (gateway.hub, "RETRY_S", 0),
            (gateway.hub, "JOIN_GATHER_S", 0),
            (gateway.hub, "READ_GATHER_S", 0),
        ):
            self.undo.callback(setattr, module, name, getattr(module, name))
            setattr(module, name, value)
        self.store = Held()
        self.air = Air()
        self.truth: dict[tuple[str, str], list[Any]] = {("e1", feed): [] for feed in FEEDS}
        self.cursors: dict[tuple[str, str, str], Position] = {}
        self.devices = {name: Device(self, name, MSGPACK if name == "a2" else JSON) for name in OWN}
        self.epochs = 1
        self.copy: Held | None = None
        self.retained = self.store_failed = False
        self.jobs: set[asyncio.Task[None]] = set()
        self.do(self.start())

    def do(self, work: Any) -> Any:
        async def main() -> Any:
            result = await work
            await self.bench.settle()
            for name, device in self.devices.items():
                if device.phone is not None and device.phone.closed is not None and not device.phone.inbox:
                    self.devices[name].lose()
            return result

        return self.loop.run_until_complete(main())

    async def start(self) -> None:
        self.bench = Bench(self.clock, self.store, self.air, **FREE)
        self.bench.hub.tail = Tail(5_000)
        original = self.bench.phone

        def phone(codec: Codec = JSON, *, deflate: bool = False) -> Phone:
            made = original(codec, deflate=deflate)
            made.epoch = self.store.epoch  # type: ignore[attr-defined]
            return made

        self.bench.phone = phone  # type: ignore[method-assign]

    async def end(self) -> None:
        for job in self.jobs:
            job.cancel()
        await asyncio.gather(*self.jobs, return_exceptions=True)
        await self.bench.stop()

    def spawn(self, work: Any) -> None:
        async def job() -> None:
            with contextlib.suppress(StoreUnavailable):
                await work

        task = asyncio.get_running_loop().create_task(job())
        self.jobs.add(task)
        task.add_done_callback(self.jobs.discard)

    # The oracle

    def heads(self, epoch: str) -> dict[str, int]:
        return {feed: len(self.truth[epoch, feed]) for feed in FEEDS}

    def broken(self, feed: str, position: Position) -> bool:
        log = self.store._feed(feed)
        return position[0] != self.store.epoch or position[1] > log.head or position[1] + 1 < log.oldest

    def compare(self, epoch: str, feed: str, offset: int, event: Any) -> None:
        said = self.truth[epoch, feed][offset - 1]
        assert event is None or said is None or event == said, "an event that was not committed"

    async def committed(self, stored: Any) -> None:
        for one in stored:
            log = self.truth[one.epoch, one.feed]
            assert one.offset == len(log) + 1
            log.append(orjson.loads(one.row.event))
        with contextlib.suppress(Exception):
            await self.air.publish([as_message(one) for one in stored])

    @initialize(wanted=st.sets(agencies), mode=st.sampled_from(["full", "saver"]), kept=st.integers(0, 6))
    def begin(self, wanted: set[str], mode: str, kept: int) -> None:
        """Everybody is here and has something."""
        for name in self.devices:
            self.connect(name, "right", 0, mode, wanted)
        if kept:
            for feed in FEEDS:
                self.publish(feed, kept, 2)
            self.live_on(1000)

    @rule(count=st.integers(1, 1000))
    def live_on(self, count: int) -> None:
        """The bus delivers, everybody reads, keeps and acknowledges."""

        async def work() -> None:
            going, self.air.flying[:] = list(self.air.flying), []
            for message in going:
                self.bench.hub.received(message)
            await self.bench.settle()
            for device in self.devices.values():
                if device.phone is not None:
                    device.read(count)
                for feed in device.trips or ():
                    if device.connected:
                        device.ack(feed, device.due(feed))

        self.do(work())

    # What agencies and operators do

    @rule(feed=feeds, count=st.integers(1, 3), priority=st.integers(0, 3))
    def publish(self, feed: str, count: int, priority: int) -> None:
        async def work() -> None:
            self.clock.now += 0.001
            await self.committed(await self.bench.commit(feed, count, priority=priority))

        self.do(work())

    @rule(feed=feeds, count=st.integers(5, 12))
    def flood(self, feed: str, count: int) -> None:
        self.publish(feed, count, 3)

    @rule(feed=feeds, data=st.data())
    def erase(self, feed: str, data: st.DataObject) -> None:
        offset = data.draw(st.none() | st.integers(1, max(1, len(self.truth[self.store.epoch, feed]))))

        def make(ranges: Any) -> Draft:
            made = draft(feed, f"erased {feed} {self.clock.now} {ranges}")
            event = made.event.replace(b'"type":"t"', b'"type":"gov.erased"')
            return Draft(feed, made.key, made.digest, event, ERASED_TYPE, None, 0.0, 1)

        async def work() -> None:
            self.clock.now += 0.001
            stored = await self.store.erase(feed, offset, make, self.clock.time())
            if stored is not None:
                await self.committed([stored])

        self.do(work())

    @rule(feed=feeds, keep=st.integers(0, 8))
    def retain(self, feed: str, keep: int) -> None:
        events = list(self.store._feed(feed).events.values())
        if len(events) > keep:
            self.retained = True
            self.do(self.store.retain(events[len(events) - keep - 1].recorded + 0.0005))

    # The bus

    @precondition(lambda self: self.air.flying)
    @rule(data=st.data(), what=st.sampled_from(["deliver", "deliver", "deliver all", "lose", "repeat", "lose all"]))
    def bus(self, data: st.DataObject, what: str) -> None:
        flying = self.air.flying
        which = data.draw(st.integers(0, len(flying) - 1)) if "all" not in what else 0

        async def work() -> None:
            if what == "lose all":
                flying.clear()
            elif what == "deliver all":
                going, flying[:] = list(flying), []
                for message in going:
                    self.bench.hub.received(message)
            else:
                message = flying[which] if what == "repeat" else flying.pop(which)
                if what != "lose":
                    self.bench.hub.received(message)

        self.do(work())

    @rule(down=st.booleans())
    def bus_down(self, down: bool) -> None:
        self.air.down = down

    @rule()
    def sweep(self) -> None:
        async def work() -> None:
            self.spawn(self.bench.hub._compare(list(self.bench.hub.feeds)))

        self.do(work())

    # The store

    @rule(late=st.booleans())
    def store_slow(self, late: bool) -> None:
        self.store.slow, self.store.late = True, late

    @precondition(lambda self: self.store.slow)
    @rule()
    def store_quick(self) -> None:
        self.store.slow = False

    @precondition(lambda self: self.store.waiting)
    @rule(fails=st.sampled_from([False, False, False, True]))
    def store_answers(self, fails: bool) -> None:
        async def work() -> None:
            if fails:
                self.store_failed = True
            self.store.answer(StoreUnavailable("just now") if fails else None)

        self.do(work())

    @rule()
    def flush(self) -> None:
        async def work() -> None:
            self.spawn(self.bench.hub._flush())

        self.do(work())

    @rule()
    def drop_empty(self) -> None:
        self.do(self.bench.hub._drop_empty())

    @rule()
    def backup(self) -> None:
        waiting, self.store.waiting = self.store.waiting, type(self.store.waiting)()
        self.copy = copy.deepcopy(self.store)
        self.store.waiting = waiting

    @rule(restore=st.booleans())
    def restart(self, restore: bool) -> None:
        """The process dies and comes back, maybe with a restored store. What it had not saved is gone."""

        async def work() -> None:
            await self.end()
            for device in self.devices.values():
                device.lose()
            self.store.waiting.clear()
            if restore and self.copy is not None:
                self.store, self.copy = self.copy, None
                self.epochs += 1
                self.store.epoch = f"e{self.epochs}"
                self.cursors.clear()
                for feed in FEEDS:
                    log = self.store._feed(feed)
                    kept = {n: event.event and orjson.loads(event.event) for n, event in log.events.items()}
                    self.truth[self.store.epoch, feed] = [kept.get(n + 1) for n in range(log.head)]
            self.store.slow = False
            self.air.feeds.clear()
            await self.start()

        self.do(work())

    # Devices

    @rule(
        name=devices,
        how=st.sampled_from(["right"] * 3 + ["plain"] * 2 + ["older", "fresh", "other epoch", "past the head"]),
        back=st.integers(0, 9),
        mode=st.sampled_from(["full", "full", "saver"]),
        wanted=st.sets(agencies),
    )
    def connect(self, name: str, how: str, back: int, mode: str, wanted: set[str]) -> None:
        async def work() -> None:
            device = self.devices[name]
            device.forget_left()
            device.unexplained = {}  # an older session is still open: the newer one closes it
            for feed in set(device.wanted) - wanted:
                device.forget(feed)  # it does not care any more
            device.wanted = tuple(sorted(wanted))
            device.hello(how, back, mode)

        self.do(work())

    @precondition(lambda self: any(d.phone and d.phone.inbox for d in self.devices.values()))
    @rule(data=st.data(), count=st.sampled_from([1, 3, 100]))
    def read(self, data: st.DataObject, count: int) -> None:
        ready = [name for name, device in self.devices.items() if device.phone and device.phone.inbox]
        device = self.devices[data.draw(st.sampled_from(ready))]

        async def work() -> None:
            device.read(count)

        self.do(work())

    def listening(self, data: st.DataObject) -> Device | None:
        ready = [name for name, device in self.devices.items() if device.connected and device.trips]
        return self.devices[data.draw(st.sampled_from(ready))] if ready else None

    @precondition(lambda self: any(d.connected and d.trips for d in self.devices.values()))
    @rule(data=st.data(), how=st.sampled_from(["all", "all", "some", "again", "past told"]))
    def ack(self, data: st.DataObject, how: str) -> None:
        device = self.listening(data)
        assert device is not None
        assert device.trips is not None
        feed = data.draw(st.sampled_from(sorted(device.trips)))
        trip, due = device.trips[feed], device.due(feed)
        follow = device.phone.session.find(feed)  # type: ignore[union-attr]

        async def work() -> None:
            if how == "past told":
                if follow is not None:
                    before = follow.acked, follow.sent
                    device.phone.ack(feed, follow.sent + 1)  # type: ignore[union-attr]
                    assert (follow.acked, follow.sent) == before or follow.sent > before[1]
                    assert follow.acked == before[0]
            elif how == "again":
                device.phone.ack(feed, trip.acked)  # type: ignore[union-attr]
            elif how == "some":
                device.ack(feed, max(0, due - 1))
            else:
                device.ack(feed, due)

        self.do(work())

    @precondition(lambda self: any(d.connected and d.trips for d in self.devices.values()))
    @rule(data=st.data())
    def seen(self, data: st.DataObject) -> None:
        device = self.listening(data)
        assert device is not None
        assert device.trips is not None
        told = {feed: trip.received for feed, trip in device.trips.items() if trip.received}
        if told:
            feed = data.draw(st.sampled_from(sorted(told)))

            async def work() -> None:
                if device.phone.session.find(feed) is not None:  # type: ignore[union-attr]
                    device.phone.say("seen", feed=feed, offsets=[told[feed]])  # type: ignore[union-attr]

            self.do(work())

    @precondition(lambda self: any(d.connected and d.trips for d in self.devices.values()))
    @rule(data=st.data(), feed=agencies, take=st.booleans(), resume=st.booleans())
    def follow(self, data: st.DataObject, feed: str, take: bool, resume: bool) -> None:
        device = self.listening(data)
        assert device is not None

        async def work() -> None:
            phone = device.phone
            assert phone is not None
            if take:
                device.wanted = tuple(sorted({*device.wanted, feed}))
                device.taking[feed] = device.taking.get(feed, 0) + 1
                kept = device.kept.get(feed)
                extra = {"resume": {"epoch": kept[0], "offset": kept[1]}} if resume and kept else {}
                phone.say("subscribe", feed=feed, **extra)
            else:
                device.wanted = tuple(one for one in device.wanted if one != feed)
                device.leaving[feed] = device.leaving.get(feed, 0) + 1
                phone.say("unsubscribe", feed=feed)
                self.cursors.pop((device.own, device.name, feed), None)

        self.do(work())

    @rule(name=devices)
    def disconnect(self, name: str) -> None:
        async def work() -> None:
            self.devices[name].lose()

        self.do(work())

    @rule(name=devices)
    def socket(self, name: str) -> None:
        """The socket's buffer fills up, or becomes free."""
        device = self.devices[name]

        async def work() -> None:
            if device.connected:
                device.paused = not device.paused
                session = device.phone.session  # type: ignore[union-attr]
                session.paused() if device.paused else session.resumed()

        self.do(work())

    @rule(name=devices, mode=st.sampled_from(["full", "saver"]))
    def mode(self, name: str, mode: str) -> None:
        device = self.devices[name]

        async def work() -> None:
            if device.connected:
                device.phone.say("mode", mode=mode)  # type: ignore[union-attr]

        self.do(work())

    @rule(seconds=st.sampled_from([0.3, 5.0, 31.0, 70.0]))
    def time(self, seconds: float) -> None:
        async def work() -> None:
            self.bench.tick(seconds)

        self.do(work())

    # What must hold at every moment

    @invariant()
    def nothing_was_caught(self) -> None:
        assert not self.faults.caught

    @invariant()
    def windows_and_positions(self) -> None:
        heads = self.heads(self.store.epoch)
        for name, feed in self.bench.hub.feeds.items():
            assert feed.head <= heads[name]
            assert feed.checked <= heads[name]
            for index, follow in enumerate(feed.follows):
                assert follow.index == index
                assert 0 <= follow.acked <= follow.sent <= heads[name]
                assert follow.sent - follow.acked <= WINDOW
                assert follow.session.open

    @invariant()
    def whoever_is_behind_has_a_reason(self) -> None:
        """No wake-up is ever lost: nothing but the session's own window, socket or mode, or a read, holds it up."""
        hub = self.bench.hub
        for feed in hub.feeds.values():
            for follow in feed.follows:
                session = follow.session
                if follow.sent < feed.head and not follow.reading and session.writable and follow.room(WINDOW) > 0:
                    assert follow.held, f"{session.device} is left behind in {feed.name}"
                    assert session.saver
                    assert session.held_until > self.clock.now - 0.5

    @invariant()
    def cursors_never_go_back(self) -> None:
        for account, known in self.store._accounts.items():
            for device in known.values():
                for feed, position in device.cursors.items():
                    key = f"account:{account}", device.device, feed
                    before = self.cursors.get(key)
                    if before is not None and before[0] == position[0]:
                        assert position[1] >= before[1], f"{key}: {before} -> {position}"
                    self.cursors[key] = position
                    if position[0] == self.store.epoch:
                        assert position[1] <= self.store._feed(feed).head

    # In the end

    def teardown(self) -> None:
        try:
            self.do(self.heal())
            self.nothing_was_caught()
        finally:
            self.loop.run_until_complete(self.end())
            self.loop.close()
            self.undo.close()

    async def heal(self) -> None:
        """The faults stop: everybody comes level, and every log is whole."""
        self.store.slow = self.air.down = False
        while self.store.waiting:
            self.store.answer()
        self.air.flying.clear()
        self.air.feeds.clear()  # not one message more: the sweep alone must do
        await self.bench.settle()
        for _ in range(40):
            for device in self.devices.values():
                await self.help(device)
            await self.bench.sweep()
            if all(self.is_level(device) for device in self.devices.values()):
                break
            self.bench.tick(10.0)
            await self.bench.settle()
        for device in self.devices.values():
            assert self.is_level(device), f"{device.name} is not level: {device.kept}, {self.heads(self.store.epoch)}"
            assert device.trips is not None
            assert not any(device.leaving.values()) or self.store_failed
            for feed, trip in device.trips.items():
                assert trip.lives == trip.lives_due, f"{device.name} {feed}: live {trip.lives} of {trip.lives_due}"
        await self.bench.hub._flush()
        for device in self.devices.values():
            account = device.own.partition(":")[2]
            cursors = self.store._accounts[account][device.name].cursors
            assert cursors[device.own] == (self.store.epoch, self.heads(self.store.epoch)[device.own])

    async def help(self, device: Device) -> None:
        """A device that does all it should."""
        if device.phone is not None and not device.connected and device.phone.closed is not None:
            device.read(len(device.phone.inbox))
            device.lose()
        if device.phone is None:
            device.hello("right" if device.own in device.kept else "fresh", 0, "full")
            await self.bench.settle()
        if device.phone is not None and device.connected:
            if device.paused:
                device.paused = False
                device.phone.session.resumed()
            for _ in range(50):
                device.read(len(device.phone.inbox))
                for feed in device.trips or ():
                    if device.connected:
                        device.ack(feed, device.due(feed))
                await self.bench.settle()
                if not device.phone.inbox:
                    break

    def is_level(self, device: Device) -> bool:
        if not device.connected or not device.trips or device.phone is None or device.phone.inbox:
            return False
        heads, epoch = self.heads(self.store.epoch), self.store.epoch
        return all(trip.received == heads[feed] for feed, trip in device.trips.items()) and device.kept[device.own] == (
            epoch,
            heads[device.own],
        )


PROFILE = settings(
    max_examples=60,
    stateful_step_count=50,
    deadline=None,
    database=None,
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)


def test_the_delivery_core_keeps_its_invariants() -> None:
    run_state_machine_as_test(Machine, settings=PROFILE)


# The machine itself must be able to fail: each of these faults is planted, and has to be found.


def holes_are_ignored(patch: pytest.MonkeyPatch) -> None:
    right = Hub._write_entry

    def wrong(self: Hub, feed: Feed, follows: Iterable[Follow], entry: Entry, *, hurry: bool) -> None:
        for follow in follows:
            if follow.level and follow.session.flowing and not follow.reading and follow.sent < entry.offset:
                follow.sent = entry.offset - 1
        right(self, feed, follows, entry, hurry=hurry)

    patch.setattr(Hub, "_write_entry", wrong)


def positions_rise_without_a_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Hub, "_write_run", lambda self, follow, entries, room: follow.advance(follow.sent + 1, follow.sent + 1)
    )


def cursors_are_saved_without_a_maximum(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Any, feed: str, epoch: str, offset: int) -> None:
        self.cursors[feed] = epoch, offset

    patch.setattr(gateway.store.memory._Device, "move", wrong)


def a_join_that_shows_a_higher_head_wakes_nobody(patch: pytest.MonkeyPatch) -> None:
    right = Hub.add

    def wrong(self: Hub, session: Session, start: Start) -> Follow:
        self.feeds[start.feed].head = max(self.feeds[start.feed].head, start.head)
        return right(self, session, start)

    patch.setattr(Hub, "add", wrong)


def retention_is_passed_over_in_silence(patch: pytest.MonkeyPatch) -> None:
    right = gateway.store.joining.start

    def wrong(**given: Any) -> Beginning:
        began = right(**given)
        return Beginning(began.offset, began.store) if began.reason == "retention" else began

    patch.setattr(gateway.store.joining, "start", wrong)


def a_socket_that_is_free_again_is_forgotten(patch: pytest.MonkeyPatch) -> None:
    def wrong(self: Session) -> None:
        self.writable = True
        self.flowing = self.open and not self.saver

    patch.setattr(Session, "resumed", wrong)


def the_window_has_no_bound(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(Track, "room", lambda self, window: 1000)


def live_comes_again_and_again(patch: pytest.MonkeyPatch) -> None:
    right = Hub.pump

    def wrong(self: Hub, follow: Follow) -> None:
        right(self, follow)
        follow.level = follow.level and follow.sent < follow.feed.head

    patch.setattr(Hub, "pump", wrong)


@pytest.mark.parametrize(
    "plant",
    [
        holes_are_ignored,
        positions_rise_without_a_write,
        cursors_are_saved_without_a_maximum,
        a_join_that_shows_a_higher_head_wakes_nobody,
        retention_is_passed_over_in_silence,
        a_socket_that_is_free_again_is_forgotten,
        the_window_has_no_bound,
        live_comes_again_and_again,
    ],
)
def test_the_machine_finds_what_is_planted(
    plant: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant(monkeypatch)
    profile = settings(PROFILE, max_examples=1000, derandomize=True, phases=[Phase.generate])
    with pytest.raises(AssertionError):
        run_state_machine_as_test(Machine, settings=profile)


if __name__ == "__main__":
    run_state_machine_as_test(Machine, settings=settings(PROFILE, max_examples=int(sys.argv[1]), print_blob=True))
    print(f"{sys.argv[1]} examples, no fault found")

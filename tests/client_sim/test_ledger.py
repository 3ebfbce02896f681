"""The ledger accuses nobody of what is legal, and nothing that is planted gets past it.

`World` is a gateway, agencies and devices as the contract wants them, as simple as can be: lists and no sockets. It
writes the journals of a random legal history. `PLANTED` are small lies in these journals, each with what it must be
called.
"""

import copy
import json
import random
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from client_sim.agencies import BY_CODE, Desk
from client_sim.client import Notebook, Position
from client_sim.journal import Diary, Journal, digest, dump, read
from client_sim.ledger import KINDS, Verdict, reconcile
from gateway.events import Parsed, erased_event, parse
from gateway.store.base import Agency
from gateway.store.sqlite import SqliteStore

Line = dict[str, Any]
PUBLIC = "agency:mchs"
DEVICES = {"anna/phone": True, "anna/tablet": False, "boris/phone": True, "vera/old": False}  # whether it resumes
NOW = 1_800_000_000.0
AGO_S = 2.0  # what was acknowledged so long ago is certainly saved


class Phone:
    """One device: what it keeps, what the gateway has stored of it, and its session."""

    def __init__(self, name: str, resumes: bool):
        self.name, self.resumes, self.account = name, resumes, name.partition("/")[0]
        self.kept: dict[str, tuple[str, int]] = {}  # feed → (epoch, offset)
        self.acks: dict[str, list[tuple[float, int]]] = {}
        self.sent: dict[str, int] | None = None  # feed → offset told, while connected
        self.acked: dict[str, int] = {}
        self.waiting: set[str] = set()  # feeds that want a snapshot
        self.feeds = [f"account:{self.account}", PUBLIC]


class World:
    def __init__(self, rng: random.Random, *, window: int = 8):
        self.rng, self.window, self.now, self.lives = rng, window, 1000.0, 1
        self.logs: dict[str, list[Line | None]] = {}  # feed → events, from offset 1 on
        self.oldest: dict[str, int] = {}
        self.acked: dict[str, int] = {}
        self.cursors: dict[tuple[str, str], tuple[str, int]] = {}  # (device, feed)
        self.backup: Any = None
        self.backed_up = 0.0
        self.restores: list[Line] = []
        self.agencies: list[Line] = []
        self.devices: list[Line] = []
        self.phones = {name: Phone(name, resumes) for name, resumes in DEVICES.items()}
        self.names = 0
        self.sequences: dict[str, int] = {}

    @property
    def epoch(self) -> str:
        return f"e{self.lives}"

    def head(self, feed: str) -> int:
        return len(self.logs.get(feed, ()))

    def note(self, phone: Phone, t: str, **fields: Any) -> None:
        self.devices.append({"t": t, "at": self.now, "device": phone.name, **fields})

    # Agencies

    def post(self, feed: str | None = None) -> None:
        rng = self.rng
        feed = feed or rng.choice([f"account:{account}" for account in ("anna", "boris", "vera")] + [PUBLIC])
        subject = rng.choice((None, "application/1", "application/2"))
        self.names += 1
        event = {"source": "/agencies/mvd", "id": f"n{self.names}", "subject": subject, "sequence": None}
        if subject is not None:
            self.sequences[feed + subject] = self.sequences.get(feed + subject, 0) + rng.choice((0, 1, 5))
            event["sequence"] = str(self.sequences[feed + subject])
        event["digest"] = digest({"n": self.names})
        self.attempt(feed, event)
        while rng.random() < 0.2:
            self.attempt(feed, event)

    def attempt(self, feed: str, event: Line) -> None:
        """One post: stored or not, answered or not, and not always good."""
        rng, about = self.rng, {name: event[name] for name in ("source", "id", "digest")}
        self.agencies.append({"t": "post", "at": self.now, "feed": feed, **event})
        fate = rng.random()
        log, answer = self.logs.setdefault(feed, []), {"t": "answer", "at": self.now, **about}
        found = [offset for offset, row in enumerate(log, 1) if row is not None and row["id"] == event["id"]]
        if fate < 0.1 and not found:
            self.agencies.append({**answer, "status": rng.choice((409, 422, 429))})
            return
        if fate < 0.2 and not found:
            self.agencies.extend([{**answer, "status": 503}] if rng.random() < 0.5 else [])
            return
        duplicate = bool(found)
        if not found:
            if any(row is None for row in log) and rng.random() < 0.05:
                return
            log.append(event)
            found = [len(log)]
        if rng.random() < 0.85:
            where = {"feed": feed, "epoch": self.epoch, "offset": found[0], "duplicate": duplicate}
            self.agencies.append({**answer, "status": 202, **where})

    # What happens to the store

    def erase(self) -> None:
        feed = self.rng.choice(sorted(self.logs) or [PUBLIC])
        if self.logs.get(feed):
            self.logs[feed][self.rng.randrange(len(self.logs[feed]))] = None

    def retain(self) -> None:
        feed = self.rng.choice(sorted(self.logs) or [PUBLIC])
        self.oldest[feed] = self.rng.randint(self.oldest.get(feed, 1), self.head(feed) + 1)

    def back_up(self) -> None:
        self.backup = copy.deepcopy((self.logs, self.oldest, self.acked, self.cursors))
        self.backed_up = self.now

    def restore(self) -> None:
        if self.backup is None:
            return
        self.crash()
        self.logs, self.oldest, self.acked, self.cursors = copy.deepcopy(self.backup)
        self.lives += 1
        self.restores.append({"t": "restored", "since": self.backed_up, "at": self.now})

    def crash(self) -> None:
        for phone in self.phones.values():
            self.lose(phone)

    # Devices

    def lose(self, phone: Phone) -> None:
        if phone.sent is None:
            return
        phone.sent = None
        for feed, acks in phone.acks.items():
            saved = [offset for at, offset in acks if at <= self.now - AGO_S]
            epoch = self.epoch
            offset = self.rng.choice([*saved[-1:], *(offset for at, offset in acks if at > self.now - AGO_S)])
            old = self.cursors.get((phone.name, feed), ("", 0))
            self.cursors[phone.name, feed] = (epoch, max(offset, old[1]) if old[0] == epoch else offset)
        phone.acks.clear()
        if self.rng.random() < 0.8:
            self.note(phone, "lost", code=None)

    def wipe(self, phone: Phone) -> None:
        self.lose(phone)
        phone.kept.clear()

    def connect(self, phone: Phone) -> None:
        if phone.sent is not None:
            return
        rng, account = self.rng, phone.feeds[0]
        fresh = account not in phone.kept
        resume: Line = {feed: {"epoch": epoch, "offset": offset} for feed, (epoch, offset) in phone.kept.items()}
        if not phone.resumes:
            resume = {}
        hello: Line = {"feeds": [PUBLIC], "mode": "full", **({"resume": resume} if resume else {})}
        self.note(phone, "hello", **hello, **({"fresh": True} if fresh else {}))
        if rng.random() < 0.1:
            return  # cut before the welcome
        new = fresh or not any(name == phone.name for name, _ in self.cursors)
        items: list[Line] = []
        resyncs: list[Line] = []
        phone.waiting = {account} if new else set()
        for feed in phone.feeds:
            head, oldest = self.head(feed), self.oldest.get(feed, 1)
            asked = resume.get(feed)
            position = (asked["epoch"], asked["offset"]) if asked else self.cursors.get((phone.name, feed))
            if fresh and not asked:
                position = None
            reason = None
            if position is None:
                start = max(min(self.acked.get(feed, 0), head), oldest - 1) if feed == account else head
            elif position[0] != self.epoch or position[1] > head:
                start, reason = head, "epoch"
            elif position[1] + 1 < oldest:
                start, reason = head, "retention"
            else:
                start = position[1]
            if reason is None:
                old = self.cursors.get((phone.name, feed), ("", 0))
                self.cursors[phone.name, feed] = (self.epoch, max(start, old[1] if old[0] == self.epoch else 0))
                self.acked[feed] = max(self.acked.get(feed, 0), start)
            else:
                resyncs.append({"feed": feed, "epoch": self.epoch, "offset": start, "reason": reason})
                phone.waiting.add(feed)
            items.append({"feed": feed, "epoch": self.epoch, "head": head, "from": start})
        self.note(phone, "welcome", new=new, window=self.window, feeds=items)
        phone.sent = {item["feed"]: item["from"] for item in items}
        phone.acked = dict(phone.sent)
        for line in resyncs:
            self.note(phone, "resync", **line)
        if self.rng.random() < 0.1:
            self.lose(phone)
            return
        for item in items:
            if item["feed"] not in phone.waiting and item["feed"] not in phone.kept:
                self.keep(phone, item["feed"], item["from"], item["from"], 0)

    def deliver(self, phone: Phone, most: int = 5) -> None:
        if phone.sent is None:
            return
        for feed in phone.feeds:
            log, first = self.logs.get(feed, []), None
            top = min(len(log), phone.sent[feed] + self.rng.randint(0, most), phone.acked[feed] + self.window)
            for offset in range(phone.sent[feed] + 1, top + 1):
                row = log[offset - 1]
                names = {name: row[name] if row else None for name in ("source", "id", "digest")}
                self.note(phone, "event", feed=feed, epoch=self.epoch, offset=offset, **names)
                phone.sent[feed] = offset
                if feed not in phone.waiting and offset > phone.kept[feed][1]:
                    first = first or offset
            if first is not None:
                self.keep(phone, feed, first, phone.sent[feed], phone.sent[feed] - first + 1)

    def keep(self, phone: Phone, feed: str, first: int, offset: int, events: int) -> None:
        phone.kept[feed] = (self.epoch, offset)
        self.note(phone, "keep", feed=feed, epoch=self.epoch, first=first, offset=offset, events=events)

    def load(self, phone: Phone) -> None:
        if phone.sent is None:
            return
        for feed in sorted(phone.waiting):
            offset = self.head(feed)
            if feed == PUBLIC:
                self.keep(phone, feed, offset, offset, 0)
            else:
                phone.kept[feed] = (self.epoch, offset)
                self.note(phone, "snapshot", feed=feed, epoch=self.epoch, offset=offset)
        phone.waiting = set()

    def ack(self, phone: Phone) -> None:
        if phone.sent is None:
            return
        for feed in phone.feeds:
            offset = min(phone.kept.get(feed, ("", 0))[1], phone.sent[feed])
            if feed not in phone.waiting and offset > phone.acked[feed]:
                phone.acked[feed] = offset
                phone.acks.setdefault(feed, []).append((self.now, offset))
                self.acked[feed] = max(self.acked.get(feed, 0), offset)
                self.note(phone, "ack", feed=feed, offset=offset)

    def beat(self, phone: Phone) -> None:
        if phone.sent is not None:
            self.note(phone, "beat", heads={feed: self.head(feed) for feed in phone.feeds}, next=25)
            self.deliver(phone, 1000)

    # A history

    def live(self, steps: int) -> "World":
        acts: list[tuple[int, Callable[[], None]]] = [
            (12, self.post),
            (1, self.erase),
            (1, self.retain),
            (1, self.back_up),
            (1, self.restore),
            (1, self.crash),
        ]
        weights = ((4, self.lose), (6, self.connect), (10, self.deliver), (5, self.load), (8, self.ack), (2, self.beat))
        for _ in range(steps):
            self.now += self.rng.choice((0.01, 0.5, 2.0))
            if self.rng.random() < 0.4:
                self.rng.choices([act for _, act in acts], [weight for weight, _ in acts])[0]()
            else:
                act = self.rng.choices([act for _, act in weights], [weight for weight, _ in weights])[0]
                act(self.rng.choice(list(self.phones.values())))
            if self.rng.random() < 0.01:
                self.wipe(self.rng.choice(list(self.phones.values())))
        return self

    def end(self) -> "World":
        """Quiet: everybody who is not away comes back and catches up."""
        for phone in self.phones.values():
            if phone.name == "vera/old" and self.rng.random() < 0.5:
                self.lose(phone)
                self.note(phone, "away", why="switched off")
                continue
            for _ in range(1000):
                self.connect(phone)
                self.load(phone)
                self.deliver(phone, 1000)
                self.ack(phone)
                if phone.sent == {feed: self.head(feed) for feed in phone.feeds}:
                    break
        return self

    def rows(self) -> list[Line]:
        lines: list[Line] = []
        for feed, log in self.logs.items():
            oldest = self.oldest.get(feed, 1)
            about = {"feed": feed, "epoch": self.epoch}
            lines.append({"t": "feed", **about, "oldest": oldest, "head": len(log)})
            for offset in range(oldest, len(log) + 1):
                row = log[offset - 1]
                names = {name: row[name] if row else None for name in ("source", "id", "digest")}
                lines.append({"t": "row", **about, "offset": offset, **names, "erased": row is None})
        return lines


def judge(world: World) -> Verdict:
    return reconcile(world.agencies, world.devices, world.rows(), world.restores)


def whole(rng: random.Random) -> World:
    """A random legal history in which most things happen at least once."""
    world = World(rng)
    for phone in world.phones.values():
        world.connect(phone)
        world.load(phone)
    for feed in ("account:anna", "account:anna", "account:boris", PUBLIC):
        world.post(feed)
    for phone in world.phones.values():
        world.deliver(phone)
        world.ack(phone)
    if rng.random() < 0.3:
        fall_behind(world, world.phones["anna/phone"])
    return world.live(rng.randint(0, 150)).end()


def fall_behind(world: World, phone: Phone) -> None:
    """Away for longer than events are kept, then back, and the feed goes on."""
    feed = phone.feeds[0]
    world.lose(phone)
    for _ in range(4):
        world.post(feed)
    world.oldest[feed] = world.head(feed)
    world.connect(phone)
    world.load(phone)
    for _ in range(4):
        world.post(feed)
    world.deliver(phone, 1000)


def many(examples: int) -> settings:
    checks = [HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large]
    return settings(max_examples=examples, deadline=None, suppress_health_check=checks, derandomize=True)


@many(200)
@given(st.integers(0, 1 << 64))
def test_a_legal_history_is_never_accused(seed: int) -> None:
    world = whole(random.Random(seed))
    verdict = judge(world)
    assert verdict.ok, str(verdict)
    assert verdict.counts["posts"] >= 4


@many(40)
@given(st.integers(0, 1 << 64))
def test_without_a_dump_as_well(seed: int) -> None:
    world = whole(random.Random(seed))
    verdict = reconcile(iter(world.agencies), iter(world.devices))
    assert verdict.ok, str(verdict)


# Lies


def deliveries(world: World) -> list[int]:
    """Where events stand in the devices' lines, those that are not erased and came to one who is not away."""
    away = {line["device"] for line in world.devices if line["t"] == "away"}
    return [
        n for n, line in enumerate(world.devices) if line["t"] == "event" and line["id"] and line["device"] not in away
    ]


def some(world: World, found: list[Any]) -> Any:
    assume(found)
    return world.rng.choice(found)


def resumed(world: World, least: int = 0, *, moved: bool = False) -> list[tuple[int, Line]]:
    """(where, the item of an account's feed) of each welcome that began where its hello asked it to."""
    found: list[tuple[int, Line]] = []
    asked: dict[str, Line] = {}
    for n, line in enumerate(world.devices):
        if line["t"] == "hello":
            asked[line["device"]] = line.get("resume", {})
        elif line["t"] == "welcome":
            for item in line["feeds"]:
                resume = asked[line["device"]].get(item["feed"])
                good = resume == {"epoch": item["epoch"], "offset": item["from"]} and item["from"] >= least
                if good and (not moved or item["head"] > item["from"]):
                    found.append((n, item))
    return found


def event_follows(world: World, n: int, item: Line) -> int | None:
    """The place of the first event of this feed in the session that begins at line `n`."""
    device = world.devices[n]["device"]
    for place in range(n + 1, len(world.devices)):
        line = world.devices[place]
        if line["device"] == device:
            if line["t"] in ("hello", "lost", "away"):
                return None
            if line["t"] == "event" and line["feed"] == item["feed"]:
                return place
    return None


def last_session(world: World, name: str) -> int:
    return max(n for n, line in enumerate(world.devices) if line["device"] == name and line["t"] == "welcome")


def lose_the_end(world: World) -> None:
    """The last event of a feed never reaches one device."""
    n = some(world, deliveries(world))
    line = world.devices[n]
    feed, name, top = line["feed"], line["device"], world.head(line["feed"])
    begun = last_session(world, name)
    item = next(item for item in world.devices[begun]["feeds"] if item["feed"] == feed)
    assume(item["from"] < top and event_follows(world, begun, item) is not None)
    lines = []
    for place, line in enumerate(world.devices):
        if place > begun and line["device"] == name and line.get("feed") == feed and line.get("offset") == top:
            assume(line["t"] not in ("snapshot", "resync") and (line["t"] != "keep" or line["events"]))
            if line["t"] == "keep" and line["events"] > 1:
                lines.append({**line, "offset": top - 1, "events": line["events"] - 1})
            continue
        lines.append(line)
    world.devices = lines


def leave_out_one(world: World) -> None:
    """An event in the middle of a session does not come, and what follows does."""
    places = deliveries(world)
    found = []
    for n in places:
        line = world.devices[n]
        after = next(
            (
                one
                for one in world.devices[n + 1 :]
                if one["device"] == line["device"] and one.get("feed") == line["feed"]
            ),
            {},
        )
        if after.get("t") == "event":
            found.append(n)
    del world.devices[some(world, found)]


def lose_on_disk(world: World) -> None:
    """The store forgets what was answered 202."""
    accepted = [line for line in world.agencies if line.get("status") == 202 and line["epoch"] == world.epoch]
    line = some(world, [line for line in accepted if line["offset"] >= world.oldest.get(line["feed"], 1)])
    del world.logs[line["feed"]][line["offset"] - 1 :]


def jump_over_one(world: World) -> None:
    """A device keeps on after an event that it did not keep."""
    runs = [line for line in world.devices if line["t"] == "keep" and line["events"]]
    line = some(world, runs)
    line["first"] += 1
    line["events"] -= 1
    assume(line["events"])


def invent(world: World) -> None:
    world.devices[some(world, deliveries(world))].update(source="/agencies/mvd", id="never-sent")


def invent_on_disk(world: World) -> None:
    log = some(world, [log for log in world.logs.values() if log and log[-1]])
    log[-1] = {"source": "/agencies/mvd", "id": "never-sent", "digest": digest({})}
    feed = next(feed for feed in world.logs if world.logs[feed] is log)
    assume(world.oldest.get(feed, 1) <= len(log))


def deliver_the_refused(world: World) -> None:
    id = world.devices[some(world, deliveries(world))]["id"]
    lines = [line for line in world.agencies if line["id"] == id]
    world.agencies = [line for line in world.agencies if line["id"] != id]
    for line in lines:
        if line["t"] == "post":
            about = {name: line[name] for name in ("at", "source", "id", "digest")}
            world.agencies += [line, {"t": "answer", **about, "status": 422}]


def store_twice(world: World) -> None:
    """An unanswered post was stored, and sent again was stored again."""
    feed = some(world, [feed for feed, log in world.logs.items() if log[world.oldest.get(feed, 1) - 1 :] and log[-1]])
    log = world.logs[feed]
    log.append(log[-1])


def answer_twice(world: World) -> None:
    """The same event is accepted at two places."""
    found = [line for line in world.agencies if line.get("status") == 202 and line["epoch"] == world.epoch]
    line = some(world, [line for line in found if line["offset"] >= world.oldest.get(line["feed"], 1)])
    post = next(post for post in world.agencies if post["t"] == "post" and post["id"] == line["id"])
    world.agencies += [post, {**line, "offset": line["offset"] + 1}]


def keep_twice(world: World) -> None:
    n = some(world, [n for n, line in enumerate(world.devices) if line["t"] == "keep" and line["events"]])
    world.devices.insert(n, dict(world.devices[n]))


def replay(world: World) -> None:
    """What the device said it keeps comes again."""
    n, item = some(world, resumed(world, 1))
    rows = [line for line in world.devices if line["t"] == "event" and line["feed"] == item["feed"]]
    row = some(world, [line for line in rows if (line["epoch"], line["offset"]) == (item["epoch"], item["from"])])
    world.devices.insert(n + 1, {**row, "device": world.devices[n]["device"], "at": world.devices[n]["at"]})


def replay_the_acknowledged(world: World) -> None:
    """A device that relies on the stored cursor gets what it had acknowledged long before."""
    phone = world.phones["anna/tablet"]
    world.connect(phone)
    world.load(phone)
    assume(phone.sent is not None)
    feed = phone.feeds[0]
    for _ in range(40):
        if world.head(feed) > phone.kept[feed][1]:
            break
        world.post(feed)
    world.deliver(phone, 1000)
    world.ack(phone)
    assume(phone.acks.get(feed))
    world.now += 60
    world.lose(phone)
    world.note(phone, "lost", code=None)
    assume(phone.kept[feed][0] == world.epoch and phone.kept[feed][1] >= world.oldest.get(feed, 1))
    world.cursors[phone.name, feed] = (world.epoch, phone.kept[feed][1] - 1)
    for _ in range(20):
        world.connect(phone)
    world.end()


def swap_two(world: World) -> None:
    places = deliveries(world)
    found = []
    for n in places:
        line = world.devices[n]
        for m in range(n + 1, len(world.devices)):
            other = world.devices[m]
            if other["device"] == line["device"]:
                if other["t"] == "event" and other["feed"] == line["feed"] and other["id"]:
                    found.append((n, m))
                break
    n, m = some(world, found)
    world.devices[n], world.devices[m] = world.devices[m], world.devices[n]


def swap_contents(world: World) -> None:
    """Two places hold each other's events, for one device only."""
    by: dict[tuple[str, str, str], list[Line]] = {}
    for n in deliveries(world):
        line = world.devices[n]
        by.setdefault((line["device"], line["feed"], line["epoch"]), []).append(line)
    lines = some(world, [lines for lines in by.values() if len({line["id"] for line in lines}) > 1])
    first = lines[0]
    second = next(line for line in lines if line["id"] != first["id"])
    for name in ("source", "id", "digest"):
        first[name], second[name] = second[name], first[name]


def change_bytes(world: World) -> None:
    world.devices[some(world, deliveries(world))]["digest"] = digest({"other": "bytes"})


def change_bytes_on_disk(world: World) -> None:
    feed = some(world, [feed for feed, log in world.logs.items() if log[world.oldest.get(feed, 1) - 1 :] and log[-1]])
    row = world.logs[feed][-1]
    assert row is not None
    world.logs[feed][-1] = {**row, "digest": digest({"other": "bytes"})}


def overwrite_on_disk(world: World) -> None:
    """An offset that was answered 202 is given to another event."""
    accepted = [line for line in world.agencies if line.get("status") == 202 and line["epoch"] == world.epoch]
    line = some(world, [line for line in accepted if line["offset"] >= world.oldest.get(line["feed"], 1)])
    log = world.logs[line["feed"]]
    assume(log[line["offset"] - 1] is not None)
    event = {"source": "/agencies/mvd", "id": "other", "subject": None, "sequence": None, "digest": digest({})}
    world.agencies.append({"t": "post", "at": 1.0, "feed": line["feed"], **event})
    log[line["offset"] - 1] = event


def make_a_hole_on_disk(world: World) -> None:
    """A row is gone from the middle. Told by `rows` having an offset less."""
    feed = some(world, [feed for feed, log in world.logs.items() if len(log) - world.oldest.get(feed, 1) >= 2])
    rows = world.rows()
    offset = world.rng.randrange(world.oldest.get(feed, 1), world.head(feed))
    rows = [line for line in rows if (line["feed"], line.get("offset")) != (feed, offset)]
    world.rows = lambda: rows  # type: ignore[method-assign]


def show_lower_over_higher(world: World) -> None:
    stored = {row["id"]: (feed, row) for feed, log in world.logs.items() for row in log if row and row["subject"]}
    pairs = [
        (one, other)
        for one, (feed, row) in stored.items()
        for other, (its_feed, its) in stored.items()
        if feed == its_feed and row["subject"] == its["subject"] and int(row["sequence"]) < int(its["sequence"])
    ]
    one, other = some(world, pairs)
    sequences = {one: stored[other][1]["sequence"], other: stored[one][1]["sequence"]}
    shown = {line["id"] for line in world.devices if line["t"] == "event" and line["epoch"] == world.epoch}
    assume(shown.issuperset(sequences))
    world.agencies = [
        {**line, **({"sequence": sequences[line["id"]]} if line["id"] in sequences and line["t"] == "post" else {})}
        for line in world.agencies
    ]


def swap_before_storing(world: World) -> None:
    """An event is answered, the next one of its thing is posted then, and gets a lower offset."""
    feed = "account:anna"
    about = {"feed": feed, "source": "/agencies/mvd", "subject": "record/1", "sequence": None}
    head = world.head(feed)
    world.logs.setdefault(feed, [])
    for id, offset in (("late", head + 2), ("early", head + 1)):
        event = {**about, "id": id, "digest": digest({"id": id})}
        where = {"status": 202, "epoch": world.epoch, "offset": offset, "duplicate": False}
        world.agencies += [{"t": "post", "at": 1.0, **event}, {"t": "answer", "at": 1.0, **event, **where}]
    world.logs[feed] += [{**about, "id": id, "digest": digest({"id": id})} for id in ("early", "late")]
    world.end()


def go_back(world: World) -> None:
    """The gateway begins before where the device resumed."""
    _, item = some(world, resumed(world, 1))
    item["from"] -= 1


def acknowledge_too_much(world: World) -> None:
    n = some(world, [n for n, line in enumerate(world.devices) if line["t"] == "keep" and line["events"]])
    line = world.devices[n]
    world.devices.insert(
        n, {"t": "ack", "at": line["at"], "device": line["device"], "feed": line["feed"], "offset": line["offset"]}
    )


def skip_at_resume(world: World) -> None:
    """The gateway begins later than where the device resumed, and says nothing of it."""
    found = [(n, item) for n, item in resumed(world, moved=True) if event_follows(world, n, item) is not None]
    n, item = some(world, found)
    place = event_follows(world, n, item)
    assert place is not None
    after = event_follows(world, place, item)
    assume(after is not None)
    item["from"] += 1
    del world.devices[place]


def keep_without_snapshot(world: World) -> None:
    """After a resync a device goes on as if nothing had happened."""
    found = []
    for n, line in enumerate(world.devices):
        if line["t"] == "snapshot":
            after = [m for m in range(n, len(world.devices)) if world.devices[m]["device"] == line["device"]]
            follow = [m for m in after if world.devices[m]["t"] == "keep" and world.devices[m]["feed"] == line["feed"]]
            ends = [m for m in after if world.devices[m]["t"] in ("hello", "lost", "away")]
            if follow and (not ends or follow[0] < ends[0]):
                found.append(n)
    del world.devices[some(world, found)]


def resync_silently(reason: str) -> Callable[[World], None]:
    def lie(world: World) -> None:
        """Continuity broke, and the device is not told."""
        found = []
        asked: dict[str, Line] = {}
        for n, line in enumerate(world.devices):
            if line["t"] == "hello":
                asked[line["device"]] = line.get("resume", {})
            if line["t"] == "resync" and line["reason"] == reason and line["feed"] in asked[line["device"]]:
                after = [one for one in world.devices[n + 1 :] if one["device"] == line["device"]]
                for one in after:
                    if one["t"] in ("hello", "lost", "away"):
                        break
                    if one["t"] == "event" and one["feed"] == line["feed"]:
                        found.append(n)
                        break
        del world.devices[some(world, found)]

    lie.__name__ = f"be_silent_about_{reason}"
    return lie


def lose_the_log(world: World) -> None:
    """The store is older than what devices keep, and has the same epoch."""
    _, item = some(world, resumed(world, 1))
    item["head"] = item["from"] - 1


def live_across(world: World) -> None:
    """A session goes on over a restored store."""
    world.devices[some(world, deliveries(world))]["epoch"] = "another"


def resync_for_nothing(world: World) -> None:
    n, item = some(world, [(n, item) for n, item in resumed(world) if item["feed"] != PUBLIC])
    line = world.devices[n]
    about = {"feed": item["feed"], "epoch": item["epoch"], "offset": item["from"], "reason": "epoch"}
    world.devices.insert(n + 1, {"t": "resync", "at": line["at"], "device": line["device"], **about})


def stay_silent(world: World) -> None:
    """Beats show more than came, and nothing happens."""
    name = some(world, [name for name, phone in world.phones.items() if phone.sent is not None])
    phone = world.phones[name]
    for _ in range(4):
        world.note(phone, "beat", heads={phone.feeds[0]: world.head(phone.feeds[0]) + 1}, next=25)


def overrun(world: World) -> None:
    found = [n for n, line in enumerate(world.devices) if line["t"] == "welcome"]
    found = [n for n in found if any(event_follows(world, n, item) is not None for item in world.devices[n]["feeds"])]
    world.devices[some(world, found)]["window"] = 0


def accept_a_conflict(world: World) -> None:
    found = [n for n, line in enumerate(world.agencies) if line.get("status") == 202]
    n = some(world, found)
    answer = world.agencies[n]
    post = next(line for line in world.agencies if line["t"] == "post" and line["id"] == answer["id"])
    other = digest({"quite": "another"})
    world.agencies[n + 1 : n + 1] = [{**post, "digest": other}, {**answer, "digest": other}]


def leak(world: World) -> None:
    lines = [world.devices[n] for n in deliveries(world)]
    line = some(world, [line for line in lines if line["feed"] == "account:anna"])
    line["feed"] = "account:boris"


def leak_at_welcome(world: World) -> None:
    line = some(world, [line for line in world.devices if line["t"] == "welcome" and line["device"] == "anna/phone"])
    line["feeds"].append({"feed": "account:boris", "epoch": world.epoch, "head": 0, "from": 0})


def restore_too_little(world: World) -> None:
    """What was accepted before the backup was begun is not in what was made of it."""
    world.back_up()
    while not any(line.get("status") == 202 and line["at"] > world.backed_up for line in world.agencies):
        world.now += 1
        world.post(PUBLIC)
    world.restore()
    world.end()
    world.restores[-1]["since"] = world.now + 1


PLANTED: list[tuple[str, Callable[[World], None]]] = [
    ("lost", lose_the_end),
    ("order", leave_out_one),
    ("lost", lose_on_disk),
    ("lost", restore_too_little),
    ("lost", jump_over_one),
    ("invented", invent),
    ("invented", invent_on_disk),
    ("invented", deliver_the_refused),
    ("doubled", store_twice),
    ("doubled", answer_twice),
    ("repeated", keep_twice),
    ("replayed", replay),
    ("replayed", replay_the_acknowledged),
    ("order", swap_two),
    ("order", make_a_hole_on_disk),
    ("lost", overwrite_on_disk),
    ("changed", swap_contents),
    ("changed", change_bytes),
    ("changed", change_bytes_on_disk),
    ("thing", show_lower_over_higher),
    ("thing", swap_before_storing),
    ("cursor", go_back),
    ("cursor", acknowledge_too_much),
    ("partial", skip_at_resume),
    ("partial", keep_without_snapshot),
    ("partial", resync_silently("retention")),
    ("epoch", resync_silently("epoch")),
    ("epoch", lose_the_log),
    ("epoch", live_across),
    ("resync", resync_for_nothing),
    ("unnoticed", stay_silent),
    ("window", overrun),
    ("conflict", accept_a_conflict),
    ("leaked", leak),
    ("leaked", leak_at_welcome),
]


def test_every_kind_is_planted() -> None:
    assert {kind for kind, _ in PLANTED} == set(KINDS)


@pytest.mark.parametrize(("kind", "lie"), PLANTED, ids=lambda one: one if isinstance(one, str) else one.__name__)
@many(15)
@given(seed=st.integers(0, 1 << 64))
def test_a_planted_fault_is_caught(kind: str, lie: Callable[[World], None], seed: int) -> None:
    world = whole(random.Random(seed))
    world = copy.deepcopy(world)
    lie(world)
    verdict = judge(world)
    assert kind in verdict.faults, str(verdict)
    assert verdict.faults[kind].first in str(verdict)


# Journals


def test_what_is_no_line_is_refused() -> None:
    with pytest.raises(ValueError, match="line 2 is not one of a journal"):
        reconcile([{"t": "other"}, {"t": "post", "id": "a"}], [])
    with pytest.raises(ValueError, match="an answer without a post"):
        reconcile([{"t": "answer", "source": "s", "id": "a", "status": 202}], [])


def test_nothing_is_no_fault() -> None:
    assert str(reconcile([], [], [])) == "no fault in nothing"


def test_more_lines_need_no_more_memory() -> None:
    def lines(count: int) -> Iterator[Line]:
        about: Line = {"device": "anna/phone", "at": 1.0}
        item = {"feed": PUBLIC, "epoch": "e1", "head": 0, "from": 0}
        yield {"t": "hello", **about}
        yield {"t": "welcome", **about, "new": False, "window": 1 << 40, "feeds": [item]}
        for offset in range(1, count):
            about["at"] += 0.1
            yield {"t": "event", **about, "feed": PUBLIC, "epoch": "e1", "offset": offset, **dict.fromkeys(names)}
            yield {"t": "ack", **about, "feed": PUBLIC, "offset": 0}

    names = ("source", "id", "digest")
    peaks = []
    for count in (2_000, 20_000):
        tracemalloc.start()
        verdict = reconcile([], lines(count))
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert verdict.counts["deliveries"] == count - 1
    assert peaks[1] < peaks[0] + 20_000


def test_a_journal_is_read_back_but_for_a_line_that_was_cut_short(tmp_path: Path) -> None:
    path = tmp_path / "agencies.jsonl"
    with path.open("wb") as file:
        journal = Journal(file, clock=lambda: 5.0)
        journal.note({"t": "away", "device": "anna/phone", "why": "выключен"})
        file.write(b'{"t":"los')
    assert list(read(path)) == [{"t": "away", "at": 5.0, "device": "anna/phone", "why": "выключен"}]
    path.write_bytes(b"{\n{}\n")
    with pytest.raises(ValueError, match="line 1: no JSON"):
        list(read(path))


def test_a_digest_is_of_what_the_agency_sent() -> None:
    assert digest({"id": "1", "data": {"b": 1, "a": "я"}, "recordedtime": "now"}) == digest(
        {"data": {"a": "я", "b": 1}, "id": "1"}
    )
    assert digest({"id": "1"}) != digest({"id": 1})


def test_a_diary_notes_what_came_and_what_was_kept() -> None:
    lines: list[Line] = []
    diary = Diary("anna", "phone", Notebook(), lines.append)
    event = {"source": "/agencies/mvd", "id": "a", "data": {}}
    diary.tap(">", {"t": "hello", "token": "secret", "device": "phone"})
    feed = {"feed": "account:anna", "epoch": "e1", "head": 0, "from": 0}
    diary.tap("<", {"t": "welcome", "new": False, "feeds": [feed]})
    diary.tap("<", {"t": "event", "feed": "account:anna", "offset": 1, "event": event})
    diary.keep("account:anna", Position("e1", 1), [(1, event)])
    diary.tap("<", {"t": "batch", "feed": "account:anna", "events": [[2, None], [3, event]]})
    diary.keep("account:anna", Position("e1", 3), [(2, None), (3, event)])
    diary.tap(">", {"t": "ack", "feed": "account:anna", "offset": 3})
    diary.tap("<", {"t": "pong"})
    diary.observe("lost", {"t": "lost", "code": 4512, "reason": "x", "wait": 0})
    assert [line["t"] for line in lines] == ["hello", "welcome", "event", "event", "event", "keep", "ack", "lost"]
    assert {line["device"] for line in lines} == {"anna/phone"}
    assert "secret" not in str(lines)
    assert [line["id"] for line in lines[2:5]] == ["a", None, "a"]
    assert lines[2]["digest"] == digest(event)
    assert lines[4]["epoch"] == "e1"
    assert (lines[5]["first"], lines[5]["offset"], lines[5]["events"]) == (1, 3, 3)
    assert diary.positions() == {"account:anna": Position("e1", 3)}


async def test_a_dump_is_what_the_store_has(tmp_path: Path) -> None:
    desk = Desk(BY_CODE["sfr"], ["ann"], random.Random(1))
    events = [desk.next(NOW) for _ in range(3)] + [desk.next(NOW, "bob")]
    agency = Agency("sfr", ())
    parsed = parse(json.dumps(events).encode(), "batch", agency)
    store = SqliteStore(tmp_path / "vestnik.db")
    await store.open()
    try:
        await store.append([one.draft for one in parsed if isinstance(one, Parsed)], NOW)
        await store.erase("account:ann", 2, lambda ranges: erased_event("ann", ranges, NOW, "e"), NOW)
        lines = list(dump(tmp_path / "vestnik.db"))  # while it is open
    finally:
        await store.close()
    heads = {line["feed"]: (line["epoch"], line["oldest"], line["head"]) for line in lines if line["t"] == "feed"}
    assert heads == {"account:ann": (store.epoch, 1, 4), "account:bob": (store.epoch, 1, 1)}
    rows = [line for line in lines if line["t"] == "row" and line["feed"] == "account:ann"]
    assert [(row["offset"], row["erased"]) for row in rows] == [(1, False), (2, True), (3, False), (4, False)]
    assert [row["id"] for row in rows] == [events[0]["id"], None, events[2]["id"], "e"]
    assert [row["digest"] for row in rows[:3]] == [digest(events[0]), None, digest(events[2])]
    posts = [{"t": "post", **about(event)} for event in events[:3]]
    verdict = reconcile(posts, [], lines)
    assert set(verdict.faults) == {"invented"}  # bob's; what the gateway says of itself is no invention
    assert verdict.faults["invented"].count == 1


def about(event: Line) -> Line:
    names = {name: event.get(name) for name in ("source", "id", "subject", "sequence")}
    return {"feed": f"account:{event['account']}", **names, "digest": digest(event)}

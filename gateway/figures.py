"""The figures of a process: what it tells operators every few seconds, in the feed `ops:figures`. Contract, 8.2.

All counts are of the interval since the process's figures before, so whoever adds up intervals and processes has the
whole. Figures that could not be stored are part of the next ones; those of the last seconds before a crash are lost.

    happened(before, after)   what was counted between two readings; pure
    fitting(data, limit)      the same data, with fewer agencies if it must be; pure
    Figures                   takes the readings, looks at the sessions, appends and publishes
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import time
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import orjson

from gateway import logs, opsfeeds
from gateway.errors import StoreUnavailable
from gateway.hub import Follow, Hub
from gateway.metrics import PRIORITIES, Counts, Histogram, Sender
from gateway.publisher import Publisher
from gateway.rfc3339 import format_time
from gateway.session import Session
from gateway.settings import Settings
from gateway.store import sqlite_path
from gateway.store.base import Lease, Store
from gateway.waiting import always

log = logs.get_logger("figures")

MAX_BYTES = 60_000  # of the data: an event has at most 65,536
SLOW = 20  # sessions named: the worst are what somebody looks at
MAX_AGENT = 64  # characters of a program's name: the device chose it
LAST_S = 2.0  # for the last word: a store that is away must not keep the process from ending
SLICE = 2_000  # follows looked at before the loop gets its turn: below a millisecond

Buckets = list[list[float | int | None]]


@dataclass(frozen=True, slots=True)
class Reading:
    """What the counters of a process stood at: copies. `at` is monotonic, `cpu` seconds used."""

    at: float
    counts: Counts
    senders: Mapping[str, Sender]
    cpu: float


def sparse(before: Histogram, after: Histogram) -> Buckets:
    """`[[upper bound or None, count], …]`: what came between, buckets without any left out."""
    grown = [new - old for old, new in zip(before.counts, after.counts, strict=True)]
    return [[bound, count] for bound, count in zip((*after.bounds, None), grown, strict=True) if count]


def happened(before: Reading, after: Reading, agencies: Collection[str]) -> dict[str, Any]:
    """What was counted from one reading to the next; `agencies` are all known, the quiet ones too."""
    old, new = before.counts, after.counts
    outcomes = _grown(old.events, new.events)
    stored, duplicates = outcomes.pop("stored", 0), outcomes.pop("duplicate", 0)
    return {
        "seconds": round(after.at - before.at, 3),
        "opened": new.opened - old.opened,
        "closed": _grown(old.closed, new.closed),
        "handshake_rejects": _grown(old.rejects, new.rejects),
        "hellos": new.hellos - old.hellos,
        "hello": sparse(old.hello, new.hello),
        "accepted": stored,
        "duplicates": duplicates,
        "rejected": outcomes,
        "delivered": {
            word: new.delivered[index] - old.delivered[index]
            for index, word in enumerate(PRIORITIES)
            if new.delivered[index] > old.delivered[index]
        },
        "replayed": new.replayed - old.replayed,
        "acks": new.acks - old.acks,
        "resyncs": _grown(old.resyncs, new.resyncs),
        "to_socket": _by_priority(old.to_socket, new.to_socket),
        "to_ack": _by_priority(old.to_ack, new.to_ack),
        "append": sparse(old.append, new.append),
        "loop_lag": sparse(old.loop_lag, new.loop_lag),
        "sweeps": new.sweeps - old.sweeps,
        "sweep_behind": new.sweep_behind - old.sweep_behind,
        "relayed": new.relayed - old.relayed,
        "cpu": round(after.cpu - before.cpu, 3),
        "agencies": {
            code: _sender(before.senders.get(code) or Sender(), after.senders.get(code) or Sender())
            for code in sorted(agencies)
        },
    }


def failures(before: Counts, after: Counts) -> tuple[int, int]:
    """Calls of the store, and events given to the bus, that failed in between."""
    store = after.store_failures - before.store_failures + after.append_failures - before.append_failures
    return store, after.bus_failures - before.bus_failures


def _sender(old: Sender, new: Sender) -> dict[str, Any]:
    return {
        "accepted": new.accepted - old.accepted,
        "rejected": _grown(old.rejected, new.rejected),
        "last": None if new.last is None else format_time(new.last),
        "delay": sparse(old.delay, new.delay),
    }


def _grown(old: Counter[Any], new: Counter[Any]) -> dict[str, int]:
    return {str(word): count - old[word] for word, count in new.items() if count > old[word]}


def _by_priority(old: list[Histogram], new: list[Histogram]) -> dict[str, Buckets]:
    found = {word: sparse(old[index], new[index]) for index, word in enumerate(PRIORITIES)}
    return {word: buckets for word, buckets in found.items() if buckets}


def fitting(data: dict[str, Any], limit: int = MAX_BYTES) -> dict[str, Any]:
    """The same, in at most `limit` bytes: of too many agencies those are left out that did least, and counted in
    `agencies_omitted`."""
    if len(orjson.dumps(data)) <= limit:
        return data
    agencies = data["agencies"]
    left = limit - len(orjson.dumps(data | {"agencies": {}, "agencies_omitted": len(agencies)}))
    kept: dict[str, Any] = {}
    for code in sorted(
        agencies, key=lambda code: -agencies[code]["accepted"] - sum(agencies[code]["rejected"].values())
    ):
        left -= len(orjson.dumps({code: agencies[code]}))
        if left < 0:
            break
        kept[code] = agencies[code]
    return data | {"agencies": kept, "agencies_omitted": len(agencies) - len(kept)}


class Figures:
    """Of one process. Start it when the store is open, close it before publisher and store."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        publisher: Publisher,
        hub: Hub,
        counts: Counts,
        senders: Mapping[str, Sender],
        agencies: Collection[str],
    ):
        self.settings, self.store, self.publisher, self.hub = settings, store, publisher, hub
        self.counts, self.senders, self.agencies = counts, senders, agencies
        self.started = time.time()
        self.version = version("vestnik")
        self.disk = _folder(settings)
        self.missed = False  # the figures before these could not be stored
        self.before = self.read()
        self._task: asyncio.Task[None] | None = None

    def read(self) -> Reading:
        senders = {code: sender.copy() for code, sender in self.senders.items()}
        return Reading(time.monotonic(), self.counts.copy(), senders, time.process_time())

    def start(self) -> None:
        """From now on, every VESTNIK_OPS_S; never when that is 0."""
        if self.settings.ops_s:
            self._task = asyncio.create_task(always("figures", self._run), name="figures")

    async def close(self) -> None:
        """The last ones are stored and with the publisher, or could not be."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    async def _run(self) -> None:
        """Ends with one more word when the process drains, so that nobody takes it for dead."""
        try:
            while True:
                await asyncio.sleep(self.settings.ops_s)
                await self.tell()
        finally:
            if self.hub.draining:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LAST_S):
                        await self.tell()

    async def tell(self) -> None:
        """Append and publish what happened since the last that were stored."""
        try:
            leases = await self.store.leases("role:", time.time())
            slow, behind = await look(self.hub)
            system = await asyncio.to_thread(_system, self.disk)
            self.counts.behind, self.counts.stalled = behind, len(slow)
            self.counts.disk_free, self.counts.disk_size = system["disk_free"] or 0, system["disk_size"] or 0
            after, now = self.read(), time.time()
            data = fitting(self.data(after, now, leases, slow, behind, system))
            draft = opsfeeds.draft(
                opsfeeds.FIGURES, opsfeeds.TYPES[opsfeeds.FIGURES], data, id=opsfeeds.new_id(), now=now
            )
            await self.publisher.tell([draft], now)
        except StoreUnavailable as error:
            self.counts.store_failures += 1
            if not self.missed:
                log.warning("figures_missed", error=str(error))
            self.missed = True  # should they be there after all, they are counted twice: seldom, and only figures
            return
        self.before, self.missed = after, False

    def data(
        self,
        after: Reading,
        now: float,
        leases: list[Lease],
        slow: list[Session],
        behind: int,
        system: dict[str, int | None],
    ) -> dict[str, Any]:
        hub, old, new = self.hub, self.before.counts, after.counts
        store_failures, bus_failures = failures(old, new)
        return {
            "node": hub.roster.node,
            "version": self.version,
            "started": format_time(self.started),
            "sessions": hub.sessions,
            "opening": hub.opening,
            "feeds": len(hub.feeds),
            "draining": hub.draining,
            "stalled": len(slow),
            "behind": behind,
            **happened(self.before, after, self.agencies),
            "store": {
                "ready": not self.missed,
                "failures": store_failures,
                "disk_free": system["disk_free"],
                "disk_size": system["disk_size"],
            },
            "bus": {
                "healthy": hub.bus.healthy,
                "failures": bus_failures,
                "gaps": new.bus_gaps - old.bus_gaps,
                "holes": new.bus_holes - old.bus_holes,
            },
            "memory": system["memory"],
            "open_files": system["open_files"],
            "max_open_files": system["max_open_files"],
            "slow": [_slow(session, after.at) for session in slow[:SLOW]],
            "leases": [
                {"name": lease.name.removeprefix("role:"), "owner": lease.owner, "left": round(lease.until - now, 3)}
                for lease in leases
            ],
        }


async def look(hub: Hub) -> tuple[list[Session], int]:
    """The sessions whose window or socket is full, longest first; and how many have a feed below its head. What waits
    in traffic saving mode is not behind: it was asked for. Lets others in between."""
    stalled: set[Session] = set()
    behind: set[Session] = set()
    for number, follow in enumerate(_follows(hub), 1):
        session = follow.session
        if session.stalled:
            stalled.add(session)
        if follow.sent < follow.feed.head and not follow.held:
            behind.add(session)
        if number % SLICE == 0:
            await asyncio.sleep(0)
    slow = [session for session in stalled if session.stalled and session.open]
    return sorted(slow, key=lambda session: session.stalled), sum(session.open for session in behind)


def _follows(hub: Hub) -> Iterator[Follow]:
    for feed in list(hub.feeds.values()):
        yield from feed.follows.copy()


def _slow(session: Session, now: float) -> dict[str, Any]:
    agent = session.agent
    return {
        "session": session.id,
        "who": logs.who(session.account),
        "device_agent": None if agent is None else agent[:MAX_AGENT],
        "seconds": round(now - session.stalled, 1),
        "behind": sum(max(0, follow.feed.head - follow.sent) for follow in session.follows),
        "why": "window" if session.writable else "socket",
    }


def _folder(settings: Settings) -> Path | None:
    """Where the store's file lies, if it is one here."""
    if not settings.store.startswith("sqlite:"):
        return None
    return sqlite_path(settings.store, settings.data).parent


def _system(disk: Path | None) -> dict[str, int | None]:
    """Of the process and its disk, in bytes and files. Asks the kernel, which may take its time: not on the loop."""
    room = os.statvfs(disk) if disk is not None else None
    try:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        # Linux 6.2 says it without naming each, which takes 60 ms for 18,000.
        open_files = os.stat("/proc/self/fd").st_size or len(os.listdir("/proc/self/fd"))
    except OSError:  # no Linux
        pages = open_files = 0
    return {
        "disk_free": room.f_bavail * room.f_frsize if room else None,
        "disk_size": room.f_blocks * room.f_frsize if room else None,
        "memory": pages * resource.getpagesize(),
        "open_files": open_files,
        "max_open_files": max(0, resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
    }

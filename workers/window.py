"""What the nodes told in the last minutes, added up: what the alert rules look at. Pure.

Figures (`ops:figures`, contract, section 8) are counts of an interval, so they are added up over nodes and time. What
is kept is bounded: sums of `SLOT_S` for `KEEP_S`, the last word of each node, and how long each agency usually pauses.
Times are Unix seconds, durations seconds.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.metrics import LATENCY_S, SHORT_S
from gateway.rfc3339 import parse_time

SLOT_S: Final = 15
KEEP_S: Final = 900.0
"""The longest window of a rule."""
LOOKBACK_S: Final = 7200.0
"""How much of the past tells what is usual; the figures are kept as long."""
FORGET_S: Final = 3600.0
"""A node that said nothing for so long is not expected back."""
FEWEST: Final = 10
"""Events in LOOKBACK_S from which an agency has a usual pause at all."""

_BOUNDS: Final = sorted({*LATENCY_S, *SHORT_S})

Buckets = Counter[float]
"""Upper bound in seconds (inf: none) -> how many."""


@dataclass(frozen=True, slots=True)
class OfAgency:
    accepted: int
    rejected: Mapping[str, int]  # by reason
    last: float | None  # its last accepted event
    delay: Buckets  # from the event's own time to its commit


@dataclass(frozen=True, slots=True)
class Figures:
    """One node's word about one interval, as far as rules ask for it."""

    node: str
    time: float
    started: float
    seconds: float
    draining: bool
    sessions: int
    behind: int
    delivered: int
    acks: int
    rejected: Mapping[str, int]
    to_socket: Mapping[str, Buckets]  # by priority
    append: Buckets
    loop_lag: Buckets
    sweep_behind: int
    relayed: int
    store_away: float  # seconds in which it could store nothing, told once the store was back
    store_failures: int
    disk_free: int | None
    disk_size: int | None
    bus_healthy: bool
    open_files: int
    max_open_files: int
    agencies: Mapping[str, OfAgency]


def read(event: bytes, time: float) -> Figures | None:
    """The figures of an event recorded at `time`; None for what cannot be read, such as those of another version."""
    try:
        data = orjson.loads(event)["data"]
        store, bus = data["store"], data["bus"]
        return Figures(
            node=data["node"],
            time=time,
            started=parse_time(data["started"]),
            seconds=float(data["seconds"]),
            draining=data["draining"],
            sessions=data["sessions"],
            behind=data["behind"],
            delivered=sum(data["delivered"].values()),
            acks=data["acks"],
            rejected=data["rejected"],
            to_socket={priority: _buckets(rows) for priority, rows in data["to_socket"].items()},
            append=_buckets(data["append"]),
            loop_lag=_buckets(data["loop_lag"]),
            sweep_behind=data["sweep_behind"],
            relayed=data["relayed"],
            # What could not be stored is part of the next figures: they are not "ready", and cover all that time.
            store_away=0.0 if store["ready"] else float(data["seconds"]),
            store_failures=store["failures"],
            disk_free=store["disk_free"],
            disk_size=store["disk_size"],
            bus_healthy=bus["healthy"],
            open_files=data["open_files"],
            max_open_files=data["max_open_files"],
            agencies={code: _agency(one) for code, one in data["agencies"].items()},
        )
    except (KeyError, TypeError, ValueError, AttributeError):
        return None


def _agency(data: Mapping[str, Any]) -> OfAgency:
    last = data["last"]
    return OfAgency(
        data["accepted"], data["rejected"], None if last is None else parse_time(last), _buckets(data["delay"])
    )


def _buckets(rows: Sequence[tuple[float | None, int]]) -> Buckets:
    return Counter({float("inf") if bound is None else float(bound): int(count) for bound, count in rows})


def quantile(buckets: Buckets, share: float) -> float:
    """So many of all are at most this late, as Prometheus reckons it: evenly spread within a bucket, and the highest
    bound for what is over it. 0 when there are none."""
    wanted = share * buckets.total()
    below = 0
    for bound in sorted(buckets):
        count = buckets[bound]
        if count and below + count >= wanted:
            lower = _lower(bound)
            return lower if bound == float("inf") else lower + (bound - lower) * (wanted - below) / count
        below += count
    return 0.0


def within(buckets: Buckets, limit: float) -> float:
    """How many took no longer than `limit`; a bucket that lies across it counts in part."""
    found = 0.0
    for bound, count in buckets.items():
        lower = _lower(bound)
        if bound <= limit:
            found += count
        elif lower < limit and bound != float("inf"):
            found += count * (limit - lower) / (bound - lower)
    return found


def _lower(bound: float) -> float:
    return max((one for one in _BOUNDS if one < bound), default=0.0)


@dataclass(slots=True)
class AgencySums:
    accepted: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    delay: Buckets = field(default_factory=Counter)


@dataclass(slots=True)
class Sums:
    """Counts of all nodes over some time."""

    delivered: int = 0
    acks: int = 0
    sweep_behind: int = 0
    relayed: int = 0
    rejected: Counter[str] = field(default_factory=Counter)
    append: Buckets = field(default_factory=Counter)
    to_socket: dict[str, Buckets] = field(default_factory=dict)
    loop_lag: dict[str, Buckets] = field(default_factory=dict)  # by node
    store_failures: Counter[str] = field(default_factory=Counter)  # by node
    store_away: dict[str, float] = field(default_factory=dict)  # by node: the longest time
    agencies: dict[str, AgencySums] = field(default_factory=dict)

    def add(self, told: Figures) -> None:
        self.delivered += told.delivered
        self.acks += told.acks
        self.sweep_behind += told.sweep_behind
        self.relayed += told.relayed
        self.rejected.update(told.rejected)
        self.append.update(told.append)
        for priority, buckets in told.to_socket.items():
            self.to_socket.setdefault(priority, Counter()).update(buckets)
        self.loop_lag.setdefault(told.node, Counter()).update(told.loop_lag)
        self.store_failures[told.node] += told.store_failures
        self._away(told.node, told.store_away)
        for code, one in told.agencies.items():
            if one.accepted or one.rejected:
                self._agency(code, one.accepted, one.rejected, one.delay)

    def merge(self, other: "Sums") -> None:
        self.delivered += other.delivered
        self.acks += other.acks
        self.sweep_behind += other.sweep_behind
        self.relayed += other.relayed
        self.rejected.update(other.rejected)
        self.append.update(other.append)
        for priority, buckets in other.to_socket.items():
            self.to_socket.setdefault(priority, Counter()).update(buckets)
        for node, buckets in other.loop_lag.items():
            self.loop_lag.setdefault(node, Counter()).update(buckets)
        self.store_failures.update(other.store_failures)
        for node, seconds in other.store_away.items():
            self._away(node, seconds)
        for code, one in other.agencies.items():
            self._agency(code, one.accepted, one.rejected, one.delay)

    def _away(self, node: str, seconds: float) -> None:
        self.store_away[node] = max(seconds, self.store_away.get(node, 0.0))

    def _agency(self, code: str, accepted: int, rejected: Mapping[str, int], delay: Buckets) -> None:
        sums = self.agencies.setdefault(code, AgencySums())
        sums.accepted += accepted
        sums.rejected.update(rejected)
        sums.delay.update(delay)


@dataclass(slots=True)
class Habit:
    """How long an agency usually pauses: the longest time between two accepted events of the LOOKBACK_S before its
    last one. It is not forgotten while the agency is silent."""

    last: float | None = None
    told: float | None = None  # the pause that was too long when nothing better is known: see `Window.expect`
    minutes: deque[tuple[int, float, int]] = field(default_factory=deque)  # (minute, longest pause, events), rising

    def heard(self, time: float, events: int) -> None:
        pause = 0.0 if self.last is None else time - self.last
        if pause < 0:
            pause = 0.0
        self.last = time if self.last is None else max(self.last, time)
        minute = int(time // 60)
        if self.minutes and self.minutes[-1][0] >= minute:
            minute, longest, before = self.minutes.pop()
            self.minutes.append((minute, max(longest, pause), before + events))
        else:
            self.minutes.append((minute, pause, events))
        while (self.minutes[-1][0] - self.minutes[0][0]) * 60 > LOOKBACK_S:
            self.minutes.popleft()
        self.told = None

    @property
    def usual(self) -> float | None:
        """None while too little is known."""
        if sum(events for _, _, events in self.minutes) < FEWEST:
            return None
        return max(pause for _, pause, _ in self.minutes)


class Window:
    """`add` what nodes tell, in the order of their feed; then look."""

    def __init__(self) -> None:
        self.nodes: dict[str, Figures] = {}  # the last word of each
        self.habits: dict[str, Habit] = {}  # of agencies
        self.begun: float | None = None  # from when on we know
        self._slots: dict[int, Sums] = {}

    def add(self, told: Figures) -> None:
        self.begun = told.time if self.begun is None else min(self.begun, told.time)
        self.nodes[told.node] = told
        self._slots.setdefault(int(told.time // SLOT_S), Sums()).add(told)
        for code, one in told.agencies.items():
            habit = self.habits.setdefault(code, Habit())
            if one.accepted:
                habit.heard(told.time if one.last is None else one.last, one.accepted)
            elif one.last is not None and (habit.last is None or habit.last < one.last):
                habit.last = one.last

    def expect(self, code: str, pause_s: float) -> None:
        """An earlier watch found this agency's silence too long from `pause_s` on: that holds until it is heard."""
        self.habits.setdefault(code, Habit()).told = pause_s

    def forget(self, now: float) -> None:
        """What no rule will look at again."""
        first = int((now - KEEP_S) // SLOT_S)
        for slot in [slot for slot in self._slots if slot < first]:
            del self._slots[slot]
        for node in [node for node, told in self.nodes.items() if now - told.time > FORGET_S]:
            del self.nodes[node]

    def sums(self, now: float, seconds: float) -> Sums:
        """All that was told in the last `seconds`, to a slot."""
        first, found = int((now - seconds) // SLOT_S), Sums()
        for slot, sums in self._slots.items():
            if slot > first:
                found.merge(sums)
        return found

    def silent(self, now: float, after_s: float) -> list[Figures]:
        """The last words of nodes that tell nothing any more and were not stopped: four intervals long, and longer than
        `after_s`. One that started after the last word of another stands in its place."""
        gone, fresh = [], []
        for told in sorted(self.nodes.values(), key=lambda told: told.time):
            if now - told.time <= max(after_s, 4 * told.seconds):
                fresh.append(told)
            elif not told.draining:
                gone.append(told)
        return _unreplaced(gone, fresh)

    def present(self, now: float, after_s: float = 20.0) -> Iterable[Figures]:
        """The last words of those that are there."""
        return [told for told in self.nodes.values() if now - told.time <= max(after_s, 4 * told.seconds)]


def _unreplaced(gone: list[Figures], fresh: list[Figures]) -> list[Figures]:
    starts, left = sorted(told.started for told in fresh), []
    for told in gone:
        later = [start for start in starts if start > told.time]
        if later:
            starts.remove(later[0])
        else:
            left.append(told)
    return left

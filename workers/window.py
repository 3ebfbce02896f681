"""What the nodes told in the last minutes, added up: what the alert rules look at. Pure.

Figures (`ops:figures`, contract, section 8) are counts of an interval, so they are added up over nodes and time. What
is kept is bounded: sums of `SLOT_S` for `KEEP_S`, the last word of each node, and how long each agency usually pauses.
Times are Unix seconds, durations seconds.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from gateway.metrics import LATE_S, LATENCY_S, SHORT_S
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

_NONE: Final = float("inf")

Rows = Sequence[tuple[float | None, int]]
"""A histogram as it travels: upper bound in seconds (None: none), and how many; buckets without any are left out."""
Buckets = dict[float, int]
"""The same added up; _NONE stands for None."""


@dataclass(frozen=True, slots=True)
class OfAgency:
    accepted: int
    rejected: Mapping[str, int]  # by reason
    last: str | None  # time of its last accepted event
    delay: Rows  # from the events' own time to their commit


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
    rejected: int
    to_socket: Mapping[str, Rows]  # by priority
    append: Rows
    loop_lag: Rows
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


def read(event: bytes, time: float) -> Figures:
    """The figures of an event recorded at `time`. Raises ValueError for what is none, such as another version's."""
    try:
        data = orjson.loads(event)["data"]
        store = data["store"]
        return Figures(
            node=str(data["node"]),
            time=time,
            started=parse_time(data["started"]),
            seconds=float(data["seconds"]),
            draining=bool(data["draining"]),
            sessions=int(data["sessions"]),
            behind=int(data["behind"]),
            delivered=sum(data["delivered"].values()),
            acks=int(data["acks"]),
            rejected=sum(data["rejected"].values()),
            to_socket={priority: _rows(rows) for priority, rows in data["to_socket"].items()},
            append=_rows(data["append"]),
            loop_lag=_rows(data["loop_lag"]),
            sweep_behind=int(data["sweep_behind"]),
            relayed=int(data["relayed"]),
            # What could not be stored is part of the next figures: they are not "ready", and cover all that time.
            store_away=0.0 if store["ready"] else float(data["seconds"]),
            store_failures=int(store["failures"]),
            disk_free=_size(store["disk_free"]),
            disk_size=_size(store["disk_size"]),
            bus_healthy=bool(data["bus"]["healthy"]),
            open_files=int(data["open_files"]),
            max_open_files=int(data["max_open_files"]),
            agencies={code: _agency(one) for code, one in data["agencies"].items()},
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"no figures: {error}") from None


def _agency(data: Mapping[str, Any]) -> OfAgency:
    last = data["last"]
    refused = {reason: int(count) for reason, count in data["rejected"].items()}
    return OfAgency(int(data["accepted"]), refused, None if last is None else str(last), _rows(data["delay"]))


def _size(number: Any) -> int | None:
    return None if number is None else int(number)


def _rows(rows: Rows) -> Rows:
    """Raises TypeError or ValueError unless they are pairs of numbers."""
    for bound, count in rows:
        if not (isinstance(count, int) and (bound is None or isinstance(bound, int | float))):
            raise ValueError("no buckets")
    return rows


def quantile(buckets: Buckets, share: float) -> float:
    """So many of all are at most this late, as Prometheus reckons it: evenly spread within a bucket, and the highest
    bound for what is over it. 0 when there are none."""
    wanted = share * sum(buckets.values())
    below = 0.0
    for bound in sorted(buckets):
        count = buckets[bound]
        if count and below + count >= wanted:
            lower = _lower(bound)
            return lower if bound == _NONE else lower + (bound - lower) * (wanted - below) / count
        below += count
    return 0.0


def within(rows: Rows, limit: float) -> float:
    """How many took no longer than `limit`; a bucket that lies across it counts in part."""
    found = 0.0
    for bound, count in rows:
        if bound is not None and bound <= limit:
            found += count
        elif bound is not None and (lower := _lower(bound)) < limit:
            found += count * (limit - lower) / (bound - lower)
    return found


def _lower(bound: float) -> float:
    place = bisect_left(_BOUNDS, bound)
    return _BOUNDS[place - 1] if place else 0.0


class Slot:
    """What all nodes told in SLOT_S: counts and histograms, each by a key: the node, the agency, or nothing ("")."""

    __slots__ = ("buckets", "counts")

    def __init__(self) -> None:
        self.counts: dict[str, dict[str, float]] = {}
        self.buckets: dict[str, dict[str, Buckets]] = {}

    def count(self, what: str, key: str, number: float) -> None:
        if number:
            counts = self.counts.setdefault(what, {})
            counts[key] = counts.get(key, 0) + number

    def observe(self, what: str, key: str, rows: Rows) -> None:
        if rows:
            _add(self.buckets.setdefault(what, {}).setdefault(key, {}), rows)

    def add(self, told: Figures) -> None:
        for what, number in (
            ("delivered", told.delivered),
            ("acks", told.acks),
            ("rejected", told.rejected),
            ("sweep_behind", told.sweep_behind),
            ("relayed", told.relayed),
        ):
            self.count(what, "", number)
        self.count("store_failures", told.node, told.store_failures)
        self.count("store_away", told.node, told.store_away)
        self.observe("append", "", told.append)
        self.observe("loop_lag", told.node, told.loop_lag)
        for priority, rows in told.to_socket.items():
            self.observe("to_socket", priority, rows)
        for code, one in told.agencies.items():
            self._agency(code, one)

    def _agency(self, code: str, one: OfAgency) -> None:
        self.count("accepted", code, one.accepted)
        for reason, number in one.rejected.items():
            self.count("refused", f"{code} {reason}", number)
        if one.delay:
            self.count("timed", code, sum(count for _, count in one.delay))
            self.count("in time", code, within(one.delay, LATE_S))


def _add(buckets: Buckets, rows: Rows) -> None:
    for bound, count in rows:
        key = _NONE if bound is None else bound
        buckets[key] = buckets.get(key, 0) + count


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
        self._slots: dict[int, Slot] = {}

    def add(self, told: Figures, now: float) -> None:
        """What is older than any rule looks tells only what is usual. Raises ValueError for a time that is none."""
        self.begun = told.time if self.begun is None else min(self.begun, told.time)
        self.nodes[told.node] = told
        for code, one in told.agencies.items():
            self._habit(code, one, told.time)
        if now - told.time <= KEEP_S:
            self._slots.setdefault(int(told.time // SLOT_S), Slot()).add(told)

    def _habit(self, code: str, one: OfAgency, time: float) -> None:
        habit = self.habits.get(code)
        if habit is None:
            habit = self.habits[code] = Habit()
        if one.accepted:
            habit.heard(time if one.last is None else parse_time(one.last), one.accepted)
        elif habit.last is None and one.last is not None:
            habit.last = parse_time(one.last)

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

    def counts(self, what: str, now: float, seconds: float) -> dict[str, float]:
        """By key, what was counted in the last `seconds`, to a slot."""
        found: dict[str, float] = {}
        for slot in self._last(now, seconds):
            for key, number in slot.counts.get(what, {}).items():
                found[key] = found.get(key, 0) + number
        return found

    def count(self, what: str, now: float, seconds: float) -> float:
        """The same of what has no key."""
        return self.counts(what, now, seconds).get("", 0)

    def buckets(self, what: str, now: float, seconds: float) -> dict[str, Buckets]:
        """By key, the histograms of the last `seconds`, to a slot."""
        found: dict[str, Buckets] = {}
        for slot in self._last(now, seconds):
            for key, buckets in slot.buckets.get(what, {}).items():
                into = found.setdefault(key, {})
                for bound, number in buckets.items():
                    into[bound] = into.get(bound, 0) + number
        return found

    def _last(self, now: float, seconds: float) -> Iterator[Slot]:
        first = int((now - seconds) // SLOT_S)
        return (slot for number, slot in self._slots.items() if number > first)

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

"""What a run is measured by: histograms with buckets that grow, counters, and one sample a second. Pure."""

import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

PER_DOUBLING = 16  # buckets between a value and its double: a percentile is right within 4.5 %
_FLOOR = 1e-4  # seconds: what is shorter counts as this


class Histogram:
    """Durations in seconds, from 0.1 ms on, in about 16 buckets to each doubling. A few hundred integers, however
    many values."""

    __slots__ = ("_buckets", "count", "largest", "total")

    def __init__(self) -> None:
        self._buckets: Counter[int] = Counter()
        self.count = 0
        self.total = self.largest = 0.0

    def add(self, seconds: float) -> None:
        self._buckets[0 if seconds <= _FLOOR else math.ceil(math.log2(seconds / _FLOOR) * PER_DOUBLING)] += 1
        self.count += 1
        self.total += seconds
        if seconds > self.largest:
            self.largest = seconds

    def merge(self, other: "Histogram") -> None:
        self._buckets.update(other._buckets)
        self.count += other.count
        self.total += other.total
        self.largest = max(self.largest, other.largest)

    def percentile(self, share: float) -> float | None:
        """Seconds that this share (0 to 1) of the values stays within; None when there are none."""
        if not self.count:
            return None
        wanted, seen = max(1, math.ceil(share * self.count)), 0
        for bucket in sorted(self._buckets):
            seen += self._buckets[bucket]
            if seen >= wanted:
                return min(_upper(bucket), self.largest)
        return self.largest

    def bars(self) -> list[tuple[float, int]]:
        """(upper bound in seconds, how many) by rising bound."""
        return [(_upper(bucket), self._buckets[bucket]) for bucket in sorted(self._buckets)]

    def summary(self) -> dict[str, float | int | None]:
        """Count and percentiles; seconds, rounded to 0.1 ms."""
        named = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "p999": 0.999}
        shares = {name: _rounded(self.percentile(share)) for name, share in named.items()}
        return {"count": self.count, **shares, "max": _rounded(self.largest if self.count else None)}


def _upper(bucket: int) -> float:
    return float(_FLOOR * 2 ** (bucket / PER_DOUBLING))


def _rounded(seconds: float | None) -> float | None:
    return None if seconds is None else round(seconds, 4)


@dataclass
class Tally:
    """Everything that the devices and agencies of a run count. `sample` closes an interval."""

    counts: Counter[str] = field(default_factory=Counter)
    closes: Counter[str] = field(default_factory=Counter)  # how sessions ended, by close code or word
    attacks: Counter[str] = field(default_factory=Counter)  # "<attack>: <what the gateway did>"
    states: Counter[str] = field(default_factory=Counter)  # devices in each state now
    latency: Histogram = field(default_factory=Histogram)  # from the agency's act to the device, live sessions
    wire: Histogram = field(default_factory=Histogram)  # from the commit to the device
    catch_up: Histogram = field(default_factory=Histogram)  # from the start of a connection to `live` in every feed
    answer: Histogram = field(default_factory=Histogram)  # from a post to its 202
    samples: list[dict[str, Any]] = field(default_factory=list)
    _interval: Histogram = field(default_factory=Histogram)
    _caught: Histogram = field(default_factory=Histogram)
    _before: Mapping[str, int] = field(default_factory=dict)

    def arrived(self, seconds: float) -> None:
        """An event that was made this long ago reached a device that was live."""
        self._interval.add(seconds)

    def caught_up(self, seconds: float) -> None:
        self._caught.add(seconds)

    def sample(self, at: float) -> dict[str, Any]:
        """What happened since the last sample. `at` is seconds since the start."""
        interval, self._interval = self._interval, Histogram()
        caught, self._caught = self._caught, Histogram()
        self.latency.merge(interval)
        self.catch_up.merge(caught)
        names = ("delivered", "repeats", "published", "unanswered", "opened", "ended", "received_bytes")
        made = {
            "at": round(at, 2),
            **{name: self.counts[name] - self._before.get(name, 0) for name in names},
            "states": {state: number for state, number in sorted(self.states.items()) if number},
            "p50": _rounded(interval.percentile(0.5)),
            "p90": _rounded(interval.percentile(0.9)),
            "p99": _rounded(interval.percentile(0.99)),
            "max": _rounded(interval.largest if interval.count else None),
            "catch_up": _rounded(caught.percentile(0.9)),
        }
        self._before = {name: self.counts[name] for name in names}
        self.samples.append(made)
        return made


def thinned(samples: list[dict[str, Any]], most: int) -> list[dict[str, Any]]:
    """At most `most` samples for a plot: averages of counts, the worst of measures, the last states."""
    if len(samples) <= most:
        return samples
    step = math.ceil(len(samples) / most)
    return [_joined(samples[start : start + step]) for start in range(0, len(samples), step)]


def _joined(samples: list[dict[str, Any]]) -> dict[str, Any]:
    made: dict[str, Any] = {}
    for name in dict.fromkeys(name for sample in samples for name in sample):
        values = [sample[name] for sample in samples if name in sample]  # a gateway that is away costs nothing
        if name in ("at", "states"):
            made[name] = values[-1]
        elif name in ("p50", "p90", "p99", "max", "catch_up"):
            made[name] = _worst(values)
        else:
            made[name] = sum(values) / len(values)
    return made


def _worst(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return max(known) if known else None

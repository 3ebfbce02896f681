"""The verdict: did everybody get everything, and how fast. From the journals alone, never from Locust's counters. Pure.

`client_sim.ledger` judges the journals by the invariants; this counts, by priority, what was lost, repeated, reordered
and late, and holds it to the scenario's bounds. Late is what came to a phone that was connected, level and reading,
measured from when the event was due at the agency; what it missed while away is in `catch_up`.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Final

from client_sim.ledger import Verdict as Ledger
from client_sim.ledger import reconcile
from client_sim.measure import Histogram
from loadtests.scenario import PRIORITIES, Bound, Limit, Scenario

Record = Mapping[str, Any]
ORDER: Final = ("urgent", "high", "normal", "bulk")
FULL_CORE: Final = 0.9  # of a generator: from here on it measures itself
COUNTS: Final = ("accepted", "refused", "unanswered", "unposted", "delivered", "lost", "repeated", "reordered")


@dataclass(frozen=True, slots=True)
class Checked:
    """A bound with what was found; None: nothing was measured, which breaks it. Of a bound of time: `late`, the p99 of
    the seconds by which the generator itself was late meanwhile, to everything that was due or had arrived; `disk`, the
    p99 of what another process waited for the same disk."""

    words: str
    found: float | None
    ok: bool
    late: float | None = None
    disk: float | None = None


@dataclass(frozen=True, slots=True)
class Reached:
    """Where a ramp broke: the asked rate of the last good second, events a second, and why the next was none.

    `core` is the part of the time in which the generator ran or waited for a core then."""

    rate: float
    broke: bool
    why: str
    core: float


@dataclass
class Verdict:
    ledger: Ledger
    priorities: Mapping[str, Mapping[str, float | int | None]]
    bounds: Sequence[Checked]
    limit: Reached | None
    measures: Mapping[str, float | None]
    core: float  # the most of a second in which a generator ran or waited for a core

    @property
    def ok(self) -> bool:
        return self.ledger.ok and all(bound.ok for bound in self.bounds)

    def document(self) -> dict[str, Any]:
        faults = {kind: {"count": fault.count, "first": fault.first} for kind, fault in self.ledger.faults.items()}
        return {
            "ok": self.ok,
            "priorities": self.priorities,
            "bounds": [
                {"bound": one.words, "found": one.found, "ok": one.ok}
                | {"generator_late_s": one.late, "disk_s": one.disk}
                for one in self.bounds
            ],
            "limit": None
            if self.limit is None
            else {"rate": self.limit.rate, "broke": self.limit.broke, "why": self.limit.why, "core": self.limit.core},
            "measures": self.measures,
            "generator_core": self.core,
            "faults": faults,
            "looked_at": dict(self.ledger.counts),
        }


@dataclass
class _Feed:
    """One feed of one device."""

    kept: int
    received: int


@dataclass
class Measures:
    """What is counted while the lines pass by on their way to the ledger."""

    scenario: Scenario
    started: float
    counts: Counter[tuple[str, str]] = field(default_factory=Counter)  # (what, priority)
    late: dict[tuple[str, str], Histogram] = field(default_factory=lambda: defaultdict(Histogram))  # (window, priority)
    commit: dict[tuple[str, str], Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    catch_up: dict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    first: Histogram = field(default_factory=Histogram)
    answer: Histogram = field(default_factory=Histogram)
    sessions: int = 0
    resyncs: int = 0
    answered: Counter[int] = field(default_factory=Counter)  # by second
    by_second: dict[int, Histogram] = field(default_factory=lambda: defaultdict(Histogram))  # lateness, by due second
    cores: dict[int, float] = field(default_factory=dict)
    samples: list[Record] = field(default_factory=list)  # of the gateway
    generator: dict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))  # lateness, by window
    disk: dict[str, Histogram] = field(default_factory=lambda: defaultdict(Histogram))
    _accepted: dict[str, dict[int, str]] = field(default_factory=lambda: defaultdict(dict))  # feed → offset → priority
    _tracks: dict[str, dict[str, _Feed]] = field(default_factory=lambda: defaultdict(dict))
    _away: set[str] = field(default_factory=set)

    def gateway(self, lines: Iterable[Record]) -> None:
        for line in lines:
            if line["t"] == "gateway":
                self.samples.append(line)
            elif line["t"] == "disk":
                for window in self._windows(line["at"]):
                    self.disk[window].add(line["seconds"])

    def generators(self, lines: Iterable[Record]) -> None:
        for line in lines:
            second = int(line["at"] - self.started)
            self.cores[second] = max(line.get("want", line["core"]), self.cores.get(second, 0.0))
            for window in self._windows(line["at"]):
                for milliseconds in line.get("late", ()):
                    self.generator[window].add(milliseconds / 1000)

    def agencies(self, lines: Iterable[Record]) -> Iterator[Record]:
        for line in lines:
            kind = line["t"]
            if kind == "answer":
                self._answer(line)
            elif kind == "unanswered":
                self.counts["unanswered", ""] += line["events"]
            elif kind == "unposted":
                self.counts["unposted", ""] += line["events"]
            yield line

    def _answer(self, line: Record) -> None:
        priority = PRIORITIES.get(line.get("type", ""), "normal")
        if line["status"] == 202:
            self.counts["accepted", priority] += 1
            self.answered[int(line["at"] - self.started)] += 1
            self._accepted[line["feed"]][line["offset"]] = priority
        else:
            self.counts["refused", priority] += 1
        if "seconds" in line:
            self.answer.add(line["seconds"])

    def devices(self, lines: Iterable[Record]) -> Iterator[Record]:
        for line in lines:
            self._device(line)
            yield line

    def _device(self, line: Record) -> None:
        tracks = self._tracks[line["device"]]
        match line["t"]:
            case "event":
                self._event(line, tracks.get(line["feed"]))
            case "keep":
                self._keep(line, tracks.get(line["feed"]))
            case "hello":
                self._away.discard(line["device"])
                if line.get("fresh"):
                    tracks.clear()
            case "welcome":
                self.sessions += 1
                for item in line["feeds"]:
                    track = tracks.setdefault(item["feed"], _Feed(item["from"], item["from"]))
                    track.received = item["from"]
            case "resync":
                self.resyncs += 1
                tracks[line["feed"]] = _Feed(line["offset"], line["offset"])
            case "snapshot":
                track = tracks.setdefault(line["feed"], _Feed(line["offset"], line["offset"]))
                track.kept = line["offset"]
            case "live":
                (self.catch_up_of(line["at"]) if line["again"] else [self.first])[0].add(line["seconds"])
                if line["again"]:
                    for histogram in self.catch_up_of(line["at"])[1:]:
                        histogram.add(line["seconds"])
            case "away":
                self._away.add(line["device"])

    def catch_up_of(self, at: float) -> list[Histogram]:
        return [self.catch_up[window] for window in self._windows(at)]

    def _windows(self, at: float) -> list[str]:
        now = at - self.started
        return ["", *(name for name, (begin, end) in self.scenario.windows.items() if begin <= now < end)]

    def _event(self, line: Record, track: _Feed | None) -> None:
        priority = PRIORITIES.get(line.get("type") or "", "normal")
        self.counts["delivered", priority] += 1
        if track is not None:
            if line["offset"] != track.received + 1:
                self.counts["reordered", priority] += 1
            if line["offset"] <= track.kept:
                self.counts["repeated", priority] += 1
            track.received = line["offset"]
        if line.get("how") == "live":
            due = line["at"] - line["act"]
            for window in self._windows(due):
                self.late[window, priority].add(line["act"])
                self.late[window, ""].add(line["act"])
                self.commit[window, priority].add(line["commit"])
                self.commit[window, ""].add(line["commit"])
            self.by_second[int(due - self.started)].add(line["act"])

    def _keep(self, line: Record, track: _Feed | None) -> None:
        if track is None:
            return
        for offset in range(track.kept + 1, line["first"]):
            self._lose(line["feed"], offset)
        track.kept = max(track.kept, line["offset"])

    def _lose(self, feed: str, offset: int) -> None:
        priority = self._accepted[feed].get(offset)
        if priority is not None:
            self.counts["lost", priority] += 1

    def finish(self) -> None:
        """What is still owed is lost."""
        for device, tracks in self._tracks.items():
            if device not in self._away:
                for feed, track in tracks.items():
                    for offset in self._accepted.get(feed, ()):
                        if offset > track.kept:
                            self._lose(feed, offset)

    def count(self, what: str, priority: str = "") -> int:
        return sum(n for (name, one), n in self.counts.items() if name == what and priority in ("", one))

    def find(self, what: str, priority: str = "", window: str = "") -> float | None:
        """The value of a bound's `what`; None when nothing was measured. Raises KeyError for a word that is none."""
        if what in COUNTS:
            return self.count(what, priority)
        match what:
            case "late_p50_s":
                return self._of(self.late, window, priority).percentile(0.5)
            case "late_p99_s":
                return self._of(self.late, window, priority).percentile(0.99)
            case "commit_p99_s":
                return self._of(self.commit, window, priority).percentile(0.99)
            case "catch_up_p99_s":
                return self.catch_up.get(window, Histogram()).percentile(0.99)
            case "first_p99_s":
                return self.first.percentile(0.99)
            case "answer_p99_s":
                return self.answer.percentile(0.99)
            case "generator_late_p99_s":
                return self.generator.get(window, Histogram()).percentile(0.99)
            case "disk_p99_s":
                return self.disk.get(window, Histogram()).percentile(0.99)
            case "sessions":
                return self.sessions
            case "resyncs":
                return self.resyncs
            case "memory_growth_mb":
                return self._growth("rss", window, 1e6)
            case "files_growth":
                return self._growth("files", window, 1)
        raise KeyError(what)

    @staticmethod
    def _of(found: Mapping[tuple[str, str], Histogram], window: str, priority: str) -> Histogram:
        return found.get((window, priority), Histogram())

    def _growth(self, name: str, window: str, unit: float) -> float | None:
        """Median of the last quarter of the samples against the first."""
        values = [sample[name] for sample in self.samples if window in self._windows(sample["at"])]
        quarter = len(values) // 4
        return (median(values[-quarter:]) - median(values[:quarter])) / unit if quarter else None

    def _not_its_own(self, bound: Bound) -> list[tuple[float, str]]:
        """What a time may be longer than in the window that it is compared with, and that is nobody's fault: the
        generator reads and posts on the same cores, and an event that finds a commit under way waits for it, one more
        write of the disk as it was then."""
        if not bound.what.endswith("_s"):
            return []
        late, before = (self.find("generator_late_p99_s", window=one) or 0.0 for one in (bound.window, bound.against))
        disk = self.find("disk_p99_s", window=bound.against) or 0.0
        more = [(late - before, "by which the generator was later"), (disk, "for a commit under way")]
        return [(seconds, why) for seconds, why in more if seconds > 0]

    def check(self, bound: Bound) -> Checked:
        found = self.find(bound.what, bound.priority, bound.window)
        most, against = bound.most, ""
        if bound.against:
            before, more = self.find(bound.what, bound.priority, bound.against), self._not_its_own(bound)
            most = None if before is None else bound.ratio * before + bound.slack + sum(seconds for seconds, _ in more)
            parts = [f"{bound.ratio:g} x {bound.against}", f"{bound.slack:g}"]
            against = f" ({' + '.join(parts + [f'{seconds:.2g} {why}' for seconds, why in more])})"
        words = " ".join(filter(None, (bound.what, bound.priority, bound.window and f"in {bound.window}")))
        ok = found is not None
        if bound.least is not None:
            words += f" at least {bound.least:g}"
            ok = ok and found is not None and found >= bound.least
        if most is not None:
            words += f" at most {most:.4g}{against}"
            ok = ok and found is not None and found <= most
        elif bound.against:
            words += f" at most …{against}, and {bound.against} was not measured"
            ok = False
        if not bound.what.endswith("_s"):
            return Checked(words, found, ok)
        late, disk = (self.find(what, window=bound.window) for what in ("generator_late_p99_s", "disk_p99_s"))
        return Checked(words, found, ok, late, disk)


def limit(
    asked: Sequence[float], accepted: Sequence[float], p99_s: Sequence[float | None], bound: Limit
) -> tuple[int, str]:
    """The index of the first second of two in a row that break the bound, and why; the length when none does."""
    before, waiting = "", 0.0
    for second, (want, got, late) in enumerate(zip(asked, accepted, p99_s, strict=True)):
        why, waiting = "", max(0.0, waiting + want - got)
        if late is not None and late > bound.most:
            why = f"p99 {late:.3g} s"
        elif waiting > bound.behind * want + 1:
            why = f"{waiting:,.0f} events waited to be accepted"
        if why and before:
            return second - 1, before
        before = why
    return len(asked), ""


def judge(
    scenario: Scenario,
    started: float,
    agencies: Iterable[Record],
    devices: Iterable[Record],
    *,
    dump: Iterable[Record] | None = None,
    gateway: Iterable[Record] = (),
    generator: Iterable[Record] = (),
) -> Verdict:
    """All journals of a run that began at `started` (Unix seconds). Each is read once."""
    measures = Measures(scenario, started)
    measures.gateway(gateway)
    measures.generators(generator)
    ledger = reconcile(measures.agencies(agencies), measures.devices(devices), dump)
    measures.finish()
    priorities = {}
    for priority in ORDER:
        row: dict[str, float | int | None] = {what: measures.count(what, priority) for what in COUNTS}
        if any(row.values()):
            row |= {
                "late_p50_s": measures.find("late_p50_s", priority),
                "late_p99_s": measures.find("late_p99_s", priority),
            }
            priorities[priority] = row | {"commit_p99_s": measures.find("commit_p99_s", priority)}
    told = ("late_p99_s", "commit_p99_s", "catch_up_p99_s", "first_p99_s", "answer_p99_s", "sessions", "resyncs")
    return Verdict(
        ledger,
        priorities,
        [measures.check(bound) for bound in scenario.bounds],
        _reached(measures) if scenario.limit is not None else None,
        {name: measures.find(name) for name in (*told, "unanswered", "unposted", "memory_growth_mb", "files_growth")},
        max(measures.cores.values(), default=0.0),
    )


def _reached(measures: Measures) -> Reached:
    bound, scenario = measures.scenario.limit, measures.scenario
    assert bound is not None
    seconds = range(int(scenario.busy))
    asked = [sum(posts.rate.area(at + 1) - posts.rate.area(at) for posts in scenario.posts) for at in seconds]
    late = [measures.by_second[at].percentile(0.99) if at in measures.by_second else None for at in seconds]
    broken, why = limit(asked, [measures.answered[at] for at in seconds], late, bound)
    core = max((used for at, used in measures.cores.items() if broken - 2 <= at <= broken + 1), default=0.0)
    return Reached(asked[broken - 1] if broken else 0.0, broken < len(asked), why, core)

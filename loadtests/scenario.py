"""Scenarios: what happens to a portal, as one TOML file each: who comes, what is posted, what breaks, what is promised.

    says = "…"
    [phones]     curve = [[seconds, phones], …]     straight lines between the points
                 mix   = {steady = 3, flaky = 1}    names of `HABITS`
                 following = 0.5                    share that follows an agency's public notices
    agencies = 4
    [[posts]]    type, rate = [[seconds, events a second], …], batch
    [[faults]]   at, name = "drop", share, within   of the phones: cut off, back within so many seconds
                 at, name = "kill"                  of the gateway, where it is ours; started again at once
    [windows]    calm = [from, to]                  seconds; bounds can speak of one
    settle = 20                                     seconds of quiet at the end, at most, until everybody has everything
    [[bounds]]   what, most | least, priority, window, against, ratio, slack      see `verdict`
    [limit]      most, behind                       a ramp: the rate is told at which it breaks (`verdict.limit`)
    [gateway]    settings of the gateway that is started for it

Pure but for `load`. Times are seconds since the first phone came.
"""

import tomllib
from bisect import bisect_right
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, Final

HERE: Final = Path(__file__).with_name("scenarios")
PERSONAL: Final = ("gov.code.sent", "gov.status.changed", "gov.payout.changed", "gov.notice.sent")
PUBLIC: Final = ("gov.notice.published", "gov.news.published", "gov.emergency.published")
PRIORITIES: Final[Mapping[str, str]] = {
    "gov.code.sent": "urgent",
    "gov.emergency.published": "urgent",
    "gov.status.changed": "high",
    "gov.payout.changed": "normal",
    "gov.notice.sent": "normal",
    "gov.notice.published": "normal",
    "gov.news.published": "bulk",
}
FAULTS: Final = ("drop", "kill")


class WrongScenario(ValueError):
    """A scenario cannot be run. One sentence."""


@dataclass(frozen=True, slots=True)
class Habit:
    """How a phone is used. Zeros: never. Pairs are uniform between their ends, seconds."""

    says: str
    online: tuple[float, float] = (0.0, 0.0)  # then it drops
    away: tuple[float, float] = (0.0, 0.0)  # then it comes back
    reads: tuple[float, float] = (0.0, 0.0)  # then it stops reading
    sleeps: tuple[float, float] = (0.0, 0.0)
    refresh: tuple[float, float] = (0.0, 0.0)  # asks for the snapshot, and an agency for news


HABITS: Final[Mapping[str, Habit]] = {
    "steady": Habit("connected and reading all the time"),
    "flaky": Habit("in the metro: cut off every few seconds, back after a few", online=(2, 6), away=(0.3, 3)),
    "slow": Habit("does not read for seconds, its receive buffer full", reads=(0.5, 2), sleeps=(2, 5)),
    "anxious": Habit("«Обновить данные», again and again", refresh=(2, 6)),
}


class Curve:
    """Straight lines between points of rising time; before the first it is 0, after the last it stays."""

    def __init__(self, points: Sequence[Sequence[float]]):
        self.points = [(float(at), float(value)) for at, value in points]
        if not self.points or any(a[0] > b[0] for a, b in pairwise(self.points)) or self.points[0][0] < 0:
            raise WrongScenario(f"a curve needs points of rising time, not {points}.")
        if any(value < 0 for _, value in self.points):
            raise WrongScenario(f"a curve has no negative values: {points}.")
        self._times = [at for at, _ in self.points]
        self._area = [0.0]
        for (a, left), (b, right) in pairwise(self.points):
            self._area.append(self._area[-1] + (b - a) * (left + right) / 2)

    @property
    def end(self) -> float:
        return self._times[-1]

    @property
    def top(self) -> float:
        return max(value for _, value in self.points)

    def at(self, now: float) -> float:
        index = bisect_right(self._times, now)
        if index == 0:
            return 0.0
        (a, left) = self.points[index - 1]
        if index == len(self.points):
            return left
        b, right = self.points[index]
        return left + (right - left) * (now - a) / (b - a)

    def area(self, now: float) -> float:
        """The integral up to `now`: for a rate, how many events are due."""
        index = bisect_right(self._times, now)
        if index == 0:
            return 0.0
        if index == len(self.points):
            return self._area[-1] + self.points[-1][1] * (now - self.end)
        a, left = self.points[index - 1]
        return self._area[index - 1] + (now - a) * (left + self.at(now)) / 2

    def scaled(self, times: float = 1.0, values: float = 1.0) -> "Curve":
        return Curve([(at * times, value * values) for at, value in self.points])


@dataclass(frozen=True, slots=True)
class Posts:
    """A stream of events of one type, shared evenly by the agencies."""

    type: str
    rate: Curve
    batch: int = 1

    @property
    def priority(self) -> str:
        return PRIORITIES[self.type]

    @property
    def public(self) -> bool:
        return self.type in PUBLIC


@dataclass(frozen=True, slots=True)
class Fault:
    at: float
    name: str
    share: float = 1.0
    within: float = 0.0


@dataclass(frozen=True, slots=True)
class Bound:
    """`what` of `verdict.measures`; at most, at least, or at most `ratio` × the same in window `against` + `slack`; a
    time may be so much more as the generator itself was later than then, and one write of the disk."""

    what: str
    most: float | None = None
    least: float | None = None
    priority: str = ""
    window: str = ""
    against: str = ""
    ratio: float = 1.0
    slack: float = 0.0


@dataclass(frozen=True, slots=True)
class Limit:
    """The ramp is broken when the p99 of what was due in a second passes `most` seconds, or when more events wait to be
    accepted than are due in `behind` seconds."""

    most: float
    behind: float = 1.0


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    says: str
    phones: Curve
    mix: Mapping[str, float]
    following: float
    agencies: int
    posts: Sequence[Posts]
    faults: Sequence[Fault] = ()
    windows: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    settle: float = 5.0
    bounds: Sequence[Bound] = ()
    limit: Limit | None = None
    gateway: Mapping[str, str] = field(default_factory=dict)

    @property
    def busy(self) -> float:
        """Seconds until the last event is due."""
        return max([self.phones.end, *(posts.rate.end for posts in self.posts)])

    @property
    def seconds(self) -> float:
        return self.busy + self.settle

    def scaled(self, *, phones: float = 1.0, rate: float = 1.0, time: float = 1.0) -> "Scenario":
        """The same story with more people, more events, or more time. Bounds stay, but for counts at least."""
        more = {"accepted": rate * time, "delivered": rate * time, "sessions": phones * time}
        return replace(
            self,
            phones=self.phones.scaled(time, phones),
            posts=[replace(one, rate=one.rate.scaled(time, rate)) for one in self.posts],
            faults=[replace(one, at=one.at * time) for one in self.faults],
            bounds=[
                one if one.least is None else replace(one, least=one.least * more.get(one.what, 1.0))
                for one in self.bounds
            ],
            windows={name: (a * time, b * time) for name, (a, b) in self.windows.items()},
        )


def names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.toml"))


def load(name: str) -> Scenario:
    """The scenario of this name, or in this `.toml` file. Raises WrongScenario."""
    own = name.endswith(".toml")
    if not own and name not in names():
        raise WrongScenario(f"There is no scenario {name!r}: choose from {', '.join(names())}, or give a .toml file.")
    path = Path(name) if own else HERE / f"{name}.toml"
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WrongScenario(f"The scenario {path} cannot be read: {error}.") from None
    try:
        return parse(path.stem, given)
    except WrongScenario as wrong:
        raise WrongScenario(f"{path.name}: {wrong}") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WrongScenario(f"{path.name}: {error!r}.") from None


def parse(name: str, given: Mapping[str, Any]) -> Scenario:
    _only(
        given,
        ("says", "phones", "agencies", "posts", "faults", "windows", "settle", "bounds", "limit", "gateway"),
        "the file",
    )
    phones = given["phones"]
    _only(phones, ("curve", "mix", "following"), "[phones]")
    made = Scenario(
        name,
        str(given["says"]),
        Curve(phones["curve"]),
        {str(key): float(value) for key, value in phones.get("mix", {"steady": 1}).items()},
        float(phones.get("following", 0)),
        int(given.get("agencies", 4)),
        [Posts(one["type"], Curve(one["rate"]), int(one.get("batch", 1))) for one in given.get("posts", [])],
        [Fault(**one) for one in given.get("faults", [])],
        {str(key): (float(a), float(b)) for key, (a, b) in given.get("windows", {}).items()},
        float(given.get("settle", 5)),
        [Bound(**one) for one in given.get("bounds", [])],
        Limit(**given["limit"]) if "limit" in given else None,
        {str(key): str(value) for key, value in given.get("gateway", {}).items()},
    )
    for what in _wrong(made):
        raise WrongScenario(what)
    return made


def _wrong(made: Scenario) -> Iterator[str]:
    """What cannot be, in words."""
    for habit in made.mix:
        if habit not in HABITS:
            yield f"there is no habit {habit!r}, choose from {', '.join(HABITS)}."
    if not any(made.mix.values()):
        yield "a mix needs somebody."
    if not 1 <= made.agencies <= 64:
        yield "`agencies` must be from 1 to 64."
    for posts in made.posts:
        if posts.type not in PRIORITIES:
            yield f"there is no type {posts.type!r}, choose from {', '.join(PRIORITIES)}."
        if not 1 <= posts.batch <= 1000:
            yield "`batch` must be from 1 to 1000."
    for fault in made.faults:
        if fault.name not in FAULTS:
            yield f"there is no fault {fault.name!r}, choose from {', '.join(FAULTS)}."
    for bound in made.bounds:
        for window in filter(None, (bound.window, bound.against)):
            if window not in made.windows:
                yield f"there is no window {window!r}."
        if bound.most is None and bound.least is None and not bound.against:
            yield f"the bound of {bound.what} says nothing: give most, least or against."


def _only(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise WrongScenario(f"{where} has no {key!r}, choose from {', '.join(known)}.")

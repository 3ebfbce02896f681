"""When agencies send, and how much at once: patterns as schedules. Pure."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from random import Random
from typing import Final, NamedTuple

from client_sim.agencies import Act, fines, payouts


class Arrival(NamedTuple):
    at: float  # seconds since the start
    events: int  # made and posted at that moment
    wave: bool = False  # what the pattern is about; else what happens every day


@dataclass(frozen=True, slots=True)
class Pattern:
    """`agency` and `act`: whose wave it is and what it is about, for each account in turn; None: all, by chance."""

    name: str
    says: str
    arrivals: Callable[[Random, float, float], Iterator[Arrival]]
    agency: str | None = None
    act: Act | None = None


POST_EVERY_S: Final = 0.02  # what falls into so long goes out as one post


def _steady(rng: Random, rate: float, seconds: float) -> Iterator[Arrival]:
    """Independent of each other, `rate` a second on average."""
    at = began = 0.0
    due = 0
    while True:
        at += rng.expovariate(rate)
        if due and (at - began > POST_EVERY_S or at >= seconds):
            yield Arrival(began, due)
            due = 0
        if at >= seconds:
            return
        if not due:
            began = at
        due += 1


def _burst(rng: Random, rate: float, seconds: float) -> Iterator[Arrival]:
    """Quiet for some seconds, then everything at once; `rate` a second on average."""
    at = owed = 0.0
    longest = min(10.0, seconds / 2)
    while at < seconds:
        pause = rng.uniform(0.2, 1) * longest
        at, owed = at + pause, owed + pause * rate
        while owed >= 1 and at < seconds:
            size = min(int(owed), 100)
            yield Arrival(at, size)
            at, owed = at + 0.005, owed - size


def _wave(rng: Random, rate: float, seconds: float) -> Iterator[Arrival]:
    """A tenth of the rate all day, and in the second quarter a wave with all the rest, in posts of up to a hundred."""
    whole = math.ceil(rate * seconds * 0.9)
    starts = range(0, whole, 100)
    wave = [Arrival(seconds * (0.25 + 0.25 * at / whole), min(100, whole - at), True) for at in starts]
    yield from sorted([*wave, *_steady(rng, max(rate / 10, 0.1), seconds)])


PATTERNS: Final[Mapping[str, Pattern]] = {
    pattern.name: pattern
    for pattern in (
        Pattern("steady", "events one by one, independent of each other", _steady),
        Pattern("burst", "quiet, then everything at once", _burst),
        Pattern(
            "monthly",
            "pensions and benefits of everybody in one wave, a trickle before and after",
            _wave,
            "sfr",
            payouts(("pension", "Страховая пенсия"), ("benefit", "Единое пособие")),
        ),
        Pattern(
            "fines",
            "a wave of fines after a night of cameras, a trickle before and after",
            _wave,
            "gibdd",
            fines("Превышение скорости", "Проезд на запрещающий сигнал"),
        ),
    )
}

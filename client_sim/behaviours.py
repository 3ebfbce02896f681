"""How phones are used, as data: what a device does and when, decided by a seed before anything runs. Pure.

A `Behaviour` is a few traits and a life. A life is a schedule of `Step`s that depends on the random source and on
nothing else: not on a clock, not on what the gateway does. The same seed gives the same day to every device.
"""

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Final, Literal, NamedTuple

from client_sim.attacks import ATTACKS

Do = Literal[
    "online",  # be connected from now on, reconnecting as the contract says
    "offline",  # close the socket properly and stay away
    "tunnel",  # the network is gone without a word: neither side hears of it
    "reset",  # the connection is cut with a reset; the device comes back by itself
    "roam",  # another network takes over (`arg` names it), the old connection is left behind half-open
    "saver",  # to the background: traffic saving mode
    "full",  # back on the screen
    "freeze",  # the process is frozen: reads nothing, answers nothing, the socket stays open
    "thaw",  # it runs again, on the same socket
    "look",  # the person reads: what came is reported as seen
    "refresh",  # «Обновить данные»
    "reinstall",  # the app is new: nothing is kept, the device has another id
    "update",  # a new version of the app
    "attack",  # the attack that `arg` names
]


class Step(NamedTuple):
    at: float  # seconds since the start of the run
    do: Do
    arg: str = ""


Life = Callable[[Random, float], Iterator[Step]]


@dataclass(frozen=True, slots=True)
class Behaviour:
    """`clock_s`: how wrong the device's clock may be, either way. `known` are the message types that it knows; an old
    version knows fewer. `owed` says whether the promise of the gateway holds for it at the end of a run."""

    name: str
    says: str
    life: Life
    acks: bool = True
    resumes: bool = True  # tells what it keeps when it connects
    saver: bool = False
    agent: str = "vestnik-sim/1.0"
    clock_s: float = 0.0
    small_buffer: bool = False  # so that a device that does not read is felt by the gateway at once
    known: frozenset[str] | None = None
    owed: bool = True


# Lives. Times are seconds as in a hurried city; `schedule` stretches or squeezes them by `pace`.

RAMP_S: Final = 10.0


def _between(rng: Random, low: float, high: float) -> float:
    return rng.uniform(low, high)


def _start(rng: Random) -> Step:
    return Step(_between(rng, 0, RAMP_S), "online")


def _every(rng: Random, after: float, until: float, low: float, high: float) -> Iterator[float]:
    """Moments with pauses of `low` to `high` between them."""
    at = after + _between(rng, low, high)
    while at < until:
        yield at
        at += _between(rng, low, high)


def _steady(rng: Random, until: float) -> Iterator[Step]:
    first = _start(rng)
    yield first
    for at in _every(rng, first.at, until, 20, 120):
        yield Step(at, "refresh" if rng.random() < 0.1 else "look", "mvd")


def _commuter(rng: Random, until: float) -> Iterator[Step]:
    first = _start(rng)
    yield first
    at = first.at + _between(rng, 5, 40)
    while at < until:
        yield Step(at, "tunnel")
        at += _between(rng, 3, 35)
        yield Step(at, "online")
        if rng.random() < 0.3:
            yield Step(at + 1, "look")
        at += _between(rng, 15, 90)


def _wifi_to_lte(rng: Random, until: float) -> Iterator[Step]:
    first = _start(rng)
    yield first
    at_home = True
    for at in _every(rng, first.at, until, 20, 90):
        at_home = not at_home
        yield Step(at, "roam", "lossy_wifi" if at_home else "lte")


def _background(rng: Random, until: float) -> Iterator[Step]:
    first = _start(rng)
    yield first
    at = first.at
    while at < until:
        at += _between(rng, 10, 40)
        yield Step(at, "saver")
        at += _between(rng, 10, 60)
        if rng.random() < 0.5:  # doze: the system freezes the app; half the time it also takes its socket
            yield Step(at, "freeze" if rng.random() < 0.5 else "offline")
            at += _between(rng, 20, 90)
            yield Step(at, "thaw")
            yield Step(at, "online")
        yield Step(at, "full")
        yield Step(at + 1, "look")


def _slow_reader(rng: Random, until: float) -> Iterator[Step]:
    first = _start(rng)
    yield first
    at = first.at + _between(rng, 2, 6)
    while at < until:
        yield Step(at, "freeze")
        at += _between(rng, 1, 6)
        yield Step(at, "thaw")
        at += _between(rng, 0.2, 1)


def _stuck(rng: Random, until: float) -> Iterator[Step]:
    first = _start(rng)
    yield first
    at = first.at
    while at < until:
        at += _between(rng, 5, 30)
        yield Step(at, "freeze")
        at += _between(rng, 75, 150)  # past the gateway's patience of 60 s
        yield Step(at, "thaw")


def _old_version(rng: Random, until: float) -> Iterator[Step]:
    first = _start(rng)
    yield first
    yield Step(first.at + _between(rng, 30, 120), "update")


def _reinstaller(rng: Random, until: float) -> Iterator[Step]:
    first = _start(rng)
    yield first
    for at in _every(rng, first.at, until, 40, 160):
        yield Step(at, "reinstall")


def _flaky(rng: Random, until: float) -> Iterator[Step]:
    first = _start(rng)
    yield first
    for at in _every(rng, first.at, until, 3, 25):
        yield Step(at, "reset")


def _hostile(rng: Random, until: float) -> Iterator[Step]:
    for at in _every(rng, 0, until, 2, 15):
        yield Step(at, "attack", rng.choice(list(ATTACKS)))


_OLD = frozenset({"welcome", "event", "batch", "live", "resync", "error", "pong"})

BEHAVIOURS: Final[Mapping[str, Behaviour]] = {
    behaviour.name: behaviour
    for behaviour in (
        Behaviour("steady", "connected all day, looks now and then", _steady),
        Behaviour("commuter", "a train with tunnels: the network goes without a word", _commuter),
        Behaviour("wifi_to_lte", "leaves the house and comes back: the old connection stays half-open", _wifi_to_lte),
        Behaviour("background", "screen off: traffic saving, then doze with or without the socket", _background),
        Behaviour("slow_reader", "a busy old phone: seconds without reading", _slow_reader, small_buffer=True),
        Behaviour("stuck", "hangs for minutes with an open socket", _stuck, small_buffer=True),
        Behaviour("never_acks", "shows everything, acknowledges nothing", _flaky, acks=False, resumes=False),
        Behaviour("clock_wrong", "its clock is off by up to three days", _steady, clock_s=259_200.0),
        Behaviour(
            "old_version", "an app of last year, updated later", _old_version, agent="vestnik-sim/0.9", known=_OLD
        ),
        Behaviour("saver", "traffic saving all day", _steady, saver=True),
        Behaviour("flaky", "its connection is reset every few seconds", _flaky),
        Behaviour("reinstaller", "removes the app and installs it again", _reinstaller),
        Behaviour("hostile", "breaks every rule, one at a time", _hostile, owed=False),
    )
}

EVERYDAY: Final = (
    "steady=50,commuter=15,wifi_to_lte=10,background=10,saver=5,slow_reader=3,clock_wrong=3,flaky=2,reinstaller=2"
)


class WrongMix(ValueError):
    """The text of a mix does not say one. One sentence."""


def mix(text: str, known: Iterable[str], what: str) -> dict[str, float]:
    """Weights by name out of `steady=3,commuter=1` or `steady`. Raises WrongMix with one sentence.

    `known` are the names that there are, `what` is the word for one of them.
    """
    names, weights = sorted(known), {}
    for part in text.split(","):
        name, given, weight = (word.strip() for word in part.partition("="))
        if name not in names:
            raise WrongMix(f"There is no {what} {name!r}: choose from {', '.join(names)}.")
        try:
            weights[name] = float(weight) if given else 1.0
        except ValueError:
            raise WrongMix(f"The weight of {name} must be a number, like {name}=3, not {weight!r}.") from None
        if not 0 <= weights[name] <= 1e6:
            raise WrongMix(f"The weight of {name} must be from 0 to 1000000, not {weight}.")
    if not sum(weights.values()):
        raise WrongMix(f"At least one {what} needs a weight above 0.")
    return weights


def spread(weights: Mapping[str, float], number: int, rng: Random) -> list[str]:
    """`number` names in the proportions of their weights, rounded to whole devices, in random order."""
    whole = sum(weights.values())
    shares = {name: number * weight / whole for name, weight in weights.items()}
    counts = {name: int(share) for name, share in shares.items()}
    by_rest = sorted(shares, key=lambda name: counts[name] - shares[name])
    for name in by_rest[: number - sum(counts.values())]:
        counts[name] += 1
    names = [name for name, count in counts.items() for _ in range(count)]
    rng.shuffle(names)
    return names


def schedule(behaviour: Behaviour, rng: Random, seconds: float, pace: float = 1.0) -> list[Step]:
    """What one device does in a run of so many seconds, in order. `pace` 10 lives ten times as fast."""
    steps = [Step(at / pace, do, arg) for at, do, arg in behaviour.life(rng, seconds * pace)]
    return sorted((step for step in steps if step.at < seconds), key=lambda step: step.at)


def fingerprint(lives: Iterable[Sequence[Step]]) -> str:
    """Eight letters that are the same for the same schedules."""
    digest = hashlib.sha256()
    for number, steps in enumerate(lives):
        for step in steps:
            digest.update(f"{number} {step.at:.6f} {step.do} {step.arg}\n".encode())
    return digest.hexdigest()[:8]

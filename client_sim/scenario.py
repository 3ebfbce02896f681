"""Scenarios: a run as a TOML file, with the bounds that make it pass or fail.

    says = "…"
    [fleet]      devices accounts behaviour network seconds seed pace following
    [agencies]   pattern rate
    [gateway]    settings of the gateway that is started for it, as in SETTINGS.md without VESTNIK_, lower case
    [[faults]]   at name for arg
    [bounds]     a name of `BOUNDS` = number

Those in `scenarios/` are known by their names. Everything wrong in a file is told in one sentence.
"""

import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from client_sim.arrivals import PATTERNS
from client_sim.behaviours import BEHAVIOURS, WrongMix, mix
from client_sim.faults import FAULTS, Fault
from client_sim.fleet import MOST_OF_ACCOUNT, Roster
from client_sim.networks import NETWORKS
from client_sim.run import Outcome, Plan

HERE: Final = Path(__file__).with_name("scenarios")
PUBLIC: Final = ("agency:mchs",)


class WrongScenario(ValueError):
    """A scenario cannot be played. One sentence."""


@dataclass(frozen=True, slots=True)
class Bound:
    """`most`: the found value may not be above the wanted one; else not below."""

    says: str
    most: bool
    value: Callable[[Outcome], float | None]


def _counted(name: str) -> Callable[[Outcome], float]:
    return lambda outcome: outcome.tally.counts[name]


BOUNDS: Final[Mapping[str, Bound]] = {
    "p50_s": Bound("half of the events are there within, s", True, lambda o: o.tally.latency.percentile(0.5)),
    "p99_s": Bound("99 % of the events are there within, s", True, lambda o: o.tally.latency.percentile(0.99)),
    "wire_p99_s": Bound("99 % from commit to device within, s", True, lambda o: o.tally.wire.percentile(0.99)),
    "catch_up_p90_s": Bound("90 % of connections are live within, s", True, lambda o: o.tally.catch_up.percentile(0.9)),
    "catch_up_p99_s": Bound(
        "99 % of connections are live within, s", True, lambda o: o.tally.catch_up.percentile(0.99)
    ),
    "answer_p99_s": Bound("99 % of posts are answered within, s", True, lambda o: o.tally.answer.percentile(0.99)),
    "settled_s": Bound("everybody has everything within, s of quiet", True, lambda o: o.settled_s),
    "delivered": Bound("deliveries", False, _counted("delivered")),
    "published": Bound("events accepted", False, _counted("published")),
    "sessions": Bound("sessions", False, _counted("opened")),
    "repeats": Bound("repeats", True, _counted("repeats")),
    "resyncs": Bound("resyncs", True, _counted("resyncs")),
    "attacks": Bound("attacks", False, _counted("attacks")),
    "attacks_got_through": Bound("attacks with another end than the contract's", True, _counted("attacks_got_through")),
    "strange_frames": Bound("connections on which a device saw what must not be", True, _counted("faults")),
}


@dataclass(frozen=True, slots=True)
class Scenario:
    name: str
    says: str
    plan: Plan
    settings: Mapping[str, str] = field(default_factory=dict)
    bounds: Mapping[str, float] = field(default_factory=dict)


def names() -> list[str]:
    return sorted(path.stem for path in HERE.glob("*.toml"))


def load(name: str) -> Scenario:
    """The scenario of this name, or in this file. Raises WrongScenario."""
    path = Path(name) if name.endswith(".toml") else HERE / f"{name}.toml"
    if not name.endswith(".toml") and name not in names():
        raise WrongScenario(f"There is no scenario {name!r}: choose from {', '.join(names())}, or give a .toml file.")
    try:
        given = tomllib.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise WrongScenario(f"The scenario {path} cannot be read: {error}.") from None
    try:
        return _scenario(path.stem, given)
    except WrongMix as wrong:
        raise WrongScenario(f"{path.name}: {wrong}") from None
    except (KeyError, TypeError, ValueError) as error:
        raise WrongScenario(
            f"{path.name}: {error}" if str(error).endswith(".") else f"{path.name}: {error!r}."
        ) from None


def check(outcome: Outcome, bounds: Mapping[str, float]) -> list[dict[str, Any]]:
    """Each bound with what was found: `{"name", "says", "wanted", "found", "ok"}`. What was not measured fails."""
    found = []
    for name, wanted in bounds.items():
        bound = BOUNDS[name]
        value = bound.value(outcome)
        ok = value is not None and (value <= wanted if bound.most else value >= wanted)
        word = "at most" if bound.most else "at least"
        shown = "not measured" if value is None else f"{value:,.0f}" if value == int(value) else f"{value:.3g}"
        found.append({"name": name, "says": bound.says, "wanted": f"{word} {wanted:,g}", "found": shown, "ok": ok})
    return found


def roster(
    *,
    devices: int,
    accounts: int | None = None,
    behaviour: str,
    network: str,
    seconds: float,
    seed: int = 1,
    pace: float = 1.0,
    following: float = 0.2,
) -> Roster:
    """A checked roster. Raises WrongMix or WrongScenario with one sentence."""
    _within("devices", devices, 1, 20_000)
    accounts = max(1, devices // 2) if accounts is None else accounts
    _within("accounts", accounts, 1, 1_000_000)
    _within("seconds", seconds, 0.1, 86_400)
    _within("pace", pace, 0.01, 1000)
    _within("following", following, 0, 1)
    if devices > accounts * MOST_OF_ACCOUNT:
        raise WrongScenario(
            f"{devices} devices of {accounts} accounts are more than {MOST_OF_ACCOUNT} each, and an account has no"
            f" more: take at least {-(-devices // MOST_OF_ACCOUNT)} accounts."
        )
    return Roster(
        devices,
        accounts,
        mix(behaviour, BEHAVIOURS, "behaviour"),
        mix(network, NETWORKS, "network"),
        seed,
        seconds,
        pace,
        PUBLIC,
        following,
    )


def _within(what: str, value: object, low: float, high: float) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise WrongScenario(f"`{what}` must be a number, not {value!r}.")
    if not low <= value <= high:
        raise WrongScenario(f"`{what}` must be from {low:g} to {high:g}, not {value:g}.")


def fault(at: float, name: str, for_s: float = 0.0, arg: str = "") -> Fault:
    """A checked fault. Raises WrongScenario."""
    if name not in FAULTS:
        raise WrongScenario(f"There is no fault {name!r}: choose from {', '.join(sorted(FAULTS))}.")
    return Fault(float(at), name, float(for_s), str(arg))


def _scenario(name: str, given: Mapping[str, Any]) -> Scenario:
    _only(given, ("says", "fleet", "agencies", "gateway", "faults", "bounds", "settle_s"), "the file")
    _needs(given, ("says", "fleet"), "the file")
    fleet, agencies, bounds = given["fleet"], given.get("agencies", {}), given.get("bounds", {})
    _needs(fleet, ("devices", "seconds"), "[fleet]")
    _only(fleet, ("devices", "accounts", "behaviour", "network", "seconds", "seed", "pace", "following"), "[fleet]")
    _only(agencies, ("pattern", "rate"), "[agencies]")
    _only(bounds, tuple(BOUNDS), "[bounds]")
    pattern = agencies.get("pattern", "steady")
    if pattern not in PATTERNS:
        raise WrongScenario(f"there is no pattern {pattern!r}, choose from {', '.join(PATTERNS)}.")
    faults: Sequence[Mapping[str, Any]] = given.get("faults", [])
    made = []
    for one in faults:
        _only(one, ("at", "name", "for", "arg"), "[[faults]]")
        _needs(one, ("at", "name"), "[[faults]]")
        made.append(fault(one["at"], one["name"], one.get("for", 0.0), one.get("arg", "")))
    plan = Plan(
        roster(**{"behaviour": "steady", "network": "perfect", **fleet}),
        pattern,
        float(agencies.get("rate", 20)),
        tuple(made),
        float(given.get("settle_s", 60)),
    )
    settings = {str(key): str(value) for key, value in given.get("gateway", {}).items()}
    return Scenario(name, str(given["says"]), plan, settings, {key: float(value) for key, value in bounds.items()})


def _only(given: Mapping[str, Any], known: Sequence[str], where: str) -> None:
    for key in given:
        if key not in known:
            raise WrongScenario(f"{where} has no {key!r}, choose from {', '.join(known)}.")


def _needs(given: Mapping[str, Any], names: Sequence[str], where: str) -> None:
    for name in names:
        if name not in given:
            raise WrongScenario(f"{where} needs {name!r}.")

"""The alert rules: `rules.toml` beside this file has their names, bounds and what to do at night; here is what each
looks at. Pure, but for `load`, which reads the operators' own file (`VESTNIK_ALERTS`).

    [latency]                       a rule: any of on, bound, severity, window_s, hold_s, clear_s, least
    hold_s = 60
    [latency.priority.urgent]       what is different for one priority: any of on, bound, severity
    bound = 0.5
    [silence.agency.fns]            or for one agency
    bound = 3600

`python -m workers.rules` prints the rules' part of gateway/deploy/ALERTS.md, and a test holds both together.
"""

import difflib
import math
import tomllib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, get_args

from gateway.errors import ConfigError
from gateway.events import is_agency
from gateway.metrics import PRIORITIES
from workers.window import KEEP_S, Window, quantile

Severity = Literal["critical", "warning"]

MANY: Final = 3.0
"""So many times its usual pause an agency must be silent."""
SILENT_S: Final = 20.0
"""A node that said nothing for so long is not looked at by the other rules."""


class Reading(NamedTuple):
    """What a rule saw of one subject. `key` is the priority or the agency, for limits of its own; `bound` replaces the
    rule's when it is found only by looking."""

    subject: str
    value: float
    key: str = ""
    bound: float | None = None


class Words(NamedTuple):
    """In both languages."""

    ru: str
    en: str


@dataclass(frozen=True, slots=True)
class Limit:
    """What is different for one priority or agency; None: as the rule has it."""

    bound: float | None = None
    severity: Severity | None = None
    on: bool = True


@dataclass(frozen=True, slots=True)
class Rule:
    """One rule, as in `rules.toml`. `look` gives a reading of each subject that can be judged."""

    name: str
    title: Words
    means: Words
    do: Words
    look: Callable[[Window, "Rule", float], Iterator[Reading]]
    bound: float
    unit: str  # "s", "1/s", "%" or none
    severity: Severity
    hold_s: float
    clear_s: float
    window_s: float = 0.0  # 0: it looks at the last word of each node
    least: int = 1
    below: bool = False
    on: bool = True
    keyed: Literal["priority", "agency"] | None = None
    limits: Mapping[str, Limit] = field(default_factory=dict)  # by key

    def limit(self, key: str) -> Limit:
        return self.limits.get(key, Limit())

    def judge(self, reading: Reading) -> tuple[bool, float, Severity]:
        """Is it bad, over which bound, and how severe would that be?"""
        own = self.limit(reading.key)
        bound = reading.bound if reading.bound is not None else self.bound if own.bound is None else own.bound
        return (reading.value < bound if self.below else reading.value > bound), bound, own.severity or self.severity


# What the rules look at


def _latency(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    for priority, buckets in window.buckets("to_socket", now, rule.window_s).items():
        if sum(buckets.values()) >= rule.least:
            yield Reading(priority, quantile(buckets, 0.99), priority)


def _acks(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    delivered = window.count("delivered", now, rule.window_s)
    if delivered >= rule.least:
        yield Reading("", 100 * window.count("acks", now, rule.window_s) / delivered)


def _behind(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    nodes = window.present(now, SILENT_S)
    if (sessions := sum(told.sessions for told in nodes)) >= rule.least:
        yield Reading("", 100 * sum(told.behind for told in nodes) / sessions)


def _append(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    for buckets in window.buckets("append", now, rule.window_s).values():
        if sum(buckets.values()) >= rule.least:
            yield Reading("", quantile(buckets, 0.99))


def _relay(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    yield Reading("", window.count("relayed", now, rule.window_s) / rule.window_s)


def _sweep(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    yield Reading("", window.count("sweep_behind", now, rule.window_s) / rule.window_s)


def _rejects(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    refused = window.counts("refused", now, rule.window_s)
    sent = window.counts("accepted", now, rule.window_s)
    for both, count in refused.items():
        code = both.partition(" ")[0]
        sent[code] = sent.get(code, 0) + count
    for both, count in refused.items():
        code = both.partition(" ")[0]
        if count >= rule.least:
            yield Reading(f"agency {both}", 100 * count / sent[code], code)


def _strangers(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    known = sum(window.counts("refused", now, rule.window_s).values())
    yield Reading("", max(0.0, window.count("rejected", now, rule.window_s) - known) / rule.window_s)


def _silence(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    for code, habit in window.habits.items():
        bound, since = rule.limit(code).bound, habit.last
        if bound is None:
            usual = habit.usual
            bound = habit.told if usual is None else max(rule.bound, MANY * usual)
        else:
            since = window.begun if since is None else since
        if bound is not None and since is not None:
            yield Reading(f"agency {code}", max(0.0, now - since), code, bound)


def _late(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    in_time = window.counts("in time", now, rule.window_s)
    for code, timed in window.counts("timed", now, rule.window_s).items():
        if timed >= rule.least:
            yield Reading(f"agency {code}", 100 * in_time.get(code, 0) / timed, code)


def _bus(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    for told in window.present(now, SILENT_S):
        yield Reading(f"node {told.node}", float(not told.bus_healthy))


def _store(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    for node, seconds in window.counts("store_away", now, rule.window_s).items():
        yield Reading(f"node {node}", seconds)


def _store_failures(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    for node, failures in window.counts("store_failures", now, rule.window_s).items():
        yield Reading(f"node {node}", failures)


def _disk(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    for told in window.present(now, SILENT_S):
        if told.disk_free is not None and told.disk_size:
            yield Reading(f"node {told.node}", 100 * told.disk_free / told.disk_size)


def _node(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    for told in window.silent(now, rule.bound):
        yield Reading(f"node {told.node}", now - told.time)


def _loop(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    for node, buckets in window.buckets("loop_lag", now, rule.window_s).items():
        if sum(buckets.values()) >= rule.least:
            yield Reading(f"node {node}", quantile(buckets, 0.99))


def _files(window: Window, rule: Rule, now: float) -> Iterator[Reading]:
    for told in window.present(now, SILENT_S):
        if told.max_open_files > 0:
            yield Reading(f"node {told.node}", 100 * told.open_files / told.max_open_files)


LOOKS: Final = {
    "latency": _latency,
    "acks": _acks,
    "behind": _behind,
    "append": _append,
    "relay": _relay,
    "sweep": _sweep,
    "rejects": _rejects,
    "strangers": _strangers,
    "silence": _silence,
    "late": _late,
    "bus": _bus,
    "store": _store,
    "store-failures": _store_failures,
    "disk": _disk,
    "disk-full": _disk,
    "node": _node,
    "loop": _loop,
    "files": _files,
}


def _defaults() -> tuple[Rule, ...]:
    document = tomllib.loads(Path(__file__).with_name("rules.toml").read_text("utf-8"))
    return tuple(_rule(name, table) for name, table in document.items())


def _rule(name: str, table: dict[str, Any]) -> Rule:
    words: dict[str, Any] = {word: Words(**table.pop(word)) for word in ("title", "means", "do")}
    own = table.pop(table.get("keyed", ""), {})
    return Rule(name=name, look=LOOKS[name], limits={key: Limit(**one) for key, one in own.items()}, **words, **table)


DEFAULTS: Final = _defaults()

# The operators' own bounds


def load(path: Path | None) -> tuple[Rule, ...]:
    """The rules as this file changes them; None changes nothing. Raises ConfigError with one sentence."""
    if path is None:
        return DEFAULTS
    try:
        document = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise ConfigError(f"VESTNIK_ALERTS {str(path)!r} cannot be read: {error.strerror}.") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise ConfigError(f"VESTNIK_ALERTS {str(path)!r} is not TOML: {error}.") from None
    try:
        return changed(document)
    except ValueError as error:
        raise ConfigError(f"VESTNIK_ALERTS {str(path)!r}: {error}.") from None


def changed(document: Mapping[str, Any]) -> tuple[Rule, ...]:
    """The rules as a document changes them. Raises ValueError that says where it is wrong."""
    rules = {rule.name: rule for rule in DEFAULTS}
    for name, table in document.items():
        if name not in rules:
            raise ValueError(f"there is no rule {_near(name, rules)}")
        if not isinstance(table, dict):
            raise ValueError(f"{name} must be a table")
        rules[name] = _changed(rules[name], table)
    return tuple(rules.values())


def _changed(rule: Rule, table: Mapping[str, Any]) -> Rule:
    values = dict(table)
    own = values.pop(rule.keyed, {}) if rule.keyed else {}
    known = [*_VALUES, *(["window_s"] if rule.window_s else []), *([rule.keyed] if rule.keyed else [])]
    checked = {key: _value(rule.name, key, value, known) for key, value in values.items()}
    if not isinstance(own, dict):
        raise ValueError(f"{rule.name}.{rule.keyed} must be a table")
    limits = dict(rule.limits)
    for key, one in own.items():
        place = f"{rule.name}.{rule.keyed}.{key}"
        if not (key in PRIORITIES if rule.keyed == "priority" else is_agency(key)):
            raise ValueError(f"{place}: {key!r} is no {rule.keyed}")
        if not isinstance(one, dict):
            raise ValueError(f"{place} must be a table")
        given = {name: _value(place, name, value, _OF_KEY) for name, value in one.items()}
        limits[key] = replace(rule.limit(key), **given)
    # What is set for a rule is meant for all that have no bound in the same file.
    if "bound" in checked:
        limits = {key: one if key in own else replace(one, bound=None) for key, one in limits.items()}
    return replace(rule, limits=limits, **checked)


_OF_KEY: Final = ("on", "bound", "severity")
_VALUES: Final = (*_OF_KEY, "hold_s", "clear_s", "least")


def _value(place: str, key: str, value: Any, known: Collection[str]) -> Any:
    if key not in known:
        raise ValueError(f"[{place}] has no {_near(key, known)}")
    if key == "on":
        good, must = isinstance(value, bool), "true or false"
    elif key == "severity":
        good, must = value in get_args(Severity), "critical or warning"
    elif key == "least":
        good, must = isinstance(value, int) and not isinstance(value, bool) and value >= 1, "a whole number from 1 on"
    else:
        good = isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value) and value >= 0
        must = "a number from 0 on"
        if key == "window_s":
            good, must = good and 15 <= value <= KEEP_S, f"seconds from 15 to {KEEP_S:.0f}"
    if not good:
        raise ValueError(f"[{place}] {key} must be {must}, got {value!r}")
    return float(value) if key not in ("on", "severity", "least") else value


def _near(word: str, known: Collection[str]) -> str:
    near = difflib.get_close_matches(word, known, 1)
    return f"{word!r}" + (f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}")


# The operators' page


def document() -> str:
    """The rules' part of ALERTS.md."""
    return "\n".join(line for rule in DEFAULTS for line in _section(rule))


def _section(rule: Rule) -> list[str]:
    return [
        f"### {rule.name}",
        "",
        f"**{rule.title.en}** ({rule.title.ru}). {_bound(rule)}; {_severity(rule)}.",
        "",
        rule.means.en,
        "",
        f"*At night:* {rule.do.en}",
        "",
    ]


def _severity(rule: Rule) -> str:
    return ", ".join(
        [rule.severity, *(f"{one.severity} for {key}" for key, one in rule.limits.items() if one.severity)]
    )


def _bound(rule: Rule) -> str:
    unit = {"s": " s", "1/s": " a second"}.get(rule.unit, rule.unit)
    others = [f"{key} {one.bound:g}{unit}" for key, one in rule.limits.items() if one.bound is not None]
    own = f" ({', '.join(others)})" if others else ""
    over = f" over {rule.window_s:g} s" if rule.window_s else ""
    least = f" with at least {rule.least:,} counted" if rule.least > 1 else ""
    hold = f"for {rule.hold_s:g} s" if rule.hold_s else "at once"
    way = "Below" if rule.below else "Above"
    return f"{way} {rule.bound:g}{unit}{own}{over}{least}, {hold}; resolved after {rule.clear_s:g} s"


if __name__ == "__main__":
    print(document(), end="")

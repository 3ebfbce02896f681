"""Alerts: the rules of `workers.rules` held against what the nodes tell (`ops:figures`); what fires and what is
resolved becomes an event of `ops:alerts`.

`Watch` is pure: it eats figures and says what changed. `Alerts` is the role around it: one in the whole installation
works, by its claim, and whoever takes over goes on from what `ops:alerts` says, so nothing fires twice.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from hashlib import blake2b
from typing import Any, Final, NamedTuple

import orjson

from gateway.bus.base import Bus
from gateway.errors import BusUnavailable
from gateway.logs import get_logger
from gateway.metrics import Counts
from gateway.opsfeeds import ALERTS, FIGURES, TYPES, draft
from gateway.publisher import as_message
from gateway.rfc3339 import format_time, parse_time
from gateway.store.base import Draft, Range, Row, Store, Stored
from workers.claims import Claim
from workers.rules import Reading, Rule, Severity, Words
from workers.window import LOOKBACK_S, Window, read

log = get_logger("alerts")

PAGE_EVENTS = 20  # figures in one step: with fifty agencies each takes half a millisecond of the loop
PAGE_BYTES = 1 << 20
PAGE_ALERTS = 200
KNOWN = 5_000  # newest alerts that are read after a restart: what fires longer ago than they reach fires once more
LONGEST_LOOK_S = 20.0  # between two looks; longer was an outage or a stopped process, and counts as no time at all
EVERY_S = 5.0


class State(StrEnum):
    OK = "ok"
    PENDING = "pending"  # bad, but not for long enough
    FIRING = "firing"
    CLEARING = "clearing"  # still told as firing; good, but not for long enough
    RESOLVED = "resolved"  # told; the next look begins at ok


class Move(NamedTuple):
    """From `state`, when the reading is `bad` (or not) and, if `held`, the state has lasted: to `to`."""

    state: State
    bad: bool
    held: bool
    to: State


MOVES: Final = (
    Move(State.OK, True, False, State.PENDING),
    Move(State.PENDING, False, False, State.OK),
    Move(State.PENDING, True, True, State.FIRING),
    Move(State.FIRING, False, False, State.CLEARING),
    Move(State.CLEARING, True, False, State.FIRING),
    Move(State.CLEARING, False, True, State.RESOLVED),
)
"""All of them; what is not here stays."""


def move(state: State, bad: bool, held: bool) -> State:
    for one in MOVES:
        if one.state is state and one.bad is bad and (held or not one.held):
            return one.to
    return state


Key = tuple[str, str]
"""Rule and subject."""


@dataclass(slots=True)
class Machine:
    """The state of one rule about one subject; `lasted` seconds so far. `told` is the alert that fired."""

    state: State = State.OK
    lasted: float = 0.0
    since: float = 0.0  # when it became bad
    told: Mapping[str, Any] | None = None


class Watch:
    """Eats figures, in the order of their feed, and the alerts of an earlier watch; `look` says what changed."""

    def __init__(self, rules: Sequence[Rule]):
        self.window = Window()
        self._rules = {rule.name: rule for rule in rules if rule.on}
        self._machines: dict[Key, Machine] = {}
        self._looked: float | None = None

    def figures(self, event: bytes, recorded: float, now: float) -> None:
        """Raises ValueError for what cannot be read, such as figures of a newer version."""
        self.window.add(read(event, recorded), now)

    def alert(self, data: Mapping[str, Any]) -> None:
        """What was told before, oldest first: the last word about each subject counts."""
        key = data["rule"], data["subject"]
        if data["state"] == State.RESOLVED:
            self._machines.pop(key, None)
            return
        self._machines[key] = Machine(State.FIRING, 0.0, parse_time(data["since"]), data)
        kind, _, code = data["subject"].partition(" ")
        if data["rule"] == "silence" and kind == "agency":
            self.window.expect(code, data["bound"])

    @property
    def firing(self) -> int:
        return sum(machine.told is not None for machine in self._machines.values())

    def look(self, now: float) -> list[dict[str, Any]]:
        """The data of the alerts that begin or end now (`gov.vestnik.alert`)."""
        self.window.forget(now)
        passed = 0.0 if self._looked is None else now - self._looked
        if not 0.0 <= passed <= LONGEST_LOOK_S:  # nobody looked, so nothing was held; or the clock was set
            passed = 0.0
        self._looked = now
        changes: list[dict[str, Any]] = []
        for rule in self._rules.values():
            readings = {one.subject: one for one in rule.look(self.window, rule, now) if rule.limit(one.key).on}
            known = [subject for name, subject in self._machines if name == rule.name]
            for subject in dict.fromkeys((*readings, *known)):
                changes += self._step(rule, subject, readings.get(subject), passed, now)
        for name, subject in [key for key in self._machines if key[0] not in self._rules]:  # turned off meanwhile
            told = self._machines.pop((name, subject)).told
            changes += [dict(told, state=State.RESOLVED.value)] if told is not None else []
        return changes

    def _step(
        self, rule: Rule, subject: str, reading: Reading | None, passed: float, now: float
    ) -> Iterable[dict[str, Any]]:
        """What cannot be judged any more is good."""
        bad, bound, severity = rule.judge(reading) if reading is not None else (False, rule.bound, rule.severity)
        machine = self._machines.get((rule.name, subject)) or Machine()
        machine.lasted += passed
        patience = rule.hold_s if machine.state is State.PENDING else rule.clear_s
        after = move(machine.state, bad, machine.lasted >= patience)
        if after is machine.state:
            return ()
        before, machine.state, machine.lasted = machine.state, after, 0.0
        self._machines[rule.name, subject] = machine
        if after is State.PENDING:
            machine.since = now
        elif after is State.FIRING and before is State.PENDING:
            assert reading is not None
            machine.told = _data(rule, subject, reading.value, bound, severity, machine.since)
            return [dict(machine.told)]
        elif after in (State.OK, State.RESOLVED):
            del self._machines[rule.name, subject]
            if machine.told is not None:
                value = {} if reading is None else {"value": _round(reading.value)}
                return [{**machine.told, "state": State.RESOLVED.value, **value}]
        return ()


def _data(rule: Rule, subject: str, value: float, bound: float, severity: Severity, since: float) -> dict[str, Any]:
    title, said = _titled(rule.title, subject), _said(rule, value, bound)
    return {
        "rule": rule.name,
        "subject": subject,
        "state": State.FIRING.value,
        "severity": severity,
        "since": format_time(since),
        "value": _round(value),
        "bound": _round(bound),
        "unit": rule.unit,
        "title": {"ru": title.ru, "en": title.en},
        "text": {
            "ru": _plain(said.ru, rule.means.ru, rule.do.ru),
            "en": _plain(said.en, rule.means.en, rule.do.en),
        },
    }


def _plain(*sentences: str) -> str:
    return " ".join(filter(None, sentences)).replace("`", "")


def _round(value: float) -> float:
    return round(value, 3)


_RUSSIAN: Final = {
    "agency": "ведомство",
    "node": "узел",
    "urgent": "срочные",
    "high": "важные",
    "normal": "обычные",
    "bulk": "массовые",
}


def _titled(title: Words, subject: str) -> Words:
    if not subject:
        return title
    kind, space, rest = subject.partition(" ")
    return Words(f"{title.ru}: {_RUSSIAN.get(kind, kind)}{space}{rest}", f"{title.en}: {subject}")


def _said(rule: Rule, value: float, bound: float) -> Words:
    """The numbers, where they say something: a bound of 0 is yes or no."""
    if not rule.unit and not bound:
        return Words("", "")
    unit = {"s": Words(" с", " s"), "1/s": Words(" в секунду", " a second"), "%": Words("%", "%")}
    after = unit.get(rule.unit, Words("", ""))
    return Words(
        f"Сейчас {value:.3g}{after.ru}, предел {bound:.3g}{after.ru}.",
        f"It is {value:.3g}{after.en}; the bound is {bound:.3g}{after.en}.",
    )


class Alerts:
    """Reads the figures that came, looks, and tells what changed.

    The events are made once and kept until the store has them, so a repeated append is one event. A process that loses
    its claim forgets all it knew."""

    name = "alerts"

    def __init__(
        self,
        store: Store,
        bus: Bus,
        claim: Claim,
        rules: Sequence[Rule],
        counts: Counts | None = None,
        *,
        every_s: float = EVERY_S,
        clock: Callable[[], float] = time.time,
    ):
        self.every_s = every_s
        self._store, self._bus, self._claim, self._rules, self._clock = store, bus, claim, rules, clock
        self._counts = Counts() if counts is None else counts
        self._watch: Watch | None = None
        self._position = 0
        self._waiting: list[Draft] = []

    async def step(self) -> bool:
        if not await self._claim.take():
            self._watch, self._waiting, self._counts.alerts_firing = None, [], 0
            return False
        now = self._clock()
        watch = self._watch or await self._begin(now)
        if await self._read(watch):
            return True
        if not self._waiting:
            self._waiting = [_draft(data, now) for data in watch.look(now)]
        self._counts.alerts_firing = watch.firing
        if self._waiting:
            await self._tell(now)
        return False

    async def _begin(self, now: float) -> Watch:
        """What fires according to the feed, and the past that tells what is usual."""
        watch = Watch(self._rules)
        heads = await self._store.heads([FIGURES, ALERTS])
        after, head = max(heads[ALERTS].oldest - 1, heads[ALERTS].head - KNOWN), heads[ALERTS].head
        while after < head:
            [page] = await self._store.read([Range(ALERTS, after, PAGE_ALERTS, PAGE_BYTES)])
            for row in page.rows:
                _remember(watch, row)
            after = page.rows[-1].offset if page.rows else head
        self._position = await self._since(FIGURES, heads[FIGURES].oldest, heads[FIGURES].head, now - LOOKBACK_S)
        self._watch, self._waiting = watch, []
        return watch

    async def _since(self, feed: str, oldest: int, head: int, time: float) -> int:
        """The position after which the feed's events were recorded at this time or later. 20 trips for a million."""
        low, high = oldest, head + 1
        while low < high:
            middle = (low + high) // 2
            [page] = await self._store.read([Range(feed, middle - 1, 1)])
            if page.rows and page.rows[0].recorded < time:
                low = max(middle, page.rows[0].offset) + 1
            else:
                high = middle
        return low - 1

    async def _read(self, watch: Watch) -> bool:
        """True when there may be more."""
        [page] = await self._store.read([Range(FIGURES, self._position, PAGE_EVENTS, PAGE_BYTES)])
        now = self._clock()
        for row in page.rows:
            if row.event is not None:
                try:
                    watch.figures(row.event, row.recorded, now)
                except ValueError as error:
                    log.debug("figures_unknown", offset=row.offset, error=str(error))
            self._position = row.offset
        return bool(page.rows) and self._position < page.head

    async def _tell(self, now: float) -> None:
        outcomes = await self._store.append(self._waiting, now)
        told, self._waiting = self._waiting, []
        for one in told:
            data = orjson.loads(one.event)["data"]
            self._counts.alerts[data["state"]] += 1
            log.warning("alert", **{name: data[name] for name in ("rule", "subject", "state", "severity", "value")})
        stored = [one for one in outcomes if isinstance(one, Stored)]
        try:
            await self._bus.publish([as_message(one) for one in stored])
        except BusUnavailable:
            return  # the relay repeats it, and sweeps find it
        await self._store.published([one.seq for one in stored])


def _remember(watch: Watch, row: Row) -> None:
    if row.event is None:
        return
    try:
        watch.alert(orjson.loads(row.event)["data"])
    except (KeyError, TypeError, ValueError) as error:
        log.warning("alert_unknown", offset=row.offset, error=str(error))


def _draft(data: Mapping[str, Any], now: float) -> Draft:
    words = "\0".join(str(data[name]) for name in ("rule", "subject", "state", "severity", "since"))
    urgent = data["state"] == State.FIRING and data["severity"] == "critical"
    id = blake2b(words.encode(), digest_size=16).hexdigest()
    return draft(ALERTS, TYPES[ALERTS], data, id=id, now=now, priority="urgent" if urgent else "high")

"""The state machine of an alert, what a watch tells, and the role around it."""

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.bus.memory import MemoryBus
from gateway.errors import StoreUnavailable
from gateway.metrics import Counts
from gateway.opsfeeds import ALERTS, FIGURES, TYPES
from gateway.store.base import Draft, Outcome, Range
from gateway.store.memory import MemoryStore
from gateway.types import registry
from tests.workers.figures import NOW, agency, drafted, event, figures
from tests.workers.test_relay import Ear
from workers import alerts
from workers.alerts import LONGEST_LOOK_S, MOVES, Alerts, State, Watch, move
from workers.claims import Claim
from workers.rules import DEFAULTS, changed

Map = dict[str, Any]
STEP_S = 5.0
HELD = {"bus": {"healthy": False}}
DISK = {"store": {"disk_free": 1}}


# The table


def test_a_move_says_where_from_where_to_and_when() -> None:
    assert move(State.OK, True, False) is State.PENDING
    assert move(State.PENDING, True, False) is State.PENDING
    assert move(State.PENDING, True, True) is State.FIRING
    assert move(State.FIRING, True, True) is State.FIRING
    assert move(State.FIRING, False, False) is State.CLEARING
    assert move(State.CLEARING, False, True) is State.RESOLVED
    assert move(State.CLEARING, True, True) is State.FIRING


def test_the_table_is_unambiguous() -> None:
    assert len({(one.state, one.bad) for one in MOVES}) == len(MOVES)
    assert {one.state for one in MOVES} == set(State) - {State.RESOLVED}, "which is the end"


# A watch


def watched(document: Map | None = None) -> Watch:
    return Watch(changed(document or {}))


def look(watch: Watch, at: float, *told: Map) -> list[tuple[str, str, str]]:
    """What changes when nodes tell this: (rule, subject, state)."""
    for data in told:
        watch.figures(event(data), NOW + at, NOW + at)
    found = watch.look(NOW + at)
    assert [registry()[TYPES[ALERTS]].faults(data) for data in found] == [[]] * len(found)
    return [(data["rule"], data["subject"], data["state"]) for data in found]


def fired(watch: Watch, *told: Map, at: float = 0.0) -> list[Map]:
    """What fires while nodes tell the same for four minutes."""
    found: list[Map] = []
    for number in range(48):
        for data in told:
            watch.figures(event(data), NOW + at + STEP_S * number, NOW + at + STEP_S * number)
        found += watch.look(NOW + at + STEP_S * number)
    return found


def test_what_is_bad_fires_when_it_stays_so_and_is_resolved_when_it_stays_good() -> None:
    watch = watched()
    assert look(watch, 0, figures(**HELD)) == []
    assert look(watch, 5, figures(**HELD)) == []
    assert look(watch, 10, figures(**HELD)) == [("bus", "node n1", "firing")]
    assert watch.firing == 1
    assert look(watch, 15, figures(**HELD)) == []
    for at in range(20, 50, 5):
        assert look(watch, at, figures()) == []
    assert look(watch, 50, figures()) == [("bus", "node n1", "resolved")]
    assert watch.firing == 0
    assert look(watch, 55, figures()) == []


def test_what_comes_and_goes_does_not_flap() -> None:
    watch = watched()
    for at in range(0, 200, 10):
        assert look(watch, at, figures(**HELD)) == []
        assert look(watch, at + 5, figures()) == [], "never bad for long enough"
    for at in (200, 205, 210):
        told = look(watch, at, figures(**HELD))
    assert told == [("bus", "node n1", "firing")]
    for at in range(215, 400, 20):
        for later in (0, 5, 10):
            assert look(watch, at + later, figures()) == [], "never good for long enough"
        assert look(watch, at + 15, figures(**HELD)) == []


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.booleans(), st.floats(0, 60)), max_size=80),
    st.floats(0, 60),
    st.floats(0, 60),
)
def test_whatever_happens_firing_and_resolved_take_turns(
    looks: list[tuple[bool, float]], hold_s: float, clear_s: float
) -> None:
    watch = watched({"bus": {"hold_s": hold_s, "clear_s": clear_s}, "node": {"on": False}})
    now, told, bad_for, good_for = NOW, [], 0.0, 0.0
    for healthy, pause in looks:
        watch.figures(event(figures(bus={"healthy": healthy})), now, now)
        for data in watch.look(now):
            told.append(data["state"])
            assert (bad_for >= hold_s) if data["state"] == "firing" else (good_for >= clear_s)
        bad_for = 0.0 if healthy else bad_for + pause
        good_for = good_for + pause if healthy else 0.0
        now += pause
    assert told == [("firing", "resolved")[number % 2] for number in range(len(told))]


def test_time_in_which_nobody_looked_does_not_count() -> None:
    watch = watched()
    look(watch, 0, figures(**HELD))
    assert look(watch, LONGEST_LOOK_S + 1, figures(**HELD)) == []
    assert look(watch, 5, figures(**HELD)) == [], "the clock was set back"
    assert look(watch, 15, figures(**HELD)) == [("bus", "node n1", "firing")]


def test_what_can_not_be_judged_any_more_is_resolved() -> None:
    watch = watched({"node": {"on": False}})
    for at in (0, 5, 10):
        told = look(watch, at, figures(**HELD))
    assert told == [("bus", "node n1", "firing")]
    assert [one for at in range(15, 90, 5) for one in look(watch, at)] == [("bus", "node n1", "resolved")]


def test_a_node_that_died_and_one_that_takes_its_place() -> None:
    watch = watched()
    both = [figures("n1"), figures("n2")]
    look(watch, 0, *both)
    for at in range(5, 25, 5):
        assert look(watch, at, both[1]) == []
    assert look(watch, 25, both[1]) == []
    assert look(watch, 30, both[1]) == []
    assert look(watch, 35, both[1]) == [("node", "node n1", "firing")]
    new = figures("n3", started=NOW + 40)
    assert look(watch, 45, both[1], new) == []
    assert look(watch, 50, both[1], new) == [("node", "node n1", "resolved")]


def test_two_ways_of_one_disk() -> None:
    told = [(data["rule"], data["severity"]) for data in fired(watched(), figures(**DISK))]
    assert told == [("disk-full", "critical"), ("disk", "warning")]


def test_a_rule_that_is_off_tells_nothing() -> None:
    assert not fired(watched({"disk": {"on": False}, "disk-full": {"on": False}}), figures(**DISK))
    late = figures(agencies={code: agency(50, NOW, [[None, 50]]) for code in ("fns", "mvd")})
    found = fired(watched({"late": {"agency": {"fns": {"on": False}}}}), late)
    assert [data["subject"] for data in found] == ["agency mvd"]


def test_what_an_alert_says() -> None:
    slow = figures(to_socket={"urgent": [[2.0, 40]]})
    [data] = fired(watched(), slow)
    assert {name: data[name] for name in data if name not in ("title", "text")} == {
        "rule": "latency",
        "subject": "urgent",
        "state": "firing",
        "severity": "critical",
        "since": "2027-01-15T08:00:00.000Z",
        "value": 1.99,
        "bound": 0.5,
        "unit": "s",
    }
    assert data["title"] == {"ru": "Медленная доставка: срочные", "en": "Slow delivery: urgent"}
    assert data["text"]["en"].startswith("It is 1.99 s; the bound is 0.5 s. The 99th percentile")
    assert data["text"]["ru"].startswith("Сейчас 1.99 с, предел 0.5 с. 99-й")
    assert "`" not in data["text"]["en"]
    refused = figures(agencies={"fns": agency(0, None, None, unsigned=40)})
    [data] = fired(watched(), refused)
    assert data["title"] == {
        "ru": "Отказы ведомству: ведомство fns unsigned",
        "en": "An agency is refused: agency fns unsigned",
    }
    [data] = fired(watched(), figures(**HELD))
    assert data["text"]["en"].startswith("The probe does not"), "there is nothing to say in numbers"


@pytest.mark.parametrize("rule", DEFAULTS, ids=lambda rule: rule.name)
def test_the_words_of_every_rule_can_be_told(rule: Any) -> None:
    data = alerts._data(rule, "node n1", 1234.5678, 99.0, "warning", NOW)
    assert not registry()[TYPES[ALERTS]].faults(data)
    assert "  " not in data["text"]["en"] + data["text"]["ru"]
    assert data["value"] == 1234.568


def test_fifty_agencies_and_eight_nodes_are_told_apart() -> None:
    agencies = {f"a{number}": agency(10, NOW, [[None, 10]], invalid=10, unsigned=10) for number in range(50)}
    nodes = [figures(f"n{number}", **HELD, agencies=agencies if number == 0 else {}) for number in range(8)]
    told = fired(watched(), *nodes)
    assert len(told) == len({(data["rule"], data["subject"]) for data in told}) == 8 + 50 * 3


# After a restart


def test_what_fires_already_does_not_fire_again() -> None:
    before = watched()
    told = fired(before, figures(**HELD))
    after = watched()
    for data in told:
        after.alert(data)
    assert after.firing == 1
    assert not fired(after, figures(**HELD), at=240)
    found = fired(after, figures(), at=480)
    assert [(data["state"], data["since"]) for data in found] == [("resolved", told[0]["since"])]


def test_what_was_resolved_before_may_fire_again() -> None:
    before = watched()
    told = [*fired(before, figures(**HELD)), *fired(before, figures(), at=240)]
    assert [data["state"] for data in told] == ["firing", "resolved"]
    after = watched()
    for data in told:
        after.alert(data)
    assert [data["state"] for data in fired(after, figures(**HELD), at=480)] == ["firing"]


def test_what_fires_of_a_rule_that_was_turned_off_is_resolved() -> None:
    [told] = fired(watched(), figures(**HELD))
    after = watched({"bus": {"on": False}})
    after.alert(told)
    assert look(after, 240, figures(**HELD)) == [("bus", "node n1", "resolved")]
    assert look(after, 245, figures(**HELD)) == []


def test_an_agency_stays_silent_when_nobody_remembers_its_habit() -> None:
    watch = watched()
    for number in range(20):
        look(watch, 5 * number, figures(agencies={"fns": agency(1, NOW + 5 * number)}))
    quiet = figures(agencies={"fns": agency(0, NOW + 95)})
    told = [data for at in range(100, 760, 5) for data in _looked(watch, at, quiet)]
    assert [(data["rule"], data["subject"], data["bound"]) for data in told] == [("silence", "agency fns", 600)]
    after = watched()
    after.alert(told[0])
    for at in range(4 * 3600, 4 * 3600 + 60, 5):
        assert look(after, at, quiet) == []
    heard = figures(agencies={"fns": agency(1, NOW + 4 * 3600 + 60)})
    assert look(after, 4 * 3600 + 60, heard) == []
    assert look(after, 4 * 3600 + 65, figures()) == [("silence", "agency fns", "resolved")]


def _looked(watch: Watch, at: float, data: Map) -> list[Map]:
    watch.figures(event(data), NOW + at, NOW + at)
    return watch.look(NOW + at)


# The role


class Clock:
    def __init__(self) -> None:
        self.now = NOW

    def __call__(self) -> float:
        return self.now


class Failing(MemoryStore):
    """Fails so many appends: before they are done, or after."""

    fails, after = 0, False

    async def append(self, drafts: Sequence[Draft], now: float) -> list[Outcome]:
        if not self.fails:
            return await super().append(drafts, now)
        self.fails -= 1
        if self.after:
            await super().append(drafts, now)
        raise StoreUnavailable("no answer")


class Installation:
    """A store, a bus that somebody hears, and a clock in the hand."""

    def __init__(self) -> None:
        self.store, self.bus, self.ear, self.clock = Failing(), MemoryBus(), Ear(), Clock()
        self.counts = Counts()

    async def open(self) -> None:
        await self.store.open()
        await self.bus.open(self.ear)
        await self.bus.subscribe([ALERTS])

    def role(self, document: Map | None = None) -> Alerts:
        claim = Claim(self.store, "alerts", 15.0, self.clock)
        return Alerts(self.store, self.bus, claim, changed(document or {}), self.counts, clock=self.clock)

    async def tell(self, *told: Map) -> None:
        drafts = [drafted(data, f"{data['node']}-{self.clock.now}", self.clock.now) for data in told]
        await self.store.append(drafts, self.clock.now)

    async def pass_by(self, role: Alerts, *told: Map, seconds: float = 60.0) -> None:
        """Nodes tell the same all the time, and the role looks."""
        for _ in range(int(seconds / STEP_S)):
            self.clock.now += STEP_S
            await self.tell(*told)
            while await role.step():
                pass

    async def alerts(self) -> list[tuple[str, str, str]]:
        [page] = await self.store.read([Range(ALERTS, 0, 1000, 1 << 24)])
        found = [json.loads(row.event)["data"] for row in page.rows if row.event]
        return [(data["rule"], data["subject"], data["state"]) for data in found]


@pytest.fixture
async def installation() -> AsyncIterator[Installation]:
    made = Installation()
    await made.open()
    yield made
    await made.bus.close()
    await made.store.close()


FIRED = ("bus", "node n1", "firing")
RESOLVED = ("bus", "node n1", "resolved")


async def test_an_alert_is_stored_published_and_counted(installation: Installation) -> None:
    role = installation.role()
    await installation.pass_by(role, figures(**HELD))
    assert await installation.alerts() == [FIRED]
    [message] = installation.ear.messages
    assert (message.feed, message.offset, message.priority) == (ALERTS, 1, 0)
    assert await installation.store.unpublished(installation.clock.now + 1, 1000) != [], "the figures"
    assert ALERTS not in {one.feed for one in await installation.store.unpublished(installation.clock.now + 1, 1000)}
    assert installation.counts.alerts_firing == 1
    await installation.pass_by(role, figures())
    assert await installation.alerts() == [FIRED, RESOLVED]
    assert installation.ear.messages[1].priority == 1
    assert (installation.counts.alerts_firing, installation.counts.alerts) == (0, {"firing": 1, "resolved": 1})


async def test_a_warning_is_not_urgent(installation: Installation) -> None:
    await installation.pass_by(installation.role(), figures(open_files=900))
    assert [message.priority for message in installation.ear.messages] == [1]


async def test_after_a_restart_it_goes_on(installation: Installation) -> None:
    await installation.pass_by(installation.role(), figures(**HELD))
    installation.clock.now += 16  # the claim of the one that died
    again = installation.role()
    await installation.pass_by(again, figures(**HELD))
    assert await installation.alerts() == [FIRED]
    await installation.pass_by(again, figures())
    assert await installation.alerts() == [FIRED, RESOLVED]


async def test_of_two_one_watches_and_the_other_takes_over(installation: Installation) -> None:
    one, other = installation.role(), installation.role()
    for _ in range(6):
        await installation.pass_by(one, figures(**HELD), seconds=5)
        assert not await other.step()
    assert await installation.alerts() == [FIRED]
    await installation.pass_by(other, figures(**HELD))
    await installation.pass_by(other, figures())
    assert not await one.step()
    assert await installation.alerts() == [FIRED, RESOLVED]
    assert one._watch is None


async def test_the_past_is_read_in_pieces_and_no_further_back_than_it_says_something(
    installation: Installation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(alerts, "PAGE_EVENTS", 7)
    monkeypatch.setattr(alerts, "LOOKBACK_S", 100.0)
    for _ in range(40):
        installation.clock.now += STEP_S
        await installation.tell(figures(agencies={"fns": agency(1, installation.clock.now)}))
    role = installation.role()
    steps = 1
    while await role.step():
        steps += 1
    assert steps == 3, "21 figures"
    assert role._watch is not None
    assert role._watch.window.begun == installation.clock.now - 100
    assert role._watch.window.habits["fns"].usual == 5


async def test_only_so_many_alerts_are_read_back(installation: Installation, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(alerts, "KNOWN", 1)
    both = figures("n1", **HELD, open_files=1000)
    await installation.pass_by(installation.role(), both)
    assert len(await installation.alerts()) == 2
    installation.clock.now += 16
    again = installation.role()
    await again.step()
    assert again._watch is not None
    assert again._watch.firing == 1


@pytest.mark.parametrize("after", [False, True])
async def test_an_append_without_an_answer_is_one_alert(installation: Installation, after: bool) -> None:
    role = installation.role()
    for _ in range(2):
        await installation.pass_by(role, figures(**HELD), seconds=5)
    installation.clock.now += STEP_S
    await installation.tell(figures(**HELD))
    installation.store.fails, installation.store.after = 2, after
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            await role.step()
        installation.clock.now += 1
    await role.step()
    assert await installation.alerts() == [FIRED]
    assert installation.counts.alerts == {"firing": 1}
    await installation.pass_by(role, figures(**HELD))
    assert await installation.alerts() == [FIRED]


async def test_without_a_bus_the_relay_has_it(installation: Installation) -> None:
    await installation.bus.close()
    await installation.pass_by(installation.role(), figures(**HELD))
    assert await installation.alerts() == [FIRED]
    waiting = await installation.store.unpublished(installation.clock.now + 1, 1000)
    assert [one.offset for one in waiting if one.feed == ALERTS] == [1]


async def test_what_it_cannot_read_is_passed_over(installation: Installation) -> None:
    strange = [drafted(figures(), "x", NOW)]
    await installation.store.append([Draft(**{**_fields(strange[0]), "event": b'{"data":{"node":1}}'})], NOW)
    await installation.store.append(
        [Draft(**{**_fields(strange[0]), "key": b"k" * 16, "feed": ALERTS, "event": b'{"data":{"rule":"bus"}}'})], NOW
    )
    role = installation.role()
    assert not await role.step()
    assert role._position == 1


def _fields(draft: Draft) -> Map:
    return {name: getattr(draft, name) for name in Draft.__dataclass_fields__}


async def test_a_feed_without_figures(installation: Installation) -> None:
    role = installation.role()
    assert not await role.step()
    assert (await installation.store.heads([FIGURES]))[FIGURES].head == 0
    assert await installation.alerts() == []

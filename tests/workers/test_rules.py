"""What each rule sees, and how operators change it."""

from pathlib import Path
from typing import Any

import pytest

from gateway.errors import ConfigError
from gateway.metrics import LATE_S
from tests.workers.figures import NOW, agency, figures
from tests.workers.test_window import window
from workers.rules import DEFAULTS, LOOKS, MANY, Reading, Rule, changed, document, load
from workers.window import KEEP_S

ROOT = Path(__file__).parents[2]
NOT_RULES = ("unsigned", "invalid", "quota", "top", "LimitNOFILE")  # that are spoken of beside rules
RULES = {rule.name: rule for rule in DEFAULTS}
Told = dict[str, Any]


def bad(name: str, *told: Told, rules: dict[str, Rule] = RULES, after: float = 0.0) -> dict[str, float]:
    """What the rule finds bad: value by subject. The figures are five seconds apart, `after` is since the last."""
    seen = window(*((NOW + 5 * number, data) for number, data in enumerate(told)))
    now, rule = NOW + 5 * (len(told) - 1) + after, rules[name]
    return {one.subject: one.value for one in rule.look(seen, rule, now) if rule.judge(one)[0]}


QUIET = [figures("n1"), figures("n2")] * 3


@pytest.mark.parametrize("name", RULES)
def test_a_quiet_installation_is_good(name: str) -> None:
    assert not bad(name, *QUIET)


@pytest.mark.parametrize("name", RULES)
def test_an_installation_of_which_nothing_is_known_is_good(name: str) -> None:
    rule = RULES[name]
    assert not [one for one in rule.look(window(), rule, NOW) if rule.judge(one)[0]]


def buckets(**counts: int) -> list[list[float | int]]:
    return [[float(bound.removeprefix("le_").replace("_", ".")), count] for bound, count in counts.items()]


FAST, SLOW = buckets(le_0_01=100), buckets(le_0_01=90, le_2_0=10)
DELIVERED = {"urgent": 0, "high": 0, "normal": 1000, "bulk": 0}


@pytest.mark.parametrize(
    ("name", "good", "worse", "subjects"),
    [
        ("latency", {"to_socket": {"urgent": FAST}}, {"to_socket": {"urgent": SLOW, "normal": SLOW}}, {"urgent"}),
        ("latency", {"to_socket": {"high": buckets(le_2_0=19)}}, {"to_socket": {"high": SLOW}}, {"high"}),
        ("acks", {"delivered": DELIVERED, "acks": 16}, {"delivered": DELIVERED, "acks": 14}, {""}),
        ("behind", {"sessions": 100, "behind": 20}, {"sessions": 100, "behind": 21}, {""}),
        ("append", {"append": FAST}, {"append": SLOW}, {""}),
        ("relay", {"relayed": 300}, {"relayed": 301}, {""}),
        ("sweep", {"sweep_behind": 150}, {"sweep_behind": 151}, {""}),
        (
            "rejects",
            {"agencies": {"fns": agency(191, invalid=9), "mvd": agency(380, NOW, invalid=20)}},
            {"agencies": {"fns": agency(90, unsigned=10, invalid=1)}},
            {"agency fns unsigned"},
        ),
        (
            "strangers",
            {"rejected": {"unsigned": 400, "quota": 10}, "agencies": {"fns": agency(0, unsigned=200)}},
            {"rejected": {"unsigned": 400, "quota": 101}, "agencies": {"fns": agency(0, unsigned=200)}},
            {""},
        ),
        (
            "late",
            {"agencies": {"fns": agency(20, NOW, buckets(le_60_0=19, le_600_0=1))}},
            {"agencies": {"fns": agency(20, NOW, buckets(le_60_0=18, le_600_0=2)), "mvd": agency(5)}},
            {"agency fns"},
        ),
        ("bus", {}, {"bus": {"healthy": False}}, {"node n1"}),
        (
            "store",
            {"store": {"ready": False}, "seconds": 15.0},
            {"store": {"ready": False}, "seconds": 15.5},
            {"node n1"},
        ),
        ("store-failures", {"store": {"failures": 5}}, {"store": {"failures": 6}}, {"node n1"}),
        ("disk", {"store": {"disk_free": 10}}, {"store": {"disk_free": 9}}, {"node n1"}),
        ("disk", {"store": {"disk_free": None}}, {"store": {"disk_free": 0}}, {"node n1"}),
        ("disk-full", {"store": {"disk_free": 5}}, {"store": {"disk_free": 4}}, {"node n1"}),
        ("loop", {"loop_lag": buckets(le_0_2=50)}, {"loop_lag": buckets(le_0_01=45, le_0_5=5)}, {"node n1"}),
        ("files", {"open_files": 850}, {"open_files": 851}, {"node n1"}),
        ("files", {"max_open_files": 0}, {"open_files": 999}, {"node n1"}),
    ],
)
def test_each_side_of_a_bound(name: str, good: Told, worse: Told, subjects: set[str]) -> None:
    assert not bad(name, figures(**good))
    assert set(bad(name, figures("n2"), figures("n1", **worse))) == subjects


def test_a_node_that_tells_nothing_any_more() -> None:
    told = [figures("n1"), figures("n2"), figures("n2")]
    assert not bad("node", *told, after=10)
    assert bad("node", *told, figures("n2"), figures("n2"), after=1) == {"node n1": 21}
    # What it said last is no news.
    sick = figures("n1", bus={"healthy": False}, store={"disk_free": 0}, open_files=1000)
    for name in ("bus", "disk", "disk-full", "files"):
        assert bad(name, sick, after=20)
        assert not bad(name, sick, after=21), name


def busy(pause_s: float, events: int = 12) -> list[tuple[float, Told]]:
    times = [NOW + pause_s * number for number in range(events)]
    return [(time, figures(agencies={"fns": agency(1, time)})) for time in times]


def silence(rule: Rule, now: float, *told: tuple[float, Told]) -> list[Reading]:
    return [one for one in rule.look(window(*told), rule, now) if rule.judge(one)[0]]


def test_an_agency_is_silent_after_many_of_its_usual_pauses() -> None:
    rule, told = RULES["silence"], busy(300)
    last = told[-1][0]
    assert not silence(rule, last + 300 * MANY, *told)
    assert silence(rule, last + 300 * MANY + 1, *told) == [Reading("agency fns", 901, "fns", 900)]


def test_an_agency_that_never_pauses_may_pause_for_a_while() -> None:
    rule, told = RULES["silence"], busy(5)
    assert not silence(rule, told[-1][0] + rule.bound, *told)
    assert silence(rule, told[-1][0] + rule.bound + 1, *told)


def test_an_agency_that_sends_seldom_is_judged_by_its_own_bound_only() -> None:
    told = busy(3000, 3)
    assert not silence(RULES["silence"], told[-1][0] + 1e6, *told)
    own = {rule.name: rule for rule in changed({"silence": {"agency": {"fns": {"bound": 3600}}}})}["silence"]
    assert not silence(own, told[-1][0] + 3600, *told)
    [found] = silence(own, told[-1][0] + 3601, *told)
    assert found.bound == 3600


def test_an_agency_that_was_never_heard_is_silent_from_when_we_know() -> None:
    own = {rule.name: rule for rule in changed({"silence": {"agency": {"fns": {"bound": 60}}}})}["silence"]
    never = (NOW, figures(agencies={"fns": agency()}))
    assert not silence(own, NOW + 60, never)
    assert silence(own, NOW + 61, never)


# The rules as data


def test_every_rule_looks_at_something_and_has_words() -> None:
    assert list(RULES) == list(LOOKS)
    for rule in DEFAULTS:
        for words in (rule.title, rule.means, rule.do):
            assert words.ru
            assert words.en
        assert rule.window_s <= KEEP_S
        assert rule.unit in ("s", "1/s", "%", "")
    assert f"{LATE_S:.0f} s" in RULES["late"].means.en
    assert f"{MANY:.0f} of its usual pauses" in RULES["silence"].means.en


def test_the_operators_page_is_made_from_them() -> None:
    page = (ROOT / "gateway" / "deploy" / "ALERTS.md").read_text("utf-8")
    assert page.partition("## The rules\n\n")[2].rstrip("\n") == document().rstrip("\n"), "python -m workers.rules"


def test_what_a_rule_says_about_another_exists() -> None:
    for rule in DEFAULTS:
        for word in rule.do.en.split("`")[1::2]:
            assert not word.isalpha() or word in {*RULES, *NOT_RULES}, word


# The operators' own file


def test_without_a_file_nothing_changes() -> None:
    assert load(None) is DEFAULTS
    assert changed({}) == DEFAULTS


def test_a_file_changes_what_it_names(tmp_path: Path) -> None:
    file = tmp_path / "alerts.toml"
    file.write_text(
        "[latency]\nhold_s = 120\n[latency.priority.urgent]\nbound = 0.3\n[latency.priority.bulk]\non = false\n"
        '[silence.agency.fns]\nbound = 3600\nseverity = "critical"\n[strangers]\non = false\n'
    )
    rules = {rule.name: rule for rule in load(file)}
    latency = rules["latency"]
    assert (latency.hold_s, latency.bound) == (120, RULES["latency"].bound)
    assert latency.judge(Reading("urgent", 0.4, "urgent")) == (True, 0.3, "critical")
    assert latency.judge(Reading("normal", 4.0, "normal")) == (False, 60.0, "warning")
    assert not latency.limit("bulk").on
    assert rules["silence"].judge(Reading("agency fns", 1, "fns", 3600)) == (False, 3600, "critical")
    assert not rules["strangers"].on
    assert {name: rule for name, rule in rules.items() if name not in ("latency", "silence", "strangers")} == {
        name: rule for name, rule in RULES.items() if name not in ("latency", "silence", "strangers")
    }


def test_a_bound_for_a_rule_is_for_all_priorities_that_the_file_does_not_name() -> None:
    latency = {rule.name: rule for rule in changed({"latency": {"bound": 2, "priority": {"bulk": {"bound": 60}}}})}[
        "latency"
    ]
    bounds = {word: latency.judge(Reading(word, 0, word))[1:] for word in ("urgent", "high", "normal", "bulk")}
    assert bounds == {
        "urgent": (2, "critical"),
        "high": (2, "warning"),
        "normal": (2, "warning"),
        "bulk": (60, "warning"),
    }


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[latancy]", "no rule 'latancy'; did you mean latency?"),
        ("[zzz]", "no rule 'zzz'; there are latency, acks"),
        ("latency = 3", "latency must be a table"),
        ("[latency]\nbounds = 3", "[latency] has no 'bounds'; did you mean bound?"),
        ('[latency]\nbound = "3"', "[latency] bound must be a number from 0 on, got '3'"),
        ("[latency]\nbound = true", "[latency] bound must be a number from 0 on, got True"),
        ("[latency]\nbound = nan", "[latency] bound must be a number from 0 on, got nan"),
        ("[latency]\nhold_s = -1", "[latency] hold_s must be a number from 0 on, got -1"),
        ("[latency]\nwindow_s = 5", "[latency] window_s must be seconds from 15 to 900, got 5"),
        ("[bus]\nwindow_s = 60", "[bus] has no 'window_s'"),
        ("[latency]\nleast = 0.5", "[latency] least must be a whole number from 1 on, got 0.5"),
        ('[latency]\nseverity = "loud"', "[latency] severity must be critical or warning, got 'loud'"),
        ("[latency]\non = 1", "[latency] on must be true or false, got 1"),
        ("[latency]\npriority = 1", "latency.priority must be a table"),
        ("[latency.priority]\nurgent = 1", "latency.priority.urgent must be a table"),
        ("[latency.priority.slow]\nbound = 1", "'slow' is no priority"),
        ("[silence.agency.ФНС]\nbound = 1", "is no agency"),
        ("[silence.agency.fns]\nhold_s = 1", "[silence.agency.fns] has no 'hold_s'"),
        ("[disk.agency.fns]\nbound = 1", "[disk] has no 'agency'"),
        ("[latency", "is not TOML"),
    ],
)
def test_a_wrong_file_is_one_sentence(text: str, says: str, tmp_path: Path) -> None:
    file = tmp_path / "alerts.toml"
    file.write_text(text if text.isascii() else text.replace("ФНС", '"ФНС"'))
    with pytest.raises(ConfigError) as refused:
        load(file)
    sentence = str(refused.value)
    assert sentence.startswith(f"VESTNIK_ALERTS '{file}'")
    assert says in sentence
    assert "\n" not in sentence


def test_a_file_that_cannot_be_read_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        load(tmp_path / "nothing.toml")
    (tmp_path / "binary").write_bytes(b"\xff\xfe")
    with pytest.raises(ConfigError, match="is not TOML"):
        load(tmp_path / "binary")

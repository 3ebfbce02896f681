"""Scenarios are data: every file is read, and everything wrong in one is a sentence."""

import pytest

from gateway.types import PRIORITIES as TYPES
from gateway.types import registry
from loadtests.run import plain
from loadtests.scenario import HABITS, HERE, PRIORITIES, PUBLIC, Curve, WrongScenario, load, names, parse
from loadtests.verdict import Measures

NAMES = (
    "bulk_and_urgent",
    "deadline_rush",
    "flaky_mobile",
    "month_start",
    "morning_peak",
    "public_notice",
    "reconnect_storm",
    "slow_readers",
    "soak",
    "to_the_limit",
)
GOOD = {"says": "…", "phones": {"curve": [[0, 1]]}, "posts": [{"type": "gov.code.sent", "rate": [[0, 1]]}]}


def test_all_are_there() -> None:
    assert names() == list(NAMES)


@pytest.mark.parametrize("name", NAMES)
def test_each_promises_and_can_be_measured(name: str) -> None:
    one = load(name)
    assert one.says
    assert {bound.what for bound in one.bounds} >= {"lost", "reordered"}
    for bound in one.bounds:
        Measures(one, 0.0).check(bound)  # a word that is none raises KeyError
    assert one.busy <= 60 or name == "soak"
    assert one.phones.top <= 2000


def test_twenty_bulk_to_one_urgent() -> None:
    urgent, bulk = load("bulk_and_urgent").posts
    assert (urgent.priority, bulk.priority) == ("urgent", "bulk")
    assert bulk.rate.top == 20 * urgent.rate.top


def test_priorities_are_the_gateway_s() -> None:
    for name, priority in PRIORITIES.items():
        assert TYPES[registry()[name].priority] == priority
        assert (registry()[name].audience == "public") == (name in PUBLIC)


def test_a_scale_changes_the_story_evenly() -> None:
    one = load("reconnect_storm")
    more = one.scaled(phones=2, rate=3, time=0.5)
    assert more.phones.top == 2 * one.phones.top
    assert more.busy == one.busy / 2
    assert more.posts[0].rate.top == 3 * one.posts[0].rate.top
    assert more.faults[0].at == one.faults[0].at / 2
    assert more.settle == one.settle


def test_curves() -> None:
    curve = Curve([[2, 0], [4, 10], [4, 20], [6, 20]])
    assert [curve.at(now) for now in (0, 1.9, 2, 3, 3.999, 4, 5, 9)] == [0, 0, 0, 5, pytest.approx(9.995), 20, 20, 20]
    assert [curve.area(now) for now in (1, 2, 4, 6, 7)] == [0, 0, 10, 50, 70]
    assert curve.scaled(2, 3).area(12) == 50 * 6


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"phones": {"curve": [[2, 1], [1, 1]]}}, "rising time"),
        ({"phones": {"curve": [[0, -1]]}}, "negative"),
        ({"phones": {"curve": [[0, 1]], "mix": {"lazy": 1}}}, "no habit 'lazy'"),
        ({"phones": {"curve": [[0, 1]], "mix": {"slow": 0}}}, "somebody"),
        ({"phones": {"curve": [[0, 1]], "more": 1}}, "no 'more'"),
        ({"agencies": 0}, "from 1 to 64"),
        ({"posts": [{"type": "gov.nothing", "rate": [[0, 1]]}]}, "no type"),
        ({"posts": [{"type": "gov.code.sent", "rate": [[0, 1]], "batch": 1001}]}, "1 to 1000"),
        ({"faults": [{"at": 1, "name": "rain"}]}, "no fault 'rain'"),
        ({"bounds": [{"what": "lost"}]}, "says nothing"),
        ({"bounds": [{"what": "lost", "most": 0, "window": "never"}]}, "no window"),
        ({"extra": 1}, "the file has no 'extra'"),
    ],
)
def test_what_is_wrong_is_said(change: dict[str, object], words: str) -> None:
    with pytest.raises(WrongScenario, match=words):
        parse("test", {**GOOD, **change})


def test_a_name_that_is_none() -> None:
    with pytest.raises(WrongScenario, match="choose from bulk_and_urgent"):
        load("nothing")
    with pytest.raises(WrongScenario, match="cannot be read"):
        load(str(HERE / "nothing.toml"))


def test_without_a_scenario_all_goes_on() -> None:
    one = plain(20, 0.2, 0.3, 2)
    assert set(one.mix) <= set(HABITS)
    assert sum(posts.rate.area(100) for posts in one.posts) == pytest.approx(2020)

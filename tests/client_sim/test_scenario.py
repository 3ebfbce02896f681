"""Scenario files: those that ship are right, and a wrong one is one sentence."""

from pathlib import Path

import pytest

from client_sim.measure import Tally
from client_sim.run import Outcome
from client_sim.scenario import BOUNDS, WrongScenario, check, load, names, roster

GOOD = 'says = "x"\n[fleet]\ndevices = 3\nseconds = 5\n'


def test_the_ones_that_were_asked_for_are_there():
    wanted = {"subway", "office_proxy", "month_start", "deploy_storm", "agency_outage", "hostile", "family"}
    assert set(names()) >= wanted


@pytest.mark.parametrize("name", names())
def test_one_that_ships_is_right_and_has_bounds(name):
    scenario = load(name)
    assert scenario.says.endswith(".")
    assert len(scenario.bounds) >= 3
    assert all(fault.at + fault.for_s < scenario.plan.seconds for fault in scenario.plan.faults)
    assert scenario.plan.settle_s > scenario.bounds["settled_s"]


def test_family_is_five_devices_of_one_account():
    people = load("family").plan.roster
    assert (people.devices, people.accounts) == (5, 1)


def test_a_file_of_ones_own(tmp_path: Path):
    file = tmp_path / "mine.toml"
    file.write_text(GOOD + "[gateway]\nbeat_s = 2\n[[faults]]\nat = 1\nname = 'kill'\nfor = 2\n[bounds]\np99_s = 1\n")
    scenario = load(str(file))
    assert scenario.name == "mine"
    assert scenario.settings == {"beat_s": "2"}
    assert scenario.bounds == {"p99_s": 1}
    assert [(fault.name, fault.at, fault.for_s) for fault in scenario.plan.faults] == [("kill", 1, 2)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("says = ", "cannot be read"),
        ("[fleet]\ndevices = 3\nseconds = 5\n", "the file needs 'says'"),
        (GOOD + "colour = 'red'\n", r"\[fleet\] has no 'colour'"),
        (GOOD + "behaviour = 'flying'\n", "no behaviour 'flying'"),
        (GOOD + "accounts = 0\n", "`accounts` must be from 1"),
        (GOOD + "[agencies]\npattern = 'odd'\n", "no pattern 'odd'"),
        (GOOD + "[[faults]]\nat = 1\nname = 'rain'\n", "no fault 'rain'"),
        (GOOD + "[bounds]\nluck = 1\n", r"\[bounds\] has no 'luck'"),
        (GOOD + "[bounds]\np99_s = 'fast'\n", "fast"),
        ('says = "x"\n[fleet]\ndevices = "many"\nseconds = 5\n', "`devices` must be a number, not 'many'"),
    ],
)
def test_a_wrong_one_is_one_sentence(tmp_path: Path, text, words):
    file = tmp_path / "wrong.toml"
    file.write_text(text)
    with pytest.raises(WrongScenario, match=words) as caught:
        load(str(file))
    assert "\n" not in str(caught.value)
    assert str(caught.value).endswith(".")


def test_an_unknown_name_tells_the_known_ones():
    with pytest.raises(WrongScenario, match="no scenario 'metro': choose from agency_outage, "):
        load("metro")


def test_an_account_has_only_ten_devices():
    with pytest.raises(WrongScenario, match="at least 3 accounts"):
        roster(devices=21, accounts=2, behaviour="steady", network="perfect", seconds=10)


def test_bounds_are_held_or_broken():
    outcome = Outcome(load("family").plan, Tally(), settled_s=12.0)
    outcome.tally.counts.update(delivered=1234, resyncs=1)
    outcome.tally.latency.add(0.5)
    wanted = {"delivered": 1000, "resyncs": 0, "p99_s": 1, "settled_s": 10, "catch_up_p90_s": 3}
    found = {one["name"]: (one["ok"], one["wanted"], one["found"]) for one in check(outcome, wanted)}
    assert found == {
        "delivered": (True, "at least 1,000", "1,234"),
        "resyncs": (False, "at most 0", "1"),
        "p99_s": (True, "at most 1", "0.5"),
        "settled_s": (False, "at most 10", "12"),
        "catch_up_p90_s": (False, "at most 3", "not measured"),
    }
    assert all(bound.says for bound in BOUNDS.values())

"""A seed is a day: the same for the same seed, legal in every behaviour."""

from collections import Counter
from random import Random
from typing import get_args

import pytest

from client_sim.attacks import ATTACKS
from client_sim.behaviours import BEHAVIOURS, EVERYDAY, Do, WrongMix, fingerprint, mix, schedule, spread
from client_sim.networks import NETWORKS

WANTED = {"steady", "commuter", "wifi_to_lte", "background", "slow_reader", "stuck", "never_acks", "clock_wrong"}
WANTED |= {"old_version", "saver", "hostile"}


def test_every_behaviour_that_was_asked_for_is_there():
    assert set(BEHAVIOURS) >= WANTED
    assert all(one.says for one in BEHAVIOURS.values())


def test_an_old_version_knows_all_that_carries_events():
    for one in BEHAVIOURS.values():
        assert one.known is None or one.known >= {"welcome", "event", "batch", "resync"}


@pytest.mark.parametrize("behaviour", BEHAVIOURS.values(), ids=lambda one: one.name)
def test_a_life_is_in_order_and_of_known_steps(behaviour):
    for seed in range(20):
        steps = schedule(behaviour, Random(seed), 300)
        assert steps == sorted(steps, key=lambda step: step.at)
        assert all(0 <= step.at < 300 and step.do in get_args(Do) for step in steps)
        assert all(step.arg in ATTACKS for step in steps if step.do == "attack")
        assert all(step.arg in NETWORKS for step in steps if step.do == "roam")
        if behaviour.owed:
            assert steps[0].do == "online"


def test_the_same_seed_is_the_same_day_and_another_seed_another():
    def day(seed: int) -> str:
        return fingerprint([schedule(one, Random(f"{seed}/{one.name}"), 600) for one in BEHAVIOURS.values()])

    assert day(1) == day(1)
    assert day(1) != day(2)


def test_pace_lives_faster():
    usual = schedule(BEHAVIOURS["commuter"], Random(3), 600)
    quick = schedule(BEHAVIOURS["commuter"], Random(3), 60, pace=10)
    assert [step.do for step in quick] == [step.do for step in usual]
    assert quick[-1].at == pytest.approx(usual[-1].at / 10)


def test_a_commuter_comes_out_of_every_tunnel():
    for seed in range(30):
        words = [step.do for step in schedule(BEHAVIOURS["commuter"], Random(seed), 3600) if step.do != "look"]
        assert words[0::2] == ["online"] * len(words[0::2])
        assert words[1::2] == ["tunnel"] * len(words[1::2])


def test_a_mix_is_read():
    assert mix("steady=3, commuter", BEHAVIOURS, "behaviour") == {"steady": 3, "commuter": 1}
    assert sum(mix(EVERYDAY, BEHAVIOURS, "behaviour").values()) == 100


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stedy=3", "no behaviour 'stedy': choose from background, "),
        ("steady=many", "weight of steady must be a number"),
        ("steady=-1", "from 0 to 1000000"),
        ("steady=nan", "from 0 to 1000000"),
        ("steady=0", "above 0"),
        ("", "no behaviour ''"),
    ],
)
def test_a_wrong_mix_is_one_sentence(text, words):
    with pytest.raises(WrongMix, match=words) as caught:
        mix(text, BEHAVIOURS, "behaviour")
    assert str(caught.value).endswith(".")
    assert "\n" not in str(caught.value)


def test_devices_are_dealt_in_proportion():
    names = spread({"a": 2, "b": 1, "c": 0}, 10, Random(1))
    assert Counter(names) == {"a": 7, "b": 3}
    assert len(spread({"a": 1, "b": 1, "c": 1}, 100, Random(1))) == 100
    assert spread({"a": 2, "b": 1}, 50, Random(4)) == spread({"a": 2, "b": 1}, 50, Random(4))

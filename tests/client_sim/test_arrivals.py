"""Agencies' patterns: as much as the rate says, when the pattern says."""

from itertools import pairwise
from random import Random

import pytest

from client_sim.arrivals import PATTERNS, POST_EVERY_S


@pytest.mark.parametrize("pattern", PATTERNS.values(), ids=lambda one: one.name)
@pytest.mark.parametrize("rate", [2, 50, 400])
def test_the_rate_is_kept_and_time_goes_forward(pattern, rate):
    arrivals = list(pattern.arrivals(Random(1), rate, 120))
    times = [arrival.at for arrival in arrivals]
    assert times == sorted(times)
    assert all(0 <= at < 120 for at in times)
    assert all(arrival.events >= 1 for arrival in arrivals)
    assert sum(arrival.events for arrival in arrivals) == pytest.approx(120 * rate, rel=0.3)


def test_the_same_seed_is_the_same_day():
    for pattern in PATTERNS.values():
        one, other = (list(pattern.arrivals(Random(7), 30, 60)) for _ in range(2))
        assert one == other


def test_steady_waits_no_longer_than_it_says():
    arrivals = list(PATTERNS["steady"].arrivals(Random(2), 1000, 5))
    assert max(arrival.events for arrival in arrivals) < 1000 * POST_EVERY_S * 3


def test_a_burst_comes_at_once_after_quiet():
    arrivals = list(PATTERNS["burst"].arrivals(Random(3), 50, 60))
    pauses = [later.at - earlier.at for earlier, later in pairwise(arrivals)]
    assert max(pauses) > 1.5
    assert min(pauses) < 0.01


@pytest.mark.parametrize("name", ["monthly", "fines"])
def test_a_wave_is_in_the_second_quarter(name):
    arrivals = list(PATTERNS[name].arrivals(Random(4), 100, 100))
    wave = sum(arrival.events for arrival in arrivals if 25 <= arrival.at < 50)
    assert wave / sum(arrival.events for arrival in arrivals) > 0.8
    assert PATTERNS[name].act is not None

"""Percentiles are right within a bucket; samples are what happened between them."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_sim.measure import Histogram, Tally, thinned


@given(st.lists(st.floats(1e-4, 1e4), min_size=1, max_size=200), st.floats(0.01, 1))
def test_a_percentile_is_right_within_five_percent(values, share):
    histogram = Histogram()
    for value in values:
        histogram.add(value)
    exact = sorted(values)[max(0, -(-round(share * len(values) * 1e9) // 10**9) - 1)]
    found = histogram.percentile(share)
    assert found is not None
    assert exact * 0.999 <= found <= max(exact * 1.05, exact + 1e-4)


def test_nothing_measured_is_said():
    assert Histogram().percentile(0.5) is None
    assert Histogram().summary() == {"count": 0, "p50": None, "p90": None, "p99": None, "p999": None, "max": None}


def test_two_histograms_together_are_one_of_both():
    rng, one, other, both = random.Random(1), Histogram(), Histogram(), Histogram()
    for number in range(500):
        value = rng.expovariate(10)
        (one if number % 3 else other).add(value)
        both.add(value)
    one.merge(other)
    assert one.summary() == both.summary()
    assert one.bars() == both.bars()


def test_a_sample_is_what_happened_since_the_last_one():
    tally = Tally()
    tally.counts["delivered"] += 5
    tally.states.update({"live": 3, "away": 0})
    tally.arrived(0.02)
    first = tally.sample(1.0)
    tally.counts["delivered"] += 2
    second = tally.sample(2.0)
    assert (first["delivered"], second["delivered"]) == (5, 2)
    assert first["states"] == {"live": 3}
    assert first["p50"] == pytest.approx(0.02, rel=0.05)
    assert second["p50"] is None
    assert tally.latency.count == 1


def test_thinned_samples_average_counts_and_keep_the_worst():
    tally = Tally()
    for second in range(10):
        tally.counts["delivered"] += second
        tally.arrived(0.01 * (second + 1))
        sample = tally.sample(second + 1.0)
        if second == 3:
            sample["gateway_mb"] = 80.0  # it was away at other times
    thin = thinned(tally.samples, 5)
    assert len(thin) == 5
    assert [one["at"] for one in thin] == [2, 4, 6, 8, 10]
    assert thin[-1]["delivered"] == 8.5
    assert thin[-1]["p50"] == pytest.approx(0.1, rel=0.05)
    assert [one.get("gateway_mb") for one in thin] == [None, 80.0, None, None, None]
    assert thinned(tally.samples, 100) is tally.samples

"""What goes into a network comes out later, in order."""

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_sim.behaviours import mix
from client_sim.networks import EVERYDAY, NETWORKS, Network, Stretch, pieces


@pytest.mark.parametrize("network", NETWORKS.values(), ids=lambda one: one.name)
@given(st.lists(st.tuples(st.floats(0, 5), st.integers(1, 5000)), max_size=40), st.integers(0, 99))
def test_bytes_come_out_in_order_and_not_before_their_latency(network, chunks, seed):
    stretch, now, last = Stretch(network, network.down_bps, Random(seed)), 100.0, 0.0
    for pause, size in chunks:
        now += pause
        due = stretch.due(now, size)
        assert due >= max(now + network.latency_s, last)
        last = due


def test_bandwidth_is_a_queue():
    stretch = Stretch(Network("slow", ""), 1000, Random(1))
    assert [stretch.due(0.0, 500) for _ in range(3)] == [0.5, 1.0, 1.5]
    assert stretch.due(10.0, 500) == 10.5


def test_losses_cost_their_repetition():
    network = Network("lossy", "", loss=0.2, again_s=0.5)
    late = [Stretch(network, 0, Random(seed)).due(0.0, 100) for seed in range(400)]
    assert 0.1 < sum(1 for at in late if at >= 0.5) / len(late) < 0.3
    assert min(late) == 0


def test_lives_end_by_chance_or_never():
    lives = [Stretch(NETWORKS["lossy_wifi"], 0, Random(seed)).life_s() for seed in range(500)]
    assert 100 < sum(lives) / len(lives) < 145
    assert Stretch(NETWORKS["lte"], 0, Random(1)).life_s() == float("inf")


@given(st.binary(max_size=300), st.integers(0, 50))
def test_pieces_are_the_whole(data, size):
    parts = list(pieces(data, size))
    assert b"".join(parts) == data
    assert not size or all(len(part) <= size for part in parts)


def test_the_usual_mix_is_one():
    assert sum(mix(EVERYDAY, NETWORKS, "network").values()) == 100

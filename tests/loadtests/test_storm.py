"""The model of a storm: nobody disappears, and its lessons are those that the page tells."""

from pathlib import Path

import pytest

import loadtests
from loadtests.storm import TABLE, Storm, simulate, table

EASY = Storm(devices=1000, accept=1000, spread_s=10, capacity=1000)


def test_spread_wider_than_the_work_is_the_time() -> None:
    back = simulate(EASY)
    assert back.all_s == pytest.approx(10, abs=0.3)
    assert (back.tries, back.wasted) == (pytest.approx(1, abs=0.01), 0)
    assert back.wait_s < 0.2


def test_no_machine_is_faster_than_its_capacity() -> None:
    back = simulate(Storm(devices=10_000, accept=100_000, spread_s=1, capacity=1000, patience_s=60))
    assert back.all_s == pytest.approx(10, abs=0.5)
    assert back.tries == pytest.approx(1, abs=0.01)


def test_devices_that_give_up_waste_the_machine() -> None:
    patient = simulate(Storm(devices=30_000, accept=100_000, spread_s=1, capacity=1000, patience_s=60))
    hasty = simulate(Storm(devices=30_000, accept=100_000, spread_s=1, capacity=1000, patience_s=10))
    limited = simulate(Storm(devices=30_000, accept=1_000, spread_s=1, capacity=1000, patience_s=10))
    assert hasty.wasted > 0.3
    assert limited.wasted == 0
    assert patient.most_s is not None
    assert limited.most_s is not None
    assert limited.wait_s < 0.3
    assert hasty.most_s is None or hasty.most_s > limited.most_s


def test_a_burst_is_taken_at_once() -> None:
    slow = simulate(Storm(devices=2000, accept=10, spread_s=1, capacity=2000), 60)
    burst = simulate(Storm(devices=2000, accept=10, spread_s=1, capacity=2000, burst=2000), 60)
    assert slow.most_s is None
    assert burst.all_s is not None
    assert burst.all_s < 3


def test_the_best_of_the_table_is_capacity_and_devices_by_capacity() -> None:
    capacity, devices = 2400.0, 24_000.0  # ten seconds of work
    times = {
        (accept, spread): simulate(Storm(devices, accept, spread, capacity), 300).most_s or 300.0
        for accept in (capacity / 4, capacity, 100_000.0)
        for spread in (1.0, 10.0, 60.0)
    }
    assert times[capacity, 10.0] <= min(times.values()) + 2


def test_the_page_has_this_table() -> None:
    page = (Path(loadtests.__file__).parent / "CAPACITY.md").read_text()
    assert table(**TABLE) in page  # type: ignore[arg-type]

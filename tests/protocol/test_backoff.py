"""Full jitter: from zero to a bound that doubles up to a cap."""

from itertools import islice
from random import Random

from gateway.protocol.backoff import full_jitter


class Top(Random):
    """Always the highest number."""

    def uniform(self, a: float, b: float) -> float:
        return b


def test_the_bound_doubles_up_to_the_cap() -> None:
    assert list(islice(full_jitter(Top()), 9)) == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert list(islice(full_jitter(Top(), base=100, cap=60), 2)) == [60, 60]


def test_the_whole_range_is_used() -> None:
    waits = [next(iter(full_jitter(Random(seed), base=10))) for seed in range(1000)]
    assert min(waits) < 0.5
    assert max(waits) > 9.5
    assert 4 < sum(waits) / 1000 < 6


def test_it_goes_on_for_ever_without_overflow() -> None:
    assert all(0 <= wait <= 60 for wait in islice(full_jitter(Random(1)), 5000))

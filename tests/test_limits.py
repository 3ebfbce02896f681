from hypothesis import given
from hypothesis import strategies as st

from gateway.limits import PRUNE_AT, Buckets


def test_a_burst_then_the_rate() -> None:
    buckets = Buckets(rate=2, burst=3)
    assert [buckets.take("a", 0) for _ in range(3)] == [0, 0, 0]
    assert buckets.take("a", 0) == 0.5
    assert buckets.take("a", 0.4) > 0
    assert buckets.take("a", 0.5) == 0
    assert buckets.take("a", 0.5) == 0.5


def test_a_refusal_takes_nothing() -> None:
    buckets = Buckets(rate=1, burst=1)
    buckets.take("a", 0)
    for _ in range(100):
        assert buckets.take("a", 0) == 1
    assert buckets.take("a", 1) == 0


def test_keys_do_not_share() -> None:
    buckets = Buckets(rate=1, burst=1)
    assert buckets.take(("a", "d1"), 0) == 0
    assert buckets.take(("a", "d2"), 0) == 0
    assert buckets.take(("a", "d1"), 0) > 0


def test_a_bucket_holds_no_more_than_its_burst() -> None:
    buckets = Buckets(rate=10, burst=2)
    buckets.take("a", 0)
    assert [buckets.take("a", 1000) == 0 for _ in range(3)] == [True, True, False]


def test_more_than_the_burst_is_never_granted() -> None:
    buckets = Buckets(rate=10, burst=5)
    assert buckets.take("a", 0, 6) > 0
    assert buckets.take("a", 1_000_000, 6) > 0
    assert buckets.take("a", 1_000_000, 5) == 0


@given(st.lists(st.floats(0, 10), min_size=1, max_size=60), st.integers(1, 5), st.floats(0.1, 5))
def test_never_more_than_burst_and_rate_together(pauses: list[float], burst: int, rate: float) -> None:
    buckets, now, granted = Buckets(rate, burst), 0.0, 0
    for pause in pauses:
        now += pause
        wait = buckets.take("a", now)
        if not wait:
            granted += 1
        else:
            assert buckets.take("a", now + wait * 0.9) > 0
            assert wait <= 1 / rate + 1e-9
        assert granted <= burst + now * rate + 1e-6


def test_keys_with_a_full_bucket_are_forgotten() -> None:
    buckets = Buckets(rate=1, burst=10)
    for n in range(PRUNE_AT * 3):
        buckets.take(n, n * 0.1)
    assert len(buckets._levels) <= PRUNE_AT + 1, "10 a second, each forgotten after a second"


def test_forgetting_gives_nobody_more() -> None:
    buckets = Buckets(rate=0.001, burst=1)
    assert buckets.take("busy", 0) == 0
    for n in range(PRUNE_AT + 10):
        buckets.take(n, 0)
    buckets.prune(0)
    assert buckets.take("busy", 0) > 0

"""The promises of `gateway.batcher.Batcher`, without a clock: trips are held open by events."""

import asyncio
from collections.abc import Sequence

import pytest

from gateway.batcher import Batcher


class Bench:
    """Work that records its trips and, when held, waits for `go`."""

    def __init__(self) -> None:
        self.trips: list[list[int]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.error: Exception | None = None

    async def work(self, items: list[int]) -> Sequence[int | BaseException]:
        self.trips.append(list(items))
        await self.go.wait()
        if self.error is not None:
            raise self.error
        return [ValueError(item) if item < 0 else item * 10 for item in items]


async def turns(n: int = 5) -> None:
    for _ in range(n):
        await asyncio.sleep(0)


async def test_calls_of_one_turn_go_together_and_each_gets_its_own() -> None:
    bench = Bench()
    batcher = Batcher(bench.work, max_items=100)
    assert await asyncio.gather(*(batcher(n) for n in range(5))) == [0, 10, 20, 30, 40]
    assert bench.trips == [[0, 1, 2, 3, 4]]


async def test_calls_gather_while_a_trip_is_under_way() -> None:
    bench = Bench()
    batcher = Batcher(bench.work, max_items=100)
    bench.go.clear()
    first = asyncio.create_task(batcher(1))
    await turns()
    rest = [asyncio.create_task(batcher(n)) for n in (2, 3, 4)]
    await turns()
    assert bench.trips == [[1]]
    assert len(batcher) == 3
    bench.go.set()
    assert await asyncio.gather(first, *rest) == [10, 20, 30, 40]
    assert bench.trips == [[1], [2, 3, 4]]
    assert len(batcher) == 0


async def test_a_trip_takes_at_most_max_items_but_never_tears_many() -> None:
    bench = Bench()
    batcher = Batcher(bench.work, max_items=3)
    results = await asyncio.gather(batcher(1), batcher.many([2, 3]), batcher.many([4, 5, 6, 7]), batcher(8), batcher(9))
    assert results == [10, [20, 30], [40, 50, 60, 70], 80, 90]
    assert bench.trips == [[1, 2, 3], [4, 5, 6, 7], [8, 9]]


async def test_many_of_nothing_is_no_trip() -> None:
    bench = Bench()
    assert await Batcher(bench.work, max_items=3).many([]) == []
    assert bench.trips == []


async def test_a_failed_trip_reaches_every_caller_and_the_next_trip_works() -> None:
    bench = Bench()
    batcher = Batcher(bench.work, max_items=10)
    bench.error = OSError("disk")
    results = await asyncio.gather(batcher(1), batcher.many([2, 3]), return_exceptions=True)
    assert [type(r) for r in results] == [OSError, OSError]
    bench.error = None
    assert await batcher(4) == 40


async def test_an_exception_as_result_poisons_only_its_own_caller() -> None:
    batcher = Batcher(Bench().work, max_items=10)
    results = await asyncio.gather(batcher(1), batcher(-1), batcher.many([2, -2]), batcher(3), return_exceptions=True)
    assert results[0] == 10
    assert isinstance(results[1], ValueError)
    assert isinstance(results[2], ValueError)
    assert results[3] == 30


async def test_work_that_loses_a_result_is_found_out() -> None:
    async def work(items: list[int]) -> list[int]:
        return items[1:]

    with pytest.raises(RuntimeError, match="2 items brought 1 results"):
        await Batcher(work, max_items=10).many([1, 2])


async def test_cancelling_one_caller_under_way_harms_nobody() -> None:
    bench = Bench()
    batcher = Batcher(bench.work, max_items=10)
    bench.go.clear()
    one, two = asyncio.create_task(batcher(1)), asyncio.create_task(batcher(2))
    await turns()
    one.cancel()
    await turns()
    bench.go.set()
    assert await two == 20
    assert one.cancelled()
    assert bench.trips == [[1, 2]]


async def test_a_caller_cancelled_before_its_trip_is_dropped() -> None:
    bench = Bench()
    batcher = Batcher(bench.work, max_items=10)
    bench.go.clear()
    one = asyncio.create_task(batcher(1))
    await turns()
    two, three = asyncio.create_task(batcher(2)), asyncio.create_task(batcher(3))
    await turns()
    two.cancel()
    await turns()
    bench.go.set()
    assert await asyncio.gather(one, three) == [10, 30]
    assert bench.trips == [[1], [3]]


async def test_when_all_waiting_callers_are_cancelled_there_is_no_trip() -> None:
    bench = Bench()
    batcher = Batcher(bench.work, max_items=10, delay_s=60)
    one = asyncio.create_task(batcher(1))
    await turns()
    one.cancel()
    await turns()
    await batcher.close()
    assert bench.trips == []


async def test_delay_waits_for_more_but_not_when_full() -> None:
    bench = Bench()
    batcher = Batcher(bench.work, max_items=3, delay_s=60)
    calls = [asyncio.create_task(batcher(n)) for n in (1, 2)]
    await turns()
    assert bench.trips == []
    calls.append(asyncio.create_task(batcher(3)))
    assert await asyncio.gather(*calls) == [10, 20, 30]
    assert bench.trips == [[1, 2, 3]]


async def test_delay_ends_by_itself() -> None:
    bench = Bench()
    assert await Batcher(bench.work, max_items=3, delay_s=0.001)(1) == 10


async def test_close_waits_cuts_the_delay_and_refuses_later_calls() -> None:
    bench = Bench()
    batcher = Batcher(bench.work, max_items=1, delay_s=60)
    bench.go.clear()
    calls = [asyncio.create_task(batcher(n)) for n in (1, 2, 3)]
    await turns()
    closing = asyncio.create_task(batcher.close())
    await turns()
    assert not closing.done()
    bench.go.set()
    await closing
    assert [call.result() for call in calls] == [10, 20, 30]
    with pytest.raises(RuntimeError, match="closed"):
        await batcher(4)
    await batcher.close()


async def test_callers_are_cancelled_when_the_runner_is() -> None:
    bench = Bench()
    batcher = Batcher(bench.work, max_items=1)
    bench.go.clear()
    before = asyncio.all_tasks()
    calls = [asyncio.create_task(batcher(n)) for n in (1, 2)]
    await turns()
    (runner,) = asyncio.all_tasks() - before - set(calls)
    runner.cancel()
    results = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(r) for r in results] == [asyncio.CancelledError] * 2

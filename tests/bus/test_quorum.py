import asyncio
import time

import pytest

from gateway.bus.quorum import most
from gateway.errors import BusUnavailable


async def says(what: str, after_s: float = 0.0) -> str:
    await asyncio.sleep(after_s)
    return what


async def fails(why: str) -> str:
    raise BusUnavailable(why)


async def test_all_answer_in_their_order() -> None:
    assert await most([says("a", 0.02), says("b"), says("c", 0.01)], 1.0) == ["a", "b", "c"]


async def test_a_hung_minority_is_not_waited_for() -> None:
    started = time.monotonic()
    assert await most([says("a", 30), says("b"), says("c")], 10.0) == ["b", "c"]
    assert time.monotonic() - started < 1.0


async def test_a_majority_is_waited_for_until_the_end() -> None:
    assert await most([says("a", 30), says("b", 30), says("c")], 0.1) == ["c"]


async def test_the_dead_do_not_delay() -> None:
    started = time.monotonic()
    assert await most([fails("x"), fails("y"), says("c")], 10.0) == ["c"]
    assert time.monotonic() - started < 1.0


async def test_nobody() -> None:
    with pytest.raises(BusUnavailable, match="y"):
        await most([fails("x"), fails("y")], 1.0)
    with pytest.raises(BusUnavailable, match="nobody answered"):
        await most([says("a", 30)], 0.05)


async def test_who_is_late_is_cancelled() -> None:
    cancelled: list[bool] = []

    async def slow() -> str:
        try:
            return await says("a", 30)
        except asyncio.CancelledError:
            cancelled.append(True)
            raise

    await most([slow(), says("b"), says("c")], 1.0)
    assert cancelled == [True]


async def test_a_fault_of_ours_is_not_hidden() -> None:
    async def broken() -> str:
        raise KeyError("x")

    with pytest.raises(KeyError):
        await most([broken(), says("b")], 1.0)

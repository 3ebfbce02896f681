"""Asking several that should say the same, some of whom may be dead, hung or behind."""

import asyncio
from collections.abc import Coroutine, Sequence
from typing import Any, TypeVar

from gateway.errors import BusUnavailable

T = TypeVar("T")

GRACE_S = 0.1  # the minority's share: they answer with the others unless something is wrong with them


async def most(calls: Sequence[Coroutine[Any, Any, T]], timeout_s: float) -> list[T]:
    """What they answered, in the order of `calls`. Returns when all are done, a little after more than half answered,
    or at the end of the time; who is late is cancelled. Calls may raise BusUnavailable; raises the last one's when
    nobody answered."""
    loop = asyncio.get_running_loop()
    tasks = [asyncio.ensure_future(call) for call in calls]
    pending, until = set(tasks), loop.time() + timeout_s
    answered = 0
    try:
        while pending and (left := until - loop.time()) > 0:
            done, pending = await asyncio.wait(pending, timeout=left, return_when=asyncio.FIRST_COMPLETED)
            answered += sum(1 for task in done if task.exception() is None)
            if answered * 2 > len(tasks):
                until = min(until, loop.time() + GRACE_S)
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    answers: list[T] = []
    failure: BaseException = BusUnavailable(f"nobody answered within {timeout_s:g} s")
    for task in tasks:
        if task.cancelled():
            continue
        if (error := task.exception()) is None:
            answers.append(task.result())
        elif isinstance(error, BusUnavailable):
            failure = error
        else:
            raise error
    if not answers:
        raise failure
    return answers

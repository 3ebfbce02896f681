"""Waiting for a wish or for time to pass, whichever comes first; and work that must never stop."""

import asyncio
from collections.abc import Awaitable, Callable

from gateway import logs

log = logs.get_logger("tasks")

AGAIN_S = 1.0  # before work that failed begins again


async def always(name: str, work: Callable[[], Awaitable[None]]) -> None:
    """Run `work`, which never returns, until cancelled. A fault in it is ours: it is logged, and the work begins again,
    because a loop that serves everybody must not die of one of them."""
    while True:
        try:
            await work()
            return
        except Exception:
            log.exception("task_failed", task=name)
            await asyncio.sleep(AGAIN_S)


async def woken(wish: asyncio.Event, timeout_s: float) -> bool:
    """True, and the wish is cleared, when it was made within `timeout_s`. Cancelling is safe."""
    try:
        async with asyncio.timeout(timeout_s):
            await wish.wait()
    except TimeoutError:
        return False
    wish.clear()
    return True

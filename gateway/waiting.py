"""Waiting for a wish or for time to pass, whichever comes first."""

import asyncio


async def woken(wish: asyncio.Event, timeout_s: float) -> bool:
    """True, and the wish is cleared, when it was made within `timeout_s`. Cancelling is safe."""
    try:
        async with asyncio.timeout(timeout_s):
            await wish.wait()
    except TimeoutError:
        return False
    wish.clear()
    return True

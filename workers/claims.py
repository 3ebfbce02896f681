"""Claims: of all processes that could do a piece of work, one does it; another takes it over when that one died."""

import secrets
import time
from collections.abc import Callable

from gateway.store.base import Store


class Claim:
    """The right to do the work of one role, held for `hold_s` from each `take` on. `owner` names the process to those
    who look who holds it, and no other process; None makes a name up.

    A process that was stopped for longer than that while it worked may finish its step beside the one that took over;
    steps are harmless twice."""

    def __init__(
        self,
        store: Store,
        name: str,
        hold_s: float,
        clock: Callable[[], float] = time.time,
        *,
        owner: str | None = None,
    ):
        self._store, self._name, self._hold_s, self._clock = store, f"role:{name}", hold_s, clock
        self._owner = owner or secrets.token_hex(4)

    async def take(self) -> bool:
        """False while another process holds it. Raises StoreUnavailable."""
        now = self._clock()
        return await self._store.lease(self._name, self._owner, now + self._hold_s, now)

    async def release(self) -> None:
        """The work is done for now: whoever comes next need not wait."""
        await self._store.release(self._name, self._owner)

"""The roster: which devices are connected, on all nodes, and which of its sessions stands for each.

One session a device everywhere, the newest wins (contract, section 3). Whoever says hello enters the store's roster
and so takes the place of whoever stood there; the bus tells the other node at once, and a node that was not told finds
it when it compares its sessions with the roster: within a sweep, within seconds while the bus is away, at once after a
gap or when it held no lease for a while (it was stopped, or without the store).

An entry counts while its node holds a lease. Nothing is written for a session between its hello and its end, and a
node that dies leaves nothing to tidy up before the others may go on. Losing the roster loses no event: it is filled
again by the same comparison.

With a bus that reaches one process only, that process knows everything by itself and nothing is written.
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import orjson

from gateway import logs
from gateway.bus.base import Bus
from gateway.errors import BusUnavailable, StoreUnavailable
from gateway.settings import Settings
from gateway.store.base import Entered, Presence, Store
from gateway.waiting import always, woken

if TYPE_CHECKING:
    from gateway.session import Session

log = logs.get_logger("roster")

PAGE = 500  # sessions compared in one trip
AWAY_S = 3.0  # between comparisons of all sessions while no bus tells: "revoked within 5 s on every node" holds too
LEAVING = 50_000  # ends of sessions that wait while the store is away; protects memory, they end with the lease too

ALONE = Entered(0.0, None, frozenset())


class Roster:
    """This process's part in it. `node` is its name, new with each start."""

    def __init__(self, settings: Settings, store: Store, bus: Bus):
        self.node = secrets.token_hex(4)
        self.shared = not settings.bus.startswith("memory:")
        self.settings, self.store, self.bus = settings, store, bus
        self._leaving: list[Presence] = []
        self._wanted = asyncio.Event()
        self._leased = 0.0  # when the lease was last made longer, monotonic
        self._tasks: list[asyncio.Task[None]] = []
        self._telling: set[asyncio.Task[None]] = set()

    async def open(self) -> None:
        """Take the lease, so that whoever enters counts from its first moment on. Raises StoreUnavailable."""
        if self.shared:
            await self._lease()

    def start(self, sessions: Callable[[], Sequence[Session]], displaced: Callable[[Presence], None]) -> None:
        """`sessions` are all that are here, `displaced` is called with what stands instead of one of them."""
        if self.shared:
            compare = lambda: self._comparisons(sessions, displaced)  # noqa: E731 - `always` wants something to call
            for name, work in (("roster.lease", self._leases), ("roster.compare", compare)):
                self._tasks.append(asyncio.create_task(always(name, work), name=name))

    async def stop(self) -> None:
        """Sessions are gone: nobody here is connected any more."""
        for task in (*self._tasks, *self._telling):
            task.cancel()
        await asyncio.gather(*self._tasks, *self._telling, return_exceptions=True)
        if self.shared:
            with contextlib.suppress(StoreUnavailable):
                await self.flush()
                await self.store.release(f"node:{self.node}", self.node)

    # Coming and going

    async def enter(self, sessions: Sequence[Session]) -> list[Entered]:
        """From now on these stand for their devices; `entered` is set on each. Raises StoreUnavailable."""
        if not self.shared:
            return [ALONE] * len(sessions)
        told = await self.store.enter([self._presence(session) for session in sessions], time.time())
        for session, entered in zip(sessions, told, strict=True):
            session.entered = entered.since
        return told

    def announce(self, sessions: Sequence[Session], told: Sequence[Entered]) -> None:
        """Tell the other nodes whose sessions these take the place of."""
        own = f"{self.node}-"
        newer = [
            (session.account, session.device, self.node, session.id, session.entered)
            for session, entered in zip(sessions, told, strict=True)
            if entered.before is not None and not entered.before.startswith(own)
        ]
        if newer:
            task = asyncio.create_task(self._tell(newer))
            self._telling.add(task)
            task.add_done_callback(self._telling.discard)

    async def _tell(self, newer: list[tuple[str, str, str, str, float]]) -> None:
        with contextlib.suppress(BusUnavailable):  # they find it by themselves
            await self.bus.announce(orjson.dumps({"k": "newer", "sessions": newer}))

    def left(self, session: Session) -> None:
        """The session is over: written with the next flush."""
        if session.entered:
            self._leaving.append(self._presence(session))
            del self._leaving[:-LEAVING]

    async def flush(self) -> None:
        """Write who left. Raises StoreUnavailable; then it is tried again with the next."""
        leaving, self._leaving = self._leaving, []
        try:
            for begin in range(0, len(leaving), PAGE):
                await self.store.leave(leaving[begin : begin + PAGE])
        except BaseException:
            self._leaving = (leaving + self._leaving)[-LEAVING:]
            raise

    async def sign_out(self, account: str, device: str) -> Presence:
        """No session of before this stands for the device: what stands there instead. Raises StoreUnavailable."""
        nobody = Presence(account, device, "", "")
        [entered] = await self.store.enter([nobody], time.time())
        return replace(nobody, since=entered.since)

    async def connected(self, account: str) -> frozenset[str]:
        """The account's devices that are connected to any node, as far as the store knows. Raises StoreUnavailable."""
        return await self.store.present(account, time.time()) if self.shared else frozenset()

    def _presence(self, session: Session) -> Presence:
        return Presence(session.account, session.device, self.node, session.id, session.entered)

    # Repair

    def gap(self) -> None:
        """The bus may have lost something: compare all now."""
        self._wanted.set()

    async def _leases(self) -> None:
        while True:
            await asyncio.sleep(self.settings.lease_s / 3)
            with contextlib.suppress(StoreUnavailable):  # it is tried again soon, and the store says why
                await self._lease()

    async def _lease(self) -> None:
        now = time.time()
        await self.store.lease(f"node:{self.node}", self.node, now + self.settings.lease_s, now)
        before, self._leased = self._leased, time.monotonic()
        if before and self._leased - before > self.settings.lease_s:
            log.warning("lease_lapsed", seconds=round(self._leased - before, 1))
            self.gap()

    async def _comparisons(
        self, sessions: Callable[[], Sequence[Session]], displaced: Callable[[Presence], None]
    ) -> None:
        """All sessions against the roster, a page at a time, within a sweep; all at once after a gap."""
        waiting: list[Session] = []
        count = 0
        while True:
            every = self.settings.sweep_s if self.bus.healthy else min(AWAY_S, self.settings.sweep_s)
            hurried = await woken(self._wanted, every * PAGE / max(PAGE, count))
            if hurried or not waiting:
                waiting = [session for session in sessions() if session.entered]
                count = len(waiting)
            size = count if hurried else PAGE
            part, waiting = waiting[:size], waiting[size:]
            try:
                for begin in range(0, len(part), PAGE):
                    page = [self._presence(session) for session in part[begin : begin + PAGE] if session.open]
                    for instead in await self.store.keep(page, time.time()) if page else ():
                        displaced(instead)
            except StoreUnavailable as error:
                log.warning("comparison_failed", error=str(error))
                if hurried:
                    self._wanted.set()
                await asyncio.sleep(1.0)

"""Many small calls, few trips: while one trip is under way, further calls gather, and then go together.

A trip to a store costs more than the work it does there (a thread hop, a transaction, an fsync). This is the group
commit of the intake, the joined `hello`s, and the cursor saves.
"""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Generic, TypeVar

T = TypeVar("T")
R = TypeVar("R")


class _Unit(Generic[T, R]):
    """What one caller wants done: travels in one trip, never torn apart."""

    __slots__ = ("done", "items")

    def __init__(self, items: Sequence[T], done: "asyncio.Future[list[R]]"):
        self.items, self.done = items, done


class Batcher(Generic[T, R]):
    """Hands the items of concurrent callers to `work` together, in the order of the calls, one trip at a time.

    `work(items)` returns one result for each item, in order; an exception in the place of a result is raised to the
    caller of that item alone, an exception of the whole trip to every caller in it. A trip takes callers until it has
    `max_items` (one `many` may be larger: it goes in one trip all the same). `delay_s` waits that long before a trip
    for more to come, unless `max_items` are there already; with 0 only what came during the last trip, or in this turn
    of the loop, gathers.

    Cancelling a caller harms nobody: its items are dropped if they have not started, else done without it.
    """

    def __init__(
        self,
        work: Callable[[list[T]], Awaitable[Sequence[R | BaseException]]],
        *,
        max_items: int,
        delay_s: float = 0.0,
    ):
        self._work, self._max_items, self._delay_s = work, max_items, delay_s
        self._units: list[_Unit[T, R]] = []
        self._count = 0  # items in _units
        self._full = asyncio.Event()  # no reason to wait for more
        self._runner: asyncio.Task[None] | None = None
        self._closed = False

    def __len__(self) -> int:
        """Items that wait for a trip, those under way not counted."""
        return self._count

    async def __call__(self, item: T) -> R:
        return (await self._add([item]))[0]

    async def many(self, items: Sequence[T]) -> list[R]:
        """All in the same trip, side by side and in order. Raises the first exception among their results."""
        return await self._add(items) if items else []

    async def close(self) -> None:
        """Returns when all that was handed in is done; a pending delay is cut short. Later calls raise RuntimeError."""
        self._closed = True
        self._full.set()
        if self._runner is not None:
            await asyncio.wait([self._runner])

    def _add(self, items: Sequence[T]) -> "asyncio.Future[list[R]]":
        if self._closed:
            raise RuntimeError("this batcher is closed")
        done: asyncio.Future[list[R]] = asyncio.get_running_loop().create_future()
        self._units.append(_Unit(items, done))
        self._count += len(items)
        if self._count >= self._max_items:
            self._full.set()
        if self._runner is None:
            self._runner = asyncio.create_task(self._run())
        return done

    async def _run(self) -> None:
        taken: list[_Unit[T, R]] = []
        try:
            while self._units:
                await self._gather()
                taken = self._take()
                if taken:
                    await self._trip(taken)
        finally:
            self._runner = None
            # Only reached with work left when the loop itself is being torn down: leave no caller waiting for ever.
            for unit in taken + self._units:
                unit.done.cancel()

    async def _gather(self) -> None:
        if self._delay_s and not self._full.is_set():
            try:
                async with asyncio.timeout(self._delay_s):
                    await self._full.wait()
            except TimeoutError:
                pass

    def _take(self) -> list[_Unit[T, R]]:
        taken: list[_Unit[T, R]] = []
        size = 0
        rest = 0
        for unit in self._units:
            if taken and size + len(unit.items) > self._max_items:
                break
            rest += 1
            self._count -= len(unit.items)
            if not unit.done.done():  # its caller is still there
                taken.append(unit)
                size += len(unit.items)
        del self._units[:rest]
        if self._count < self._max_items and not self._closed:
            self._full.clear()
        return taken

    async def _trip(self, units: list[_Unit[T, R]]) -> None:
        items = [item for unit in units for item in unit.items]
        try:
            results = await self._work(items)
            if len(results) != len(items):
                raise RuntimeError(f"{len(items)} items brought {len(results)} results")
        except Exception as error:
            for unit in units:
                _settle(unit.done, error)
            return
        at = 0
        for unit in units:
            mine = results[at : at + len(unit.items)]
            at += len(unit.items)
            _settle(unit.done, next((r for r in mine if isinstance(r, BaseException)), None), mine)


def _settle(
    done: "asyncio.Future[list[R]]", error: BaseException | None, results: Sequence[R | BaseException] = ()
) -> None:
    if done.done():
        return  # its caller went away meanwhile
    if error is not None:
        done.set_exception(error)
    else:
        done.set_result([r for r in results if not isinstance(r, BaseException)])

"""The journal of what was refused, in the feed `ops:rejected`: which agency, why, and never a body or an account.
Contract, 8.3.

It costs a request nothing but a small record: everything is written a little later, together. Nobody may fill the store
with it: what comes faster than the rates below is only counted, in `omitted` of the next record of the same sender.
What waits here when the process is killed is lost, and so are counts that no further record follows.
"""

import asyncio
import contextlib
import time
from collections.abc import Collection
from typing import Any

from gateway import logs, opsfeeds
from gateway.errors import Problem, StoreUnavailable
from gateway.limits import Buckets
from gateway.publisher import Publisher
from gateway.store.base import Draft
from gateway.waiting import always

log = logs.get_logger("rejects")

SIGNED_RATE = 10.0  # a second of an agency whose signature was good
UNPROVEN_RATE = 1.0  # a second of all others together: whoever they are, they need no key to make us write
BURST = 10.0  # at once, of either
WAITING = 1_000  # records not yet written; protects memory while the store is away
GROUP = 200  # in one commit
GATHER_S = 0.25  # between the first of a group and its commit
RETRY_S = 1.0
MAX_ERRORS = 5  # faults of one event that are kept: the agency was told all
MAX_CODE = 32  # characters, and so on: all of this was chosen by the sender
MAX_ID = 128
MAX_DETAIL = 500
MAX_POINTER = 128


class Rejects:
    """Of one process. Start it once, `put` what was refused, close it at the end."""

    def __init__(self, node: str, publisher: Publisher, agencies: Collection[str]):
        self.node, self.publisher, self.agencies = node, publisher, agencies
        self._signed, self._unproven = Buckets(SIGNED_RATE, BURST), Buckets(UNPROVEN_RATE, BURST)
        self._omitted: dict[str | None, int] = {}  # by agency; None is everybody who did not prove to be one
        self._waiting: list[Draft] = []
        self._wanted = asyncio.Event()
        self._task: asyncio.Task[None] | None = None
        self._away = False

    def start(self) -> None:
        self._task = asyncio.create_task(always("rejects", self._run), name="rejects")

    def put(self, code: str, problem: Problem, size: int, *, signed: bool) -> None:
        """An event, or a whole request of `size` bytes, was refused. `code` is what the address says; `signed`: it is
        true, because the signature was good."""
        key = code if signed and code in self.agencies else None
        buckets = self._unproven if key is None else self._signed
        if len(self._waiting) >= WAITING or buckets.take(key, time.monotonic()) > 0:
            self._omitted[key] = self._omitted.get(key, 0) + 1
            return
        now = time.time()
        data = record(self.node, code, problem, size, self._omitted.pop(key, 0))
        type = opsfeeds.TYPES[opsfeeds.REJECTED]
        self._waiting.append(opsfeeds.draft(opsfeeds.REJECTED, type, data, id=opsfeeds.new_id(), now=now))
        self._wanted.set()

    async def close(self) -> None:
        """Write what waits, once."""
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)
        with contextlib.suppress(StoreUnavailable):
            while self._waiting:
                await self._write()

    async def _run(self) -> None:
        while True:
            await self._wanted.wait()
            self._wanted.clear()
            await asyncio.sleep(GATHER_S)
            while self._waiting:
                try:
                    await self._write()
                    self._away = False
                except StoreUnavailable as error:
                    if not self._away:
                        log.warning("rejects_not_written", waiting=len(self._waiting), error=str(error))
                    self._away = True
                    await asyncio.sleep(RETRY_S)

    async def _write(self) -> None:
        group = self._waiting[:GROUP]
        await self.publisher.tell(group, time.time())
        # Only now: a commit whose outcome is not known is repeated, and recognised by its ids.
        del self._waiting[: len(group)]


def record(node: str, code: str, problem: Problem, size: int, omitted: int) -> dict[str, Any]:
    """The data of one event."""
    id, type = problem.about
    return {
        "node": node,
        "agency": text(code, MAX_CODE) or None,
        "reason": problem.word,
        "status": problem.status,
        "id": None if id is None else text(id, MAX_ID),
        "type": None if type is None else text(type, MAX_ID),
        "detail": text(problem.detail or problem.title, MAX_DETAIL),
        "errors": [
            {"pointer": text(error["pointer"], MAX_POINTER), "detail": text(error["detail"], MAX_DETAIL)}
            for error in problem.errors[:MAX_ERRORS]
        ],
        "bytes": size,
        "omitted": omitted,
    }


def text(given: str, longest: int) -> str:
    """What can be written and shown in one line, cut to so many characters."""
    cut = given[:longest].encode(errors="replace").decode()
    return cut if cut.isprintable() else "".join([char if char.isprintable() else "?" for char in cut])

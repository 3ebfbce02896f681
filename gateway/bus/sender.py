"""The connection that publishes: made when it is needed, made again when it is lost."""

import asyncio
import random
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from gateway.bus import resp
from gateway.bus.address import Address, Command
from gateway.errors import BusUnavailable
from gateway.protocol.backoff import full_jitter

BACKOFF_BASE_S = 0.1

_random = random.SystemRandom()

Find = Callable[[], Awaitable[Address]]


@dataclass(frozen=True, slots=True)
class Timing:
    """`timeout_s` is the patience for each answer of a server and for a probe, `probe_every_s` the pause between
    probes: a server that hangs is noticed within their sum. `backoff_cap_s` is the longest pause between attempts to
    come back."""

    timeout_s: float = 2.0
    probe_every_s: float = 2.0
    backoff_cap_s: float = 2.0


class Backoff:
    """How long to wait before the next attempt, in seconds; `reset` after a success."""

    def __init__(self, cap_s: float):
        self._cap_s = cap_s
        self.reset()

    def reset(self) -> None:
        self._delays = full_jitter(_random, BACKOFF_BASE_S, self._cap_s)

    def next(self) -> float:
        return next(self._delays)


class Sender:
    """Publishes over a connection to the server that `find` names. After a failure it refuses at once until the
    backoff is over, so that a dead server costs its callers nothing. `primary`: see `resp.connect`."""

    def __init__(self, find: Find, name: str, timing: Timing, *, primary: bool = False):
        self._find, self._name, self._timeout_s, self._primary = find, name, timing.timeout_s, primary
        self._connection: resp.Connection | None = None
        self._server: Address | None = None  # where it leads, or is to lead
        self._connecting = asyncio.Lock()
        self._attempts = 0
        self._backoff = Backoff(timing.backoff_cap_s)
        self._not_before = 0.0
        self._why = ""
        self._closed = False

    async def call(self, *commands: Command) -> list[Any]:
        """The answers, when Redis answered every command. Raises BusUnavailable within three times the timeout, and
        for every error answer."""
        return await self._timed(await self._live(), resp.Connection.call, commands)

    async def ask(self, *commands: Command) -> list[Any]:
        """Like `call`, with error answers (`hiredis.ReplyError`) among the answers."""
        return await self._timed(await self._live(), resp.Connection.ask, commands)

    def follow(self, server: Address) -> None:
        """This is the server now: what is under way to another one fails, and there is no pause."""
        if self._server != server:
            self._server, self._not_before = server, 0.0
            if self._connection is not None:
                self._connection.abort(f"the primary is {server} now")

    def close(self) -> None:
        self._closed = True
        if self._connection is not None:
            self._connection.abort("the bus is closed")

    async def closed(self) -> None:
        """Returns when the connection is gone, after `close`."""
        if self._connection is not None:
            await self._connection.closed

    async def _timed(self, connection: resp.Connection, how: Any, commands: tuple[Command, ...]) -> list[Any]:
        try:
            async with asyncio.timeout(self._timeout_s):
                answers: list[Any] = await how(connection, *commands)
                return answers
        except TimeoutError:
            why = f"Redis did not answer within {self._timeout_s:g} s"
            connection.abort(why)
            self._failed(why)
            raise BusUnavailable(why) from None

    async def _live(self) -> resp.Connection:
        attempts = self._attempts
        async with self._connecting:
            if self._closed:
                raise BusUnavailable("the bus is closed")
            if self._connection is not None and not self._connection.closed.done():
                return self._connection
            # Who queued behind a failed attempt shares its outcome, or waiting would add up.
            if self._attempts > attempts or asyncio.get_running_loop().time() < self._not_before:
                raise BusUnavailable(self._why)
            self._attempts += 1
            connection = resp.Connection()
            try:
                self._server = server = await self._find()
                await resp.connect(
                    connection, server, name=self._name, timeout_s=self._timeout_s, primary=self._primary
                )
            except BusUnavailable as error:
                self._failed(str(error))
                raise
            self._connection = connection
            self._backoff.reset()
            return connection

    def _failed(self, why: str) -> None:
        self._why = why
        self._not_before = asyncio.get_running_loop().time() + self._backoff.next()

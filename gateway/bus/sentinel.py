"""Where the primary is, by what the sentinels say (Redis 7 or newer, RESP3: one connection both asks and listens)."""

import asyncio
from collections.abc import Callable, Sequence
from typing import Any

from gateway.bus import resp
from gateway.bus.address import Address, Command
from gateway.bus.quorum import most
from gateway.bus.sender import Timing
from gateway.errors import BusUnavailable
from gateway.logs import get_logger

log = get_logger("bus")

SWITCHED = b"+switch-master"  # "<service> <old host> <old port> <new host> <new port>"


class Sentinels:
    """Finds the primary of one service. Connections to all sentinels are made when they are needed and kept, because
    each listens: every sentinel that hears of a switch calls `switched` with the new primary."""

    def __init__(
        self,
        sentinels: Sequence[Address],
        service: str,
        server: Address,
        *,
        name: str,
        timing: Timing,
        switched: Callable[[Address], None],
    ):
        self._server, self._service, self._timing, self._switched = server, service, timing, switched
        self._sentinels = [_Sentinel(one, service, name, timing, self._heard) for one in sentinels]

    async def find(self) -> Address:
        """Where the primary is, by the newest of what the majority says; not yet tried. Raises BusUnavailable."""
        try:
            answers = await most([one.ask() for one in self._sentinels], self._timing.timeout_s)
        except BusUnavailable as error:
            raise BusUnavailable(f"no sentinel of {self._service!r} answers: {error}") from None
        # An election raises the configuration epoch, so a sentinel that was cut off cannot outbid the others.
        _, host, port = max(answers, key=lambda answer: answer[0])
        return self._server.at(host, port)

    async def close(self) -> None:
        for one in self._sentinels:
            await one.close()

    def _heard(self, text: str) -> None:
        words = text.split(" ")
        if len(words) == 5 and words[0] == self._service and words[4].isdecimal():
            self._switched(self._server.at(words[3], int(words[4])))


class _Sentinel:
    def __init__(self, address: Address, service: str, name: str, timing: Timing, heard: Callable[[str], None]):
        self._address, self._name, self._timing, self._heard = address, name, timing, heard
        self._connection: resp.Connection | None = None
        self._connecting = asyncio.Lock()
        self._question: tuple[Command, ...] = (
            ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", service),
            ("SENTINEL", "MASTER", service),
        )

    async def ask(self) -> tuple[int, str, int]:
        """Configuration epoch, host and port of the primary. Raises BusUnavailable. When it is cancelled the sentinel
        was slow: the connection is given up, or unread answers would pile up."""
        connection = await self._live()
        try:
            where, about = await connection.call(*self._question)
        except asyncio.CancelledError:
            connection.abort("the sentinel is slow")
            raise
        try:
            return int(about[b"config-epoch"]), where[0].decode(), int(where[1])
        except (TypeError, KeyError, ValueError, IndexError, AttributeError):
            raise BusUnavailable(f"the sentinel at {self._address} does not say where the primary is") from None

    async def close(self) -> None:
        if self._connection is not None:
            self._connection.abort("the bus is closed")
            await self._connection.closed

    async def _live(self) -> resp.Connection:
        async with self._connecting:
            if self._connection is None or self._connection.closed.done():
                connection = resp.Connection(self._pushed)
                await resp.connect(
                    connection, self._address, ("HELLO", 3), name=self._name, timeout_s=self._timing.timeout_s
                )
                connection.send(("SUBSCRIBE", SWITCHED))
                self._connection = connection
            return self._connection

    def _pushed(self, reply: list[Any]) -> None:
        if reply[0] == b"message" and reply[1] == SWITCHED:
            self._heard(reply[2].decode(errors="replace"))

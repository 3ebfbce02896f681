"""One connection to a Redis server: commands with answers in order, and whatever the server pushes, without a task or
a queue.

Our own protocol over `hiredis.Reader`, because the bus lives on it. Measured, CPU a message: received and handed on
as a `Message` 2.6 us, through the client library's `get_message` 12.1; published in batches 2.2 us, through its
pipeline 14.2; published alone 61 against 135.
"""

import asyncio
from collections import deque
from collections.abc import Callable
from typing import Any

import hiredis

from gateway.bus.address import Address, Command
from gateway.errors import BusUnavailable

MAX_UNSENT = 8 << 20  # bytes waiting for a server that does not read; protects our memory while a timeout runs out


class _Call:
    """Commands that travel together, and their answers."""

    __slots__ = ("answers", "done", "left")

    def __init__(self, left: int, done: asyncio.Future[list[Any]]):
        self.left, self.done, self.answers = left, done, list[Any]()


class Connection(asyncio.Protocol):
    """A live connection. `pushed` gets what the server sends unasked: in RESP3 its pushes, in RESP2, whose pushes look
    like answers, every array while no call is under way. `refused` gets an error that answers no call (a refused
    SUBSCRIBE) and says whether the connection may live on; without it, it may not: confirmations that stay away
    cannot be counted.

    `closed` is done when the connection is gone, for whatever reason.
    """

    def __init__(
        self,
        pushed: Callable[[list[Any]], None] | None = None,
        refused: Callable[[str], bool] = lambda error: False,
    ):
        self._pushed, self._refused = pushed, refused
        self._reader = hiredis.Reader()
        self._calls: deque[_Call] = deque()
        self._transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.why = "the connection was closed"

    async def call(self, *commands: Command) -> list[Any]:
        """The answers, in order; error answers raise BusUnavailable, as does a lost connection. Safe to cancel: the
        answers are then thrown away when they come. There is no deadline here."""
        answers = await self.ask(*commands)
        for answer in answers:
            if isinstance(answer, hiredis.ReplyError):
                raise BusUnavailable(f"Redis refused: {answer}")
        return answers

    async def ask(self, *commands: Command) -> list[Any]:
        """Like `call`, with error answers (`hiredis.ReplyError`) among the answers."""
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.send(*commands)
        self._calls.append(_Call(len(commands), done))
        return await done

    def send(self, *commands: Command) -> None:
        """Send commands whose answers are pushed (SUBSCRIBE and its kin)."""
        transport = self._transport
        if transport is None or self.closed.done():
            raise BusUnavailable(self.why)
        if transport.get_write_buffer_size() > MAX_UNSENT:
            raise BusUnavailable("Redis does not read what is sent to it")
        transport.write(b"".join([hiredis.pack_command(command) for command in commands]))  # type: ignore[arg-type]

    def abort(self, why: str) -> None:
        """Drop the connection now. `closed` follows in a later turn of the loop."""
        self.why = why
        self._fail()
        if self._transport is not None:
            self._transport.abort()

    # asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport) or hasattr(transport, "write")
        self._transport = transport  # type: ignore[assignment]

    def data_received(self, data: bytes) -> None:
        reader, pushed, calls = self._reader, self._pushed, self._calls
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                kind = type(reply)
                if pushed is not None and ((kind is list and not calls) or kind is hiredis.PushNotification):
                    pushed(reply)
                else:
                    self._answered(reply)
        except hiredis.ProtocolError as error:
            self.abort(f"what came is not Redis: {error}")

    def connection_lost(self, exc: Exception | None) -> None:
        if exc is not None:
            self.why = f"the connection was lost: {exc}"
        self._fail()
        if not self.closed.done():
            self.closed.set_result(None)

    def _answered(self, reply: Any) -> None:
        if not self._calls:
            if not self._refused(str(reply)):
                self.abort(f"Redis refused: {reply}")
            return
        call = self._calls[0]
        call.answers.append(reply)
        call.left -= 1
        if not call.left:
            self._calls.popleft()
            if not call.done.done():
                call.done.set_result(call.answers)

    def _fail(self) -> None:
        while self._calls:
            done = self._calls.popleft().done
            if not done.done():
                done.set_exception(BusUnavailable(self.why))


async def connect(
    connection: Connection,
    address: Address,
    *greeting: Command,
    name: str,
    timeout_s: float,
    primary: bool = False,
) -> None:
    """Connect and sign in; the connection then carries `name` in CLIENT LIST. `greeting` is sent with it. Raises
    BusUnavailable when that takes too long or is refused, with `primary` also when the server is a replica."""
    commands = [*address.sign_in, ("CLIENT", "SETNAME", name), *greeting, *([("ROLE",)] if primary else [])]
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().create_connection(
                lambda: connection, address.host, address.port, ssl=address.tls
            )
            answers = await connection.call(*commands)
        if primary and answers[-1][0] != b"master":
            raise BusUnavailable(f"Redis at {address} is not a primary")
    except TimeoutError:
        connection.abort("timeout")
        raise BusUnavailable(f"Redis at {address} did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise BusUnavailable(f"Redis at {address} cannot be reached: {error}") from None
    except BaseException:
        connection.abort("given up")
        raise

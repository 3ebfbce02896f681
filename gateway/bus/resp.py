"""One connection to a Redis server: commands with answers in order, and whatever the server pushes, without a task or
a queue.

Our own protocol over `hiredis.Reader`, because the bus lives on it. Measured, CPU a message: received and handed on
as a `Message` 2.6 us, through the client library's `get_message` 12.1; published in batches 2.2 us, through its
pipeline 14.2; published alone 61 against 135.
"""

import asyncio
import ssl
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qsl, unquote, urlsplit

import hiredis

from gateway.errors import BusUnavailable, ConfigError

Command = tuple[bytes | str | int, ...]

MAX_UNSENT = 8 << 20  # bytes waiting for a server that does not read; protects our memory while a timeout runs out
OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")  # named as in the Redis clients' own URLs


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis server is and how to sign in."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def sign_in(self) -> list[Command]:
        if self.password is None:
            return []
        return [("AUTH", self.username, self.password) if self.username else ("AUTH", self.password)]

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse(url: str) -> Address:
    """Read `redis://[user][:password]@host[:port][/db][?option=…]`, or `rediss://` for TLS. The number of a database
    is allowed and means nothing: channels are one space. Raises ConfigError with one sentence."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port or 6379
    except ValueError as error:
        raise ConfigError(f"VESTNIK_BUS is not a URL: {error}.") from None
    options = dict(parse_qsl(parts.query))
    if unknown := sorted(options.keys() - set(OPTIONS)):
        raise ConfigError(f"VESTNIK_BUS has an unknown option {unknown[0]!r}; known are {', '.join(OPTIONS)}.")
    if options and parts.scheme != "rediss":
        raise ConfigError("VESTNIK_BUS has TLS options but is not rediss://.")
    return Address(
        host or "127.0.0.1",
        port,
        _tls(options) if parts.scheme == "rediss" else None,
        unquote(parts.username) if parts.username else None,
        unquote(parts.password) if parts.password else None,
    )


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:
        raise ConfigError(f"VESTNIK_BUS: the TLS files cannot be loaded: {error}.") from None
    if (reqs := options.get("ssl_cert_reqs", "required")) == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif reqs != "required":
        raise ConfigError("VESTNIK_BUS: ssl_cert_reqs must be required or none.")
    return context


class _Call:
    """Commands that travel together, and their answers."""

    __slots__ = ("answers", "done", "left")

    def __init__(self, left: int, done: asyncio.Future[list[Any]]):
        self.left, self.done, self.answers = left, done, list[Any]()


class Connection(asyncio.Protocol):
    """A live connection (RESP2). `pushed` gets each three-part array that the server sends to a subscriber.

    `closed` is done when the connection is gone, for whatever reason.
    """

    def __init__(self, pushed: Callable[[list[Any]], None] | None = None):
        self._pushed = pushed
        self._reader = hiredis.Reader()
        self._calls: deque[_Call] = deque()
        self._transport: asyncio.Transport | None = None
        self.closed: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.why = "the connection was closed"

    async def call(self, *commands: Command) -> list[Any]:
        """The answers, in order; error answers raise BusUnavailable, as does a lost connection. Safe to cancel: the
        answers are then thrown away when they come. There is no deadline here."""
        done: asyncio.Future[list[Any]] = asyncio.get_running_loop().create_future()
        self.send(*commands)
        self._calls.append(_Call(len(commands), done))
        answers = await done
        for answer in answers:
            if isinstance(answer, hiredis.ReplyError):
                raise BusUnavailable(f"Redis refused: {answer}")
        return answers

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
        reader, pushed = self._reader, self._pushed
        try:
            reader.feed(data)
            while (reply := reader.gets()) is not False:
                if pushed is not None and type(reply) is list:
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
            # Only a refused SUBSCRIBE gets here: without its confirmations nothing can be counted any more.
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
    address: Address, name: str, *, timeout_s: float, pushed: Callable[[list[Any]], None] | None = None
) -> Connection:
    """A connection that is signed in and carries `name` in CLIENT LIST. Raises BusUnavailable when that takes too
    long or is refused."""
    connection = Connection(pushed)
    try:
        async with asyncio.timeout(timeout_s):
            await asyncio.get_running_loop().create_connection(
                lambda: connection, address.host, address.port, ssl=address.tls
            )
            await connection.call(*address.sign_in, ("CLIENT", "SETNAME", name))
    except TimeoutError:
        connection.abort("timeout")
        raise BusUnavailable(f"Redis at {address} did not answer within {timeout_s:g} s") from None
    except OSError as error:
        raise BusUnavailable(f"Redis at {address} cannot be reached: {error}") from None
    except BaseException:
        connection.abort("given up")
        raise
    return connection

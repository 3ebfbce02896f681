"""A few connections to one PostgreSQL, transactions on them, and what to do when they fail.

A call is one task of its own: whoever waits for it may be cancelled, the call goes on to its end, so that no
transaction is ever left in the middle and no connection waits for a cancellation. Every wait is bounded, here and on
the server, where a node that froze inside a transaction loses its locks after `IDLE_S`.

Who holds locks takes them in one order, on every node, so that no two ever wait for each other:

    1. rows of `feeds` by id, or rows of `accounts` by name; never both in one transaction
    2. rows of `originals` by id
    3. new keys of events, by key

Rows of `presences` by account and device, and `leases`, each in transactions of their own.

Whoever writes anything of a feed (events, marks, deliveries that go) holds the row of the feed; whoever writes devices
or cursors of an account holds the row of the account. A row that is missing is made in a transaction of its own, and
the work begins again (`Again`)."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from functools import partial
from typing import Any, Final, Literal, TypeVar

import asyncpg
import structlog

from gateway.errors import ConfigError, EpochChanged, StoreUnavailable
from gateway.store.postgresql import failures, life, schema
from gateway.store.postgresql.address import Address

R = TypeVar("R")
How = Literal["make", "find", "again"]
"""A database without our tables: give them, or refuse; or no look at the tables, this process knows them."""
Connection = Any  # asyncpg ships no types
Work = Callable[[Connection], Awaitable[R]]

OLDEST_SERVER: Final = 15
CONNECTIONS: Final = 5  # a process appends, joins, reads, saves and polls one trip at a time each
CONNECT_S: Final = 5.0
SLOT_S: Final = 10.0  # how long a call waits for a connection
CALL_S: Final = 15.0  # and how long it may take; the server gives up first
STATEMENT_S: Final = 10
LOCK_S: Final = 8  # longer than a frozen node keeps its locks
IDLE_S: Final = 5  # a node that stops inside a transaction
CLOSE_S: Final = 5.0
MIGRATE_S: Final = 600  # the tables of an older version are brought up to this one, or another node does it
ATTEMPTS: Final = 5  # of a transaction that another one undid
BACKOFF_S: Final = (0.05, 0.2, 0.5, 1.0)  # between attempts to connect; the last one repeats

# Advisory locks of the database.
OPEN: Final = 0x56534E4B_0001  # shared by every connection of ours; a migration or a new epoch holds it alone
SETTLING: Final = 0x56534E4B_0002  # whoever makes or changes the schema, or settles the epoch
GATEWAY: Final = 0x56534E4B_0003  # a gateway whose bus reaches nobody else
SWEEPING: Final = 0x56534E4B_0003  # whoever overwrites what was erased

# The statements of a store look up rows by key. Without these a plan made while a table was small, or by statistics
# that are old, may read the whole of it; and planning anew each time costs more than most of the statements.
_SETTINGS: Final = f"""
    SET search_path = {schema.SCHEMA};
    SET synchronous_commit = on;
    SET default_transaction_isolation = 'read committed';
    SET statement_timeout = '{STATEMENT_S}s';
    SET lock_timeout = '{LOCK_S}s';
    SET idle_in_transaction_session_timeout = '{IDLE_S}s';
    SET tcp_keepalives_idle = 10;
    SET tcp_keepalives_interval = 5;
    SET tcp_keepalives_count = 3;
    SET jit = off;
    SET plan_cache_mode = force_generic_plan;
    SET enable_seqscan = off;
    SET enable_hashjoin = off;
    SET enable_mergejoin = off;
"""

log = structlog.get_logger(__name__)


class Again(Exception):
    """The transaction must begin again, after `first`, which is done outside of it and at once committed."""

    def __init__(self, first: Work[Any] | None = None):
        super().__init__()
        self.first = first


class Database:
    """The database at `address`; `make` says whether an empty one gets the tables."""

    def __init__(self, address: Address, *, make: bool = True):
        self.address = address
        self.epoch = ""
        self._make = make
        self._free: list[Connection] = []  # the last one used is the first one taken
        self._slots = asyncio.Semaphore(CONNECTIONS)
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = True
        self._changed = False  # the epoch is another one: nothing more is done here
        self._failures = 0
        self._not_before = 0.0  # loop time of the next attempt to connect

    async def open(self) -> None:
        """Raises ConfigError when the database cannot be used, StoreUnavailable when only now it cannot."""
        self._slots, self._changed, self._failures, self._not_before = asyncio.Semaphore(CONNECTIONS), False, 0, 0.0
        self.epoch = ""
        conn, self.epoch = await connect(self.address, "make" if self._make else "find")
        self._free.append(conn)
        self._closed = False

    async def close(self) -> None:
        self._closed = True
        if self._tasks:
            await asyncio.wait(self._tasks, timeout=CALL_S)
        late = list(self._tasks)
        for task in late:
            task.cancel()
        await asyncio.gather(*late, return_exceptions=True)  # what they had is free again, or gone
        while self._free:
            await end(self._free.pop())

    async def read(self, work: Work[R]) -> R:
        """Run `work`, which is one statement that reads. A connection that turns out to be cut is replaced once: what
        was only read may be read again."""
        return await self._call(work, repeat=True)

    async def write(self, work: Work[R], *, relaxed: bool = False) -> R:
        """Run `work` in a transaction. `relaxed` commits without waiting for the disk."""
        begin = "BEGIN; SET LOCAL synchronous_commit = off" if relaxed else "BEGIN"
        return await self._call(lambda conn: transact(conn, work, begin))

    async def outside(self, work: Work[R], *, limit_s: float) -> R:
        """Run `work` on a connection outside of any transaction, without the limits of a call but this one."""
        return await self._call(lambda conn: _unlimited(conn, work), limit_s=limit_s)

    async def _call(self, work: Work[R], *, repeat: bool = False, limit_s: float | None = None) -> R:
        if self._closed:
            raise StoreUnavailable("the store is closed")
        task = asyncio.create_task(self._run(work, repeat, CALL_S if limit_s is None else limit_s))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        if not task.cancelled():
            task.exception()  # its caller may be gone

    async def _run(self, work: Work[R], repeat: bool, limit_s: float) -> R:
        try:
            async with asyncio.timeout(SLOT_S):
                await self._slots.acquire()
        except TimeoutError:
            raise StoreUnavailable("all connections to PostgreSQL are busy") from None
        try:
            conn = await self._take()
            try:
                return await self._use(conn, work, limit_s)
            except failures.PASSING as error:
                if not repeat or not conn.is_closed() or isinstance(error, TimeoutError):
                    raise
                return await self._use(await self._take(), work, limit_s)
        except failures.PASSING as error:
            if failures.ours(error):
                raise
            if not self._failures:
                log.warning("store_failed", error=str(failures.unavailable(error)))
            raise failures.unavailable(error) from error
        finally:
            self._slots.release()

    async def _use(self, conn: Connection, work: Work[R], limit_s: float) -> R:
        """Whatever happens, the connection is free again and clean afterwards, or gone."""
        try:
            async with asyncio.timeout(limit_s):
                result = await work(conn)
        except BaseException as error:
            if isinstance(error, (*failures.PASSING, asyncio.CancelledError)) and not failures.keeps_connection(error):
                conn.terminate()
            self._put(conn)
            raise
        self._put(conn)
        return result

    def _put(self, conn: Connection) -> None:
        if conn.is_closed():
            return
        if conn.is_in_transaction() or self._changed:
            conn.terminate()
            return
        self._free.append(conn)

    async def _take(self) -> Connection:
        while self._free:
            conn = self._free.pop()
            if not conn.is_closed():
                return conn
        if self._changed:
            raise EpochChanged("the store has another epoch now and must be opened again")
        loop = asyncio.get_running_loop()
        if loop.time() < self._not_before:
            raise StoreUnavailable("PostgreSQL could not be reached and is tried again in a moment")
        try:
            conn, epoch = await connect(self.address, "again")
        except (ConfigError, StoreUnavailable) as error:
            self._not_before = loop.time() + BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
            if not self._failures:
                log.warning("store_unreachable", error=str(error))
            self._failures += 1
            raise StoreUnavailable(str(error)) from error
        if self._failures:
            log.info("store_reached_again", failures=self._failures)
            self._failures = 0
        if epoch != self.epoch:
            # A standby that may lack something was promoted, or a copy was brought back: no position of before holds.
            self._changed = True
            log.error("store_epoch_changed", was=self.epoch, epoch=epoch)
            for other in (conn, *self._free):
                other.terminate()
            raise EpochChanged("the store has another epoch now and must be opened again")
        return conn


async def connect(address: Address, how: How) -> tuple[Connection, str]:
    """A connection, set up, and the epoch of the log there. Raises ConfigError or StoreUnavailable."""
    async with _telling(address):
        async with asyncio.timeout(len(address.dsns) * CONNECT_S + CALL_S):
            conn = await plain(address)
        try:
            async with asyncio.timeout(CALL_S if how == "again" else MIGRATE_S):
                if not await conn.fetchval("SELECT pg_try_advisory_lock_shared($1)", OPEN):
                    raise StoreUnavailable(f"{address.name} is being migrated or gets a new epoch")
                return conn, await transact(conn, lambda conn: _settle(conn, address, how))
        except BaseException:
            conn.terminate()
            raise


@asynccontextmanager
async def alone(address: Address) -> AsyncIterator[Connection]:
    """A connection, while no store is open on the database and none can be. Raises ConfigError when one is."""
    async with _telling(address):
        conn = await plain(address)
        try:
            if not await conn.fetchval("SELECT pg_try_advisory_lock($1)", OPEN):
                raise ConfigError("is in use: stop its gateways and workers first")
            yield conn
        finally:
            await end(conn)


async def hold(address: Address) -> Callable[[], Awaitable[None]]:
    """Be the only gateway here until what is returned is called, or the connection ends. Raises ConfigError when there
    is another."""
    async with _telling(address):
        conn = await plain(address)
        try:
            if not await conn.fetchval("SELECT pg_try_advisory_lock($1)", GATEWAY):
                where = f"{address.name} (redis://…)"
                raise ConfigError(f"VESTNIK_BUS must reach all gateways on {where}, and another runs on it already.")
        except BaseException:
            conn.terminate()
            raise
    return partial(end, conn)


async def renew_epoch(address: Address) -> str:
    async with alone(address) as conn:
        if not await schema.version(conn):
            raise ConfigError("holds no store; is VESTNIK_STORE right?")
        epoch = life.new_epoch()
        await transact(conn, lambda conn: conn.execute("UPDATE meta SET epoch = $1", epoch))
        return epoch


@asynccontextmanager
async def _telling(address: Address) -> AsyncIterator[None]:
    """Whatever goes wrong inside becomes a sentence that names the database."""
    try:
        yield
    except ConfigError as error:
        if str(error).endswith("."):
            raise
        raise ConfigError(f"VESTNIK_STORE: {address.name} {error}.") from error
    except (*failures.PASSING, ValueError) as error:
        if failures.ours(error):
            raise
        raise failures.at_start(error, address) from error


async def plain(address: Address) -> Connection:
    """A connection to the first server that can be written, with our settings, that holds nothing. Raises what the
    driver raises, and ConfigError."""
    for dsn in list(address.dsns):
        try:
            conn = await asyncpg.connect(
                dsn,
                timeout=CONNECT_S,
                statement_cache_size=256,
                max_cached_statement_lifetime=0,
                server_settings=address.settings,
            )
            break
        except Exception as error:
            if dsn == address.dsns[-1] or not failures.elsewhere(error):
                raise
    address.dsns.sort(key=lambda other: other != dsn)
    try:
        if conn.get_server_version().major < OLDEST_SERVER:
            major = conn.get_server_version().major
            raise ConfigError(f"is PostgreSQL {major}; the store needs {OLDEST_SERVER} or newer")
        if conn.get_settings().server_encoding != "UTF8":
            raise ConfigError(f"has the encoding {conn.get_settings().server_encoding}; the store needs UTF8")
        await conn.execute(_SETTINGS)
    except BaseException:
        conn.terminate()
        raise
    return conn


async def end(conn: Connection) -> None:
    """Say goodbye, or hang up. Never raises what the driver does."""
    try:
        await conn.close(timeout=CLOSE_S)
    except failures.PASSING:
        conn.terminate()


async def _settle(conn: Connection, address: Address, how: How) -> str:
    await conn.execute(f"SET LOCAL statement_timeout = '{MIGRATE_S}s'; SET LOCAL lock_timeout = '{MIGRATE_S}s'")
    await conn.execute("SELECT pg_advisory_xact_lock($1)", SETTLING)
    if how != "again":
        if how == "find" and not await schema.version(conn):
            raise ConfigError("holds no store; is VESTNIK_STORE right?")
        await schema.migrate(conn, schema.migrations(), life.new_epoch())
        if await conn.fetchval("SELECT to_regclass('vestnik.migration')") is not None:
            raise ConfigError("holds a part of a store: run `vestnik migrate` to its end")
    return await life.settle(conn, synchronous=address.synchronous)


async def transact(conn: Connection, work: Work[R], begin: str = "BEGIN") -> R:
    """Run `work` in a transaction; when another one undid it, again."""
    for attempt in range(ATTEMPTS):
        await conn.execute(begin)
        try:
            result = await work(conn)
            # A transaction that failed inside is answered with a rollback, not with an error.
            if await conn.execute("COMMIT") != "COMMIT":
                raise StoreUnavailable("the transaction was undone")
            return result
        except Exception as error:
            if not conn.is_closed() and not isinstance(error, TimeoutError):
                with suppress(*failures.PASSING):
                    await conn.execute("ROLLBACK")
            if isinstance(error, Again):
                if error.first is not None:
                    await error.first(conn)
            elif not failures.again(error) or attempt == ATTEMPTS - 1:
                raise
    raise StoreUnavailable("others change the same rows again and again")


async def _unlimited(conn: Connection, work: Work[R]) -> R:
    await conn.execute("SET statement_timeout = 0; SET lock_timeout = 0")
    try:
        return await work(conn)
    finally:
        if not conn.is_closed():
            await conn.execute(_SETTINGS)

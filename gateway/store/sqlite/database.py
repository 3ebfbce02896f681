"""One SQLite file, open: a writing and a reading connection, each on a thread of its own, and what to do when it fails.

A trip is one function, run on a connection's thread inside one transaction: one hop, however much it does.

After an I/O error nobody knows what is on disk (a failed fsync is reported once and then forgotten by the kernel). So
the connection does no further trip; both are closed, and the next call opens them again, at most every few seconds:
SQLite reads back what the log really holds, and everything in it is copied to the database file and synced before
anyone is told that something is stored. A commit that was reported as failed may turn up then; that is within what the
store promises."""

import asyncio
import fcntl
import os
import sqlite3
import time
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any, Final, Literal, TypeVar

import aiosqlite
import structlog

from gateway.errors import ConfigError, StoreUnavailable
from gateway.store.sqlite import schema

R = TypeVar("R")
Work = Callable[[sqlite3.Connection], R]

ROOM_BYTES: Final = 1 << 18  # what must fit on a disk that was full before it counts as ready again
BUSY_S: Final = 5.0  # how long a trip waits for another process that writes
BACKOFF_S: Final = (0.1, 0.3, 1.0, 3.0)  # between attempts to open again; the last one repeats
CACHE_KIB: Final = 32 * 1024  # pages kept for each connection
CHECKPOINT_PAGES: Final = 2000  # 8 MiB of log, then it is copied to the file: bounds the log and the time of one copy
OLDEST_SQLITE: Final = (3, 35, 0)  # RETURNING

# After one of these the connection cannot be trusted any more.
_FATAL: Final = frozenset(
    {sqlite3.SQLITE_IOERR, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_CANTOPEN}
    | {sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOMEM}
)
# After one of these a statement of ours is wrong, not the state of the store.
_OURS: Final = frozenset(
    {0, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_RANGE}
)

log = structlog.get_logger(__name__)


class Lane:
    """One connection and its thread."""

    def __init__(self, path: Path, begin: Literal["BEGIN IMMEDIATE", "BEGIN"]):
        # mode=rw: a file that vanished is an error, not a new and empty store.
        self._aio = aiosqlite.connect(f"{path.as_uri()}?mode=rw", uri=True, timeout=BUSY_S, isolation_level=None)
        # A process that did not come to close the store must end all the same; to SQLite that is a kill.
        self._aio._thread.daemon = True
        self._begin = begin
        self._opened = self._stopped = False
        self.broken = False

    async def open(self) -> None:
        try:
            await self._aio
        except BaseException:
            # It ends its thread by itself, and the thread's last word is to this loop, which may not be there for long.
            await asyncio.to_thread(self._aio._thread.join, BUSY_S)
            raise
        self._opened = True

    def stop(self) -> "asyncio.Future[Any] | None":
        """Close it once everything called before is done. Does not wait: the future says when."""
        self._stopped = True
        return self._aio.stop() if self._opened else None

    async def trip(self, work: Work[R], *, relaxed: bool = False) -> R:
        """Run `work` in a transaction. `relaxed` commits without waiting for the disk."""
        return await self.hop(lambda conn: self._transact(conn, work, relaxed))

    async def hop(self, work: Work[R]) -> R:
        """Run `work` on the connection's thread."""
        # aiosqlite offers one thread hop for each statement; a trip is many statements and must be one hop, or the
        # event loop stands between the statements of a transaction. This private call is the only way to have both.
        try:
            result: R = await self._aio._execute(self._guarded, work)  # type: ignore[no-untyped-call]
        except ValueError as error:
            if self._stopped:
                raise StoreUnavailable("the store is closed") from error
            raise
        return result

    def _guarded(self, work: Work[R]) -> R:
        if self.broken:
            raise StoreUnavailable("the store is being opened again after a failure")
        try:
            return work(self._aio._conn)
        except sqlite3.Error as error:
            # Here, on the thread: the next trip is queued already and must not start.
            self.broken = self.broken or _primary(error) in _FATAL
            raise

    def _transact(self, conn: sqlite3.Connection, work: Work[R], relaxed: bool) -> R:
        if relaxed:
            conn.execute("PRAGMA synchronous = NORMAL")
        try:
            conn.execute(self._begin)
            result = work(conn)
            conn.execute("COMMIT")
            return result
        except BaseException:
            if conn.in_transaction:
                try:
                    conn.execute("ROLLBACK")
                except sqlite3.Error:
                    self.broken = True
            raise
        finally:
            if relaxed:
                conn.execute("PRAGMA synchronous = FULL")


class Database:
    """The file at `path`, made when missing, with the newest schema."""

    def __init__(self, path: Path):
        self.path = path
        self.epoch = ""
        self._lock = asyncio.Lock()  # one opens, the others wait
        self._lanes: tuple[Lane, Lane] | None = None  # writing, reading
        self._stopping: list[asyncio.Future[Any]] = []
        self._held: int | None = None
        self._closed = True
        self._full = False  # the disk was, when it was last tried
        self._failures = 0
        self._not_before = 0.0  # loop time of the next attempt to open again

    async def open(self) -> None:
        """Raises ConfigError when the file cannot be used, StoreUnavailable when only now it cannot."""
        if sqlite3.sqlite_version_info < OLDEST_SQLITE:
            raise ConfigError(
                f"The SQLite of this Python is {sqlite3.sqlite_version}; the store needs"
                f" {'.'.join(map(str, OLDEST_SQLITE))} or newer."
            )
        try:
            self._held = hold(self.path, shared=True)
            _make_file(self.path)
        except BlockingIOError as error:
            raise ConfigError(f"VESTNIK_STORE: {self.path} is being restored; try again when that is done.") from error
        except OSError as error:
            raise ConfigError(f"VESTNIK_STORE: {self.path} cannot be opened: {error.strerror}.") from error
        self._closed = False
        try:
            await self._connect()
        except BaseException as error:
            await self.close()
            if isinstance(error, ConfigError):
                raise ConfigError(f"VESTNIK_STORE: {self.path} {error}.") from error
            if not isinstance(error, sqlite3.Error):
                raise
            if _primary(error) in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR):
                raise StoreUnavailable(f"{self.path}: {error}") from error
            raise ConfigError(f"VESTNIK_STORE: {self.path} cannot be used: {error}.") from error

    async def close(self) -> None:
        async with self._lock:
            self._closed = True
            self._drop()
            await self._stopped()
            if self._held is not None:
                os.close(self._held)
                self._held = None

    async def write(self, work: Work[R], *, relaxed: bool = False) -> R:
        return await self._on(0, lambda lane: lane.trip(work, relaxed=relaxed))

    async def read(self, work: Work[R]) -> R:
        return await self._on(1, lambda lane: lane.trip(work))

    async def probe(self) -> None:
        """Commit something, and read."""
        if self._full:  # a page or two may still find a place where an append does not
            await self.write(partial(_probe, room=ROOM_BYTES))
        await self.write(_probe)
        self._full = False
        await self.read(lambda conn: conn.execute("SELECT probed FROM meta").fetchone())

    async def checkpoint(self) -> bool:
        """Copy the log to the file and cut it to nothing. False when a reader of an older state prevents that now."""
        return await self._on(0, lambda lane: lane.hop(_checkpoint))

    async def _on(self, which: Literal[0, 1], call: Callable[[Lane], Awaitable[R]]) -> R:
        lanes = self._lanes if self._lanes is not None else await self._reopen()
        try:
            return await call(lanes[which])
        except sqlite3.Error as error:
            if _primary(error) in _OURS:
                raise
            self._full = self._full or _primary(error) == sqlite3.SQLITE_FULL
            log.warning("store_failed", error=str(error), code=error.sqlite_errorname)
            raise StoreUnavailable(f"the store failed: {error}") from error
        finally:
            if lanes[which].broken and self._lanes is lanes:
                self._failed()
                self._drop()

    async def _connect(self, *, after_failure: bool = False) -> tuple[Lane, Lane]:
        await self._stopped()
        writer, reader = Lane(self.path, "BEGIN IMMEDIATE"), Lane(self.path, "BEGIN")
        try:
            await writer.open()
            await writer.hop(schema.version)  # look before touching anything: it may be someone else's
            self.path.chmod(0o600)
            await writer.hop(_use_wal)
            await writer.hop(_set_up)
            await writer.trip(lambda conn: schema.migrate(conn, schema.migrations()))
            if after_failure:
                if not await writer.hop(_checkpoint):
                    raise StoreUnavailable("the log of the store cannot be read back while others read")
                await writer.trip(_probe)
            await reader.open()
            await reader.hop(_set_up)
            self.epoch = await reader.trip(lambda conn: str(conn.execute("SELECT epoch FROM meta").fetchone()[0]))
        except BaseException:
            self._stop(writer, reader)
            raise
        self._lanes = writer, reader
        return self._lanes

    async def _reopen(self) -> tuple[Lane, Lane]:
        async with self._lock:
            if self._lanes is not None:
                return self._lanes
            if self._closed:
                raise StoreUnavailable("the store is closed")
            if asyncio.get_running_loop().time() < self._not_before:
                raise StoreUnavailable("the store failed and is opened again in a moment")
            try:
                lanes = await self._connect(after_failure=True)
            except (sqlite3.Error, ConfigError, StoreUnavailable) as error:
                self._failed()
                raise StoreUnavailable(f"the store cannot be opened again: {error}") from error
            self._failures = 0
            log.info("store_opened_again")
            return lanes

    def _failed(self) -> None:
        wait = BACKOFF_S[min(self._failures, len(BACKOFF_S) - 1)]
        self._failures += 1
        self._not_before = asyncio.get_running_loop().time() + wait

    def _drop(self) -> None:
        if self._lanes is not None:
            self._stop(*self._lanes)
            self._lanes = None

    def _stop(self, *lanes: Lane) -> None:
        self._stopping += [future for lane in lanes if (future := lane.stop()) is not None]

    async def _stopped(self) -> None:
        """SQLite recovers a log from the disk only when no connection of this process has it open any more."""
        if self._stopping:
            await asyncio.wait(self._stopping)
            self._stopping.clear()


def hold(path: Path, *, shared: bool) -> int:
    """Say that the store at `path` is in use until the returned descriptor is closed. Raises BlockingIOError (an
    OSError).

    Shared by everyone who has it open; a restore holds it alone. The lock is on a file beside: SQLite's own locks on
    the file itself would be lost when any descriptor of it is closed."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    held = os.open(path.with_name(f"{path.name}.lock"), os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(held, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BaseException:
        os.close(held)
        raise
    return held


def _make_file(path: Path) -> None:
    """Only its owner may read it; SQLite gives its other files the same mode."""
    with suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))


def _use_wal(conn: sqlite3.Connection) -> None:
    """SQLite does not wait by itself when two processes do this at the same moment."""
    for attempt in range(50):
        try:
            conn.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.OperationalError as error:
            if _primary(error) != sqlite3.SQLITE_BUSY or attempt == 49:
                raise
            time.sleep(0.1)


def _set_up(conn: sqlite3.Connection) -> None:
    conn.execute("PRAGMA synchronous = FULL")  # a commit is on disk when it returns
    conn.execute("PRAGMA secure_delete = ON")  # what was erased is overwritten
    conn.execute("PRAGMA temp_store = MEMORY")  # nor does it lie in temporary files
    conn.execute(f"PRAGMA cache_size = -{CACHE_KIB}")
    conn.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
    conn.execute(f"PRAGMA journal_size_limit = {4 * CHECKPOINT_PAGES * 4096}")


def _checkpoint(conn: sqlite3.Connection) -> bool:
    """TRUNCATE, not PASSIVE: all frames, synced, and the log emptied, or False."""
    busy, _, _ = conn.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    return not busy


def _probe(conn: sqlite3.Connection, room: int = 0) -> None:
    """Something to commit, with so many bytes beside it."""
    conn.execute("UPDATE meta SET probed = probed + 1, room = zeroblob(?)", (room,))


def _primary(error: sqlite3.Error) -> int:
    """The result code without its extension; 0 when the module itself raised."""
    return getattr(error, "sqlite_errorcode", 0) & 0xFF

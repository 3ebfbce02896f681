"""Moves a store from a SQLite file to an empty PostgreSQL database, with its epoch, offsets and cursors.

The file is held alone for as long as that takes, and the database too. Rows go over in chunks, each in a transaction
that also says how far it came; whoever starts again after an interruption goes on there, if the file is still what it
was, and else begins anew. At the end both sides are read through and compared, and only then is the database a store:
until then no gateway opens it. The file stays, with a new epoch: it is a copy now, and a gateway that is started on it
by mistake makes its devices resync instead of mixing two lives.
"""

import asyncio
import contextlib
import json
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import msgpack

from gateway.errors import ConfigError, VestnikError
from gateway.store.postgresql import database, life
from gateway.store.postgresql import schema as tables
from gateway.store.postgresql.address import parse
from gateway.store.postgresql.database import Connection
from gateway.store.postgresql.sql import text
from gateway.store.sqlite import schema
from gateway.store.sqlite.database import hold

Progress = Callable[[str, int, int], None]
"""(what is done now, rows done, rows in all); rows count twice, once copied and once compared."""


@dataclass(frozen=True, slots=True)
class Table:
    """A table of the database, and the statement that gives its rows out of the file, in an order that stays."""

    name: str
    columns: tuple[str, ...]
    source: str
    chunk: int = 5000  # rows in one transaction: bounds what is held in memory
    change: Callable[[tuple[Any, ...]], tuple[Any, ...]] = lambda row: row


_HEAD: Final = "coalesce((SELECT max(offset) FROM events WHERE feed = feeds.id), floor)"
_ACKED: Final = "coalesce((SELECT acked FROM feeds WHERE name = 'account:' || account), 0)"

TABLES: Final = (
    Table(
        "feeds",
        ("id", "name", "oldest", "head", "since"),
        f"SELECT id, name, floor + 1, {_HEAD}, since FROM feeds ORDER BY id",  # noqa: S608 - fixed words
    ),
    Table(
        "events",
        (
            *("seq", "feed", "offset", "recorded", "priority", "size", "item", "original", "key", "thing", "type"),
            *("status", "time", "digest", "event"),
        ),
        "SELECT seq, feed, offset, recorded, priority, size, item, original, key, thing, type, status, time, digest,"
        " CAST(event AS BLOB) FROM events ORDER BY seq",
        chunk=1000,
    ),
    Table(
        "unpublished",
        ("seq", "feed", "offset", "recorded"),
        "SELECT seq, feed, offset, recorded FROM unpublished JOIN events USING (seq) ORDER BY seq",
    ),
    Table(
        "originals",
        ("id", "events", "agency", "key_id", "verified", "digest", "webhook_id", "timestamp", "signature", "body"),
        "SELECT id, events, agency, key_id, verified, digest, webhook_id, timestamp, signature, body FROM originals"
        " ORDER BY id",
        chunk=50,
    ),
    Table("things", ("thing", "sequence", "seq"), "SELECT thing, sequence, seq FROM things ORDER BY thing"),
    Table(
        "accounts",
        ("account", "acked"),
        f"SELECT account, {_ACKED} FROM (SELECT account FROM devices UNION"  # noqa: S608 - fixed words
        " SELECT substr(name, 9) FROM feeds WHERE name GLOB 'account:*' AND acked > 0) ORDER BY account",
    ),
    Table(
        "devices",
        ("id", "account", "device", "agent", "created", "last_seen"),
        "SELECT id, account, device, agent, created, last_seen FROM devices ORDER BY id",
        change=lambda row: (*row[:3], row[3] and text(row[3]), *row[4:]),
    ),
    Table(
        "cursors",
        ("device", "feed", "epoch", "offset"),
        "SELECT device, feed, epoch, offset FROM cursors ORDER BY device, feed",
    ),
    Table("delivered", ("feed", "upto", "at"), "SELECT feed, upto, at FROM delivered ORDER BY feed, upto"),
    Table("seen", ("feed", "offset", "at"), "SELECT feed, offset, at FROM seen ORDER BY feed, offset"),
    Table(
        "agencies",
        ("code", "types", "created"),
        "SELECT code, types, created FROM agencies ORDER BY code",
        change=lambda row: (row[0], json.loads(row[1]), row[2]),
    ),
    Table(
        "agency_keys",
        ("place", "agency", "id", "kind", "material", "created", "retired"),
        "SELECT place, agency, id, kind, material, created, retired FROM agency_keys ORDER BY place",
    ),
    Table(
        "revocations", ("kind", "value", "before"), "SELECT kind, value, before FROM revocations ORDER BY kind, value"
    ),
)
"""Who is connected and who holds a lease is not among them: it ends with the gateways."""

_SEQUENCES: Final = (
    ("commits", "(SELECT seq FROM sqlite_sequence WHERE name = 'events')"),
    ("feeds_id_seq", "(SELECT max(id) FROM feeds)"),
    ("devices_id_seq", "(SELECT max(id) FROM devices)"),
    ("agency_keys_place_seq", "(SELECT max(place) FROM agency_keys)"),
)


@dataclass(frozen=True, slots=True)
class Moved:
    """What `migrate` did. `rows` by table."""

    epoch: str
    rows: dict[str, int]
    resumed: bool


async def migrate(source: Path, url: str, progress: Progress | None = None) -> Moved:
    """Make the empty database at `url` the store that is in the file `source`.

    Raises ConfigError, and changes nothing, when one of them cannot be what it should be or is in use; VestnikError
    when both sides differ in the end; StoreUnavailable when the server fails: then start it again."""
    address = parse(url)
    if not source.is_file():  # noqa: ASYNC240 - nobody else runs in this process
        raise ConfigError(f"There is no store at {source}.")
    with _held(source), _opened(source) as file:
        async with database.alone(address) as conn:
            # Whole tables are read here, and rows go in one after the other.
            await conn.execute(_SETTINGS)
            move = _Move(file, conn, progress or (lambda what, done, total: None))
            moved = await move.run(_identity(source, file))
        _retire(file, moved.epoch)
    return moved


class _Move:
    def __init__(self, file: sqlite3.Connection, conn: Connection, progress: Progress):
        self.file, self.conn, self.progress = file, conn, progress
        self.counts = {table.name: _count(file, table) for table in TABLES}
        self.total = 2 * sum(self.counts.values())
        self.done = 0

    async def run(self, source: str) -> Moved:
        epoch = str(self.file.execute("SELECT epoch FROM meta").fetchone()[0])
        state = await self._begin(source, epoch)
        if state is None:
            return Moved(epoch, self.counts, True)
        resumed = bool(state)
        for table in TABLES:
            await self._copy(table, state.get(table.name, 0), state)
        try:
            for table in TABLES:
                await self._compare(table)
        except VestnikError:
            await self.conn.execute("DROP SCHEMA vestnik CASCADE")
            raise
        await database.transact(self.conn, lambda conn: self._finish(conn, epoch))
        await self.conn.execute("ANALYZE")
        return Moved(epoch, self.counts, resumed)

    async def _begin(self, source: str, epoch: str) -> dict[str, int] | None:
        """How many rows of each table are over already; None when all was finished before."""
        conn = self.conn
        have = await tables.version(conn)
        if have and await conn.fetchval("SELECT to_regclass('vestnik.migration')") is not None:
            was, state = await conn.fetchrow("SELECT source, state FROM migration")
            if was == source:
                return dict(json.loads(state))
            if was.partition(" ")[0] != epoch:
                raise ConfigError(
                    "holds a part of another store; remove it with DROP SCHEMA vestnik CASCADE, or choose another"
                    " database"
                )
        elif have:
            if await conn.fetchval("SELECT epoch FROM meta") == epoch:
                return None
            if await conn.fetchval(_USED):
                raise ConfigError("holds a store already; choose an empty one")
        await database.transact(conn, lambda conn: self._make(conn, source, epoch))
        return {}

    async def _make(self, conn: Connection, source: str, epoch: str) -> None:
        await conn.execute("DROP SCHEMA IF EXISTS vestnik CASCADE")
        await tables.migrate(conn, tables.migrations(), epoch)
        await conn.execute("CREATE TABLE migration (source text NOT NULL, state text NOT NULL)")
        await conn.execute("INSERT INTO migration VALUES ($1, '{}')", source)

    async def _copy(self, table: Table, begin: int, state: dict[str, int]) -> None:
        self._step(f"copying {table.name}", begin)
        async for rows in _chunks(self.file, table, begin):
            state[table.name] = state.get(table.name, 0) + len(rows)
            await database.transact(
                self.conn,
                lambda conn, rows=rows: _put(conn, table, rows, json.dumps(state)),  # type: ignore[misc]
                # What a crash of the server takes away it takes away with the state.
                "BEGIN; SET LOCAL synchronous_commit = off",
            )
            self._step(f"copying {table.name}", len(rows))

    async def _compare(self, table: Table) -> None:
        ours, theirs = _Sum(), _Sum()
        async for rows in _chunks(self.file, table, 0):
            ours.add(rows)
            self._step(f"comparing {table.name}", len(rows))
        columns = ", ".join(f'"{column}"' for column in table.columns)
        async with self.conn.transaction():
            cursor = await self.conn.cursor(f"SELECT {columns} FROM {table.name}")  # noqa: S608 - fixed words
            while rows := await cursor.fetch(table.chunk):
                theirs.add([tuple(row) for row in rows])
        if (ours.count, ours.sum) != (theirs.count, theirs.sum):
            raise VestnikError(
                f"Table {table.name} differs after copying ({ours.count:,} rows became {theirs.count:,}); the copy was"
                " removed, and the file is as it was."
            )

    async def _finish(self, conn: Connection, epoch: str) -> None:
        for name, sql in _SEQUENCES:
            value = self.file.execute(f"SELECT coalesce({sql}, 0)").fetchone()[0]
            if value:
                await conn.execute("SELECT setval($1::regclass, $2)", name, value)
        revision = self.file.execute("SELECT revision FROM meta").fetchone()[0]
        place = await conn.fetchval(f"SELECT {life.PLACE}")
        await conn.execute("UPDATE meta SET epoch = $1, revision = $2, place = $3", epoch, revision, place)
        await conn.execute("DROP TABLE migration")

    def _step(self, what: str, rows: int) -> None:
        self.done += rows
        self.progress(what, self.done, self.total)


_SETTINGS: Final = """
    SET statement_timeout = 0; SET idle_in_transaction_session_timeout = 0; SET enable_seqscan = on"""
_USED: Final = """
    SELECT EXISTS (SELECT FROM feeds) OR EXISTS (SELECT FROM agencies) OR EXISTS (SELECT FROM revocations)
        OR EXISTS (SELECT FROM devices)"""


class _Sum:
    """The same for the same rows in any order."""

    def __init__(self) -> None:
        self.count = self.sum = 0

    def add(self, rows: list[tuple[Any, ...]]) -> None:
        self.count += len(rows)
        for row in rows:
            digest = blake2b(msgpack.packb(row), digest_size=16).digest()
            self.sum = (self.sum + int.from_bytes(digest)) % (1 << 128)


async def _put(conn: Connection, table: Table, rows: list[tuple[Any, ...]], state: str) -> None:
    await conn.copy_records_to_table(table.name, schema_name="vestnik", columns=table.columns, records=rows)
    await conn.execute("UPDATE migration SET state = $1", state)


async def _chunks(file: sqlite3.Connection, table: Table, begin: int) -> AsyncIterator[list[tuple[Any, ...]]]:
    cursor = await asyncio.to_thread(file.execute, f"SELECT * FROM ({table.source}) LIMIT -1 OFFSET {begin}")  # noqa: S608
    while rows := await asyncio.to_thread(cursor.fetchmany, table.chunk):
        yield list(map(table.change, rows))


def _count(file: sqlite3.Connection, table: Table) -> int:
    return int(file.execute(f"SELECT count(*) FROM ({table.source})").fetchone()[0])  # noqa: S608 - fixed words


@contextlib.contextmanager
def _held(source: Path) -> Iterator[None]:
    try:
        held = hold(source, shared=False)
    except BlockingIOError as error:
        raise ConfigError(f"{source} is in use: stop the gateway and its workers first.") from error
    except OSError as error:
        raise ConfigError(f"{source} cannot be held: {error.strerror}.") from error
    try:
        yield
    finally:
        os.close(held)


@contextlib.contextmanager
def _opened(source: Path) -> Iterator[sqlite3.Connection]:
    """The file, of the newest schema, with nothing left in its log."""
    try:
        file = sqlite3.connect(
            f"{source.absolute().as_uri()}?mode=rw", uri=True, isolation_level=None, check_same_thread=False
        )
        with contextlib.closing(file):
            if schema.version(file) == 0:
                raise ConfigError("is empty")
            file.execute("BEGIN IMMEDIATE")
            schema.migrate(file, schema.migrations())
            file.execute("COMMIT")
            file.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            yield file
    except ConfigError as error:
        if str(error).endswith("."):
            raise
        raise ConfigError(f"{source} cannot be moved: it {error}.") from error
    except sqlite3.Error as error:
        raise ConfigError(f"{source} cannot be moved: {error}.") from error


def _identity(source: Path, file: sqlite3.Connection) -> str:
    """The epoch, and what changes with every write to the file."""
    found = source.stat()
    epoch = file.execute("SELECT epoch FROM meta").fetchone()[0]
    return f"{epoch} {found.st_size} {found.st_mtime_ns}"


def _retire(file: sqlite3.Connection, epoch: str) -> None:
    """The file is a copy now. What it knew goes on elsewhere, under the same epoch."""
    file.execute("UPDATE meta SET epoch = ? WHERE epoch = ?", (schema.new_epoch(), epoch))

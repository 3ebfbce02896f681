"""Talking to SQLite in few words: many rows in one statement, many results in one row.

The GIL is let go and taken back at every step of every statement. While the event loop is busy, taking it back costs
up to the interpreter's switch interval, 5 ms by default: 300 small statements were measured at 1.8 ms beside an idle
loop and at 1.5 s beside a busy one. So a trip is a handful of statements, whatever the number of items: rows go in as
one long VALUES or as one JSON array, and come back as one JSON array or one long text."""

import sqlite3
from collections.abc import Collection, Iterator, Sequence
from functools import cache
from itertools import chain
from typing import Any

import orjson

_CHUNK = 128


def micros(seconds: float) -> int:
    return round(seconds * 1_000_000)


def seconds(micros: int) -> float:
    return micros / 1_000_000


def dumps(rows: Collection[Any]) -> str:
    """An argument for `json_each(?)`."""
    return orjson.dumps(rows).decode()


def gather(conn: sqlite3.Connection, sql: str, *args: Any) -> list[Any]:
    """The rows that `sql` puts together by `json_group_array`."""
    found: list[Any] = orjson.loads(conn.execute(sql, args).fetchone()[0])
    return found


def number(conn: sqlite3.Connection, sql: str, *args: Any) -> int:
    """The one integer that `sql` gives, 0 for NULL or no row."""
    row = conn.execute(sql, args).fetchone()
    return row[0] if row is not None and row[0] is not None else 0


def insert(conn: sqlite3.Connection, into: str, rows: Sequence[Sequence[Any]], then: str = "") -> None:
    """INSERT INTO `into` VALUES rows `then`, in as few statements as there are ones in the binary number of rows."""
    for part in _parts(rows):
        conn.execute(_values(into, len(part[0]), len(part), then), tuple(chain.from_iterable(part)))


def among(values: Sequence[Any]) -> tuple[str, Sequence[Any]]:
    """`IN` something, and its arguments. Blobs cannot travel in JSON. Padded, so that few statements are ever
    prepared."""
    size = 1 << max(0, len(values) - 1).bit_length()
    return _marks(size), (*values, *[values[-1]] * (size - len(values)))


def _parts(rows: Sequence[Sequence[Any]]) -> Iterator[Sequence[Sequence[Any]]]:
    at = 0
    while at < len(rows):
        size = min(_CHUNK, 1 << ((len(rows) - at).bit_length() - 1))
        yield rows[at : at + size]
        at += size


@cache
def _values(into: str, width: int, count: int, then: str) -> str:
    return f"INSERT INTO {into} VALUES {','.join([_marks(width)] * count)} {then}"  # noqa: S608 - no value is in it


@cache
def _marks(count: int) -> str:
    return f"({','.join('?' * count)})"

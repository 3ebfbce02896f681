"""The tables, and how an older file becomes a newer one: numbered files, each run once, in order, all in one
transaction."""

import secrets
import sqlite3
from collections.abc import Iterator, Sequence
from importlib import resources

from gateway.errors import ConfigError
from gateway.store.sqlite.sql import number

APPLICATION_ID = 0x56534E4B  # "VSNK", in the header of every file of ours


def migrations() -> list[str]:
    """The text of each migration; number n makes schema n out of schema n - 1."""
    files = sorted((f for f in resources.files(__name__).iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [file.read_text("utf-8") for file in files]


def version(conn: sqlite3.Connection) -> int:
    """The schema that the file has, 0 when it is empty. Raises ConfigError for a database of another program."""
    if number(conn, "PRAGMA application_id") == APPLICATION_ID:
        return number(conn, "SELECT schema FROM meta")
    if number(conn, "SELECT count(*) FROM sqlite_schema"):
        raise ConfigError("is a database of another program")
    return 0


def migrate(conn: sqlite3.Connection, steps: Sequence[str]) -> None:
    """Bring the file up to the last step. Call it inside a transaction. Raises ConfigError for a newer file."""
    have = version(conn)
    if have > len(steps):
        raise ConfigError(f"has schema {have}, this program knows {len(steps)}: use a newer program")
    for step in steps[have:]:
        for statement in _statements(step):
            conn.execute(statement)
    if have == 0:
        conn.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        conn.execute("INSERT INTO meta (one, schema, epoch) VALUES (1, 0, ?)", (new_epoch(),))
    if have < len(steps):
        conn.execute("UPDATE meta SET schema = ?", (len(steps),))


def new_epoch() -> str:
    return secrets.token_hex(8)


def _statements(script: str) -> Iterator[str]:
    """One by one: sqlite3's own executescript() would commit first."""
    statement = ""
    for line in script.splitlines(keepends=True):
        statement += line
        if sqlite3.complete_statement(statement):
            yield statement
            statement = ""

"""The tables, and how an older database becomes a newer one: numbered files, each run once, in order, all in one
transaction, by the first of however many nodes start at once."""

from importlib import resources
from typing import Any, Final

from gateway.errors import ConfigError

SCHEMA: Final = "vestnik"
"""The PostgreSQL schema of all tables: the database may hold other things too."""


def migrations() -> list[str]:
    """The text of each migration; number n makes schema n out of schema n - 1."""
    files = sorted((f for f in resources.files(__name__).iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return [file.read_text("utf-8") for file in files]


async def version(conn: Any) -> int:
    """The schema that the database has, 0 when it has none. Raises ConfigError for one of another program."""
    if await conn.fetchval("SELECT to_regclass('vestnik.meta')") is not None:
        return int(await conn.fetchval("SELECT coalesce(max(schema), 0) FROM vestnik.meta"))
    if await conn.fetchval("SELECT count(*) FROM pg_class WHERE relnamespace = to_regnamespace('vestnik')"):
        raise ConfigError("has a schema `vestnik` of another program")
    return 0


async def migrate(conn: Any, steps: list[str], epoch: str) -> None:
    """Bring the database up to the last step. Call it inside a transaction that nobody else is in at the same time.
    `epoch` is for a database that is new. Raises ConfigError for a newer one."""
    have = await version(conn)
    if have > len(steps):
        raise ConfigError(f"has schema {have}, this program knows {len(steps)}: use a newer program")
    if have == 0:
        await conn.execute(f"CREATE SCHEMA IF NOT EXISTS {SCHEMA}")
    for step in steps[have:]:
        await conn.execute(step)
    if have == 0:
        await conn.execute("INSERT INTO meta (one, schema, epoch, place) VALUES (1, 0, $1, '')", epoch)
    if have < len(steps):
        await conn.execute("UPDATE meta SET schema = $1", len(steps))

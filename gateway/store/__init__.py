"""The store: `base` says what it promises, `memory` shows it, `sqlite` and `postgresql` keep it."""

import os
from collections.abc import Awaitable, Callable
from pathlib import Path

from gateway.errors import ConfigError
from gateway.store.base import Store

__all__ = ["hold_alone", "open_store", "sqlite_path"]


def open_store(url: str, data_dir: Path, *, make: bool = True) -> Store:
    """The store of this URL; `await store.open()` makes it ready. Raises ConfigError, one sentence, when it is no URL
    of a store. With `make` False an empty PostgreSQL database is refused instead of given the tables."""
    # Imported here: the stores use `gateway.events`, which itself needs `gateway.store.base`.
    if url == "memory://":
        from gateway.store.memory import MemoryStore

        return MemoryStore()
    if url.startswith("postgresql://"):
        from gateway.store.postgresql import PostgresqlStore

        return PostgresqlStore(url, make=make)
    from gateway.store.sqlite import SqliteStore

    return SqliteStore(sqlite_path(url, data_dir))


def sqlite_path(url: str, data_dir: Path) -> Path:
    """The file of a `sqlite:///path` URL; without a path `vestnik.db` under `data_dir`. Raises ConfigError for any
    other."""
    scheme, _, path = url.partition(":///")
    if scheme != "sqlite":
        raise ConfigError(
            f"VESTNIK_STORE: {url.partition(':')[0]!r} is no store; use sqlite:///path, postgresql://… or memory://."
        )
    return Path(path) if path else data_dir / "vestnik.db"


async def hold_alone(url: str, data_dir: Path) -> Callable[[], Awaitable[None]] | None:
    """From now until what is returned is called, or the process is gone however it ends, no other gateway holds this
    store. None for one in memory. Raises ConfigError, one sentence, when another has it, and StoreUnavailable.

    For a gateway whose bus reaches one process only: a second one on the same store would deliver late, and each would
    take the devices of the other for absent."""
    if url.startswith("postgresql://"):
        from gateway.store import postgresql

        return await postgresql.hold(postgresql.parse(url))
    if not url.startswith("sqlite:///"):
        return None
    from gateway.store.sqlite.database import hold

    path = sqlite_path(url, data_dir)
    try:
        held = hold(path.with_name(f"{path.name}.gateway"), shared=False)
    except BlockingIOError:
        raise ConfigError(
            f"VESTNIK_BUS must reach all gateways on {path} (redis://…), and another runs on it already."
        ) from None
    except OSError:
        return None  # a place where nothing can be written: opening the store says why

    async def let_go() -> None:
        os.close(held)

    return let_go

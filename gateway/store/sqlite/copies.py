"""Backup of a running store, and the way back."""

import os
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

from gateway.errors import ConfigError
from gateway.store.sqlite import schema
from gateway.store.sqlite.database import hold
from gateway.store.sqlite.sql import number

_STEP_PAGES = 1024

Progress = Callable[[int, int], None]


def backup(source: Path, target: Path, progress: Progress | None = None) -> None:
    """Copy the store at `source`, as it is now, while others read and write it. Blocks: run it on a thread.

    The target is there whole or not at all. Raises ConfigError when it cannot be written, sqlite3.Error when the
    source cannot be read."""
    target = target.absolute()
    try:
        # One read transaction for the whole copy: it is one moment, and the commits of others do not start it anew.
        with closing(_connect(source, "ro")) as conn, _part(target) as part, closing(_connect(part, "rw")) as copy:
            conn.execute("BEGIN")
            number(conn, "SELECT schema FROM meta")
            conn.backup(copy, pages=_STEP_PAGES, progress=_told(progress))
            copy.execute("PRAGMA journal_mode = DELETE")  # one file, nothing beside it
            copy.close()
            _put(part, target)
    except sqlite3.OperationalError as error:
        raise ConfigError(f"{target} cannot be written: {error}.") from error


def restore(file: Path, target: Path, progress: Progress | None = None) -> str:
    """Make the backup `file` the store at `target`, with a new epoch, which is returned. What was there is replaced.

    Raises ConfigError, and changes nothing, when the file is not a whole backup of this or an older schema, when the
    target is in use, or cannot be written."""
    target = target.absolute()
    if not file.is_file():
        raise ConfigError(f"{file} is not a file.")
    try:
        held = hold(target, shared=False)
    except BlockingIOError as error:
        raise ConfigError(f"{target} is in use: stop the gateway and its workers first.") from error
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}.") from error
    try:
        with _part(target) as part:
            epoch = _prepare(file, part, progress)
            for beside in ("-wal", "-shm", "-journal"):  # of what is replaced: never to be read into the new one
                target.with_name(target.name + beside).unlink(missing_ok=True)
            _put(part, target)
        return epoch
    finally:
        os.close(held)


def _prepare(file: Path, part: Path, progress: Progress | None) -> str:
    """A checked copy of the backup, of the newest schema and with an epoch of its own."""
    epoch = schema.new_epoch()
    try:
        with closing(_connect(file, "ro")) as backup, closing(_connect(part, "rw")) as conn:
            number(backup, "SELECT count(*) FROM sqlite_schema")  # is it a database at all?
            backup.backup(conn, pages=_STEP_PAGES, progress=_told(progress))
            conn.execute("PRAGMA journal_mode = DELETE")
            if conn.execute("PRAGMA integrity_check(1)").fetchone()[0] != "ok":
                raise ConfigError("is damaged")
            if schema.version(conn) == 0:
                raise ConfigError("is empty")
            conn.execute("BEGIN IMMEDIATE")
            schema.migrate(conn, schema.migrations())
            conn.execute("UPDATE meta SET epoch = ?", (epoch,))
            conn.execute("COMMIT")
    except ConfigError as error:
        raise ConfigError(f"{file} cannot be restored: it {error}.") from error
    except sqlite3.Error as error:
        raise ConfigError(f"{file} cannot be restored: {error}.") from error
    return epoch


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    return sqlite3.connect(f"{path.absolute().as_uri()}?mode={mode}", uri=True, isolation_level=None)


def _told(progress: Progress | None) -> Callable[[int, int, int], None] | None:
    if progress is None:
        return None
    return lambda status, remaining, total: progress(total - remaining, total)


@contextmanager
def _part(target: Path) -> Iterator[Path]:
    """An empty file beside the target, for its owner only; gone afterwards if it was not put in place."""
    part = target.with_name(f"{target.name}.{os.getpid()}.part")
    try:
        part.unlink(missing_ok=True)
        os.close(os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}.") from error
    try:
        yield part
    finally:
        part.unlink(missing_ok=True)


def _put(part: Path, target: Path) -> None:
    """Under its name, and on disk when this returns."""
    try:
        _sync(part)
        os.replace(part, target)
        _sync(target.parent)
    except OSError as error:
        raise ConfigError(f"{target} cannot be written: {error.strerror}.") from error


def _sync(path: Path) -> None:
    opened = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)

"""Small secrets of a data directory: made once, at the first start, readable for their owner only."""

import contextlib
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from gateway.errors import ConfigError


def make_once(path: Path, make: Callable[[], bytes]) -> bytes:
    """The bytes of the file; when there is none, those of `make()`, written and on disk before this returns.

    Processes that start at once all get the same bytes: a file is complete before it gets its name, and the first one
    wins. The directory is made (0700) when missing, the file is 0600. Raises ConfigError when that cannot be done.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            _create(path, make())
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(
            f"VESTNIK_DATA must be a directory that this user can write, but {path} failed: {error.strerror}."
        ) from None


def _create(path: Path, content: bytes) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename it never replaces what another process made meanwhile
        directory = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    finally:
        draft.unlink(missing_ok=True)

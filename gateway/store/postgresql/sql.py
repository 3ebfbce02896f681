"""Rows as columns: many rows travel to the server as one array for each column, in one statement."""

from collections.abc import Sequence
from typing import Any


def micros(seconds: float) -> int:
    return round(seconds * 1_000_000)


def seconds(micros: int) -> float:
    return micros / 1_000_000


def columns(rows: Sequence[Sequence[Any]]) -> list[tuple[Any, ...]]:
    """One tuple for each column, for `unnest($1::…[], $2::…[], …)`. There must be a row."""
    return list(zip(*rows, strict=True))


def text(given: str) -> str:
    """Without lone surrogates and NUL, which PostgreSQL has no room for: one such value fails everything that travels
    with it."""
    return given.encode(errors="replace").decode().replace("\0", "")

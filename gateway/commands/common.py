"""What commands share: words go to standard error, results to standard output, refusals are one sentence."""

import asyncio
import contextlib
import json
import sys
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import click

from gateway.errors import ConfigError
from gateway.settings import Settings, load
from gateway.store.base import Store

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])

_FLAGS = {
    "data": click.option("--data", metavar="DIR", help="Data directory (VESTNIK_DATA)."),
    "store": click.option("--store", metavar="URL", help="Store (VESTNIK_STORE)."),
    "bus": click.option("--bus", metavar="URL", help="Bus between gateways (VESTNIK_BUS)."),
    "host": click.option("--host", metavar="HOST", help="Address to listen on (VESTNIK_HOST)."),
    "port": click.option("--port", metavar="PORT", help="Port to listen on, 0 for any (VESTNIK_PORT)."),
    "processes": click.option("--processes", metavar="N", help="Gateway processes (VESTNIK_PROCESSES)."),
}


def flags(*names: str) -> Callable[[Command], Command]:
    """Options that set settings. Their values are checked by the settings, so that a wrong one is the same sentence
    wherever it comes from."""

    def add(command: Command) -> Command:
        for name in reversed(names):
            command = _FLAGS[name](command)
        return command

    return add


def json_flag(command: Command) -> Command:
    """Adds `--json`, the parameter `as_json`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON, one object a line.")(command)


class Refusal(click.ClickException):
    """The command will not or cannot do it: one sentence, exit code 1."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        say(self.message)


def say(sentence: object) -> None:
    """Words for people."""
    click.echo(str(sentence), err=True)


def put(line: str) -> None:
    """A line of the result. Flushed: whoever reads may wait for it."""
    click.echo(line)


def put_json(document: Any) -> None:
    put(json.dumps(document, ensure_ascii=False, separators=(",", ":")))


def when(moment: float) -> str:
    """RFC 3339, seconds, UTC."""
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(moment))


def store_file(settings: Settings) -> Path:
    """The file of the store. Raises ConfigError for a store that a command cannot use."""
    from gateway.store import sqlite_path

    if settings.store.startswith("memory:"):
        raise ConfigError("VESTNIK_STORE must be a store that outlives this command, got 'memory://'.")
    return sqlite_path(settings.store, settings.data)


@contextlib.asynccontextmanager
async def opened(settings: Settings, *, existing: bool = False) -> AsyncIterator[Store]:
    """The store, ready. With `existing`, one that was never made is refused instead of made: a wrong VESTNIK_DATA
    must not look like an empty store."""
    from gateway.store import open_store

    if not settings.store.startswith("postgresql:"):
        path = store_file(settings)
        if existing and not path.exists():
            raise Refusal(f"There is no store at {path}; is VESTNIK_DATA or VESTNIK_STORE right?")
    store = open_store(settings.store, settings.data, make=not existing)
    await store.open()
    try:
        yield store
    finally:
        await store.close()


def run(work: Coroutine[Any, Any, Result]) -> Result:
    return asyncio.run(work)


def settings_of(**given: Any) -> Settings:
    """Settings from flags, environment and `.env`."""
    return load(**given)


def on_terminal() -> bool:
    return sys.stderr.isatty()

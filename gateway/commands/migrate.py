"""`vestnik migrate`: a small installation moves to PostgreSQL."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import click

from gateway.commands.common import Refusal, json_flag, on_terminal, put_json, run, say, settings_of


@click.command(short_help="Move a store from SQLite to PostgreSQL.")
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@json_flag
def migrate(source: str, target: str, as_json: bool) -> None:
    """Move the store at FROM (sqlite:///path) to the empty database at TO (postgresql://…), with its epoch, offsets and
    cursors: no device notices.

    Refuses while a gateway or a worker runs on either of them. Stopped in the middle, it goes on where it was when it
    is started again. A password need not be in TO: PGPASSWORD and ~/.pgpass are looked at.
    """
    from gateway.store import sqlite_path
    from gateway.store.migrate import migrate as move

    if not source.startswith("sqlite:///") or not target.startswith("postgresql://"):
        raise Refusal("A store can be moved from sqlite:///path to postgresql://…, and in no other way.")
    path = sqlite_path(source, settings_of().data)
    with _bar() as progress:
        moved = run(move(path, target, progress))
    count = sum(moved.rows.values())
    if as_json:
        put_json({"epoch": moved.epoch, "rows": moved.rows, "resumed": moved.resumed})
    say(
        f"All {count:,} rows are in PostgreSQL and were compared; the epoch is {moved.epoch} as before. Set"
        f" VESTNIK_STORE to it and start the gateways. {path} stays as a copy with another epoch."
    )


@contextmanager
def _bar() -> Iterator[Callable[[str, int, int], None] | None]:
    if not on_terminal():
        yield None
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description:22}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("counting", total=None)
        yield lambda what, done, total: bar.update(task, description=what, completed=done, total=total)

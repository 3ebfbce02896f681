"""`vestnik erase`, `verify`, `backup`, `restore`: what an operator does to the log, rarely and with care."""

import hashlib
import sys
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from gateway.commands.common import (
    Refusal,
    flags,
    json_flag,
    on_terminal,
    opened,
    put,
    put_json,
    run,
    say,
    settings_of,
    store_file,
    when,
)
from gateway.settings import Settings
from gateway.store.base import AgencyKey, Draft, Kept, Range, Store, Stored

# Erase


@click.command(short_help="Erase an account's events, or one.")
@click.option("--account", required=True, metavar="ID", help="Whose events.")
@click.option("--offset", type=click.IntRange(1, 2**53 - 1), metavar="N", help="One event; all of them without it.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_flag
@flags("data", "store")
def erase(account: str, offset: int | None, yes: bool, as_json: bool, **given: str | None) -> None:
    """Erase an account's events, or one. Offsets stay; devices are told and get null in their place."""
    from gateway.events import is_account

    if not is_account(account):
        raise click.BadParameter("must be 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'.", param_hint="--account")
    settings = settings_of(**given)
    if offset is None and not yes and on_terminal() and sys.stdin.isatty():
        click.confirm(f"Erase all events of account {account}? This cannot be undone", abort=True, err=True)
    ranges: list[tuple[int, int]] = []
    stored = run(_erase(settings, account, offset, ranges))
    if stored is None:
        what = "no events" if offset is None else f"no event {offset}"
        raise Refusal(f"Account {account} has {what} to erase.")
    count = sum(last - first + 1 for first, last in ranges)
    if as_json:
        place = {"feed": stored.feed, "epoch": stored.epoch, "offset": stored.offset}
        put_json(place | {"erased": count, "ranges": ranges})
    say(f"Erased {count} event{'' if count == 1 else 's'}; devices are told by event {stored.offset} of {stored.feed}.")


async def _erase(settings: Settings, account: str, offset: int | None, ranges: list[tuple[int, int]]) -> Stored | None:
    from gateway.events import erased_event

    now = time.time()

    def make(found: Sequence[tuple[int, int]]) -> Draft:
        ranges[:] = [(first, last) for first, last in found]
        return erased_event(account, found, now, str(uuid.uuid4()))

    async with opened(settings, existing=True) as store:
        return await store.erase(f"account:{account}", offset, make, now)


# Verify


@click.command(short_help="Check the kept signature of an event.")
@click.option("--agency", "code", required=True, metavar="CODE", help="The agency that sent it.")
@click.argument("id")
@json_flag
@flags("data", "store")
@click.pass_context
def verify(ctx: click.Context, /, code: str, id: str, as_json: bool, **given: str | None) -> None:
    """Check the kept signature of an event, by its id. Exit code 1 when it is not proven."""
    verdict = run(_verify(settings_of(**given), code, id))
    if as_json:
        put_json(verdict)
    else:
        put(str(verdict["text"]))
    ctx.exit(0 if verdict["verdict"] in ("good", "erased") else 1)


async def _verify(settings: Settings, code: str, id: str) -> dict[str, Any]:
    from gateway.events import key_of, source_of

    async with opened(settings, existing=True) as store:
        kept = await store.kept(key_of(source_of(code), id))
        if kept is None:
            text = f"Nothing is kept of event {id} of agency {code}: it never came, or its time is over."
            return {"verdict": "unknown", "text": text}
        keys = {key.id: key for one in await store.agencies() if one.code == code for key in one.keys}
        verdict, text = await _judge(store, kept, keys.get(kept.key_id), id)
    return {
        "verdict": verdict,
        "text": text,
        "feed": kept.feed,
        "offset": kept.offset,
        "key": kept.key_id,
        "verified": when(kept.verified),
        "sha256": kept.digest.hex(),
    }


async def _judge(store: Store, kept: Kept, key: AgencyKey | None, id: str) -> tuple[str, str]:
    from gateway.verify import check_kept

    place = f"{kept.feed} {kept.offset}"
    then = f"verified at {when(kept.verified)} with key {kept.key_id}"
    original = kept.original
    if original is None:
        which = "The event" if kept.erased else "Another event of its request"
        return "erased", (
            f"{which} was erased, and the signed body with it. {place} was {then};"
            f" the SHA-256 of the signed body is kept: {kept.digest.hex()}"
        )
    if key is None:
        return "key-unknown", f"Key {kept.key_id} of agency {kept.agency} is unknown here. {place} was {then}."
    if hashlib.sha256(original.body).digest() != kept.digest or not check_kept(original, key):
        return "bad", f"The kept signature does NOT match the kept body. {place} was {then}."
    page = (await store.read([Range(kept.feed, kept.offset - 1, 1)]))[0]
    row = next((row for row in page.rows if row.offset == kept.offset), None)
    if row is None or row.event is None or not _same(row.event, original.body, kept.item):
        return "bad", f"The signature is good, but {place} is NOT what was signed."
    retired = "" if key.retired is None else f" (retired {when(key.retired)})"
    return "good", (
        f"Good: {place} is what agency {kept.agency} signed with key {key.id} ({key.kind}){retired},"
        f" message {original.webhook_id}, {when(original.timestamp)}."
    )


def _same(event: bytes, body: bytes, item: int) -> bool:
    """Is the stored event, without what the gateway added, the signed one as a JSON value?"""
    from gateway import strict
    from gateway.errors import Problem

    try:
        signed, stored = strict.read(body), strict.read(event)
    except Problem:
        return False
    if isinstance(signed, list):
        signed = signed[item] if item < len(signed) else None
    if not isinstance(signed, dict) or not isinstance(stored, dict):
        return False
    stored.pop("recordedtime", None)
    return strict.canonical(signed) == strict.canonical(stored)


# Backup and restore


@click.command(short_help="Copy a running store to a file.")
@click.argument("file", type=click.Path(dir_okay=False))
@flags("data", "store")
def backup(file: str, **given: str | None) -> None:
    """Copy the store, also while a gateway runs on it, to FILE, which must not exist yet."""
    path = Path(file).absolute()
    if path.exists():
        raise Refusal(f"{path} exists; name a new file.")
    if not path.parent.is_dir():
        raise Refusal(f"{path.parent} is no directory.")
    settings = settings_of(**given)
    with _bar("copying") as progress:
        run(_backup(settings, str(path), progress))
    say(f"The store is copied to {path} ({path.stat().st_size:,} bytes).")


async def _backup(settings: Settings, path: str, progress: Callable[[int, int], None] | None) -> None:
    async with opened(settings, existing=True) as store:
        await store.backup(path, progress)


@click.command(short_help="Bring a backup back, with a new epoch.")
@click.argument("file", required=False, type=click.Path(dir_okay=False))
@click.option("--new-epoch", is_flag=True, help="PostgreSQL, after its own tools brought it back: only a new epoch.")
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_flag
@flags("data", "store")
def restore(file: str | None, new_epoch: bool, yes: bool, as_json: bool, **given: str | None) -> None:
    """Bring a backup back in place of the store, with a new epoch: every device resyncs once.

    Refuses while a gateway or a worker runs on the data.
    """
    from gateway.store.sqlite import restore as bring_back

    settings = settings_of(**given)
    if new_epoch or settings.store.startswith("postgresql:"):
        _renew(settings, file, new_epoch, as_json)
        return
    if file is None:
        raise click.UsageError("Missing argument 'FILE'.")
    path = Path(file).absolute()
    if not path.is_file():
        raise Refusal(f"{path} is no file.")
    target = store_file(settings)
    if not yes and target.exists() and on_terminal() and sys.stdin.isatty():
        click.confirm(f"Replace the store at {target} by {path}?", abort=True, err=True)
    with _bar("restoring") as progress:
        epoch = bring_back(path, target, progress)
    if as_json:
        put_json({"epoch": epoch})
    say(f"The store is restored with the new epoch {epoch}; every device resyncs once when it comes back.")


def _renew(settings: Settings, file: str | None, new_epoch: bool, as_json: bool) -> None:
    from gateway.store.postgresql import renew

    if not settings.store.startswith("postgresql:"):
        raise Refusal("--new-epoch is for a store on PostgreSQL; a file is restored with a new epoch anyway.")
    if file is not None or not new_epoch:
        raise Refusal(
            "A store on PostgreSQL is brought back by PostgreSQL's own tools; `vestnik restore --new-epoch` then gives"
            " it a new epoch where that does not come by itself (gateway/store/postgresql/README.md)."
        )
    epoch = run(renew(settings.store))
    if as_json:
        put_json({"epoch": epoch})
    say(f"The store has the new epoch {epoch}; every device resyncs once when it comes back.")


@contextmanager
def _bar(what: str) -> Iterator[Callable[[int, int], None] | None]:
    if not on_terminal():
        yield None
        return
    from rich.console import Console
    from rich.progress import Progress

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(what, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)

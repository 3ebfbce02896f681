"""`vestnik agency`: who may send, and with which keys."""

import time
from typing import Literal

import click

from gateway.commands.common import Refusal, flags, json_flag, opened, put, put_json, run, say, settings_of, when
from gateway.settings import Settings
from gateway.store.base import Agency, AgencyKey


@click.group()
def agency() -> None:
    """Agencies and their keys. Works while a gateway runs on the same data; it notices within 2 s."""


def _code(_ctx: click.Context, /, _parameter: click.Parameter, value: str) -> str:
    from gateway.events import is_agency

    if not is_agency(value):
        raise click.BadParameter(f"must be 1 to 32 of a-z, 0-9 and -, got {value!r}.")
    return value


def _types(_ctx: click.Context, /, _parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    if not values:
        return ()
    from gateway.types import registry

    open_to_agencies = sorted(name for name, kind in registry().items() if kind.senders == "agencies")
    for value in values:
        if value not in open_to_agencies:
            raise click.BadParameter(f"must be one of {', '.join(open_to_agencies)}, got {value!r}.")
    return tuple(dict.fromkeys(values))


@agency.command()
@click.argument("code", callback=_code)
@click.option(
    "--ed25519", is_flag=True, help="A key pair instead of a shared secret: the gateway keeps the public half."
)
@click.option("--key", metavar="whpk_…", help="The public key of a pair that the agency made itself.")
@click.option(
    "--type", "types", multiple=True, callback=_types, metavar="T", help="Event type it may send; all by default."
)
@flags("data", "store")
def add(code: str, ed25519: bool, key: str | None, types: tuple[str, ...], **given: str | None) -> None:
    """Make an agency, or give it one more key (rotation: all its keys are valid until retired).

    Prints the secret alone on standard output, once; the gateway does not keep an ed25519 secret.
    """
    from gateway.verify import new_secret, parse_key

    now = time.time()
    secret = None
    if key is not None:
        if not key.startswith("whpk_"):
            raise click.UsageError("--key takes a public key, whpk_…; a secret has no place on a command line.")
        made = parse_key(key, now)
    else:
        kind: Literal["ed25519", "hmac"] = "ed25519" if ed25519 else "hmac"
        secret, made = new_secret(kind, now)
    found = run(_add(settings_of(**given), code, made, types, now))
    if secret is not None:
        put(secret)
    keys = [one for one in found.keys if one.retired is None]
    say(f"Agency {code} has {_many(len(keys), 'valid key')}; the new one is {made.id} ({made.kind}).")
    if secret is not None:
        say("Give the secret to the agency now: it is not shown again.")


async def _add(settings: Settings, code: str, key: AgencyKey, types: tuple[str, ...], now: float) -> Agency:
    async with opened(settings) as store:
        try:
            await store.add_agency_key(code, key, types or None, now)
        except ValueError:
            raise Refusal(f"Agency {code} has the key {key.id} already.") from None
        return next(one for one in await store.agencies() if one.code == code)


@agency.command(name="list")
@json_flag
@flags("data", "store")
def list_(as_json: bool, **given: str | None) -> None:
    """Show agencies, their keys (never secrets) and what they may send."""
    agencies = run(_all(settings_of(**given)))
    if as_json:
        for one in agencies:
            put_json(_document(one))
        return
    if not agencies:
        say("No agencies yet; add one: vestnik agency add CODE")
        return
    rows = [("CODE", "KEY", "KIND", "SINCE", "STATE", "TYPES")]
    for one in agencies:
        for number, key in enumerate(one.keys):
            state = "valid" if key.retired is None else f"retired {when(key.retired)}"
            types = (", ".join(one.types) or "all") if number == 0 else ""
            rows.append((one.code if number == 0 else "", key.id, key.kind, when(key.created), state, types))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    for row in rows:
        put("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())


async def _all(settings: Settings) -> list[Agency]:
    async with opened(settings) as store:
        return await store.agencies()


def _document(one: Agency) -> dict[str, object]:
    keys = [
        {
            "id": key.id,
            "kind": key.kind,
            "created": when(key.created),
            "retired": None if key.retired is None else when(key.retired),
        }
        for key in one.keys
    ]
    return {"code": one.code, "created": when(one.created), "types": list(one.types), "keys": keys}


@agency.command()
@click.argument("code", callback=_code)
@click.argument("key_id", metavar="KEY")
@flags("data", "store")
def retire(code: str, key_id: str, **given: str | None) -> None:
    """End a key (the last step of a rotation). What it signed before can still be verified."""
    left = run(_retire(settings_of(**given), code, key_id))
    say(f"Key {key_id} of agency {code} signs nothing new from now on; {_many(left, 'valid key')} left.")


async def _retire(settings: Settings, code: str, key_id: str) -> int:
    async with opened(settings) as store:
        if not await store.retire_agency_key(code, key_id, time.time()):
            raise Refusal(f"Agency {code} has no valid key {key_id}; see: vestnik agency list")
        found = next(one for one in await store.agencies() if one.code == code)
        return sum(1 for key in found.keys if key.retired is None)


def _many(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"

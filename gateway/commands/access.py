"""`vestnik token` and `vestnik revoke`: who may read."""

import re
import time

import click

from gateway.commands.common import Refusal, flags, json_flag, opened, put, put_json, run, say, settings_of, when
from gateway.settings import Settings
from gateway.store.base import Revocation

_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
_RULE = "must be 1 to 64 of A-Z, a-z, 0-9, '.', '_' and '-'"


def _id(_ctx: click.Context, /, _parameter: click.Parameter, value: str | tuple[str, ...] | None) -> object:
    for one in value if isinstance(value, tuple) else (value,):
        if one is not None and _ID.fullmatch(one) is None:
            raise click.BadParameter(f"{_RULE}, got {one!r}.")
    return value


@click.command(short_help="Print tokens for development.")
@click.argument("accounts", nargs=-1, required=True, metavar="ACCOUNT…", callback=_id)
@click.option("--device", metavar="ID", callback=_id, help="Good for this device only.")
@click.option("--ttl", type=click.IntRange(1, 10 * 365 * 86400), default=3600, show_default=True, help="Seconds.")
@click.option("--scope", metavar="…", help="Scopes, separated by spaces.")
@click.option("--sid", metavar="ID", help="The sign-in that it belongs to, for: vestnik revoke --sid")
@flags("data")
def token(
    accounts: tuple[str, ...], device: str | None, ttl: int, scope: str | None, sid: str | None, data: str | None
) -> None:
    """Print tokens for development, one a line, signed with the local key. Works while a gateway runs on the data."""
    from gateway.tokens import LocalKey

    settings = settings_of(data=data)
    if settings.jwks is not None:
        raise Refusal(
            "VESTNIK_JWKS names an identity provider, so tokens come from there; unset it to use the local key."
        )
    key = LocalKey.open(settings.data)
    for account in accounts:
        put(key.issue(account, device=device, ttl=ttl, scope=scope, sid=sid, audience=settings.audience))


@click.command(short_help="Refuse the tokens issued so far.")
@click.option("--sub", metavar="ACCOUNT", callback=_id, help="All tokens of an account.")
@click.option("--sid", metavar="ID", help="The tokens of one sign-in.")
@click.option("--device", metavar="[ACCOUNT/]DEVICE", help="The tokens that a device uses.")
@json_flag
@flags("data", "store")
def revoke(sub: str | None, sid: str | None, device: str | None, as_json: bool, **given: str | None) -> None:
    """Refuse the tokens issued so far; running gateways close their sessions within 5 s."""
    chosen = [(kind, value) for kind, value in (("sub", sub), ("sid", sid), ("device", device)) if value is not None]
    if len(chosen) != 1:
        raise click.UsageError("Give exactly one of --sub, --sid and --device.")
    ((kind, value),) = chosen
    if kind == "device" and (value.count("/") > 1 or not all(map(_ID.fullmatch, value.split("/")))):
        raise click.BadParameter(f"account and device each {_RULE}, got {value!r}.", param_hint="--device")
    if not 0 < len(value) <= 256:
        raise click.BadParameter("must be 1 to 256 characters.", param_hint=f"--{kind}")
    revocation = Revocation(kind, value, time.time())  # type: ignore[arg-type]
    run(_revoke(settings_of(**given), revocation))
    if as_json:
        put_json({"kind": kind, "value": value, "before": revocation.before})
    say(f"Tokens of {kind} {value} issued up to {when(revocation.before)} are refused; sessions close within 5 s.")


async def _revoke(settings: Settings, revocation: Revocation) -> None:
    async with opened(settings) as store:
        await store.revoke(revocation)

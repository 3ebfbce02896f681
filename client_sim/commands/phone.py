"""`vestnik-sim phone`: one phone in this terminal."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

import click
from rich.console import Console

from client_sim.commands.common import BROKEN, answers, check_token, in_loop, say, where
from client_sim.handset import Handset, show
from client_sim.identity import Identity, LocalKey, TokenFile
from client_sim.networks import NETWORKS
from client_sim.scenario import WrongScenario
from client_sim.words import LANGUAGES
from gateway.protocol.messages import is_id


@click.command(short_help="One phone in this terminal, live.")
@where
@click.option("--account", required=True, metavar="ID", help="Whose phone it is.")
@click.option("--device", metavar="ID", help="The phone's id.  [default: made at the first start]")
@click.option("--network", type=click.Choice(list(NETWORKS)), default="perfect", show_default=True)
@click.option(
    "--follow", multiple=True, metavar="FEED", default=("agency:mchs",), show_default=True, help="Agency feeds."
)
@click.option("--lang", type=click.Choice(list(LANGUAGES)), default="ru", show_default=True)
@click.option(
    "--keep", type=click.Path(path_type=Path), metavar="DIR", help="The phone's storage.  [default: in --data]"
)
@click.pass_context
def phone(
    ctx: click.Context,
    /,
    address: str,
    data: Path,
    tokens: Path | None,
    account: str,
    device: str | None,
    network: str,
    follow: Sequence[str],
    lang: str,
    keep: Path | None,
) -> None:
    """One phone in this terminal, live; its keys are told at the bottom."""
    for what, value in (("--account", account), ("--device", device)):
        if value is not None and not is_id(value):
            raise WrongScenario(f"{what} must be 1 to 64 of A-Z a-z 0-9 . _ -, not {value!r}.")

    async def work(stop: asyncio.Event) -> str:
        await answers(address)
        identity: Identity = TokenFile(tokens) if tokens else LocalKey(data / "token-key.pem", ttl_s=3600)
        directory = keep or data / "phones" / account
        handset = Handset(
            address,
            account,
            lambda: identity.token(account),
            directory,
            network=network,
            language=lang,
            feeds=follow,
            device=device,
        )
        await check_token(address, identity.token(account))
        await show(handset, Console(), stop)
        return handset.cabinet.reason

    reason = in_loop(work)
    if reason:
        say(f"The phone was stopped: {reason}.")
    ctx.exit(BROKEN if reason else 0)

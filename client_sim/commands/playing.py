"""Plays a run on a gateway, its own or one that is there, and tells what came out."""

import asyncio
import contextlib
import json
import resource
import shutil
import tempfile
import time
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from urllib.parse import urlsplit

import click

from client_sim import report
from client_sim.agencies import AGENCIES
from client_sim.board import Board
from client_sim.commands.common import (
    BROKEN,
    CANNOT_START,
    INTERRUPTED,
    answers,
    check_secrets,
    check_token,
    console,
    made_secrets,
)
from client_sim.faults import Disk, NotHere, Tmpfs
from client_sim.identity import Identity, LocalKey, TokenFile
from client_sim.local import Cannot, Gateway, secrets_of
from client_sim.run import Outcome, Plan, Stage, play
from client_sim.scenario import Scenario, check
from client_sim.servers import Postgresql, Redis, Server

TOKEN_AGE_S = 100_000.0  # of tokens in a run that moves the gateway's clock back by up to a day


async def play_on(plan: Plan, stage: Stage, directory: Path, stop: asyncio.Event, title: str) -> Outcome:
    with Board(console, title, plan.seconds) as board:
        return await play(plan, stage, directory, board, stop)


async def play_own(
    scenario: Scenario,
    directory: Path,
    stop: asyncio.Event,
    title: str,
    extra: Mapping[str, str] | None = None,
    *,
    tmpfs: bool = False,
    servers: bool = False,
) -> Outcome:
    """Play against a gateway that is started for it and is gone afterwards."""
    check_files(scenario.plan)
    data = directory / "gateway"
    if (data / "vestnik.db").exists():
        raise Cannot(f"{directory} holds an earlier run: choose another --out.")
    async with contextlib.AsyncExitStack() as stack:
        own: dict[str, Server] = {}
        settings = dict(scenario.settings)
        if servers:
            own["postgresql"] = await stack.enter_async_context(Postgresql(directory / "postgresql"))
            own["redis"] = await stack.enter_async_context(Redis(directory / "redis"))
            settings |= {"store": own["postgresql"].url, "bus": own["redis"].url}
        gateway, disk = await stack.enter_async_context(_gateway(data, settings, extra, tmpfs))
        secrets = await secrets_of(AGENCIES, gateway.data, gateway.environment)
        await gateway.start()
        # Tokens last longer than the run, and were issued long before it: the gateway's clock may be moved.
        ttl_s = 2 * TOKEN_AGE_S + scenario.plan.seconds
        identity = LocalKey(gateway.data / "token-key.pem", ttl_s, TOKEN_AGE_S)
        store = _store(settings.get("store"), gateway)
        stage = Stage(gateway.host, gateway.port, identity, secrets, gateway, disk, store, servers=own)
        outcome = await play_on(scenario.plan, stage, directory, stop, title)
        if disk is not None and outcome.verdict is not None and not outcome.verdict.ok:
            await gateway.stop()
            shutil.copy(gateway.store, data / "vestnik.db")  # to be looked at: the disk is gone in a moment
        return outcome


def _store(url: str | None, gateway: Gateway) -> Path | str | None:
    """What can be judged of the store that the gateway was given."""
    if url is None:
        return gateway.store
    if url.startswith("sqlite:///"):
        return Path(url.removeprefix("sqlite:///"))
    return url if url.startswith("postgresql://") else None


@contextlib.asynccontextmanager
async def _gateway(
    data: Path, settings: Mapping[str, str], extra: Mapping[str, str] | None, tmpfs: bool
) -> AsyncIterator[tuple[Gateway, Disk | None]]:
    with contextlib.ExitStack() as stack:
        disk: Disk | None = None
        if tmpfs:
            with contextlib.suppress(NotHere):
                where = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vestnik-sim-")))
                disk = stack.enter_context(Tmpfs(where))
        async with Gateway(data, settings, disk=where if disk is not None else None) as gateway:
            gateway.extra = dict(extra or {})
            yield gateway, disk


def check_files(plan: Plan) -> None:
    """Each device has a socket, and two more where a network stands between."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    limit = hard if hard != resource.RLIM_INFINITY else 1 << 20
    behind = 1 - plan.roster.network.get("perfect", 0) / sum(plan.roster.network.values())
    needed = round(plan.roster.devices * (1 + 2 * behind)) + 500
    if needed > limit:
        raise Cannot(
            f"{plan.roster.devices} devices on these networks need {needed} open files, and {limit} are allowed:"
            " take fewer devices, or --network perfect."
        )


def finish(
    outcome: Outcome, title: str, directory: Path, as_json: bool, bounds: Mapping[str, float] | None = None
) -> int:
    """Write and tell what came out; the exit code."""
    checked = check(outcome, bounds or {}) if outcome.complete else []
    made = report.summary(outcome, title, checked)
    html = report.write(made, directory)
    if as_json:
        click.echo(json.dumps({name: value for name, value in made.items() if name != "samples"}, ensure_ascii=False))
    counts, latency = outcome.tally.counts, outcome.tally.latency.summary()
    told = [
        f"{counts['published']:,} events accepted, {counts['delivered']:,} deliveries, {counts['repeats']:,} repeats;"
        f" p50 {_seconds(latency['p50'])}, p99 {_seconds(latency['p99'])}",
    ]
    told += [f"{'✓' if one['ok'] else '✗'} {one['says']}: {one['found']} ({one['wanted']})" for one in checked]
    if outcome.ended:
        told.append(outcome.ended)
    elif outcome.behind or outcome.waiting:
        told.append(f"✗ {outcome.behind} devices and {outcome.waiting} events were not settled when the quiet ended")
    told += [f"not done: {one['name']}: {one['not']}" for one in outcome.faults[:1] if "not" in one]
    if made["late"]:
        told.append(f"The simulator was late by up to {made['late']} s: this machine was busy, its times say little.")
    told.append(str(outcome.verdict))
    for line in told:
        console.print(line, markup=False, highlight=False, soft_wrap=True, style="red" if line[0] == "✗" else "")
    console.print(f"[dim]{html}[/]", soft_wrap=True, highlight=False)
    if outcome.ended == "Interrupted.":
        return INTERRUPTED
    if outcome.ended:
        return CANNOT_START
    return 0 if made["ok"] else BROKEN


def _seconds(value: float | int | None) -> str:
    return "–" if value is None else f"{value * 1000:.0f} ms"


async def stage_of(address: str, data: Path, tokens: Path | None) -> Stage:
    """A gateway that runs already, after a look whether it knows our tokens and agencies. Raises Cannot, NoTokens."""
    await answers(address)
    url = urlsplit(address)
    identity: Identity
    accounts: list[str] | None = None
    if tokens is not None:
        identity = TokenFile(tokens)
        accounts = identity.accounts()
    else:
        identity = LocalKey(data / "token-key.pem", ttl_s=86_400)
    await check_token(address, identity.token(accounts[0] if accounts else "someone"))
    secrets = await made_secrets([agency.code for agency in AGENCIES], data)
    await check_secrets(address, secrets)
    return Stage(str(url.hostname), url.port or 80, identity, secrets, accounts=accounts)


def directory_of(what: str, seed: int) -> Path:
    return Path("sim-results") / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{what}-{seed}"

"""`vestnik-sim agencies`: signed publishers alone."""

import asyncio
import os
import time
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from random import Random
from typing import Any

import click
import httpx

from client_sim.agencies import BY_CODE
from client_sim.arrivals import PATTERNS, Pattern
from client_sim.commands.common import (
    BROKEN,
    answers,
    check_secrets,
    console,
    in_loop,
    made_secrets,
    rate_of,
    read_secrets,
    say,
    where,
)
from client_sim.measure import Tally
from client_sim.offices import Offices, read_events
from client_sim.scenario import WrongScenario

DAY_S = 60.0  # after which a pattern without an end begins again


@click.command(name="agencies", short_help="Publish signed events until Ctrl-C.")
@where
@click.option(
    "--agencies", "codes", default=",".join(BY_CODE), show_default=True, metavar="CODE,…", help="Who publishes."
)
@click.option(
    "--account",
    "accounts",
    multiple=True,
    metavar="ID",
    help="For whom; several times for several.  [default: anna, boris, vera]",
)
@click.option("--rate", default=1.0, show_default=True, help="Events a second of all agencies.")
@click.option("--pattern", type=click.Choice(list(PATTERNS)), default="steady", show_default=True)
@click.option("--seconds", type=float, help="End by itself after so long; else at Ctrl-C.")
@click.option(
    "--from",
    "lines",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Send the events in FILE, JSON, one a line, instead of samples; - is standard input.",
)
@click.option("--seed", type=int, help="The same seed, the same events.  [default: another each time]")
@click.option(
    "--secrets",
    type=click.Path(path_type=Path),
    metavar="DIR",
    help="Files with secrets, named by agency.  [default: made in --data]",
)
@click.pass_context
def agencies_(
    ctx: click.Context,
    address: str,
    data: Path,
    tokens: Path | None,
    codes: str,
    accounts: Sequence[str],
    rate: float,
    pattern: str,
    seconds: float | None,
    lines: Path | None,
    seed: int | None,
    secrets: Path | None,
) -> None:
    """Publish signed events as agencies do, until Ctrl-C."""
    chosen = [code.strip() for code in codes.split(",")]
    unknown = [code for code in chosen if code not in BY_CODE and secrets is None]
    if unknown:
        raise WrongScenario(f"There is no sample agency {unknown[0]!r}: choose from {', '.join(BY_CODE)}.")
    seed = int.from_bytes(os.urandom(4), "big") if seed is None else seed
    tally = Tally()
    why: dict[int, str] = {}

    async def work(stop: asyncio.Event) -> None:
        await answers(address)
        known = read_secrets(secrets, chosen) if secrets else await made_secrets(chosen, data)
        await check_secrets(address, known)
        people = accounts or ("anna", "boris", "vera")
        async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
            offices = Offices(address, known, people, http, lambda record: None, tally, seed)
            if lines is not None:
                path = Path("/dev/stdin") if str(lines) == "-" else lines
                events = read_events(path, chosen, time.time(), Random(seed))
                publishing: Coroutine[Any, Any, None] = offices.send(events, rate)
            else:
                publishing = _days(offices, PATTERNS[pattern], rate_of(rate), seconds)
            await _beside(publishing, stop, lambda: _tell(tally, offices))
            if not await offices.finish(5):
                say(f"{offices.waiting} events had no answer.")
            why.update(offices.refusals)

    in_loop(work)
    refused = {int(name[-3:]): n for name, n in tally.counts.items() if name.startswith("answered_4")}
    say(f"{tally.counts['published']} events accepted, {tally.counts['duplicates']} recognised as sent before.")
    if refused:
        for status, number in refused.items():
            say(f"Refused: {number} with {status}{f' ({why[status]})' if why.get(status) else ''}.")
    ctx.exit(BROKEN if refused and not tally.counts["published"] else 0)


async def _days(offices: Offices, pattern: Pattern, rate: float, seconds: float | None) -> None:
    """One day of so many seconds; without an end, days of a minute."""
    while True:
        await offices.run(pattern, rate, seconds or DAY_S)
        if seconds:
            return


async def _beside(work: Coroutine[Any, Any, None], stop: asyncio.Event, tell: Callable[[], None]) -> None:
    """Do the work until it ends or is stopped, and tell of it every few seconds."""
    working, stopping = asyncio.create_task(work), asyncio.create_task(stop.wait())
    try:
        while not working.done() and not stop.is_set():
            await asyncio.wait({working, stopping}, timeout=5, return_when=asyncio.FIRST_COMPLETED)
            tell()
    finally:
        for task in (working, stopping):
            task.cancel()
        await asyncio.gather(working, stopping, return_exceptions=True)
    if not working.cancelled() and (error := working.exception()) is not None:
        raise error.exceptions[0] if isinstance(error, BaseExceptionGroup) else error


def _tell(tally: Tally, offices: Offices) -> None:
    waiting = f", {offices.waiting} waiting for an answer" if offices.waiting else ""
    p99 = tally.answer.percentile(0.99)
    console.print(
        f"{tally.counts['published']} accepted{waiting}" + (f", p99 of a post {p99 * 1000:.0f} ms" if p99 else ""),
        highlight=False,
    )

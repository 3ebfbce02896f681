"""`vestnik-sim run`, `scenarios`, `chaos`, `reconcile`: trials and their verdict."""

import asyncio
import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import click
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client_sim.arrivals import PATTERNS
from client_sim.behaviours import BEHAVIOURS
from client_sim.commands.common import (
    BROKEN,
    INTERRUPTED,
    console,
    in_loop,
    rate_of,
    results,
    say,
    settings_of,
    shape,
    where,
)
from client_sim.commands.playing import check_files, directory_of, finish, play_on, play_own, stage_of
from client_sim.faults import FAULTS, SERVERS, NotHere, chaos, fake_clock
from client_sim.journal import Unreadable
from client_sim.local import Cannot
from client_sim.networks import NETWORKS
from client_sim.run import AGENCIES as AGENCIES_FILE
from client_sim.run import DEVICES as DEVICES_FILE
from client_sim.run import Outcome, Plan, judge
from client_sim.scenario import Scenario, WrongScenario, load, names, roster


@click.command(short_help="Let a fleet live its day, then judge.")
@where
@shape
@click.option(
    "--seconds", default=60.0, show_default=True, help="How long the schedule is; quiet and verdict come after it."
)
@click.option("--own", is_flag=True, help="Start a gateway for this run on a fresh directory, and judge its store too.")
@results
@click.pass_context
def run(
    ctx: click.Context,
    /,
    address: str,
    data: Path,
    tokens: Path | None,
    own: bool,
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Let a fleet live its day against a gateway, then judge what everybody saw."""
    pattern, rate = given.pop("pattern"), given.pop("rate")
    plan = Plan(roster(**given), pattern, rate_of(rate))
    directory = out or directory_of("run", plan.roster.seed)

    async def work(stop: asyncio.Event) -> Outcome:
        if own:
            scenario = Scenario("run", "", plan)
            return await play_own(scenario, directory, stop, "vestnik-sim run")
        check_files(plan)
        stage = await stage_of(address, data, tokens)
        return await play_on(plan, stage, directory, stop, "vestnik-sim run")

    outcome = in_loop(work)
    ctx.exit(finish(outcome, f"{plan.roster.devices} devices, {plan.seconds:.0f} s", directory, as_json))


# scenarios


@click.command(short_help="Play scenarios and hold them to their bounds; or list them.")
@click.argument("wanted", nargs=-1, metavar="[NAME | FILE.toml] …")
@click.option("--all", "everything", is_flag=True, help="Show behaviours, networks, patterns and faults too.")
@click.option("--seed", type=int, help="Another seed than the file's.")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the gateway, like beat_s=2.")
@results
@click.pass_context
def scenarios(
    ctx: click.Context,
    wanted: Sequence[str],
    everything: bool,
    seed: int | None,
    settings: Sequence[str],
    out: Path | None,
    as_json: bool,
) -> None:
    """Play scenarios, each against a gateway of its own and held to its bounds; without a name, list them."""
    if not wanted:
        _list(everything)
        return
    loaded = [load(name) for name in wanted]
    worst = 0
    for scenario in loaded:
        chosen = _with(scenario, seed, settings)
        directory = (
            (out / scenario.name if len(loaded) > 1 else out)
            if out
            else directory_of(scenario.name, chosen.plan.roster.seed)
        )

        async def work(stop: asyncio.Event, chosen: Scenario = chosen, directory: Path = directory) -> Outcome:
            return await play_own(chosen, directory, stop, chosen.name)

        console.print(f"[bold]{scenario.name}[/]: {scenario.says}", soft_wrap=True)
        outcome = in_loop(work)
        code = finish(outcome, scenario.name, directory, as_json, scenario.bounds)
        worst = max(worst, code)
        if code == INTERRUPTED:
            break
    ctx.exit(worst)


def _with(scenario: Scenario, seed: int | None, settings: Sequence[str]) -> Scenario:
    plan = scenario.plan
    if seed is not None:
        plan = dataclasses.replace(plan, roster=dataclasses.replace(plan.roster, seed=seed))
    return dataclasses.replace(scenario, plan=plan, settings={**scenario.settings, **settings_of(settings)})


def _list(everything: bool) -> None:
    table = Table(box=None, padding=(0, 3, 0, 0), show_header=False)
    table.add_column(style="bold", no_wrap=True)
    table.add_column()

    def section(title: str, rows: Mapping[str, str]) -> None:
        table.add_row(Text(title, "dim"), "")
        for name, says in rows.items():
            table.add_row(f"  {name}", says)

    section("scenarios", {name: load(name).says for name in names()})
    if everything:
        section("behaviours", {name: one.says for name, one in BEHAVIOURS.items()})
        section("networks", {name: one.says for name, one in NETWORKS.items()})
        section("patterns", {name: one.says for name, one in PATTERNS.items()})
        section("faults", {name: says for name, (says, _) in FAULTS.items()})
    Console().print(table)


# chaos


@click.command(name="chaos", short_help="Break a gateway in every way, then judge.")
@shape
@click.option(
    "--servers", is_flag=True, help="With PostgreSQL and Redis of its own instead of SQLite; they are broken, too."
)
@click.option("--minutes", default=5.0, show_default=True, help="How long; quiet and verdict come after it.")
@click.option("--faults", "wanted", metavar="NAME,…", help="Only these.  [default: all that this machine can do]")
@click.option("--set", "settings", multiple=True, metavar="NAME=VALUE", help="A setting of the gateway, like beat_s=2.")
@results
@click.pass_context
def chaos_(
    ctx: click.Context,
    /,
    servers: bool,
    minutes: float,
    wanted: str | None,
    settings: Sequence[str],
    out: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Break a gateway of its own in every way, by seed, while a fleet lives on it; then quiet, then the verdict."""
    pattern, rate = given.pop("pattern"), given.pop("rate")
    people = roster(seconds=minutes * 60, **given)
    left_out = ("outage", "full_disk") if servers else ("outage", *SERVERS)
    kinds = wanted.split(",") if wanted else [name for name in FAULTS if name not in left_out]
    for name in kinds:
        if name not in FAULTS:
            raise WrongScenario(f"There is no fault {name!r}: choose from {', '.join(sorted(FAULTS))}.")
    directory = out or directory_of("chaos", people.seed)
    gentle = {"drain_s": "2", "backoff_s": "8", **settings_of(settings)}

    async def work(stop: asyncio.Event) -> Outcome:
        can, extra = list(kinds), {}
        if "clock" in can:
            try:
                extra = fake_clock(directory / "gateway")
            except NotHere as error:
                can.remove("clock")
                say(error)
        faults = chaos(Random(f"{people.seed}/chaos"), people.seconds, can)
        plan = Plan(people, pattern, rate_of(rate), faults, settle_s=120)
        scenario = Scenario("chaos", "", plan, gentle)
        return await play_own(
            scenario, directory, stop, "chaos", extra, tmpfs="full_disk" in can and not servers, servers=servers
        )

    outcome = in_loop(work)
    ctx.exit(finish(outcome, f"chaos, seed {people.seed}", directory, as_json))


@click.command(name="reconcile", short_help="Judge the journals of a run.")
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option(
    "--store",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="The SQLite store, or a dump of a store as JSON lines.",
)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON on standard output.")
@click.pass_context
def reconcile_(ctx: click.Context, directory: Path, store: Path | None, as_json: bool) -> None:
    """Judge the journals of a run: what was accepted against what each device saw. Exits 1 on a fault."""
    for name in (AGENCIES_FILE, DEVICES_FILE):
        if not (directory / name).exists():
            raise Cannot(f"{directory} holds no journals: {name} is missing.")
    try:
        verdict = judge(directory, store)
    except ValueError as error:
        raise Cannot(f"These are not journals: {error}.") from None
    except Unreadable as error:
        raise Cannot(str(error)) from None
    if as_json:
        faults = {kind: {"count": fault.count, "first": fault.first} for kind, fault in verdict.faults.items()}
        click.echo(json.dumps({"ok": verdict.ok, "counts": verdict.counts, "faults": faults}, ensure_ascii=False))
    else:
        click.echo(str(verdict))
    ctx.exit(0 if verdict.ok else BROKEN)

"""The `vestnik-sim` command: phones, fleets, agencies, trials and their verdict.

Exit codes: 0 all is well, 1 an invariant or a bound is broken, 2 wrong usage, 3 it cannot start, 130 interrupted (the
journals and the report are written all the same). What people read goes to standard error, what programs read
(`--json`) to standard output. Bad input is one sentence, never a traceback (VESTNIK_LOG_LEVEL=debug shows it).
"""

import asyncio
import contextlib
import dataclasses
import gc
import json
import logging
import os
import resource
import shutil
import signal
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click
import httpx
import uvloop
from rich.console import Console
from rich.table import Table
from rich.text import Text

from client_sim import behaviours, networks, report
from client_sim.agencies import AGENCIES, BY_CODE
from client_sim.arrivals import PATTERNS
from client_sim.behaviours import BEHAVIOURS, WrongMix
from client_sim.board import Board
from client_sim.faults import FAULTS, SERVERS, Disk, NotHere, Tmpfs, chaos, fake_clock
from client_sim.handset import Handset, show
from client_sim.identity import Identity, LocalKey, NoTokens, TokenFile
from client_sim.local import Cannot, Gateway, secrets_of
from client_sim.measure import Tally
from client_sim.networks import NETWORKS
from client_sim.offices import Offices, WrongFile, read_events
from client_sim.run import AGENCIES as AGENCIES_FILE
from client_sim.run import DEVICES as DEVICES_FILE
from client_sim.run import Outcome, Plan, Stage, judge, play
from client_sim.scenario import Scenario, WrongScenario, check, load, names, roster
from client_sim.servers import Postgresql, Redis, Server
from client_sim.words import LANGUAGES
from gateway.protocol.messages import is_id

T = TypeVar("T")
INTERRUPTED, CANNOT_START, WRONG_USE, BROKEN = 130, 3, 2, 1
KNOWN_AFTER_S = 2.2  # contract, section 6: "a running gateway takes a new agency within 2 s"
TOKEN_AGE_S = 100_000.0  # of tokens in a run that moves the gateway's clock back by up to a day
console = Console(stderr=True)


class Root(click.Group):
    """Turns errors into a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except (WrongMix, WrongScenario, WrongFile) as error:
            _say(error)
            ctx.exit(WRONG_USE)
        except (Cannot, NoTokens, NotHere) as error:
            _say(error)
            ctx.exit(CANNOT_START)
        except KeyboardInterrupt:
            _say("Stopped.")
            ctx.exit(INTERRUPTED)
        except (click.ClickException, click.exceptions.Exit, click.Abort):
            raise
        except Exception as error:
            if os.environ.get("VESTNIK_LOG_LEVEL", "").lower() == "debug":
                raise
            _say(f"It failed unexpectedly ({type(error).__name__}: {error}); VESTNIK_LOG_LEVEL=debug shows where.")
            ctx.exit(BROKEN)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
@click.version_option(package_name="vestnik", message="%(prog)s %(version)s")
def cli() -> None:
    """The simulator of Vestnik: phones as they really are, thousands of them, and a verdict that can be trusted."""


def main() -> None:
    """The console script."""
    if os.environ.get("VESTNIK_LOG_LEVEL", "").lower() == "debug":
        logging.basicConfig()
        logging.getLogger("client_sim").setLevel(logging.DEBUG)
    cli(prog_name="vestnik-sim")


# Where


def _options(*options: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _default_address() -> str:
    host, port = os.environ.get("VESTNIK_HOST", "127.0.0.1"), os.environ.get("VESTNIK_PORT", "8080")
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


where = _options(
    click.option(
        "--address", default=_default_address, metavar="URL", help="The gateway (VESTNIK_HOST, VESTNIK_PORT)."
    ),
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        default=lambda: os.environ.get("VESTNIK_DATA", "data"),
        metavar="DIR",
        help="The gateway's data directory (VESTNIK_DATA): its token key, its agencies.",
    ),
    click.option(
        "--tokens",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Tokens, one a line, instead of the key in --data.",
    ),
)
shape = _options(
    click.option("--devices", default=200, show_default=True, help="How many phones."),
    click.option("--accounts", type=int, help="How many people have them.  [default: half as many]"),
    click.option(
        "--behaviour",
        default=behaviours.EVERYDAY,
        metavar="MIX",
        help="Like steady=3,commuter=1; `scenarios --all` shows all.",
    ),
    click.option("--network", default=networks.EVERYDAY, metavar="MIX", help="Like lte=3,edge=1."),
    click.option(
        "--agencies",
        "pattern",
        type=click.Choice(list(PATTERNS)),
        default="steady",
        show_default=True,
        help="How they publish.",
    ),
    click.option("--rate", default=20.0, show_default=True, help="Events a second of all agencies."),
    click.option("--following", default=0.2, show_default=True, help="Share of the phones that follow public notices."),
    click.option("--pace", default=1.0, show_default=True, help="How fast people live: 10 is ten times as fast."),
    click.option("--seed", default=1, show_default=True, help="The same seed, the same day."),
)
results = _options(
    click.option(
        "--out", type=click.Path(path_type=Path), metavar="DIR", help="Journals and report.  [default: sim-results/…]"
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output."),
)


# phone


@cli.command()
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
        await _answers(address)
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
        identity.token(account)
        await show(handset, Console(), stop)
        return handset.cabinet.reason

    reason = _asyncio(work)
    if reason:
        _say(f"The phone was stopped: {reason}.")
    ctx.exit(BROKEN if reason else 0)


# run


@cli.command()
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
    plan = Plan(roster(**given), pattern, _rate(rate))
    directory = out or _directory("run", plan.roster.seed)

    async def work(stop: asyncio.Event) -> Outcome:
        if own:
            scenario = Scenario("run", "", plan)
            return await _play_own(scenario, directory, stop, "vestnik-sim run")
        _check_files(plan)
        stage = await _stage(address, data, tokens)
        return await _play(plan, stage, directory, stop, "vestnik-sim run")

    outcome = _asyncio(work)
    ctx.exit(_finish(outcome, f"{plan.roster.devices} devices, {plan.seconds:.0f} s", directory, as_json))


# scenarios


@cli.command()
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
            else _directory(scenario.name, chosen.plan.roster.seed)
        )

        async def work(stop: asyncio.Event, chosen: Scenario = chosen, directory: Path = directory) -> Outcome:
            return await _play_own(chosen, directory, stop, chosen.name)

        console.print(f"[bold]{scenario.name}[/]: {scenario.says}", soft_wrap=True)
        outcome = _asyncio(work)
        code = _finish(outcome, scenario.name, directory, as_json, scenario.bounds)
        worst = max(worst, code)
        if code == INTERRUPTED:
            break
    ctx.exit(worst)


def _with(scenario: Scenario, seed: int | None, settings: Sequence[str]) -> Scenario:
    plan = scenario.plan
    if seed is not None:
        plan = dataclasses.replace(plan, roster=dataclasses.replace(plan.roster, seed=seed))
    return dataclasses.replace(scenario, plan=plan, settings={**scenario.settings, **_settings(settings)})


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


@cli.command(name="chaos")
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
    directory = out or _directory("chaos", people.seed)
    gentle = {"drain_s": "2", "backoff_s": "8", **_settings(settings)}

    async def work(stop: asyncio.Event) -> Outcome:
        can, extra = list(kinds), {}
        if "clock" in can:
            try:
                extra = fake_clock(directory / "gateway")
            except NotHere as error:
                can.remove("clock")
                _say(error)
        faults = chaos(Random(f"{people.seed}/chaos"), people.seconds, can)
        plan = Plan(people, pattern, _rate(rate), faults, settle_s=120)
        scenario = Scenario("chaos", "", plan, gentle)
        return await _play_own(
            scenario, directory, stop, "chaos", extra, tmpfs="full_disk" in can and not servers, servers=servers
        )

    outcome = _asyncio(work)
    ctx.exit(_finish(outcome, f"chaos, seed {people.seed}", directory, as_json))


# reconcile


@cli.command(name="reconcile")
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
    if as_json:
        faults = {kind: {"count": fault.count, "first": fault.first} for kind, fault in verdict.faults.items()}
        click.echo(json.dumps({"ok": verdict.ok, "counts": verdict.counts, "faults": faults}, ensure_ascii=False))
    else:
        click.echo(str(verdict))
    ctx.exit(0 if verdict.ok else BROKEN)


# agencies


@cli.command(name="agencies")
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

    async def work(stop: asyncio.Event) -> None:
        await _answers(address)
        known = _read_secrets(secrets, chosen) if secrets else await _made_secrets(chosen, data)
        people = accounts or ("anna", "boris", "vera")
        async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
            offices = Offices(address, known, people, http, lambda record: None, tally, seed)
            if lines is not None:
                path = Path("/dev/stdin") if str(lines) == "-" else lines
                events = read_events(path, chosen, time.time(), Random(seed))
                publishing: Coroutine[Any, Any, None] = offices.send(events, rate)
            else:
                publishing = offices.run(PATTERNS[pattern], _rate(rate), seconds or 365 * 86400.0)
            await _beside(publishing, stop, lambda: _tell(tally, offices))
            if not await offices.finish(5):
                _say(f"{offices.waiting} events had no answer.")

    _asyncio(work)
    refused = {name.removeprefix("answered_"): n for name, n in tally.counts.items() if name.startswith("answered_4")}
    _say(f"{tally.counts['published']} events accepted, {tally.counts['duplicates']} recognised as sent before.")
    if refused:
        _say("Refused: " + ", ".join(f"{number} with {status}" for status, number in refused.items()) + ".")
    ctx.exit(BROKEN if refused and not tally.counts["published"] else 0)


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


# Playing


async def _play(plan: Plan, stage: Stage, directory: Path, stop: asyncio.Event, title: str) -> Outcome:
    with Board(console, title, plan.seconds) as board:
        return await play(plan, stage, directory, board, stop)


async def _play_own(
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
    _check_files(scenario.plan)
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
        outcome = await _play(scenario.plan, stage, directory, stop, title)
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


async def _stage(address: str, data: Path, tokens: Path | None) -> Stage:
    """A gateway that runs already."""
    await _answers(address)
    url = urlsplit(address)
    identity: Identity
    accounts: list[str] | None = None
    if tokens is not None:
        identity = TokenFile(tokens)
        accounts = identity.accounts()
    else:
        identity = LocalKey(data / "token-key.pem", ttl_s=86_400)
    secrets = await _made_secrets([agency.code for agency in AGENCIES], data)
    return Stage(str(url.hostname), url.port or 80, identity, secrets, accounts=accounts)


async def _answers(address: str) -> None:
    url = urlsplit(address)
    if url.scheme != "http" or not url.hostname:
        raise WrongScenario(f"--address must be like http://127.0.0.1:8080, not {address!r}.")
    try:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
            answer = await http.get(f"{address}/health/live")
    except (httpx.HTTPError, OSError):
        raise Cannot(
            f"No gateway answers at {address}: start one with `vestnik serve`, or see --own and --address."
        ) from None
    if answer.status_code != 200:
        raise Cannot(f"What answers at {address} is no gateway that lives: {answer.status_code}.")


async def _made_secrets(codes: Sequence[str], data: Path) -> dict[str, str]:
    environment = {**os.environ, "VESTNIK_DATA": os.path.abspath(data)}  # noqa: ASYNC240 - asks no disk
    made_before = set(os.listdir(data / "secrets")) if os.path.isdir(data / "secrets") else set()  # noqa: ASYNC240
    secrets = await secrets_of([BY_CODE[code] for code in codes], data, environment)
    if not set(secrets) <= made_before:
        await asyncio.sleep(KNOWN_AFTER_S)
    return secrets


def _read_secrets(directory: Path, codes: Sequence[str]) -> dict[str, str]:
    try:
        return {code: (directory / code).read_text("ascii").strip() for code in codes}
    except (OSError, ValueError) as error:
        raise Cannot(f"The secrets in {directory} cannot be read: {error}.") from None


def _check_files(plan: Plan) -> None:
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


def _finish(
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


# Small things


def _asyncio(work: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    """Run it; the first Ctrl-C, SIGTERM or hangup asks it to end, and what it noted is written."""

    async def guarded() -> T:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        return await work(stop)

    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(guarded())


def _directory(what: str, seed: int) -> Path:
    return Path("sim-results") / f"{time.strftime('%Y%m%d-%H%M%S', time.gmtime())}-{what}-{seed}"


def _settings(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise WrongScenario(f"--set wants NAME=VALUE, like beat_s=2, not {pair!r}.")
    return {name.strip().lower(): value.strip() for name, _, value in (pair.partition("=") for pair in pairs)}


def _rate(rate: float) -> float:
    if not 0 <= rate <= 100_000:
        raise WrongScenario(f"--rate must be from 0 to 100000 events a second, not {rate:g}.")
    return rate


def _say(text: object) -> None:
    console.print(f"vestnik-sim: {text}", markup=False, highlight=False, soft_wrap=True)


if __name__ == "__main__":
    main()

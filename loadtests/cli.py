"""The `vestnik-load` command: scenarios of Locust with a verdict.

Exit codes: 0 everybody got everything within the bounds, 1 a bound or an invariant is broken, 2 wrong usage, 3 it
cannot start, or its gateway ended, 130 interrupted.
"""

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import AsyncIterator, Coroutine, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, BinaryIO

import click
import orjson
from rich.console import Console

from client_sim.journal import dump
from loadtests import report
from loadtests.bench.processes import BIN, Failed, Gateway, cpu_s, family_s, machine_s, rss_bytes
from loadtests.disk import looking
from loadtests.machine import machine
from loadtests.run import ABOUT, AGENCIES, DEVICES, GENERATOR
from loadtests.scenario import Scenario, WrongScenario, load, names
from loadtests.verdict import Verdict, judge

BROKEN, WRONG_USE, CANNOT_START, INTERRUPTED = 1, 2, 3, 130
LOCUSTFILE = Path(__file__).with_name("locustfile.py")
KNOWN_AFTER_S = 2.2  # contract, section 6: "a running gateway takes a new agency within 2 s"
GATEWAY, OTHERS, FLAME = "gateway.jsonl", "used-by-others", "flame.svg"
QUIET = 0.1  # of the machine
err = Console(stderr=True)
if not err.is_terminal:
    err.width = 120


class Root(click.Group):
    """Turns errors into a sentence and an exit code."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except WrongScenario as error:
            err.print(str(error), style="bold red", markup=False)
            ctx.exit(WRONG_USE)
        except (Failed, OSError) as error:
            err.print(str(error), style="bold red", markup=False)
            ctx.exit(CANNOT_START)
        except KeyboardInterrupt:
            ctx.exit(INTERRUPTED)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110})
def cli() -> None:
    """Load as it really happens to a portal, on Locust, and a verdict: did everybody get everything, and how fast."""


def main() -> None:
    """The console script."""
    cli(prog_name="vestnik-load")


@cli.command("list")
def list_() -> None:
    """The scenarios."""
    for name in names():
        one = load(name)
        click.echo(f"{name:16} {one.seconds:>6,.0f} s {one.phones.top:>6,.0f} phones  {one.says}")


@cli.command()
@click.argument("name", metavar="NAME | FILE.toml")
@click.option("--host", metavar="URL", help="A gateway that runs already; by default one is started for this run.")
@click.option("--data", default="data", show_default=True, help="Of that gateway: its token key, secrets of agencies.")
@click.option("--tokens", default="", metavar="FILE", help="Tokens, one a line, instead of the key in --data.")
@click.option("--secrets", default="", metavar="DIR", help="Secrets, a file an agency, instead of --data/secrets.")
@click.option("--out", type=click.Path(path_type=Path), metavar="DIR", help="[default: load-results/NAME-…]")
@click.option("--phones", default=1.0, show_default=True, help="So many times the scenario's phones.")
@click.option("--rate", default=1.0, show_default=True, help="So many times the scenario's events.")
@click.option("--time", "stretch", default=1.0, show_default=True, help="So many times the scenario's seconds.")
@click.option("--processes", default=1, show_default=True, help="Of the generator, when one core is not enough.")
@click.option("--profile", type=click.Choice(["gateway", "generator"]), help="Leave a flame graph of it: flame.svg.")
@click.option("--seed", default=1, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print the verdict as JSON on standard output.")
@click.pass_context
def run(
    ctx: click.Context,
    name: str,
    host: str | None,
    data: str,
    tokens: str,
    secrets: str,
    out: Path | None,
    phones: float,
    rate: float,
    stretch: float,
    processes: int,
    profile: str | None,
    seed: int,
    as_json: bool,
) -> None:
    """Run one scenario to its verdict."""
    scenario = load(name).scaled(phones=phones, rate=rate, time=stretch)
    out = (out or Path("load-results") / f"{scenario.name}-{datetime.now(UTC):%Y%m%d-%H%M%S}").absolute()
    out.mkdir(parents=True, exist_ok=True)
    if any(out.glob("*.jsonl")):
        raise WrongScenario(f"{out} has journals of another run.")
    words = ["--phones-scale", str(phones), "--rate-scale", str(rate), "--time-scale", str(stretch)]
    words += ["--scenario", str(Path(name).absolute()) if name.endswith(".toml") else name]
    words += ["--seed", str(seed), "--out", str(out), "--html", str(out / "locust.html"), "--csv", str(out / "locust")]
    if processes > 1:
        words += ["--processes", str(processes)]
    err.print(f"[bold]{scenario.name}[/]: {scenario.says} ({scenario.seconds:.0f} s)", soft_wrap=True)
    where = ["--data", data, "--tokens", tokens, "--secrets", secrets]
    if profile == "gateway" and host:
        raise WrongScenario(
            "The flame graph of a gateway is made of one that is started for the run: leave --host out."
        )
    (used, total), ours = machine_s(), family_s()
    rows = asyncio.run(_locust([*words, *where], host, out, profile) if host else _ours(scenario, words, out, profile))
    (used_now, total_now), ours_now = machine_s(), family_s()
    others = max(0.0, (used_now - used) - (ours_now - ours)) / (total_now - total)
    (out / OTHERS).write_text(f"{others:.3f}\n")
    ctx.exit(_finish(scenario, out, rows, as_json))


@cli.command()
@click.argument("directory", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print it as JSON on standard output.")
@click.pass_context
def verdict(ctx: click.Context, directory: Path, as_json: bool) -> None:
    """Judge the journals of a run of plain Locust with --out, or judge again. Journals of other machines go beside."""
    about = _about(directory)
    scale = about["scale"]
    name = about["scenario"]
    scenario = load(name) if name else Scenario("plain", "", load("soak").phones, {}, 0, 1, [])
    scaled = scenario.scaled(phones=scale["phones"], rate=scale["rate"], time=scale["time"])
    ctx.exit(_finish(scaled, directory, None, as_json))


def _about(directory: Path) -> dict[str, Any]:
    try:
        about: dict[str, Any] = json.loads((directory / ABOUT).read_text())
    except (OSError, ValueError):
        raise WrongScenario(f"There is no run in {directory}: {ABOUT} is missing.") from None
    return about


def _finish(scenario: Scenario, directory: Path, rows: list[dict[str, Any]] | None, as_json: bool) -> int:
    about = _about(directory)
    found = judge(
        scenario,
        about["started"],
        lines(directory, f"{AGENCIES}-*.jsonl"),
        lines(directory, f"{DEVICES}-*.jsonl"),
        dump=rows,
        gateway=lines(directory, GATEWAY),
        generator=lines(directory, f"{GENERATOR}-*.jsonl"),
    )
    others = float((directory / OTHERS).read_text()) if (directory / OTHERS).exists() else None
    report.write(found, scenario, about | {"used_by_others": others, "machine": machine()}, directory)
    report.show(found, scenario, err)
    if others is not None and others > QUIET:
        err.print(f"Others used {others:.0%} of the machine meanwhile: times are too long", style="yellow")
    err.print(
        f"{directory}/verdict.html, verdict.json, verdict.csv, locust.html, locust_stats.csv",
        style="dim",
        soft_wrap=True,
    )
    if as_json:
        click.echo(json.dumps(found.document(), ensure_ascii=False))
    return _code(found)


def _code(found: Verdict) -> int:
    if not found.ledger.counts["accepted"] or not found.ledger.counts["deliveries"]:
        err.print("Nothing was accepted and delivered: this run says nothing.", style="bold red")
        return BROKEN
    return 0 if found.ok else BROKEN


def lines(directory: Path, pattern: str) -> Iterator[dict[str, Any]]:
    """All lines of these journals, file by file. A last line that was cut short is left out."""
    for path in sorted(directory.glob(pattern)):
        with path.open("rb") as file:
            for line in file:
                if line.endswith(b"\n"):
                    yield orjson.loads(line)


# What runs


async def _locust(words: Sequence[str], host: str, out: Path, profile: str | None = None) -> None:
    """Locust to its end. Its own words go to `locust.log`. Raises Failed."""
    command = ["-m", "locust", "-f", str(LOCUSTFILE), "--headless", "--host", host, "--only-summary"]
    command += ["--loglevel", "WARNING"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST_", "VESTNIK_"))}
    with (out / "locust.log").open("wb") as log:
        process = await asyncio.create_subprocess_exec(
            sys.executable, *command, *words, stdin=asyncio.subprocess.DEVNULL, stdout=log, stderr=log, env=environment
        )
        try:
            async with _flames(process.pid if profile == "generator" else None, out):
                await process.wait()
        finally:
            if process.returncode is None:
                process.terminate()
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(10):
                        await process.wait()
    if not (out / ABOUT).exists():
        raise Failed(f"Locust did not start: {(out / 'locust.log').read_text(errors='replace')[-800:]}")


@contextlib.asynccontextmanager
async def _flames(pid: int | None, out: Path) -> AsyncIterator[None]:
    """A flame graph of a process over the block. py-spy reads it from outside; where it may not, it says so."""
    if pid is None:
        yield
        return
    command = ["record", "--pid", str(pid), "--output", str(out / FLAME), "--rate", "200", "--nonblocking"]
    with (out / "py-spy.log").open("wb") as log:
        spy = await asyncio.create_subprocess_exec(BIN / "py-spy", *command, stdout=log, stderr=log)
        try:
            yield
        finally:
            if spy.returncode is None:
                spy.send_signal(signal.SIGINT)
                async with asyncio.timeout(30):
                    await spy.wait()
    if (out / FLAME).exists():
        err.print(f"{out / FLAME}", style="dim", soft_wrap=True)
    else:
        said = (out / "py-spy.log").read_text(errors="replace").strip().splitlines()
        err.print(f"There is no flame graph: {said[-1] if said else 'py-spy said nothing'}", style="bold red")


async def _ours(scenario: Scenario, words: Sequence[str], out: Path, profile: str | None) -> list[dict[str, Any]]:
    """On a gateway of our own; the dump of its store."""
    async with Gateway(scenario.gateway) as gateway:
        secrets = gateway.directory / "secrets"
        secrets.mkdir(mode=0o700)
        codes = [f"load-{number:02}" for number in range(scenario.agencies)]
        for first in range(0, len(codes), 4):
            part = codes[first : first + 4]
            for code, secret in zip(part, await asyncio.gather(*map(gateway.agency, part)), strict=True):
                (secrets / code).write_text(secret)
        await asyncio.sleep(KNOWN_AFTER_S)
        url = f"http://127.0.0.1:{gateway.port}"
        try:
            async with _flames(gateway.pid if profile == "gateway" else None, out):
                await _while(
                    _watch(gateway, scenario, out),
                    _locust([*words, "--data", str(gateway.directory)], url, out, profile),
                )
        finally:
            (out / "gateway.log").write_text(gateway.tail())
        return list(dump(gateway.directory / "vestnik.db"))


async def _while(watch: Coroutine[Any, Any, None], work: Coroutine[Any, Any, None]) -> None:
    """The work to its end. `watch`, which has none, ends it by what it raises."""
    tasks = [asyncio.create_task(watch), asyncio.create_task(work)]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for task in done:
            task.result()
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _watch(gateway: Gateway, scenario: Scenario, out: Path) -> None:
    """Memory, open files and CPU of the gateway once a second; kills it when the scenario says so. Raises Failed when
    it has ended by itself."""
    while not (out / ABOUT).exists():  # noqa: ASYNC110 - another process makes it
        await asyncio.sleep(0.05)
    started = _about(out)["started"]
    kills = sorted(fault.at for fault in scenario.faults if fault.name == "kill")
    with (
        (out / GATEWAY).open("wb", 0) as file,
        looking(gateway.directory / "disk", lambda took: _note_disk(file, took)),
    ):
        while True:
            if kills and time.time() - started >= kills[0]:
                kills.pop(0)
                await gateway.kill_and_start()
            if gateway.code is not None:
                raise Failed(
                    f"The gateway ended with {gateway.code} after {time.time() - started:.0f} s: {gateway.tail()}"
                )
            with contextlib.suppress(OSError):
                files = len(os.listdir(f"/proc/{gateway.pid}/fd"))
                used = {"cpu_s": round(cpu_s(gateway.pid), 2), "rss": rss_bytes(gateway.pid), "files": files}
                file.write(orjson.dumps({"t": "gateway", "at": round(time.time(), 3), **used}) + b"\n")
            await asyncio.sleep(max(0.05, min(1.0, kills[0] + started - time.time()) if kills else 1.0))


def _note_disk(journal: BinaryIO, seconds: float) -> None:
    journal.write(orjson.dumps({"t": "disk", "at": round(time.time(), 3), "seconds": round(seconds, 5)}) + b"\n")

"""Ours and other servers under the same generator: fan-out, idle, connect, storm, personal.

Every server is a process on this machine with nothing but its defaults, unless its URL is given; then CPU and memory
are told when the process that listens there is found on this machine.
"""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any
from urllib.parse import urlsplit

import click
import uvloop
from rich.console import Console
from rich.table import Table

from client_sim.identity import NoTokens
from loadtests.bench.__main__ import number
from loadtests.bench.cases import chunks
from loadtests.bench.drivers import DRIVERS, Centrifugo, Driver
from loadtests.bench.phones import Broken
from loadtests.bench.processes import Failed, cpu_s, family_s, listener, machine_s, rss_bytes, settled
from loadtests.machine import machine

ROWS = {
    "connect_us": "connect: CPU each, us",
    "connect_s": "connect: all of them, s",
    "idle_kb": "idle: memory of a session, kB",
    "fan_out_us": "fan-out: CPU of a delivery, us",
    "fan_out_s": "fan-out: one event to all, s",
    "personal_rate": "personal events, a second",
    "personal_us": "… CPU each, us",
    "storm_s": "storm: all back, s",
    "storm_caught_up": "… events missed while away that came",
}
HERE = ("ours", "stock", "socketio", "ws")
TIMEOUT_S = 90.0


@dataclass
class Found:
    values: dict[str, float] = field(default_factory=dict)
    version: str = ""
    why: str = ""  # it could not be measured


async def measure(driver: Driver, count: int, repeats: int) -> Found:
    """All rows of one server."""
    found = Found()
    await driver.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await _measure(driver, count, repeats, found.values)
        found.version = driver.version
    finally:
        await driver.stop()
    return found


async def _measure(driver: Driver, count: int, repeats: int, values: dict[str, float]) -> None:
    swarm = driver.swarm()
    devices = await driver.devices(swarm, count)
    pid = driver.server.pid if driver.server else listener(driver.host, driver.port)

    def used() -> float:
        return cpu_s(pid) if pid else 0.0

    async def calm() -> None:
        if pid:
            await settled(pid, 3.0)

    async def timed(name: str, work: Callable[[], Any], each: int) -> None:
        await calm()
        cpu, begun = used(), time.perf_counter()
        await work()
        values[f"{name}_s"] = time.perf_counter() - begun
        await calm()
        if pid:
            values[f"{name}_us"] = 1e6 * (used() - cpu) / each

    await calm()
    rss = rss_bytes(pid) if pid else 0
    await timed("connect", lambda: swarm.connect(devices, 200), count)
    if pid:
        values["idle_kb"] = (rss_bytes(pid) - rss) / count / 1000

    async def blasts() -> None:
        for _ in range(repeats):
            target = swarm.count + count
            begun = time.perf_counter()
            await driver.to_all()
            await swarm.until(lambda target=target: swarm.count >= target)  # type: ignore[misc]
            took.append(time.perf_counter() - begun)

    took: list[float] = []
    await blasts()  # the warm-up
    took.clear()
    await timed("fan_out", blasts, count * repeats)
    values["fan_out_s"] = median(took)

    async def personal() -> None:
        parts = chunks(devices, 100)
        target = swarm.count + count * repeats

        async def poster(first: int) -> None:
            for part in (parts * repeats)[first::4]:
                await driver.to_each(part)

        await asyncio.gather(*map(poster, range(4)))
        await swarm.until(lambda: swarm.count >= target)

    await timed("personal", personal, count * repeats)
    values["personal_rate"] = count * repeats / values.pop("personal_s")

    await swarm.close()
    await driver.again(devices)
    keeps = driver.keeps()
    if keeps:
        for part in chunks(devices, 100):
            await driver.to_each(part)
    await calm()
    came = swarm.count
    target = came + (count if keeps else 0)
    begun = time.perf_counter()
    await swarm.connect(devices, count)
    await swarm.until(lambda: swarm.count >= target)
    values["storm_s"] = time.perf_counter() - begun
    values["storm_caught_up"] = swarm.count - came
    await swarm.close()


def driver(name: str, url: str | None, data: Path, key: str) -> Driver:
    """Raises Failed for a server that is not started here and has no URL."""
    return Centrifugo(url, data, key) if name == "centrifugo" else DRIVERS[name](url, data)


def middle(rounds: Sequence[Found]) -> Found:
    """Medians over the rounds; a server that failed once has failed."""
    failed = next((one for one in rounds if one.why), None)
    if failed:
        return failed
    values = {row: median(one.values[row] for one in rounds) for row in rounds[0].values}
    if "idle_kb" in values:  # one that runs on has its memory already in the next round
        values["idle_kb"] = max(one.values["idle_kb"] for one in rounds)
    return Found(values, rounds[0].version)


class ServerAt(click.ParamType[tuple[str, str | None]]):
    """`name` or `name=ws://…`, as (name, URL or None)."""

    name = "server"

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> tuple[str, str | None]:
        name, _, url = value.partition("=")
        if name not in DRIVERS:
            self.fail(f"there is no driver {name!r}, choose from {', '.join(DRIVERS)}", param, ctx)
        return name, url or None


@click.command()
@click.argument("servers", metavar="[SERVER[=ws://…]]…", nargs=-1, type=ServerAt())
@click.option("--data", type=click.Path(path_type=Path), default="data", help="Of ours at a URL: its data directory.")
@click.option("--key", default="", help="Of Centrifugo's HTTP API.")
@click.option("--sockets", default=1000, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--rounds", default=1, show_default=True, help="All servers by turns so many times; medians are told.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path))
def main(
    servers: Sequence[tuple[str, str | None]],
    data: Path,
    key: str,
    sockets: int,
    repeats: int,
    rounds: int,
    path: Path | None,
) -> None:
    """Measure SERVERs with the same devices: those that can be started here, and any by its URL."""
    wanted = {name if url is None else f"{name} {urlsplit(url).port}": (name, url) for name, url in servers}
    wanted = wanted or {name: (name, None) for name in HERE}
    err, all_found = Console(stderr=True), dict[str, list[Found]]()
    (busy, total), own = machine_s(), family_s()
    for turn in range(rounds):
        for title, (name, url) in wanted.items():
            err.print(f"{turn + 1}/{rounds} {title}", style="dim")
            gc.collect()
            try:
                found = uvloop.run(measure(driver(name, url, data, key), sockets, repeats))
            except (Broken, Failed, NoTokens, OSError, EOFError, TimeoutError) as error:
                found = Found(why=str(error) or type(error).__name__)
                err.print(f"{title} could not be measured: {found.why}", style="bold red", markup=False)
            all_found.setdefault(title, []).append(found)
    (busy_now, total_now), own_now = machine_s(), family_s()
    others = max(0.0, (busy_now - busy) - (own_now - own)) / (total_now - total)
    medians = {title: middle(several) for title, several in all_found.items()}
    out = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(f"{sockets} sockets", *medians, box=None, pad_edge=False)
    for row, says in ROWS.items():
        table.add_row(says, *(number(one.values[row]) if row in one.values else "–" for one in medians.values()))
    out.print(table)
    about = machine()
    err.print(
        f"{about['cpu']}, {about['cores']} cores, commit {about['commit']}; others used {others:.0%} of the machine"
    )
    for title, one in medians.items():
        if one.version:
            err.print(f"{title}: {one.version}", style="dim")
    if path:
        about |= {"sockets": sockets, "repeats": repeats, "used_by_others": round(others, 3)}
        about["versions"] = {title: one.version for title, one in medians.items()}
        rows = {title: [one.values for one in several] for title, several in all_found.items()}
        path.write_text(json.dumps({**about, "servers": rows}, indent=2) + "\n")
    sys.exit(2 if any(one.why for one in medians.values()) else 0)


if __name__ == "__main__":
    main()

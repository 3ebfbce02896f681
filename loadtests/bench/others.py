"""Ours and other servers under the same generator: fan-out, idle, connect, storm, personal.

Every server is a process on this machine with nothing but its defaults, unless `--url` points at one that runs; then
only times are told, and `--pid` adds CPU and memory.
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

import click
import uvloop
from rich.console import Console
from rich.table import Table

from client_sim.identity import NoTokens
from loadtests.bench.__main__ import number
from loadtests.bench.cases import chunks
from loadtests.bench.drivers import DRIVERS, Centrifugo, Driver
from loadtests.bench.phones import Broken
from loadtests.bench.processes import Failed, cpu_s, family_s, machine_s, rss_bytes
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
    why: str = ""  # it could not be measured


async def measure(driver: Driver, count: int, repeats: int, pid: int | None) -> Found:
    """All rows of one server."""
    found = Found()
    await driver.start()
    try:
        async with asyncio.timeout(TIMEOUT_S):
            await _measure(driver, count, repeats, pid, found.values)
    finally:
        await driver.stop()
    return found


async def _measure(driver: Driver, count: int, repeats: int, pid: int | None, values: dict[str, float]) -> None:
    swarm = driver.swarm()
    devices = await driver.devices(swarm, count)
    pid = driver.server.pid if driver.server else pid

    def used() -> float:
        return cpu_s(pid) if pid else 0.0

    async def calm() -> None:
        if driver.server:
            await driver.server.calm(3.0)

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
    if driver.durable:
        for part in chunks(devices, 1000):
            await driver.to_each(part)
    await calm()
    target = swarm.count + (count if driver.durable else 0)
    begun = time.perf_counter()
    await swarm.connect(devices, count)
    await swarm.until(lambda: swarm.count >= target)
    values["storm_s"] = time.perf_counter() - begun
    values["storm_caught_up"] = count if driver.durable else 0  # the others keep nothing for those who are away
    await swarm.close()


@click.command()
@click.argument("names", metavar="[SERVER]…", nargs=-1, type=click.Choice(list(DRIVERS)))
@click.option("--url", help="Of a server that runs already; then name one SERVER.")
@click.option("--pid", type=int, help="Of that server, when it is on this machine.")
@click.option("--data", type=click.Path(path_type=Path), default="data", help="Of ours at --url: its data directory.")
@click.option("--key", default="", help="Of Centrifugo's HTTP API.")
@click.option("--sockets", default=1000, show_default=True)
@click.option("--repeats", default=5, show_default=True)
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path))
def main(
    names: Sequence[str],
    url: str | None,
    pid: int | None,
    data: Path,
    key: str,
    sockets: int,
    repeats: int,
    path: Path | None,
) -> None:
    """Measure SERVERs with the same devices; those that can be started here, or one by its URL."""
    if url and len(names) != 1:
        raise click.UsageError("name the one server that is at --url")
    err, found = Console(stderr=True), dict[str, Found]()
    (busy, total), own = machine_s(), family_s()
    for name in names or HERE:
        err.print(name, style="dim")
        gc.collect()
        try:
            driver = Centrifugo(url, data, key) if name == "centrifugo" else DRIVERS[name](url, data)
            found[name] = uvloop.run(measure(driver, sockets, repeats, pid))
        except (Broken, Failed, NoTokens, OSError, TimeoutError) as error:
            found[name] = Found(why=str(error) or type(error).__name__)
            err.print(f"{name} could not be measured: {error}", style="bold red", markup=False)
    (busy_now, total_now), own_now = machine_s(), family_s()
    others = max(0.0, (busy_now - busy) - (own_now - own)) / (total_now - total)
    out = Console(width=None if sys.stdout.isatty() else 120)
    table = Table(f"{sockets} sockets", *found, box=None, pad_edge=False)
    for row, says in ROWS.items():
        table.add_row(says, *(number(one.values[row]) if row in one.values else "–" for one in found.values()))
    out.print(table)
    about = machine()
    err.print(
        f"{about['cpu']}, {about['cores']} cores, commit {about['commit']}; others used {others:.0%} of the machine"
    )
    if path:
        rows = {name: one.values for name, one in found.items()}
        about |= {"sockets": sockets, "used_by_others": round(others, 3)}
        path.write_text(json.dumps({**about, "servers": rows}, indent=2) + "\n")
    sys.exit(2 if any(one.why for one in found.values()) else 0)


if __name__ == "__main__":
    main()

"""Runs the cases and prints the table. Exit code 1 when a bound is broken, 2 when a case could not be measured."""

import asyncio
import gc
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
import uvloop
from rich.console import Console
from rich.table import Table

from loadtests.bench import history, nodes
from loadtests.bench.cases import CASES, FULL, QUICK, Row, Scale
from loadtests.bench.phones import Broken
from loadtests.bench.processes import Failed, family_s, machine_s
from loadtests.machine import machine

err = Console(stderr=True)
CASE_TIMEOUT_S = 240.0
ALL = CASES | nodes.CASES
QUIET = 0.05  # of the machine


@click.command()
@click.option("--quick", is_flag=True, help="Fewer sockets and repeats. Bounds are those of the full run.")
@click.option("--json", "path", type=click.Path(dir_okay=False, path_type=Path), help="Where the results go.")
@click.option("--single", is_flag=True, help="Only the cases of one node, which need no PostgreSQL and no Redis.")
@click.argument("names", metavar="[CASE]…", nargs=-1, type=click.Choice(list(ALL)))
def main(quick: bool, path: Path | None, single: bool, names: Sequence[str]) -> None:
    """Measure the gateway against its bounds: all cases, those of several nodes (`nodes-…`) too, or the named ones."""
    path = path or Path("bench-results") / f"{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    about = machine()
    err.print(
        f"{about['cpu']}, {about['cores']} cores, Python {about['python']}, commit {about['commit']}", style="dim"
    )
    begun = time.monotonic()
    results, failures, others = uvloop.run(measure(names or list(CASES if single else ALL), QUICK if quick else FULL))
    seconds = time.monotonic() - begun
    out = Console()
    if not out.is_terminal:
        out.width = 120
    out.print(table(results))
    path.parent.mkdir(parents=True, exist_ok=True)
    about |= {"quick": quick, "seconds": round(seconds, 1), "used_by_others": others}
    path.write_text(json.dumps(about | document(results, failures), indent=2, ensure_ascii=False) + "\n")
    history.append(Path("bench-results"), about, results)
    err.print(f"{seconds:.0f} s; {path}", style="dim")
    for name, why in failures.items():
        err.print(f"{name} could not be measured: {why}", style="bold red", markup=False)
    sys.exit(2 if failures else any(row.ok is False for rows in results.values() for row in rows))


async def measure(names: Sequence[str], scale: Scale) -> tuple[dict[str, list[Row]], dict[str, str], dict[str, float]]:
    """Rows of each case, why others have none, and the part of the machine that strangers used meanwhile."""
    results: dict[str, list[Row]] = {}
    others: dict[str, float] = {}
    failures: dict[str, str] = {}
    gc.disable()  # a pause of ours would be measured as one of the gateway
    for number, name in enumerate(names, 1):
        begun, (used, total), ours = time.monotonic(), machine_s(), family_s()
        with err.status(f"{number}/{len(names)} {name}") as status:

            def say(text: str, at: int = number, name: str = name) -> None:
                line = f"{at}/{len(names)} {name}: {text}"
                status.update(line) if err.is_terminal else err.print(line)

            try:
                async with asyncio.timeout(CASE_TIMEOUT_S):
                    results[name] = await ALL[name](scale, say)
            except (Broken, Failed, OSError, TimeoutError) as error:
                failures[name] = str(error) or type(error).__name__
        gc.collect()
        (used_now, total_now), ours_now = machine_s(), family_s()
        others[name] = round(max(0.0, (used_now - used) - (ours_now - ours)) / (total_now - total), 3)
        line = f"{number}/{len(names)} {name}: {time.monotonic() - begun:.0f} s"
        if others[name] > QUIET:
            line += f"; others used {others[name]:.0%} of the machine, so times may be too long"
        err.print(line, style="dim" if others[name] <= QUIET else "yellow")
    return results, failures, others


def table(results: dict[str, list[Row]]) -> Table:
    """One line a row, a blank between cases."""
    view = Table(box=None, pad_edge=False, header_style="bold")
    for column, justify in (
        ("what", "left"),
        ("measured", "right"),
        ("bound", "right"),
        ("reference", "right"),
        ("", "left"),
    ):
        view.add_column(column, justify=justify)  # type: ignore[arg-type]
    for rows in results.values():
        for row in rows:
            bound = "" if row.bound is None else f"{'≥' if row.at_least else '≤'} {row.bound:g}"
            verdict = {None: "", True: "[green]holds[/]", False: "[bold red]broken[/]"}[row.ok]
            view.add_row(row.what, f"{number(row.value)} {row.unit}", bound, row.reference, verdict)
        view.add_section()
    return view


def number(value: float) -> str:
    """Three digits that matter."""
    return f"{value:,.0f}" if value == int(value) or abs(value) >= 100 else f"{value:.3g}"


def document(results: dict[str, list[Row]], failures: dict[str, str]) -> dict[str, Any]:
    """The results as they go into the file."""
    rows = [
        {
            "case": name,
            "what": row.what,
            "value": round(row.value, 4),
            "unit": row.unit,
            "bound": row.bound,
            "at_least": row.at_least,
            "ok": row.ok,
            "reference": row.reference,
            **row.detail,
        }
        for name, rows in results.items()
        for row in rows
    ]
    return {"rows": rows, "failures": failures}


if __name__ == "__main__":
    main()

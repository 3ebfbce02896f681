"""Is this tree faster or slower than BASE, or is it noise?

    make bench-compare BASE=main~5                 every case, quick, five rounds
    python -m loadtests.bench.compare BASE fan-out --rounds 9

Both gateways are measured by this tree's generator, by turns, in pairs: BASE, here, here, BASE, … so that whatever else
the machine does meets both. The ratio of a row is the median over the pairs, its spread their smallest and largest. It
is a difference only when every pair is on the same side of 1 and there are at least five: by chance alone that happens
once in sixteen times. Everything else is noise, however large.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median

import click
import uvloop
from rich.console import Console
from rich.table import Table

from loadtests.bench.__main__ import measure, number
from loadtests.bench.cases import CASES, FULL, QUICK, Row
from loadtests.machine import machine

PAIRS = 5  # fewer prove nothing


@dataclass(frozen=True, slots=True)
class Change:
    """`ratio` of here to BASE over `pairs`; `low` and `high` are the extremes of the pairs."""

    ratio: float
    low: float
    high: float
    pairs: int

    @property
    def noise(self) -> bool:
        return self.pairs < PAIRS or self.low <= 1.0 <= self.high

    def words(self, at_least: bool = False) -> str:
        """`at_least`: more is better."""
        if self.noise:
            return "noise" if self.pairs >= PAIRS else f"noise: {self.pairs} of {PAIRS} pairs"
        return "better" if (self.ratio > 1) == at_least else "worse"


def change(base: Sequence[float], here: Sequence[float]) -> Change | None:
    """Of values measured in pairs; None when a base is 0 (nothing to compare with)."""
    if not base or not all(base):
        return None
    ratios = [new / old for old, new in zip(base, here, strict=True)]
    return Change(median(ratios), min(ratios), max(ratios), len(ratios))


@click.command()
@click.argument("base")
@click.argument("names", metavar="[CASE]…", nargs=-1, type=click.Choice(list(CASES)))
@click.option("--rounds", default=PAIRS, show_default=True, help="Pairs of runs.")
@click.option("--full", is_flag=True, help="The sizes that the bounds speak of, not the quick ones.")
def main(base: str, names: Sequence[str], rounds: int, full: bool) -> None:
    """Measure BASE (a commit) and this tree by turns."""
    err = Console(stderr=True)
    found: dict[str, dict[str, list[Row]]] = {"base": {}, "here": {}}
    with tempfile.TemporaryDirectory(prefix="vestnik-base-") as tree:
        commit = extract(base, tree)
        for turn in range(rounds):
            for which in ("base", "here") if turn % 2 == 0 else ("here", "base"):
                err.print(f"round {turn + 1} of {rounds}: {commit if which == 'base' else 'here'}", style="bold")
                os.environ["BENCH_TREE"] = tree if which == "base" else ""
                results, failures, _ = uvloop.run(measure(names or list(CASES), FULL if full else QUICK))
                if failures:
                    raise click.ClickException("; ".join(f"{case}: {why}" for case, why in failures.items()))
                for case, rows in results.items():
                    for at, row in enumerate(rows):
                        found[which].setdefault(f"{case} {at}", []).append(row)
    table = Table("what", f"{commit}", "here", "ratio", "spread", "", box=None, pad_edge=False)
    lines = []
    for key, rows in found["here"].items():
        old, new = [row.value for row in found["base"][key]], [row.value for row in rows]
        made = change(old, new)
        row = rows[0]
        shown = (number(median(old)), f"{number(median(new))} {row.unit}")
        if made is None:
            table.add_row(row.what, *shown, "", "", "")
        else:
            word = made.words(row.at_least)
            style = {"better": "green", "worse": "bold red"}.get(word, "dim")
            spread = f"{made.low:.2f} to {made.high:.2f}"
            table.add_row(row.what, *shown, f"{made.ratio:.2f}", spread, f"[{style}]{word}[/]")
        lines.append({"what": row.what, "unit": row.unit, "base": old, "here": new})
    Console(width=None if sys.stdout.isatty() else 130).print(table)
    path = Path("bench-results") / f"compare-{commit}-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps({**machine(), "base": commit, "rows": lines}, indent=2, ensure_ascii=False) + "\n")
    err.print(str(path), style="dim")


def extract(base: str, directory: str) -> str:
    """The files of a commit, without touching the checkout; its short name."""
    wanted = f"{base}^{{commit}}"
    found = subprocess.run(["git", "rev-parse", "--short", wanted], capture_output=True, text=True, check=False)  # noqa: S603, S607
    if found.returncode:
        raise click.BadParameter(f"there is no commit {base!r} here")
    name = found.stdout.strip()
    archive = subprocess.run(["git", "archive", name], capture_output=True, check=True).stdout  # noqa: S603, S607
    subprocess.run(["tar", "x", "-C", directory], input=archive, check=True)  # noqa: S603, S607
    return name


if __name__ == "__main__":
    main()

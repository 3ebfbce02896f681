"""What was measured before on this machine, a line a run: `bench-results/history-<machine>.jsonl`.

python -m loadtests.bench.history [ROW]     the values of the rows over the runs, oldest first
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

from loadtests.bench.cases import Row
from loadtests.machine import machine

RESULTS = Path("bench-results")


def append(directory: Path, about: Mapping[str, Any], results: Mapping[str, Sequence[Row]]) -> Path:
    """Add a run to the history of its machine."""
    path = directory / f"history-{about['machine']}.jsonl"
    rows = [
        {"case": name, "what": row.what, "value": round(row.value, 4), "unit": row.unit, "ok": row.ok}
        for name, found in results.items()
        for row in found
    ]
    kept = {name: about[name] for name in ("at", "commit", "quick", "used_by_others") if name in about}
    directory.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(json.dumps({**kept, "rows": rows}, ensure_ascii=False) + "\n")
    return path


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The runs; a line that was cut short is left out."""
    if path.exists():
        for line in path.read_text().splitlines():
            try:
                yield json.loads(line)
            except ValueError:
                continue


def over_time(runs: Sequence[Mapping[str, Any]], wanted: str = "") -> dict[str, list[tuple[str, float, str]]]:
    """By row `(commit, value, unit)` of each run that has it; those with `wanted` in their name."""
    found: dict[str, list[tuple[str, float, str]]] = {}
    for run in runs:
        size = " (quick)" if run.get("quick") else ""
        for row in run["rows"]:
            name = f"{row['case']}: {row['what']}{size}"
            if wanted in name:
                found.setdefault(name, []).append((run["commit"], row["value"], row["unit"]))
    return found


@click.command()
@click.argument("row", default="")
@click.option("--last", default=8, show_default=True, help="How many runs.")
def main(row: str, last: int) -> None:
    """The history of this machine."""
    path = RESULTS / f"history-{machine()['machine']}.jsonl"
    runs = list(read(path))[-last:]
    table = Table("row", *(f"{run['commit']}\n{run['at'][5:16]}" for run in runs), box=None)
    for name, values in over_time(runs, row).items():
        by_commit = {id(run): "" for run in runs}
        for run in runs:
            mine = over_time([run], row).get(name)
            by_commit[id(run)] = f"{mine[0][1]:.3g} {mine[0][2]}" if mine else ""
        if values:
            table.add_row(name, *by_commit.values())
    Console().print(table if runs else f"There is no history in {path}: `make bench` begins one.")


if __name__ == "__main__":
    main()

"""A verdict on a terminal, as JSON, CSV and a page."""

import csv
import html
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from loadtests.scenario import Scenario
from loadtests.verdict import FULL_CORE, Checked, Verdict

SUSPECT = 4
COLUMNS = (
    "accepted",
    "refused",
    "delivered",
    "lost",
    "repeated",
    "reordered",
    "late_p50_s",
    "late_p99_s",
    "commit_p99_s",
)


def show(verdict: Verdict, scenario: Scenario, console: Console) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("priority")
    for column in COLUMNS:
        table.add_column(column.replace("_s", ", s").replace("_", " "), justify="right")
    for priority, row in verdict.priorities.items():
        table.add_row(priority, *(_number(row[column]) for column in COLUMNS))
    console.print(table)
    console.print()
    for bound in verdict.bounds:
        mark = "[green]holds [/]" if bound.ok else "[bold red]broken[/]"
        console.print(f"{mark} {bound.words}: {_number(bound.found)}{_late(bound)}", highlight=False, soft_wrap=True)
    for line in _suspects(verdict):
        console.print(line, style="yellow", highlight=False)
    if verdict.limit is not None:
        console.print(_limit(verdict), highlight=False)
    if verdict.measures["unposted"]:
        console.print(_unposted(verdict), style="yellow", highlight=False)
    console.print(
        str(verdict.ledger), style="green" if verdict.ledger.ok else "bold red", markup=False, highlight=False
    )
    console.print(_core(verdict), style="yellow" if verdict.core >= FULL_CORE else "dim", highlight=False)
    console.print(f"{scenario.name}: {_word(verdict)}", style="bold green" if verdict.ok else "bold red")


def write(verdict: Verdict, scenario: Scenario, about: dict[str, Any], directory: Path) -> None:
    """`verdict.json`, `verdict.csv` and `verdict.html`."""
    document = {"scenario": scenario.name, "says": scenario.says, **about, **verdict.document()}
    (directory / "verdict.json").write_text(json.dumps(document, indent=2, ensure_ascii=False) + "\n")
    with (directory / "verdict.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("priority", *COLUMNS))
        for priority, row in verdict.priorities.items():
            writer.writerow((priority, *("" if row[column] is None else row[column] for column in COLUMNS)))
    (directory / "verdict.html").write_text(page(verdict, scenario, about))


def page(verdict: Verdict, scenario: Scenario, about: dict[str, Any]) -> str:
    head = "".join(f"<th>{column.replace('_', ' ')}</th>" for column in ("priority", *COLUMNS))
    rows = "".join(
        f"<tr><td>{priority}</td>{''.join(f'<td>{_number(row[column])}</td>' for column in COLUMNS)}</tr>"
        for priority, row in verdict.priorities.items()
    )
    bounds = "".join(
        f"<tr class={'good' if one.ok else 'bad'}><td>{'holds' if one.ok else 'broken'}</td>"
        f"<td>{html.escape(one.words)}</td><td>{_number(one.found)}{_late(one)}</td></tr>"
        for one in verdict.bounds
    )
    lines = _suspects(verdict)
    lines += [_limit(verdict)] if verdict.limit else []
    lines += [_unposted(verdict)] if verdict.measures["unposted"] else []
    lines += [*str(verdict.ledger).splitlines(), _core(verdict)]
    told = "".join(f"<p>{html.escape(line)}</p>" for line in lines)
    facts = html.escape(", ".join(f"{name}: {value}" for name, value in about.items()))
    return (
        f"<!doctype html><meta charset=utf-8><title>{html.escape(scenario.name)}</title><style>"
        "body{font:15px system-ui;max-width:70em;margin:2em auto;padding:0 1em}"
        "td,th{padding:.2em .8em;text-align:right}"
        "td:first-child{text-align:left}.bad td{color:#b00}.good td{color:#070}</style>"
        f"<h1>{html.escape(scenario.name)}: {_word(verdict)}</h1><p>{html.escape(scenario.says)}</p>"
        f"<table><tr>{head}</tr>{rows}</table><h2>Bounds</h2><table>{bounds}</table>{told}"
        f"<p><small>{facts}; <a href=locust.html>Locust's own report</a></small></p>\n"
    )


def _word(verdict: Verdict) -> str:
    return "everybody got everything, within the bounds" if verdict.ok else "broken"


def _suspects(verdict: Verdict) -> list[str]:
    """Who else made a bound of time break: what took a fourth of it or more, and is not the gateway."""
    late, disk = (_worst(verdict, of) for of in (lambda one: one.late, lambda one: one.disk))
    lines = []
    if late:
        lines.append(
            f"Generator late: by itself it came {_number(late)} s too late (p99) where a bound broke; "
            "take more processes or another machine for it before you blame the gateway"
        )
    if disk:
        lines.append(
            f"Disk: a page of anybody took {_number(disk)} s (p99) where a bound broke, and a commit waits for it; "
            "TMPDIR=/dev/shm takes the disk out of a gateway that is started for the run"
        )
    return lines


def _worst(verdict: Verdict, of: Callable[[Checked], float | None]) -> float:
    found = ((one.found or 0.0, of(one) or 0.0) for one in verdict.bounds if not one.ok)
    return max((value for whole, value in found if value >= whole / SUSPECT), default=0.0)


def _late(bound: Checked) -> str:
    told = [("generator late", bound.late), ("disk", bound.disk)]
    said = "; ".join(f"{what}: p99 {_number(value)}" for what, value in told if value is not None)
    return said and f" ({said})"


def _unposted(verdict: Verdict) -> str:
    return (
        f"{_number(verdict.measures['unposted'])} events were due and never posted: the agencies' answers took too long"
    )


def _core(verdict: Verdict) -> str:
    said = f"The generator ran, or waited for a core, at most {verdict.core:.0%} of a second"
    return (
        f"{said}: it may have measured itself; take more processes or a quieter machine"
        if verdict.core >= FULL_CORE
        else said
    )


def _limit(verdict: Verdict) -> str:
    found = verdict.limit
    assert found is not None
    core = f"the generator was busy {found.core:.0%} of the time"
    if not found.broke:
        return f"The limit was not reached: {found.rate:,.0f} events a second held to the end; {core}"
    return f"The limit: {found.rate:,.0f} events a second held, then {found.why}; {core}"


def _number(value: float | int | None) -> str:
    if value is None:
        return "–"
    return f"{value:,}" if isinstance(value, int) else f"{value:,.0f}" if value == int(value) else f"{value:.3g}"

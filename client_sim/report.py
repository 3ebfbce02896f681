"""The report of a run: one HTML file that needs nothing else, and the same as JSON.

`summary` is the JSON; `page` makes the HTML out of that JSON alone, so that an old run can be drawn again.
"""

import json
import platform
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from html import escape
from pathlib import Path
from typing import Any, Final

from client_sim.behaviours import BEHAVIOURS
from client_sim.ledger import KINDS
from client_sim.measure import thinned
from client_sim.plots import Mark, Series, histogram, over_time, stacked
from client_sim.run import Outcome

POINTS: Final = 420  # of a plot over time
LATE_S: Final = 0.25  # a sample that came so late was taken on a busy machine
LATE_SHARE: Final = 0.05  # of the samples
STATES: Final[Mapping[str, str]] = {
    "live": "--c1",
    "catching up": "--c2",
    "loading": "--c3",
    "connecting": "--c4",
    "waiting": "--c5",
    "frozen": "--c6",
    "away": "--c7",
    "stopped": "--c8",
}


def summary(outcome: Outcome, title: str, bounds: Sequence[Mapping[str, Any]] = ()) -> dict[str, Any]:
    """Everything that the run showed, as JSON values. Durations are seconds, `bars` are (upper bound, how many)."""
    plan, tally, verdict = outcome.plan, outcome.tally, outcome.verdict
    roster = plan.roster
    return {
        "title": title,
        "began": datetime.fromtimestamp(outcome.began, UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, Python {platform.python_version()}",
        "ok": passed(outcome, bounds),
        "ended": outcome.ended,
        "seed": roster.seed,
        "fingerprint": outcome.fingerprint,
        "seconds": round(outcome.seconds, 1),
        "settled": None if outcome.settled_s is None else round(outcome.settled_s, 2),
        "late": lateness(outcome),
        "behind": outcome.behind,
        "waiting": outcome.waiting,
        "plan": {
            "devices": roster.devices,
            "accounts": roster.accounts,
            "behaviour": dict(roster.behaviour),
            "network": dict(roster.network),
            "pace": roster.pace,
            "pattern": plan.pattern,
            "rate": plan.rate,
        },
        "counts": dict(sorted(tally.counts.items())),
        "closes": dict(tally.closes.most_common()),
        "attacks": dict(sorted(tally.attacks.items())),
        "latency": {**tally.latency.summary(), "bars": tally.latency.bars()},
        "wire": {**tally.wire.summary(), "bars": tally.wire.bars()},
        "catch_up": {**tally.catch_up.summary(), "bars": tally.catch_up.bars()},
        "answer": {**tally.answer.summary(), "bars": tally.answer.bars()},
        "faults": outcome.faults,
        "bounds": list(bounds),
        "verdict": None
        if verdict is None
        else {
            "ok": verdict.ok,
            "counts": dict(verdict.counts),
            "faults": [
                {"kind": kind, "invariant": KINDS[kind][0], "means": KINDS[kind][1], "count": f.count, "first": f.first}
                for kind, f in sorted(verdict.faults.items(), key=lambda item: KINDS[item[0]][0])
            ],
        },
        "samples": tally.samples,
    }


def lateness(outcome: Outcome) -> float | None:
    """By how many seconds the simulator itself was late at its worst, when that was often enough to spoil the times
    that it measured: this machine was busy with something else. None when it was not."""
    lags = [float(sample["lag"]) for sample in outcome.tally.samples if "lag" in sample]
    late = [lag for lag in lags if lag > LATE_S]
    return round(max(late), 2) if len(late) > LATE_SHARE * len(lags) else None


def passed(outcome: Outcome, bounds: Sequence[Mapping[str, Any]] = ()) -> bool:
    """No invariant broken, everybody has everything, every bound held. A run that ended early is judged by the first
    alone."""
    if outcome.verdict is None or not outcome.verdict.ok:
        return False
    return not outcome.complete or (not outcome.behind and not outcome.waiting and all(bound["ok"] for bound in bounds))


def write(report: Mapping[str, Any], directory: Path) -> Path:
    """`report.json` and `report.html` in the directory; the path of the page."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "report.json").write_text(json.dumps(report, ensure_ascii=False, indent=1), "utf-8")
    html = directory / "report.html"
    html.write_text(page(report), "utf-8")
    return html


def page(report: Mapping[str, Any]) -> str:
    """The whole HTML document."""
    samples = thinned(list(report["samples"]), POINTS)
    times = [float(sample["at"]) for sample in samples]
    marks = [Mark(f["from"], f.get("to", f["from"]), f"{f['name']} {f['arg']}".strip()) for f in report["faults"]]
    parts = [
        _head(report),
        _verdict(report),
        _tiles(report),
        _plots(report, samples, times, marks),
        _tables(report),
    ]
    title = escape(str(report["title"]))
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>{''.join(parts)}</main></body></html>"
    )


# Parts of the page


def _head(report: Mapping[str, Any]) -> str:
    plan = report["plan"]
    if report["ended"]:
        badge = '<span class="badge odd">ended early</span>'
    else:
        badge = '<span class="badge ok">passed</span>' if report["ok"] else '<span class="badge bad">failed</span>'
    began = datetime.fromisoformat(report["began"]).strftime("%d %b %Y, %H:%M UTC")
    line = (
        f"{began} · {report['seconds']:.0f} s · {plan['devices']:,} devices of {plan['accounts']:,} accounts · "
        f"{plan['pattern']} agencies, {plan['rate']:g} events/s · "
        f"seed {report['seed']}, schedule {report['fingerprint']}"
    )
    return f"<header><h1>{escape(str(report['title']))} {badge}</h1><p>{escape(line)}</p></header>"


def _verdict(report: Mapping[str, Any]) -> str:
    verdict = report["verdict"]
    lines = []
    if report["ended"]:
        lines.append(f'<p class="bad">{escape(report["ended"])}</p>')
    if report["behind"] and not report["ended"]:
        lines.append(f'<p class="bad">{report["behind"]} devices did not have everything when the quiet ended.</p>')
    if report["waiting"]:
        lines.append(f'<p class="bad">{report["waiting"]} events had no known outcome at the end.</p>')
    if report["late"]:
        lines.append(
            f'<p class="odd">The simulator was late by up to {report["late"]:.1f} s: this machine was busy with'
            " something else, and no time below is better than that.</p>"
        )
    if verdict is None:
        return f"<section>{''.join(lines)}<p>The journals were not judged.</p></section>"
    looked = ", ".join(f"{number:,} {name}" for name, number in verdict["counts"].items() if number)
    if verdict["ok"]:
        lines.append(f"<p><b>The ledger found no fault</b> in {escape(looked)}.</p>")
    else:
        lines.append(f'<p class="bad"><b>The ledger found faults</b> in {escape(looked)}:</p>')
        rows = [[f["invariant"], f["kind"], f["count"], f["means"], f["first"]] for f in verdict["faults"]]
        lines.append(_table(("invariant", "kind", "times", "an event that", "the first"), rows))
    return f'<section class="verdict">{"".join(lines)}</section>'


def _tiles(report: Mapping[str, Any]) -> str:
    counts, latency, catch_up = report["counts"], report["latency"], report["catch_up"]
    settled = "–" if report["settled"] is None else _time(report["settled"])
    tiles = [
        (f"{counts.get('published', 0):,}", "events accepted", f"p99 of a post {_time(report['answer']['p99'])}"),
        (f"{counts.get('delivered', 0):,}", "deliveries", f"{counts.get('repeats', 0):,} repeats"),
        (_time(latency["p50"]), "half arrive within", "agency's act to live device"),
        (_time(latency["p99"]), "99 % arrive within", f"longest {_time(latency['max'])}"),
        (f"{counts.get('opened', 0):,}", "sessions", f"{counts.get('ended', 0):,} ended"),
        (_time(catch_up["p90"]), "90 % caught up within", "connection to live"),
        (f"{counts.get('resyncs', 0):,}", "resyncs", f"{counts.get('snapshots', 0):,} snapshots loaded"),
        (settled, "until quiet", "everybody has everything"),
    ]
    return (
        '<section class="tiles">'
        + "".join(
            f"<div><b>{escape(big)}</b><span>{escape(name)}</span><small>{escape(small)}</small></div>"
            for big, name, small in tiles
        )
        + "</section>"
    )


def _plots(
    report: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], times: list[float], marks: list[Mark]
) -> str:
    def values(name: str) -> list[float | None]:
        return [sample.get(name) for sample in samples]

    speeds = [
        Series("99 %", "--c5", values("p99")),
        Series("90 %", "--c4", values("p90")),
        Series("50 %", "--c1", values("p50")),
    ]
    states = [
        Series(state, colour, [sample["states"].get(state, 0) for sample in samples])
        for state, colour in STATES.items()
    ]
    states = [one for one in states if any(one.values)]
    flow = [
        Series("deliveries", "--c1", values("delivered"), "area"),
        Series("repeats", "--c8", values("repeats")),
    ]
    taken = [
        Series("accepted", "--c3", values("published"), "area"),
        Series("unanswered posts", "--c8", values("unanswered")),
    ]
    catching = [Series("90 % of those that came back", "--c5", values("catch_up"))]
    moving = [Series("connections begun", "--c1", values("opened")), Series("ended", "--c5", values("ended"))]
    faults = "Shaded: the faults, also in the table below." if marks else ""
    lines = {name: report["latency"][name] for name in ("p50", "p90", "p99", "p999")}
    caught = {name: report["catch_up"][name] for name in ("p50", "p90", "p99")}
    figures = [
        ("Latency over time", f"From the agency's act to a live device, each second. {faults}", speeds,
         over_time(times, speeds, say=_time, marks=marks, named=True, log=True)),
        ("Devices by state", "All devices of the fleet at each moment.", states, stacked(times, states, marks=marks)),
        ("Deliveries a second", "New events that reached devices, and those that came again.", flow,
         over_time(times, flow, say=_number, marks=marks)),
        ("Accepted a second", "Events answered 202, on disk; posts whose answer was lost are tried again.", taken,
         over_time(times, taken, say=_number, marks=marks)),
        ("Connections a second", "", moving, over_time(times, moving, say=_number, marks=marks, height=180)),
        ("Catching up", "From the start of a connection until every feed is live.", catching,
         over_time(times, catching, say=_time, marks=marks, log=True, height=180)),
        ("How long events took", "All deliveries to live devices.", [],
         histogram(report["latency"]["bars"], say=_time, colour="--c1", lines=lines)),
        ("How long catching up took", "All connections that came to live.", [],
         histogram(report["catch_up"]["bars"], say=_time, colour="--c5", lines=caught)),
    ]  # fmt: skip
    if any(sample.get("gateway_mb") for sample in samples):
        costs = [Series("gateway", "--c1", values("gateway_cpu")), Series("simulator", "--c4", values("cpu"))]
        memory = [Series("gateway", "--c3", values("gateway_mb"), "area")]
        figures += [
            (
                "Processor",
                "Cores in use by each process.",
                costs,
                over_time(times, costs, say=_number, marks=marks, height=160),
            ),
            (
                "Memory of the gateway",
                "Resident, MB.",
                memory,
                over_time(times, memory, say=_number, marks=marks, height=160),
            ),
        ]
    return "<section>" + "".join(_figure(*figure) for figure in figures) + "</section>"


def _figure(title: str, says: str, series: Sequence[Series], svg: str) -> str:
    legend = "".join(f'<i><s style="background:var({one.colour})"></s>{escape(one.name)}</i>' for one in series)
    return (
        f"<figure><figcaption><h2>{escape(title)}</h2><p>{escape(says)}</p>"
        f'<div class="legend">{legend if len(series) > 1 else ""}</div></figcaption>{svg}</figure>'
    )


def _tables(report: Mapping[str, Any]) -> str:
    parts = []
    if report["bounds"]:
        rows = [["✓" if b["ok"] else "✗", b["says"], b["wanted"], b["found"]] for b in report["bounds"]]
        parts.append(_block("Bounds", _table(("", "what", "wanted", "found"), rows)))
    if report["faults"]:
        rows = [
            [f"{f['from']:.1f} s", f"{f['to']:.1f} s" if "to" in f else "–", f["name"], f["arg"], f.get("not", "")]
            for f in report["faults"]
        ]
        parts.append(_block("Faults", _table(("from", "to", "what", "", ""), rows)))
    if report["attacks"]:
        rows = [[*name.split(": ", 1), number] for name, number in report["attacks"].items()]
        parts.append(_block("Attacks", _table(("attack", "what the gateway did", "times"), rows)))
    rows = [[name, f"{number:,}"] for name, number in report["closes"].items()]
    parts.append(_block("How connections ended", _table(("close code or cause", "times"), rows)))
    whole = sum(report["plan"]["behaviour"].values())
    rows = [
        [name, f"{100 * weight / whole:.0f} %", BEHAVIOURS[name].says if name in BEHAVIOURS else ""]
        for name, weight in report["plan"]["behaviour"].items()
    ]
    parts.append(_block("Behaviours", _table(("", "share", ""), rows)))
    rows = [[name.replace("_", " "), f"{number:,}"] for name, number in report["counts"].items()]
    parts.append(_block("Everything counted", _table(("", ""), rows)))
    note = f'<p class="foot">{escape(report["machine"])}. Point at a plot to read its values.</p>'
    return f'<section class="tables">{"".join(parts)}</section>{note}'


def _block(title: str, table: str) -> str:
    return f"<div><h2>{escape(title)}</h2>{table}</div>"


def _table(heads: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    head = "".join(f"<th>{escape(name)}</th>" for name in heads)
    body = "".join("<tr>" + "".join(f"<td>{escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _time(seconds: float | None) -> str:
    if seconds is None:
        return "–"
    if seconds < 0.0995:
        return f"{seconds * 1000:.3g} ms"
    if seconds < 0.9995:
        return f"{seconds * 1000:.0f} ms"
    return f"{seconds:.3g} s" if seconds < 100 else f"{seconds:.0f} s"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"


_STYLE: Final = """
:root{--page:#f6f7f9;--card:#fff;--ink:#1b2330;--faint:#667085;--grid:#e6e9ee;--edge:#e2e5ea;--ok:#1a7f4b;--bad:#b42318;
--odd:#9a6700;--fault:#b4231818;--c1:#2f6fde;--c2:#8db8f2;--c3:#7a5fc9;--c4:#e0a526;--c5:#d9622b;--c6:#8b93a1;--c7:#d3d8df;
--c8:#b42318}
@media(prefers-color-scheme:dark){:root{--page:#12161c;--card:#1a2028;--ink:#e6eaf0;--faint:#93a0b4;--grid:#2a323d;
--edge:#2a323d;--ok:#3fb37f;--bad:#f0776c;--odd:#d9a441;--fault:#f0776c26;--c1:#5b94f5;--c2:#2f5590;--c3:#9a82e6;--c4:#e3b24a;
--c5:#ee8450;--c6:#6b7585;--c7:#3a434f;--c8:#f0776c}}
*{box-sizing:border-box}
body{margin:0;background:var(--page);color:var(--ink);
font:15px/1.45 system-ui,"Segoe UI",Roboto,"DejaVu Sans",sans-serif}
main{max-width:960px;margin:0 auto;padding:32px 20px 60px}
h1{font-size:26px;margin:0 0 4px;display:flex;align-items:center;gap:12px;flex-wrap:wrap}
h2{font-size:15px;margin:0}
header p,.foot,figcaption p,small{color:var(--faint)}
header p{margin:0 0 18px}
.badge{font-size:13px;font-weight:600;padding:3px 11px;border-radius:99px;color:#fff}
.badge.ok{background:var(--ok)}.badge.bad{background:var(--bad)}.badge.odd{background:var(--odd)}
p.bad,td.bad{color:var(--bad)}p.odd{color:var(--odd)}
.verdict{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:4px 18px;margin-bottom:16px}
.tiles{display:grid;grid-template-columns:repeat(4,1fr);gap:10px;margin-bottom:16px}
.tiles div{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:12px 16px;display:flex;
flex-direction:column}
.tiles b{font-size:23px;font-weight:650;font-variant-numeric:tabular-nums}
.tiles small{font-size:12.5px}
figure{background:var(--card);border:1px solid var(--edge);border-radius:10px;margin:0 0 16px;padding:14px 18px 8px}
figcaption{display:flex;flex-wrap:wrap;align-items:baseline;gap:2px 12px;margin-bottom:6px}
figcaption p{margin:0;font-size:13px;flex:1}
.legend{display:flex;flex-wrap:wrap;gap:4px 14px;font-size:12.5px;color:var(--faint)}
.legend i{font-style:normal;display:inline-flex;align-items:center;gap:6px}
.legend s{width:11px;height:11px;border-radius:3px}
svg{width:100%;height:auto;display:block;font-size:11px}
.grid{stroke:var(--grid);stroke-width:1}
.tick,.none{fill:var(--faint)}.label{fill:var(--ink)}
.mark{stroke:var(--ink);stroke-dasharray:3 3;stroke-width:1;opacity:.55}
.line{fill:none;stroke-width:1.7;stroke-linejoin:round}
.area{opacity:.22}
.fault{fill:var(--fault)}
.point{fill:transparent}.point:hover{fill:var(--ink);fill-opacity:.07}
.tables{display:grid;grid-template-columns:repeat(auto-fit,minmax(400px,1fr));gap:16px;align-items:start}
.tables>div{background:var(--card);border:1px solid var(--edge);border-radius:10px;padding:14px 18px;overflow-x:auto}
table{border-collapse:collapse;width:100%;font-size:13px;margin-top:6px;font-variant-numeric:tabular-nums}
th{text-align:left;color:var(--faint);font-weight:500}
td,th{padding:4px 12px 4px 0;border-bottom:1px solid var(--grid);vertical-align:top}
tr:last-child td{border-bottom:0}
.foot{font-size:12.5px}
@media(max-width:700px){.tiles{grid-template-columns:repeat(2,1fr)}.tables{grid-template-columns:1fr}}
"""

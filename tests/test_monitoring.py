"""The Prometheus rules and the Grafana dashboard speak of metrics and labels that exist, and of rules that exist.

An expression is cut into tokens; every name in it is a function, a keyword, a label or a metric, by where it stands.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
import yaml

from gateway.metrics import LATE_S, PRIORITIES, PROCESS, TABLE, merge
from tests.test_docs import anchors
from workers.rules import DEFAULTS

ROOT = Path(__file__).parents[1]
DEPLOY = ROOT / "gateway" / "deploy"
RULES = {rule.name: rule for rule in DEFAULTS}
OUTSIDE = {"full", "keys", "webhook"}  # what only Prometheus looks at

Map = dict[str, Any]

_TOKEN = re.compile(
    r"""\s*(?:
      (?P<text>"(?:[^"\\]|\\.)*") |
      (?P<number>[0-9]+(?:\.[0-9]+)?(?:[smhdw]|ms)?) |
      (?P<name>[A-Za-z_:][A-Za-z0-9_:]*) |
      (?P<sign>=~|!~|!=|==|>=|<=|[-+*/%^<>=(){}\[\],$])
    )""",
    re.VERBOSE,
)
FUNCTIONS = frozenset(
    ("sum", "min", "max", "count", "rate", "increase", "changes", "histogram_quantile", "absent", "vector")
)
GROUPING = frozenset(("by", "without", "on", "ignoring"))
WORDS = frozenset(("and", "or", "unless", "offset", "bool", "group_left", "group_right"))


class Wrong(AssertionError):
    """It is no expression that we understand."""


@dataclass(frozen=True)
class Selector:
    """A metric with the labels that it is asked for: (label, value)."""

    metric: str
    labels: tuple[tuple[str, str], ...]


@dataclass(frozen=True)
class Expression:
    selectors: tuple[Selector, ...]
    grouped: frozenset[str]  # labels after by, without, on, ignoring


def tokens(text: str) -> list[tuple[str, str]]:
    found, place, text = [], 0, text.rstrip()
    while place < len(text):
        match = _TOKEN.match(text, place)
        if match is None:
            raise Wrong(f"no token at {text[place : place + 20]!r}")
        assert match.lastgroup is not None
        found.append((match.lastgroup, match[match.lastgroup]))
        place = match.end()
    return found


def read(text: str) -> Expression:
    """Raises Wrong for a name that is nothing, and brackets that do not match."""
    left = tokens(text)
    selectors: list[Selector] = []
    grouped: set[str] = set()
    open_ones: list[str] = []
    place = 0
    while place < len(left):
        kind, token = left[place]
        after = left[place + 1][1] if place + 1 < len(left) else ""
        place += 1
        if kind == "sign" and token in "([":
            open_ones.append(")" if token == "(" else "]")
        elif kind == "sign" and token in ")]":
            if not open_ones or open_ones.pop() != token:
                raise Wrong(f"{token} closes nothing")
        elif kind != "name" or token in WORDS or "]" in open_ones:  # a duration may be a variable of Grafana
            continue
        elif token in GROUPING:
            names, place = _names(left, place)
            grouped |= names
        elif after == "(" or (token in FUNCTIONS and after in GROUPING):
            if token not in FUNCTIONS:
                raise Wrong(f"{token} is no function that we use")
        else:
            labels, place = _labels(left, place)
            selectors.append(Selector(token, labels))
    if open_ones:
        raise Wrong("something is not closed")
    return Expression(tuple(selectors), frozenset(grouped))


def _names(left: list[tuple[str, str]], place: int) -> tuple[set[str], int]:
    """What stands in parentheses from here on."""
    if left[place][1] != "(":
        raise Wrong("labels are named in parentheses")
    end = left.index(("sign", ")"), place)
    return {token for kind, token in left[place:end] if kind == "name"}, end + 1


def _labels(left: list[tuple[str, str]], place: int) -> tuple[tuple[tuple[str, str], ...], int]:
    if place == len(left) or left[place][1] != "{":
        return (), place
    end = left.index(("sign", "}"), place)
    inside = left[place + 1 : end]
    return tuple((inside[at][1], inside[at + 2][1][1:-1]) for at in range(0, len(inside), 4)), end + 1


def test_expressions_are_read() -> None:
    text = 'sum by (a, le) (rate(x_bucket{p="u", i=~"$i"}[$__rate_interval])) > 0.5 and on(a) y unless z offset 1h'
    assert read(text) == Expression(
        (Selector("x_bucket", (("p", "u"), ("i", "$i"))), Selector("y", ()), Selector("z", ())), frozenset(("a", "le"))
    )
    assert read('1 - up{job="x"} == 0 or absent(up) == 1').selectors == (
        Selector("up", (("job", "x"),)),
        Selector("up", ()),
    )
    for wrong in ("sum(x", "x)", "rat(x[5m])", "sum by a (x)", "x ; y"):
        with pytest.raises(Wrong):
            read(wrong)


@cache
def known() -> dict[str, frozenset[str]]:
    """Every series of `/metrics`, with its labels."""
    found: dict[str, frozenset[str]] = {"up": frozenset()}
    for entry in TABLE:
        name, labels = f"vestnik_{entry.name}", frozenset({entry.label} - {None})
        if entry.kind == "histogram":
            found |= {f"{name}_bucket": labels | {"le"}, f"{name}_sum": labels, f"{name}_count": labels}
        else:
            found[name + ("_total" if entry.kind == "counter" else "")] = labels
    found |= {f"vestnik_{name}": frozenset() for name, _, _ in PROCESS}
    processes = [line.split("{")[0] for line in merge({"1": b""}).decode().splitlines() if not line.startswith("#")]
    found |= {name: frozenset() for name in processes}
    return {name: labels | {"instance", "job", "process"} for name, labels in found.items()}


def faults(text: str) -> Iterator[str]:
    expression = read(text)
    if not expression.selectors:
        yield "speaks of no metric"
    for selector in expression.selectors:
        if selector.metric not in known():
            yield f"{selector.metric} does not exist"
            continue
        for label, value in selector.labels:
            if label not in known()[selector.metric]:
                yield f"{selector.metric} has no label {label}"
            if label == "priority" and value not in PRIORITIES:
                yield f"{value} is no priority"
    everywhere = frozenset().union(*(known().get(one.metric, frozenset()) for one in expression.selectors))
    yield from (f"no metric here has the label {label}" for label in expression.grouped - everywhere)


def test_faults_are_found() -> None:
    assert list(faults("sum by (priority) (vestnik_acks_total)")) == ["no metric here has the label priority"]
    assert list(faults("vestnik_acks")) == ["vestnik_acks does not exist"]
    assert list(faults('vestnik_acks_total{code="1"}')) == ["vestnik_acks_total has no label code"]
    assert list(faults('vestnik_delivered_events_total{priority="slow"}')) == ["slow is no priority"]
    assert list(faults("1 > 0")) == ["speaks of no metric"]


# Prometheus


def alerts() -> list[Map]:
    document = yaml.safe_load((DEPLOY / "prometheus" / "alerts.yml").read_text("utf-8"))
    return [rule for group in document["groups"] for rule in group["rules"]]


@pytest.mark.parametrize("alert", alerts(), ids=lambda alert: alert["alert"])
def test_an_alert_speaks_of_what_exists(alert: Map) -> None:
    assert not list(faults(alert["expr"]))
    assert alert.keys() <= {"alert", "expr", "for", "labels", "annotations"}
    assert alert["labels"].keys() == {"severity", "rule"}
    assert alert["labels"]["severity"] in ("critical", "warning")
    assert alert["annotations"].keys() == {"summary", "runbook"}
    page, _, anchor = alert["annotations"]["runbook"].partition("#")
    assert anchor in anchors(Path(page))
    spoken = set(re.findall(r"\$labels\.(\w+)", alert["annotations"]["summary"]))
    labels = frozenset().union(*(known()[one.metric] for one in read(alert["expr"]).selectors))
    grouped = read(alert["expr"]).grouped
    assert spoken <= (grouped or labels)


def test_every_rule_is_there_and_none_that_is_not() -> None:
    assert {alert["labels"]["rule"] for alert in alerts()} == RULES.keys() | OUTSIDE
    names = [alert["alert"] for alert in alerts()]
    assert len(names) == len(set(names))


def test_where_a_rule_is_one_of_ours_the_severity_is_the_same() -> None:
    for alert in alerts():
        rule = RULES.get(alert["labels"]["rule"])
        if rule is not None and rule.name != "latency":
            assert alert["labels"]["severity"] == rule.severity, alert["alert"]


@pytest.mark.parametrize("name", ["append", "relay", "sweep", "strangers", "loop"])
def test_bounds_are_the_rules_own(name: str) -> None:
    [alert] = [alert for alert in alerts() if alert["labels"]["rule"] == name]
    assert f"> {RULES[name].bound:g}\n" in alert["expr"] + "\n"


@pytest.mark.parametrize("name", ["acks", "behind", "rejects", "disk", "disk-full", "files"])
def test_shares_are_the_rules_own(name: str) -> None:
    [alert] = [alert for alert in alerts() if alert["labels"]["rule"] == name]
    sign = "<" if RULES[name].below else ">"
    assert re.search(rf"{sign} {RULES[name].bound / 100:g}\b", alert["expr"])


def test_the_bounds_of_latency_are_the_rules_own() -> None:
    text = " ".join(alert["expr"] for alert in alerts() if alert["labels"]["rule"] == "latency")
    for priority in PRIORITIES:
        bound = RULES["latency"].limit(priority).bound or RULES["latency"].bound
        assert re.search(rf'priority="{priority}"\}}\[2m\]\)\)\) > {bound:g}\b', text), priority


def test_the_service_level_is_the_same_everywhere() -> None:
    (late,) = [entry for entry in TABLE if entry.attribute == "agency_late"]
    assert f"{LATE_S:g} s" in late.help


# Grafana


def dashboard() -> Map:
    document: Map = json.loads((DEPLOY / "grafana" / "vestnik.json").read_text("utf-8"))
    return document


def panels() -> list[Map]:
    return [panel for panel in dashboard()["panels"] if panel["type"] != "row"]


@pytest.mark.parametrize("panel", panels(), ids=lambda panel: panel["title"])
def test_a_panel_speaks_of_what_exists(panel: Map) -> None:
    assert panel["targets"]
    for target in panel["targets"]:
        assert not list(faults(target["expr"]))
        shown = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
        labels = frozenset().union(*(known()[one.metric] for one in read(target["expr"]).selectors))
        assert shown <= labels
        assert target["datasource"]["uid"] == panel["datasource"]["uid"] == "${datasource}"
    for name in re.findall(r"[\w-]+", panel.get("description", "").partition("Rule")[2].partition(": ")[2]):
        assert name in RULES, "it names a rule"


def test_a_dashboard_that_can_be_loaded() -> None:
    document = dashboard()
    assert (document["title"], document["uid"], document.get("id")) == ("Vestnik", "vestnik", None)
    ids = [panel["id"] for panel in document["panels"]]
    assert len(ids) == len(set(ids))
    titles = [panel["title"] for panel in panels()]
    assert len(titles) == len(set(titles))
    variables = {variable["name"] for variable in document["templating"]["list"]}
    used = set(re.findall(r"\$\{?(\w+)", json.dumps(document["panels"]))) - {"__rate_interval"}
    assert used == variables == {"datasource", "instance"}


def test_no_panel_covers_another() -> None:
    places = [panel["gridPos"] for panel in dashboard()["panels"]]
    for one, other in combinations(places, 2):
        apart = (
            one["x"] + one["w"] <= other["x"]
            or other["x"] + other["w"] <= one["x"]
            or one["y"] + one["h"] <= other["y"]
            or other["y"] + other["h"] <= one["y"]
        )
        assert apart, (one, other)
    assert all(place["x"] + place["w"] <= 24 for place in places)

"""The report: the same as JSON and as one page that needs nothing from outside."""

import html.parser
import json
import re
from pathlib import Path

import pytest

from client_sim.ledger import Fault, Verdict
from client_sim.measure import Tally
from client_sim.report import page, passed, summary, write
from client_sim.run import Outcome
from client_sim.scenario import load


def outcome(**more: object) -> Outcome:
    tally = Tally()
    for second in range(1, 700):
        tally.counts.update(delivered=second % 7, published=2, opened=1)
        tally.states.update({"live": 3} if second == 1 else {})
        for _ in range(second % 5):
            tally.arrived(0.01 * (second % 9 + 1))
        sample = tally.sample(float(second))
        sample |= {"cpu": 0.1, "gateway_cpu": 0.2, "gateway_mb": 80.0}
    tally.closes.update({"1001": 3, "tunnel": 2})
    tally.attacks.update({"flood: closed 4529": 4})
    tally.caught_up(0.2)
    tally.sample(700.0)
    faults = [{"name": "kill", "arg": "", "from": 10.0, "to": 12.5}, {"name": "clock", "arg": "+20", "from": 30.0}]
    made = Outcome(load("deploy_storm").plan, tally, "abcd1234", 1_780_000_000.0, 700.0, 1.5, faults=faults)
    made.verdict = Verdict()
    for name, value in more.items():
        setattr(made, name, value)
    return made


class Outside(html.parser.HTMLParser):
    """What a browser would fetch or run."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in ("script", "link", "img", "iframe") or any(name in ("src", "href") for name, _ in attrs):
            self.found.append(tag)
        if tag not in ("meta", "line", "rect", "polyline", "polygon", "circle"):
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if self.open and self.open[-1] == tag:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in self.open:
            while self.open.pop() != tag:
                pass


def test_the_page_stands_alone(tmp_path: Path):
    file = write(summary(outcome(), "A <run> & more"), tmp_path)
    text = file.read_text("utf-8")
    parser = Outside()
    parser.feed(text)
    assert parser.found == []
    assert parser.open == []
    assert not re.search(r"https?://|url\(|@import", text)
    assert "A &lt;run&gt; &amp; more" in text
    assert text.count("<svg") == 10
    assert len(text) < 3_000_000


def test_the_page_is_made_from_the_json_alone(tmp_path: Path):
    write(summary(outcome(), "run"), tmp_path)
    again = json.loads((tmp_path / "report.json").read_text("utf-8"))
    assert page(again) == (tmp_path / "report.html").read_text("utf-8")
    assert again["fingerprint"] == "abcd1234"
    assert again["latency"]["count"] > 1000
    assert again["counts"]["published"] == 1398


def test_faults_of_the_ledger_are_told():
    one = outcome()
    one.verdict = Verdict({"lost": Fault(3, "anna/d1 ended at 4, and e5 <b> is at 5")})
    text = page(summary(one, "run"))
    assert "failed" in text
    assert "anna/d1 ended at 4, and e5 &lt;b&gt; is at 5" in text


@pytest.mark.parametrize(
    ("more", "bounds", "good"),
    [
        ({}, [], True),
        ({"behind": 1}, [], False),
        ({"waiting": 1}, [], False),
        ({}, [{"ok": False}], False),
        ({"verdict": None}, [], False),
        ({"ended": "Interrupted.", "behind": 4}, [], True),
        ({"ended": "Interrupted.", "verdict": Verdict({"lost": Fault(1, "x")})}, [], False),
    ],
)
def test_what_passes(more, bounds, good):
    assert passed(outcome(**more), bounds) is good


def test_a_busy_machine_is_told():
    one = outcome()
    assert summary(one, "run")["late"] is None
    for number, sample in enumerate(one.tally.samples):
        sample["lag"] = 1.5 if number % 10 == 0 else 0.01
    assert summary(one, "run")["late"] == 1.5
    assert "late by up to 1.5 s" in page(summary(one, "run"))


def test_a_run_in_which_nothing_happened_has_a_report():
    nothing = Outcome(load("family").plan, Tally())
    text = page(summary(nothing, "nothing"))
    assert "nothing was measured" in text
    assert "not judged" in text

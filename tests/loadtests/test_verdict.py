"""The verdict sees what is wrong in the journals, by priority, and nothing that is not."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import pytest
from rich.console import Console

from loadtests import report
from loadtests.scenario import Bound, Curve, Limit, Posts, Scenario
from loadtests.verdict import Verdict, judge, limit

FEED, EPOCH, T0 = "account:a", "e", 1000.0
PLAIN = Scenario(
    "test",
    "…",
    Curve([(0, 1)]),
    {"steady": 1},
    0,
    1,
    [Posts("gov.code.sent", Curve([(0, 1), (10, 1)]))],
    windows={"calm": (0, 5), "flood": (5, 10)},
)
Line = dict[str, Any]


def name(offset: int) -> Line:
    return {"source": "/agencies/g", "id": f"e{offset}", "digest": f"{offset:064x}"}


def agencies(kinds: Sequence[str]) -> list[Line]:
    lines: list[Line] = []
    for offset, kind in enumerate(kinds, 1):
        lines.append({"t": "post", "at": T0 + offset, "feed": FEED, **name(offset), "type": kind})
        where = {"status": 202, "feed": FEED, "epoch": EPOCH, "offset": offset, "duplicate": False}
        lines.append({"t": "answer", "at": T0 + offset, **name(offset), "type": kind, "seconds": 0.01, **where})
    return lines


def device(kinds: Sequence[str], offsets: Sequence[int], act: float = 0.1, how: str = "live") -> list[Line]:
    start = {"feed": FEED, "epoch": EPOCH, "head": 0, "from": 0}
    lines: list[Line] = [
        {"t": "hello"},
        {"t": "welcome", "window": 256, "new": True, "feeds": [start]},
        {"t": "snapshot", "feed": FEED, "epoch": EPOCH, "offset": 0},
        {"t": "live", "seconds": 0.2, "again": False},
    ]
    kept = 0
    for offset in offsets:
        told = {"type": kinds[offset - 1], "act": act, "commit": act / 2, "how": how}
        at = T0 + offset + act
        lines.append({"t": "event", "at": at, "feed": FEED, "epoch": EPOCH, "offset": offset, **name(offset), **told})
        if offset > kept:
            run = {"first": offset, "offset": offset, "events": 1}
            lines.append({"t": "keep", "at": at, "feed": FEED, "epoch": EPOCH, **run})
            kept = offset
    return [{"at": T0, "device": "a/phone", **line} for line in lines]


def found(kinds: Sequence[str], offsets: Sequence[int], scenario: Scenario = PLAIN, **more: Any) -> Verdict:
    return judge(scenario, T0, agencies(kinds), device(kinds, offsets, **more))


KINDS = ["gov.code.sent", "gov.payout.changed", "gov.code.sent", "gov.status.changed"]


def test_all_is_well() -> None:
    verdict = found(KINDS, [1, 2, 3, 4])
    assert verdict.ok
    urgent = verdict.priorities["urgent"]
    assert {what: urgent[what] for what in ("accepted", "delivered", "lost", "repeated", "reordered")} == {
        "accepted": 2,
        "delivered": 2,
        "lost": 0,
        "repeated": 0,
        "reordered": 0,
    }
    assert urgent["late_p99_s"] == pytest.approx(0.1, rel=0.05)
    assert set(verdict.priorities) == {"urgent", "high", "normal"}


def test_what_never_came_is_lost() -> None:
    verdict = found(KINDS, [1, 2])
    assert not verdict.ok
    assert [verdict.priorities[one]["lost"] for one in ("urgent", "high", "normal")] == [1, 1, 0]
    assert verdict.ledger.faults["lost"].count == 2


def test_a_hole_is_lost_and_reordered() -> None:
    verdict = found(KINDS, [1, 3, 4])
    assert not verdict.ok
    assert (verdict.priorities["normal"]["lost"], verdict.priorities["urgent"]["reordered"]) == (1, 1)


def test_a_repeat_is_counted() -> None:
    verdict = found(KINDS, [1, 2, 2, 3, 4])
    assert (verdict.priorities["normal"]["repeated"], verdict.priorities["normal"]["lost"]) == (1, 0)


def test_who_left_is_owed_nothing() -> None:
    lines = [*device(KINDS, [1]), {"t": "away", "at": T0 + 9, "device": "a/phone", "why": "test"}]
    verdict = judge(PLAIN, T0, agencies(KINDS), lines)
    assert verdict.ok
    assert verdict.priorities["urgent"]["lost"] == 0


def test_what_was_missed_while_away_is_not_late() -> None:
    assert found(KINDS, [1, 2, 3, 4], act=9.0, how="behind").measures["late_p99_s"] is None


def check(bound: Bound, **more: Any) -> tuple[bool, float | None]:
    [checked] = found(KINDS, [1, 2, 3, 4], replace(PLAIN, bounds=[bound]), **more).bounds
    return checked.ok, checked.found


def test_bounds() -> None:
    assert check(Bound("late_p99_s", most=0.2))[0]
    assert not check(Bound("late_p99_s", most=0.05))[0]
    assert check(Bound("accepted", least=2, priority="urgent")) == (True, 2)
    assert not check(Bound("accepted", least=3, priority="urgent"))[0]
    assert check(Bound("late_p99_s", most=9, priority="bulk")) == (False, None), "not measured is not good"
    assert not check(Bound("late_p99_s", window="calm", against="flood"))[0], "nothing to compare with"


def test_a_window_against_another() -> None:
    kinds = ["gov.code.sent"] * 9
    lines = device(kinds, range(1, 10))
    for line in lines:
        if line["t"] == "event" and line["offset"] >= 5:
            line["act"], line["at"] = 0.4, T0 + line["offset"] + 0.4
    bound = Bound("late_p99_s", priority="urgent", window="flood", against="calm", ratio=1.5, slack=0.02)
    scenario = replace(PLAIN, bounds=[bound])
    assert not judge(scenario, T0, agencies(kinds), lines).ok
    assert judge(scenario, T0, agencies(kinds), device(kinds, range(1, 10))).ok


def test_a_generator_that_is_later_is_allowed_for() -> None:
    kinds = ["gov.code.sent"] * 9
    lines = device(kinds, range(1, 10))
    for line in lines:
        if line["t"] == "event" and line["offset"] >= 5:
            line["act"], line["at"] = 0.2, T0 + line["offset"] + 0.2
    bound = Bound("late_p99_s", priority="urgent", window="flood", against="calm", ratio=1.5, slack=0.02)
    scenario = replace(PLAIN, bounds=[bound])
    for milliseconds, ok in ((20.0, False), (45.0, True)):
        naps = [{"t": "generator", "at": T0 + n, "core": 0.5, "late": [milliseconds * (n > 5)]} for n in range(10)]
        [found] = judge(scenario, T0, agencies(kinds), lines, generator=naps).bounds
        assert found.ok is ok, found
        assert "by which the generator was later)" in found.words
    disk = [{"t": "disk", "at": T0 + n, "seconds": 0.05 if n < 5 else 9.0} for n in range(10)]
    [found] = judge(scenario, T0, agencies(kinds), lines, gateway=disk).bounds
    assert found.ok
    assert "1.5 x calm + 0.02 + 0.05 for a commit under way)" in found.words


def test_a_gateway_that_grows() -> None:
    samples = [{"t": "gateway", "at": T0 + n, "rss": 1e8 + n * 1e6, "files": 50} for n in range(10)]
    bounds = [Bound("memory_growth_mb", most=3), Bound("files_growth", most=0)]
    made = judge(replace(PLAIN, bounds=bounds), T0, agencies(KINDS), device(KINDS, [1, 2, 3, 4]), gateway=samples)
    assert [bound.ok for bound in made.bounds] == [False, True]
    assert made.measures["memory_growth_mb"] == 8


def test_the_limit_is_the_last_good_second() -> None:
    asked = [100.0, 200.0, 300.0, 400.0, 500.0]
    late: list[float | None] = [0.1, 0.9, 0.1, 0.6, 0.7]
    assert limit(asked, asked, late, Limit(0.5)) == (3, "p99 0.6 s"), "one bad second alone is none"
    assert limit(asked, [100, 200, 100, 150, 150], [0.1] * 5, Limit(0.5)) == (3, "450 events waited to be accepted")
    assert limit(asked, [50, 200, 320, 380, 500], [0.1] * 5, Limit(0.5))[0] == 5, "a little behind is none"
    assert limit(asked, asked, [0.1] * 5, Limit(0.5)) == (5, "")


def test_a_generator_at_its_limit_says_so() -> None:
    kinds = ["gov.code.sent"] * 9
    ramp = replace(PLAIN, limit=Limit(0.05))
    core: list[Mapping[str, Any]] = [{"t": "generator", "at": T0 + n, "core": 0.97} for n in range(10)]
    verdict = judge(ramp, T0, agencies(kinds), device(kinds, range(1, 10)), generator=core)
    assert verdict.limit is not None
    assert verdict.limit.broke
    assert verdict.limit.core == 0.97
    page = report.page(verdict, ramp, {"commit": "<b>"})
    assert "it may have measured itself" in page
    assert "<b>" not in page


def test_a_bound_of_time_tells_how_late_the_generator_was() -> None:
    bounds = [Bound("late_p99_s", window="flood", most=0.05), Bound("lost", most=0)]
    scenario, kinds = replace(PLAIN, bounds=bounds), ["gov.code.sent"] * 9
    naps: list[Mapping[str, Any]] = [
        {"t": "generator", "at": T0 + n, "core": 0.5, "late": [80.0] if n >= 5 else [1.0]} for n in range(10)
    ]
    disk = [{"t": "disk", "at": T0 + n, "seconds": 0.002 if n >= 5 else 0.2} for n in range(10)]
    verdict = judge(scenario, T0, agencies(kinds), device(kinds, range(1, 10)), generator=naps, gateway=disk)
    assert [bound.ok for bound in verdict.bounds] == [False, True]
    late, lost = verdict.bounds
    assert late.late == pytest.approx(0.08, rel=0.05)
    assert lost.late is None
    assert (late.disk, lost.disk) == (pytest.approx(0.002, rel=0.05), None)
    assert "Generator late: by itself it came 0.08 s too late" in report.page(verdict, scenario, {})
    assert "Disk: a page" not in report.page(verdict, scenario, {})
    assert "(generator late: p99 0.08; disk: p99 0.002)" in report.page(verdict, scenario, {})
    calm = replace(scenario, bounds=[replace(bounds[0], window="calm")])
    verdict = judge(calm, T0, agencies(kinds), device(kinds, range(1, 10)), generator=naps)
    assert verdict.bounds[0].late == pytest.approx(0.001, rel=0.05)


def test_it_is_written_and_shown(tmp_path: Any) -> None:
    verdict = found(KINDS, [1, 2])
    report.write(verdict, PLAIN, {}, tmp_path)
    assert (tmp_path / "verdict.csv").read_text().splitlines()[1].startswith("urgent,2,0,1,1,")
    assert '"ok": false' in (tmp_path / "verdict.json").read_text()
    console = Console(record=True, width=120)
    report.show(verdict, PLAIN, console)
    assert "invariant 1, lost: 2" in console.export_text()

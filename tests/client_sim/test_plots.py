"""Plots are well-formed, bounded, and show what they are given."""

import xml.etree.ElementTree as ET

import pytest
from hypothesis import given
from hypothesis import strategies as st

from client_sim.plots import LEFT, RIGHT, WIDTH, Mark, Series, histogram, over_time, stacked

NUMBERS = st.one_of(st.none(), st.floats(0, 1e6))


def say(value: float) -> str:
    return f"{value:.3g} <s>"  # must be escaped


def xs(svg: str) -> list[float]:
    root = ET.fromstring(svg)
    points = [pair.split(",") for one in root.iter() for pair in one.get("points", "").split()]
    return [float(x) for x, _ in points]


@given(st.lists(st.tuples(NUMBERS, NUMBERS), max_size=30), st.booleans())
def test_lines_stay_on_the_paper(rows, log):
    times = [float(number + 1) for number in range(len(rows))]
    series = [Series("a & b", "--c1", [row[0] for row in rows]), Series("c", "--c2", [row[1] for row in rows], "area")]
    svg = over_time(times, series, say=say, log=log, marks=[Mark(1, 2, "kill <9>")])
    assert all(LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1 for x in xs(svg))


def test_a_value_can_be_pointed_at():
    svg = over_time([1.0, 2.0], [Series("p99", "--c1", [0.5, None])], say=lambda value: f"{value:g} s")
    titles = [one.text for one in ET.fromstring(svg).iter("title")]
    assert titles == ["0:01\np99: 0.5 s"]


def test_a_fault_is_shaded_where_it_was():
    svg = over_time([0.0, 10.0], [Series("a", "--c1", [1, 1])], say=say, marks=[Mark(5, 10, "freeze")])
    [rect] = [one for one in ET.fromstring(svg).iter("rect") if one.get("class") == "fault"]
    assert float(rect.get("x", "")) == pytest.approx((LEFT + WIDTH - RIGHT) / 2, abs=0.1)


def test_faults_are_named_where_there_is_room():
    marks = [Mark(1, 2, "freeze"), Mark(1.5, 2, "reset"), Mark(50, 60, "kill"), Mark(99.9, 100, "restart")]
    svg = over_time([0.0, 100.0], [Series("a", "--c1", [1, 1])], say=say, marks=marks, named=True)
    texts = [one.text for one in ET.fromstring(svg).iter("text")]
    assert "freeze" in texts
    assert "kill" in texts
    assert "reset" not in texts
    assert "restart" not in texts


def test_stacked_areas_add_up():
    svg = stacked(
        [1.0, 2.0], [Series("live", "--c1", [3, 4]), Series("none", "--c2", [0, 0]), Series("away", "--c3", [1, 0])]
    )
    root = ET.fromstring(svg)
    colours = [one.get("fill") for one in root.iter("polygon")]
    assert colours == ["var(--c1)", "var(--c3)"]


def test_a_histogram_tells_shares():
    svg = histogram(
        [(0.01, 3), (0.1, 1)], say=lambda value: f"{value:g}", colour="--c1", lines={"p50": 0.01, "p99": None}
    )
    titles = [one.text or "" for one in ET.fromstring(svg).iter("title")]
    assert titles == ["up to 0.01: 3 (75.00 % are not slower)", "up to 0.1: 1 (100.00 % are not slower)"]
    assert "p50 0.01" in svg
    assert "p99" not in svg


def test_nothing_is_a_plot_too():
    for svg in (
        over_time([], [Series("a", "--c1", [])], say=say),
        over_time([], [Series("a", "--c1", [])], say=say, log=True),
        stacked([], [Series("a", "--c1", [])]),
        histogram([], say=say, colour="--c1"),
    ):
        ET.fromstring(svg)

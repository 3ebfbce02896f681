"""What the nodes told, added up."""

from typing import Any

import pytest

from tests.workers.figures import NOW, agency, event, figures
from workers.window import FEWEST, FORGET_S, KEEP_S, LOOKBACK_S, Habit, Window, quantile, read, within

INF = float("inf")


def window(*told: tuple[float, dict[str, Any]]) -> Window:
    made = Window()
    for time, data in told:
        made.add(read(event(data), time), told[-1][0])
    return made


def test_a_quantile_is_reckoned_as_prometheus_does() -> None:
    assert quantile({}, 0.99) == 0
    assert quantile({0.1: 100}, 0.5) == pytest.approx(0.075), "evenly between 0.05 and 0.1"
    assert quantile({0.1: 99, 5.0: 1}, 0.99) == pytest.approx(0.1)
    assert quantile({0.1: 98, 5.0: 2}, 0.99) == pytest.approx(3.5)
    assert quantile({INF: 1}, 0.99) == 600, "over the highest bound: that bound"


def test_what_lies_across_a_limit_counts_in_part() -> None:
    assert within([(30.0, 4), (60.0, 4), (600.0, 2), (None, 1)], 60) == 8
    assert within([(600.0, 2)], 450) == pytest.approx(1)


@pytest.mark.parametrize("bad", [b"", b"[]", b"{}", b'{"data":{"node":"x"}}', b'{"data":null}', b"\xff"])
def test_what_is_none_is_refused(bad: bytes) -> None:
    with pytest.raises(ValueError, match=r"no figures|line 1"):
        read(bad, NOW)


@pytest.mark.parametrize(
    "strange",
    [
        {"append": [1]},
        {"append": [["x", 1]]},
        {"append": 5},
        {"delivered": 3},
        {"started": "yesterday"},
        {"agencies": []},
    ],
)
def test_figures_of_another_shape_are_refused(strange: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=r"no figures|no buckets|values to unpack|date-time"):
        read(event(figures() | strange), NOW)


def test_counts_of_nodes_and_intervals_add_up() -> None:
    one = figures("n1", acks=2, to_socket={"urgent": [[0.1, 5]]}, agencies={"fns": agency(3, NOW, invalid=1)})
    other = figures("n2", acks=3, to_socket={"urgent": [[0.1, 1], [None, 1]]}, agencies={"fns": agency(1, NOW)})
    seen = window((NOW, one), (NOW, other), (NOW + 60, one), (NOW - 600, one))
    assert seen.count("acks", NOW + 60, 120) == 7
    assert seen.count("acks", NOW + 60, 50) == 2
    assert seen.count("acks", NOW + 60, KEEP_S) == 9
    assert seen.buckets("to_socket", NOW + 60, 120) == {"urgent": {0.1: 11, INF: 1}}
    assert seen.counts("accepted", NOW + 60, 120) == {"fns": 7}
    assert seen.counts("refused", NOW + 60, 120) == {"fns invalid": 2}
    assert seen.count("relayed", NOW + 60, 120) == 0


def test_what_is_older_than_any_rule_looks_tells_only_what_is_usual() -> None:
    old = figures(acks=2, agencies={"fns": agency(3, NOW)})
    seen = window((NOW, old), (NOW + KEEP_S + 1, figures()))
    assert seen.count("acks", NOW + 1, KEEP_S) == 0
    assert seen.habits["fns"].last == NOW


def test_what_no_rule_looks_at_again_is_forgotten() -> None:
    seen = window((NOW, figures("old")), (NOW + FORGET_S, figures("new")))
    seen.forget(NOW + FORGET_S + 1)
    assert list(seen.nodes) == ["new"]
    seen.forget(NOW + FORGET_S + KEEP_S + 60)
    assert not seen._slots


def test_a_node_is_silent_after_four_intervals() -> None:
    seen = window((NOW, figures("n1")), (NOW, figures("n2", seconds=60.0)))
    assert not seen.silent(NOW + 20, 20)
    assert [told.node for told in seen.silent(NOW + 21, 20)] == ["n1"]
    assert len(seen.silent(NOW + 241, 20)) == 2
    assert [told.node for told in seen.present(NOW + 21)] == ["n2"]


def test_a_node_that_was_stopped_is_not_silent() -> None:
    assert not window((NOW, figures("n1", draining=True))).silent(NOW + 600, 20)


def test_each_silent_node_needs_one_that_stands_in_its_place() -> None:
    both = [(NOW, figures("n1")), (NOW, figures("n2"))]
    late = (NOW + 600, figures("n3", started=NOW + 30))
    assert len(window(*both, late).silent(NOW + 601, 20)) == 1
    assert not window(*both, late, (NOW + 600, figures("n4", started=NOW + 31))).silent(NOW + 601, 20)
    older = (NOW + 600, figures("n3", started=NOW - 1))
    assert len(window(*both, older).silent(NOW + 601, 20)) == 2


def test_a_usual_pause_is_the_longest_of_the_past() -> None:
    habit = Habit()
    for number in range(FEWEST - 1):
        habit.heard(NOW + 60 * number, 1)
    assert habit.usual is None, "too little is known"
    habit.heard(NOW + 60 * FEWEST + 90, 1)
    assert habit.usual == 210
    for number in range(200):
        habit.heard(NOW + 3600 + 60 * number, 1)
    assert habit.usual == 60, "the long pauses were more than two hours before"
    assert len(habit.minutes) <= LOOKBACK_S / 60 + 1
    habit.heard(NOW, 1)
    assert habit.last == NOW + 3600 + 60 * 199, "told late: time does not go back"


def test_what_is_usual_is_not_forgotten_in_silence() -> None:
    busy = [(NOW + 5 * n, figures(agencies={"fns": agency(2, NOW + 5 * n)})) for n in range(20)]
    quiet = [(NOW + 100 + 60 * n, figures(agencies={"fns": agency(0, NOW + 95)})) for n in range(300)]
    seen = window(*busy, *quiet)
    seen.forget(NOW + 18_100)
    assert seen.habits["fns"].usual == 5
    assert seen.habits["fns"].last == NOW + 95


def test_an_earlier_finding_holds_until_the_agency_is_heard() -> None:
    seen = Window()
    seen.expect("fns", 700.0)
    assert seen.habits["fns"].told == 700
    seen.add(read(event(figures(agencies={"fns": agency(1, NOW)})), NOW), NOW)
    assert seen.habits["fns"].told is None

"""What the terminal shows while a run goes on."""

import io

from rich.console import Console

from client_sim.board import Board
from client_sim.measure import Tally
from client_sim.run import Outcome
from client_sim.scenario import load


def outcome() -> Outcome:
    made = Outcome(load("family").plan, Tally(), faults=[{"name": "freeze", "arg": "", "from": 1.0}])
    made.tally.counts.update(delivered=1200, published=40)
    made.tally.states.update({"live": 900, "waiting": 100})
    made.tally.arrived(0.05)
    return made


def test_without_a_terminal_it_is_a_line():
    paper = io.StringIO()
    one = outcome()
    with Board(Console(file=paper, width=120), "run", 60) as board:
        board("running", one.tally.sample(1.0), one)
        board("running", one.tally.sample(2.0), one)  # too soon for another
    assert paper.getvalue().splitlines() == [
        "     1 s running: 40 accepted/s, 1200 delivered/s, p99 50 ms; 900 live, 100 waiting"
    ]


def test_on_a_terminal_it_draws_rates_percentiles_states_and_faults():
    paper = io.StringIO()
    console = Console(file=paper, width=100, force_terminal=True, color_system=None)
    one = outcome()
    sample = {**one.tally.sample(3.0), "cpu": 0.25, "gateway_cpu": 0.5, "gateway_mb": 80.0}
    with Board(console, "subway", 60) as board:
        board("running", sample, one)
        console.print(board.draw("quiet", sample, one))
    text = paper.getvalue()
    for word in ("subway", "3 of 60 s, running", "1,200", "p99", "900 live", "freeze", "gateway 50%, 80 MB", "quiet"):
        assert word in text

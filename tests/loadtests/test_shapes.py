"""The shape, in a process of its own: Locust patches the one that imports it."""

import subprocess
import sys

PROGRAM = """
from loadtests.scenario import Curve, Posts, Scenario
from loadtests.shapes import ScenarioShape

posts = [Posts("gov.code.sent", Curve([(0, 1)]))]
scenario = Scenario("test", "", Curve([(0, 10), (4, 50)]), {"steady": 1}, 0, 2, posts)
shape = ScenarioShape(scenario, lambda: True)


def at(seconds):
    shape.get_run_time = lambda: seconds
    return shape.tick()


first = [at(now) for now in (0, 1, 4, 5, 6)]
assert first == [(17, 200.0), (27, 200.0), (52, 200.0), (52, 200.0), None], first
assert at(0) == (17, 200.0), "a second test in the same process begins, though nothing is left to come of the first"
shape.quiet = lambda: False
assert [at(now) for now in (5, 6, 7, 8.9, 9)] == [(52, 200.0)] * 4 + [None]
"""


def test_it_follows_the_curve_and_ends_in_the_quiet() -> None:
    ran = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr

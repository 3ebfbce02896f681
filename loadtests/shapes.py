"""A scenario as a shape of Locust: how many users there are at each moment."""

import math
from collections.abc import Callable

from locust import LoadTestShape, User

from loadtests.scenario import Scenario

FASTEST = 200.0  # users a second that one process is asked for at least


class ScenarioShape(LoadTestShape):
    """The phones of the curve and the agencies. Ends when the quiet at the end is over, or when `quiet` has said three
    times in a row that nothing is left to come."""

    def __init__(self, scenario: Scenario, quiet: Callable[[], bool] = lambda: False):
        super().__init__()
        self.scenario, self.quiet, self._calm = scenario, quiet, 0

    def tick(self) -> tuple[int, float] | tuple[int, float, list[type[User]] | None] | None:
        now = self.get_run_time()
        over = now >= self.scenario.busy  # before, `quiet` may still speak of the test before this one
        self._calm = self._calm + 1 if over and self.quiet() else 0
        if now >= self.scenario.seconds or self._calm >= 3:
            return None
        phones = math.ceil(self.scenario.phones.at(now + 0.5))
        return phones + self.scenario.agencies, max(FASTEST, phones / 4)

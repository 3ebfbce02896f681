"""A scenario as a shape of Locust: how many users there are at each moment."""

import math

from locust import LoadTestShape, User

from loadtests.scenario import Scenario

FASTEST = 200.0  # users a second that one process is asked for at least


class ScenarioShape(LoadTestShape):
    """The phones of the curve and the agencies; ends when the quiet at the end is over."""

    def __init__(self, scenario: Scenario):
        super().__init__()
        self.scenario = scenario

    def tick(self) -> tuple[int, float] | tuple[int, float, list[type[User]] | None] | None:
        now = self.get_run_time()
        if now >= self.scenario.seconds:
            return None
        phones = math.ceil(self.scenario.phones.at(now + 0.5))
        return phones + self.scenario.agencies, max(FASTEST, phones / 4)

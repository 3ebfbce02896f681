"""What a run looks like on a terminal while it goes on: rates, percentiles, devices by state, faults."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import Any, Final, Self

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from client_sim.run import Outcome

LINES_EVERY_S: Final = 5.0  # without a terminal
STYLES: Final = {
    "live": "green",
    "catching up": "cyan",
    "loading": "magenta",
    "connecting": "yellow",
    "waiting": "dark_orange",
    "frozen": "blue",
    "away": "bright_black",
    "stopped": "red",
}


class Board:
    """Draws on a terminal, writes a line every few seconds elsewhere."""

    def __init__(self, console: Console, title: str, seconds: float):
        self.console, self.title, self.seconds = console, title, seconds
        self._live: Live | None = None
        self._told = 0.0

    def __enter__(self) -> Self:
        if self.console.is_terminal:
            self._live = Live(console=self.console, auto_refresh=False, transient=True)
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def __call__(self, phase: str, sample: Mapping[str, Any], outcome: Outcome) -> None:
        if self._live is not None:
            self._live.update(self.draw(phase, sample, outcome), refresh=True)
        elif time.monotonic() - self._told >= LINES_EVERY_S:
            self._told = time.monotonic()
            states = ", ".join(f"{number} {state}" for state, number in sample["states"].items())
            self.console.print(
                f"{sample['at']:6.0f} s {phase}: {sample['published']} accepted/s, {sample['delivered']} delivered/s,"
                f" p99 {_ms(sample['p99'])}; {states}",
                highlight=False,
                soft_wrap=True,
            )

    def draw(self, phase: str, sample: Mapping[str, Any], outcome: Outcome) -> Group:
        head = Table.grid(padding=(0, 2), expand=True)
        head.add_column()
        head.add_column(ratio=1)
        head.add_column(justify="right")
        bar = ProgressBar(self.seconds, min(sample["at"], self.seconds), pulse=phase != "running")
        head.add_row(Text(self.title, "bold"), bar, f"{sample['at']:.0f} of {self.seconds:.0f} s, {phase}")
        rates = Table.grid(padding=(0, 3))
        for _ in range(5):
            rates.add_column()
        rates.add_row("[dim]a second[/]", "[dim]now[/]", "[dim]in all[/]", "[dim]latency[/]", "[dim]now / in all[/]")
        tally = outcome.tally
        counts, latency = tally.counts, tally.latency
        rows = (
            ("accepted", "published"),
            ("delivered", "delivered"),
            ("repeats", "repeats"),
            ("connections", "opened"),
        )
        shares = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99), ("caught up p90", 0.9))
        for (name, key), (share, part) in zip(rows, shares, strict=True):
            now = sample.get("catch_up" if share.startswith("caught") else share)
            whole = (tally.catch_up if share.startswith("caught") else latency).percentile(part)
            rates.add_row(name, f"{sample[key]:,}", f"{counts[key]:,}", share, f"{_ms(now)} / {_ms(whole)}")
        faults = [fault for fault in outcome.faults if "to" not in fault]
        wrong = ", ".join(f"{fault['name']} {fault['arg']}".strip() for fault in faults)
        costs = f"simulator {sample.get('cpu', 0):.0%} of a core, late {1000 * sample.get('lag', 0):.0f} ms"
        if "gateway_mb" in sample:
            costs += f"; gateway {sample['gateway_cpu']:.0%}, {sample['gateway_mb']:.0f} MB"
        return Group(
            head, Text(), rates, Text(), _states(sample["states"]), Text(costs, "dim"), Text(wrong, "bold red")
        )


def _states(states: Mapping[str, int]) -> Group:
    whole = sum(states.values()) or 1
    bar = Text()
    for state, style in STYLES.items():
        bar.append("█" * round(60 * states.get(state, 0) / whole), style)
    words = Text()
    for state, style in STYLES.items():
        if states.get(state):
            words.append(f"{states[state]:,} ", style).append(f"{state}  ")
    return Group(bar, words)


def _ms(seconds: float | None) -> str:
    return "–" if seconds is None else f"{seconds * 1000:.0f} ms"

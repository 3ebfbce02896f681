"""Plots as SVG text that stands in a page by itself: no script, no font, no colour that the page does not give.

Colours are CSS variables of the page (`--ink`, `--faint`, `--grid`, `--c1` …), so that a plot follows its light or dark
theme. Whatever has a value shows it when pointed at (`<title>`). Pure.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final, Literal

WIDTH: Final = 860
LEFT, RIGHT, TOP, BOTTOM = 58, 14, 12, 26
LEAST: Final = 1e-6  # of a logarithmic scale; nothing here is measured finer
Numbers = Sequence[float | None]


@dataclass(frozen=True, slots=True)
class Series:
    """`values` stand at the plot's times; None is a gap. `way`: a line, or an area from 0."""

    name: str
    colour: str
    values: Numbers
    way: Literal["line", "area"] = "line"


@dataclass(frozen=True, slots=True)
class Mark:
    """Something that happened from `start` to `end` on the time line."""

    start: float
    end: float
    name: str


@dataclass(frozen=True, slots=True)
class _Scale:
    low: float
    high: float
    begin: float  # pixels
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        low, high = (math.log10(self.low), math.log10(self.high)) if self.log else (self.low, self.high)
        value = math.log10(max(value, self.low)) if self.log else value
        share = (value - low) / ((high - low) or 1)
        return self.begin + min(max(share, 0.0), 1.0) * (self.end - self.begin)


def over_time(
    times: Sequence[float],
    series: Sequence[Series],
    *,
    say: Callable[[float], str],
    marks: Sequence[Mark] = (),
    named: bool = False,
    log: bool = False,
    height: int = 230,
) -> str:
    """Lines and areas over seconds. `say` writes a value for people; `named` writes the marks' names where there is
    room."""
    values = [value for one in series for value in one.values if value is not None and (value > 0 or not log)]
    y = _vertical(values, log, height)
    x = _Scale(times[0] if times else 0, times[-1] if times else 1, LEFT, WIDTH - RIGHT)
    body = [_marks(marks, x, height), _names(marks, x) if named else "", _grid(y, say), _seconds(x, height)]
    body += [_one(one, times, x, y, log) for one in series]
    body.append(_pointers(times, series, x, height, say))
    return _svg(height, "".join(body))


def stacked(times: Sequence[float], series: Sequence[Series], *, marks: Sequence[Mark] = (), height: int = 230) -> str:
    """Areas one on the other, in the order given, over seconds."""
    sums = [0.0] * len(times)
    x = _Scale(times[0] if times else 0, times[-1] if times else 1, LEFT, WIDTH - RIGHT)
    totals = [sum((one.values[at] or 0) for one in series) for at in range(len(times))]
    y = _vertical(totals, False, height)
    areas = []
    for one in series:
        below = list(sums)
        sums = [base + (value or 0) for base, value in zip(sums, one.values, strict=True)]
        if not any(one.values):
            continue
        there = [f"{x(at):.1f},{y(value):.1f}" for at, value in zip(times, sums, strict=True)]
        back = [f"{x(at):.1f},{y(value):.1f}" for at, value in zip(reversed(times), reversed(below), strict=True)]
        areas.append(f'<polygon points="{" ".join(there + back)}" fill="var({one.colour})"/>')
    edges = [_marks(marks, x, height), _grid(y, _count), _seconds(x, height)]
    return _svg(height, "".join([*areas, *edges, _pointers(times, series, x, height, _count)]))


def histogram(
    bars: Sequence[tuple[float, int]],
    *,
    say: Callable[[float], str],
    colour: str,
    lines: Mapping[str, float | None] | None = None,
    height: int = 210,
) -> str:
    """`bars`: (upper bound, how many) by rising bound, bounds on a logarithmic scale. `lines` stand across."""
    if not bars:
        return _svg(60, f'<text class="none" x="{WIDTH / 2}" y="34" text-anchor="middle">nothing was measured</text>')
    low, high = bars[0][0] / 1.3, max(bars[-1][0] * 1.3, bars[0][0] * 4)
    x = _Scale(low, high, LEFT, WIDTH - RIGHT, log=True)
    y = _vertical([float(number) for _, number in bars], False, height)
    whole = sum(number for _, number in bars)
    ratio = min((b[0] / a[0] for a, b in pairwise(bars)), default=1.1)
    body = [_grid(y, _count), _decades(x, height, say)]
    seen = 0
    for bound, number in bars:
        seen += number
        left, right = x(bound / ratio), x(bound)
        title = f"up to {say(bound)}: {number:,} ({100 * seen / whole:.2f} % are not slower)"
        top = y(number)
        body.append(
            f'<rect x="{left:.1f}" y="{top:.1f}" width="{max(right - left - 0.8, 0.8):.1f}"'
            f' height="{max(y(0) - top, 0.6):.1f}" fill="var({colour})"><title>{escape(title)}</title></rect>'
        )
    for level, (name, value) in enumerate((lines or {}).items()):
        if value is not None:
            at = x(value)
            body.append(f'<line class="mark" x1="{at:.1f}" x2="{at:.1f}" y1="{TOP}" y2="{y(0):.1f}"/>')
            side = ("end", -4) if at > WIDTH - 120 else ("start", 4)
            body.append(
                f'<text class="label" x="{at + side[1]:.1f}" y="{TOP + 10 + 13 * (level % 4)}"'
                f' text-anchor="{side[0]}">{escape(name)} {escape(say(value))}</text>'
            )
    return _svg(height, "".join(body))


# Parts


def _svg(height: int, body: str) -> str:
    return f'<svg viewBox="0 0 {WIDTH} {height}" role="img">{body}</svg>'


def _vertical(values: Sequence[float], log: bool, height: int) -> _Scale:
    if log:
        low = 10 ** math.floor(math.log10(max(min(values, default=0.001), LEAST)))
        high = 10 ** math.ceil(math.log10(max(max(values, default=1.0), LEAST)))
        return _Scale(low, high if high > low else low * 10, height - BOTTOM, TOP, log=True)
    return _Scale(0, _round_up(max(values, default=0.0)), height - BOTTOM, TOP)


def _round_up(value: float) -> float:
    """The next of 1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8 times a power of ten."""
    if value < 1e-9:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.5, 2, 2.5, 3, 4, 5, 6, 8, 10) if step * power >= value * 0.999)


def _grid(y: _Scale, say: Callable[[float], str]) -> str:
    if y.log:
        decades = range(round(math.log10(y.low)), round(math.log10(y.high)) + 1)
        ticks = [10.0**power for power in decades]
    else:
        ticks = [y.high * step / 4 for step in range(5)]
    return "".join(
        f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(tick):.1f}" y2="{y(tick):.1f}"/>'
        f'<text class="tick" x="{LEFT - 7}" y="{y(tick) + 3.5:.1f}" text-anchor="end">{escape(say(tick))}</text>'
        for tick in ticks
    )


def _seconds(x: _Scale, height: int) -> str:
    span = x.high - x.low
    steps = (1, 2, 5, 10, 15, 30, 60, 120, 300, 600, 900, 1800, 3600)
    step = next((step for step in steps if span / step <= 9), 7200)
    first = math.ceil(x.low / step) * step
    ticks = [first + number * step for number in range(int((x.high - first) / step) + 1)]
    return "".join(
        f'<text class="tick" x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{_clock(tick)}</text>'
        for tick in ticks
    )


def _decades(x: _Scale, height: int, say: Callable[[float], str]) -> str:
    powers = range(math.floor(math.log10(x.low)), math.ceil(math.log10(x.high)) + 1)
    steps = (1, 3) if len(powers) < 6 else (1,)
    ticks = [step * 10.0**power for power in powers for step in steps if x.low <= step * 10.0**power <= x.high]
    return "".join(
        f'<text class="tick" x="{x(tick):.1f}" y="{height - 8}" text-anchor="middle">{escape(say(tick))}</text>'
        for tick in ticks
    )


def _marks(marks: Sequence[Mark], x: _Scale, height: int) -> str:
    parts = []
    for mark in marks:
        left, right = x(mark.start), x(mark.end)
        words = escape(f"{mark.name}, {_clock(mark.start)} to {_clock(mark.end)}")
        parts.append(
            f'<rect class="fault" x="{left:.1f}" y="{TOP}" width="{max(right - left, 2):.1f}"'
            f' height="{height - TOP - BOTTOM}"><title>{words}</title></rect>'
        )
    return "".join(parts)


def _names(marks: Sequence[Mark], x: _Scale) -> str:
    parts, free = [], 0.0
    for mark in sorted(marks, key=lambda mark: mark.start):
        left, room = x(mark.start) + 3, 6.2 * len(mark.name) + 8
        if left >= free and left + room <= WIDTH:
            parts.append(f'<text class="tick" x="{left:.1f}" y="{TOP + 10}">{escape(mark.name)}</text>')
            free = left + room
    return "".join(parts)


def _one(one: Series, times: Sequence[float], x: _Scale, y: _Scale, log: bool) -> str:
    parts: list[str] = []
    run: list[tuple[float, float]] = []

    def close() -> None:
        if not run:
            return
        points = " ".join(f"{at:.1f},{value:.1f}" for at, value in run)
        if one.way == "area":
            base = y(y.low)
            parts.append(
                f'<polygon class="area" points="{run[0][0]:.1f},{base:.1f} {points} {run[-1][0]:.1f},{base:.1f}"'
                f' fill="var({one.colour})"/>'
            )
        if len(run) == 1:
            parts.append(f'<circle cx="{run[0][0]:.1f}" cy="{run[0][1]:.1f}" r="1.6" fill="var({one.colour})"/>')
        else:
            parts.append(f'<polyline class="line" points="{points}" stroke="var({one.colour})"/>')
        run.clear()

    for at, value in zip(times, one.values, strict=True):
        if value is None or (log and value <= 0):
            close()
        else:
            run.append((x(at), y(value)))
    close()
    return "".join(parts)


def _pointers(
    times: Sequence[float], series: Sequence[Series], x: _Scale, height: int, say: Callable[[float], str]
) -> str:
    """A column for each time that says every value there."""
    if not times:
        return ""
    width = max((x.end - x.begin) / len(times), 1)
    columns = []
    for index, at in enumerate(times):
        values = [(one.name, one.values[index]) for one in series]
        words = "\n".join(f"{name}: {say(value)}" for name, value in values if value)
        if words:
            columns.append(
                f'<rect class="point" x="{x(at) - width / 2:.1f}" y="{TOP}" width="{width:.1f}"'
                f' height="{height - TOP - BOTTOM}"><title>{_clock(at)}\n{escape(words)}</title></rect>'
            )
    return "".join(columns)


def _clock(seconds: float) -> str:
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02}"


def _count(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 or value == int(value) else f"{value:.2g}"

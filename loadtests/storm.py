"""The storm after the loss of a region: everybody of it comes to the machines that are left. Which accept rate and
which spread bring all back fastest, and keep those calm who were never away? A fluid model. Pure.

    python -m loadtests.storm        the table of CAPACITY.md

Every device tries first at a random moment of the first `spread_s`. A machine takes `accept` handshakes a second into
its queue and refuses the others with 503 and `Retry-After`; a refused device comes again after that and a jitter as
wide as its backoff, which doubles to `backoff_s`. The queue is worked off at `capacity` a second; who has waited for
`patience_s` is gone when its turn comes, its work was for nothing, and it comes again like one that was refused. So an
accept rate above the capacity can make a storm that feeds itself, and one far below it wastes the machine.
"""

from dataclasses import dataclass

STEP_S = 0.1


@dataclass(frozen=True, slots=True)
class Storm:
    """What one machine that is left sees. Rates are a second, times seconds."""

    devices: float  # that come to this machine
    accept: float
    spread_s: float
    capacity: float  # handshakes that its processor can do, live traffic set aside
    burst: float = 0.0  # taken at once beyond the rate
    retry_after_s: float = 1.0
    backoff_s: float = 60.0
    patience_s: float = 10.0


@dataclass(frozen=True, slots=True)
class Back:
    """When half, 99 % and all but one in 10,000 were back; None: not within the time that was simulated."""

    half_s: float | None
    most_s: float | None
    all_s: float | None
    tries: float  # of a device, on average
    wait_s: float  # the longest in the queue
    wasted: float  # handshakes done for devices that had gone, of all done
    busy_s: float  # how long the machine had no time for anything else


def simulate(storm: Storm, limit_s: float = 1800.0) -> Back:
    """Deterministic: expected numbers of devices in steps of 0.1 s."""
    steps = int(limit_s / STEP_S)
    attempts = 8  # from here on the backoff grows no more
    due = [[0.0] * (steps + 1) for _ in range(attempts)]
    first = max(1, round(storm.spread_s / STEP_S))
    for step in range(min(first, steps)):
        due[0][step] = storm.devices / first
    back, tried, done, wasted, busy, longest = 0.0, 0.0, 0.0, 0.0, 0.0, 0.0
    allowance = storm.burst
    queue: list[list[float]] = []  # [entered, how many, attempt], oldest first
    head = 0
    half = most = everybody = None
    for step in range(steps):
        now = step * STEP_S
        arriving = sum(row[step] for row in due)
        tried += arriving
        allowance = min(allowance + storm.accept * STEP_S, max(storm.burst, storm.accept * STEP_S))
        taken = min(arriving, allowance)
        allowance -= taken
        share = taken / arriving if arriving else 0.0
        for tries, row in enumerate(due):
            if row[step] > 0:
                if share > 0:
                    queue.append([now, row[step] * share, tries])
                _again(due, step, tries, row[step] * (1 - share), storm)
        room = storm.capacity * STEP_S
        while room > 1e-9 and head < len(queue):
            entered, count, attempt = queue[head]
            part = min(count, room)
            room -= part
            done += part
            longest = max(longest, now - entered)
            if now - entered > storm.patience_s:
                wasted += part
                _again(due, step, int(attempt), part, storm)
            else:
                back += part
            queue[head][1] -= part
            if queue[head][1] <= 1e-9:
                head += 1
        busy += STEP_S if room <= 1e-9 else 0.0
        half = now if half is None and back >= 0.5 * storm.devices else half
        most = now if most is None and back >= 0.99 * storm.devices else most
        if back >= 0.9999 * storm.devices:
            everybody = now
            break
    return Back(half, most, everybody, tried / storm.devices, longest, wasted / done if done else 0.0, busy)


def _again(due: list[list[float]], step: int, attempt: int, count: float, storm: Storm) -> None:
    """Spread these evenly over their jitter after `Retry-After`."""
    if count <= 0:
        return
    last = len(due[0]) - 1
    width = min(storm.backoff_s, 2.0**attempt)
    first = step + max(1, round(storm.retry_after_s / STEP_S))
    length = max(1, round(width / STEP_S))
    row = due[min(attempt + 1, len(due) - 1)]
    for later in range(first, min(first + length, last)):
        row[later] += count / length


def table(devices: float, capacity: float, accepts: list[float], spreads: list[float]) -> str:
    """Markdown: seconds until 99 % are back (and all), tries of a device, the longest wait in the queue."""
    lines = ["| accept, 1/s | " + " | ".join(f"spread {spread:g} s" for spread in spreads) + " |"]
    lines.append("|---|" + "---|" * len(spreads))
    for accept in accepts:
        cells = []
        for spread in spreads:
            found = simulate(Storm(devices, accept, spread, capacity))
            time = "over 1800" if found.most_s is None else f"{found.most_s:.0f}"
            wasted = f", {found.wasted:.0%} wasted" if found.wasted >= 0.005 else ""
            cells.append(f"{time} s, {found.tries:.1f} tries, wait {found.wait_s:.1f} s{wasted}")
        lines.append(f"| {accept:,.0f} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


TABLE = {
    "devices": 75_000.0,
    "capacity": 2_400.0,
    "accepts": [600.0, 1_200.0, 2_400.0, 4_800.0, 100_000.0],
    "spreads": [1.0, 15.0, 30.0, 60.0, 120.0],
}

if __name__ == "__main__":
    print(table(**TABLE))  # type: ignore[arg-type]

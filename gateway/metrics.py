"""What the gateway counts, and how Prometheus reads it. Counting costs one integer addition: no lock, no label lookup.

`Counts` is one slotted object for the process. The parts hold it and count in place:

    counts.acks += 1                          a counter
    counts.delivered[priority] += 1           by priority 0 urgent … 3 bulk
    counts.closed[4409] += 1                  by a code or a word
    counts.to_socket[priority].observe(s)     a histogram; `observe(s, n)` counts n at once
    counts.sessions = len(sessions)           a gauge; or filled by a function in `Metrics.refresh` before each reading

All of it belongs to the event loop's thread. `TABLE` names and explains every metric; `METRICS.md` beside this file is
made from it: `python -m gateway.metrics > gateway/METRICS.md`, and a test holds both together. Labels never carry
what a person or a device chose: their number is bounded by the contract.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal

from prometheus_client import CollectorRegistry, ProcessCollector, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
PRIORITIES = ("urgent", "high", "normal", "bulk")

LATENCY_S = (
    *(0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0),
    *(300.0, 600.0),
)
LATE_S = 300.0  # the service level of agencies: an event is here within that time of its own
SHORT_S = (0.0001, 0.0002, 0.0005, 0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 5.0)
SIZES = (1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0, 200.0, 500.0, 1000.0)


class Histogram:
    """Counts in buckets with upper bounds, in increasing order; a value on a bound belongs to it (Prometheus `le`)."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: tuple[float, ...] = LATENCY_S):
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Negative values, which a clock set back makes, count as 0: a histogram's sum must not fall."""
        if value < 0:
            value = 0.0
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def copy(self) -> "Histogram":
        other = Histogram(self.bounds)
        other.counts, other.sum = self.counts.copy(), self.sum
        return other

    def buckets(self) -> list[tuple[str, float]]:
        """Cumulative, as Prometheus wants them, `+Inf` last."""
        total, rows = 0, []
        for bound, count in zip((*map(str, self.bounds), "+Inf"), self.counts, strict=True):
            total += count
            rows.append((bound, float(total)))
        return rows


def _by_priority() -> list[int]:
    return [0] * len(PRIORITIES)


def _latencies() -> list[Histogram]:
    return [Histogram() for _ in PRIORITIES]


@dataclass(slots=True)
class Counts:
    """Everything counted, for one process. See the module's docstring for how; `TABLE` for what."""

    # Intake
    requests: Counter[int] = field(default_factory=Counter)
    events: Counter[str] = field(default_factory=Counter)
    agency_events: Counter[str] = field(default_factory=Counter)
    agency_rejects: Counter[str] = field(default_factory=Counter)
    agency_late: Counter[str] = field(default_factory=Counter)
    intake: Histogram = field(default_factory=lambda: Histogram(SHORT_S))
    # Store
    append: Histogram = field(default_factory=lambda: Histogram(SHORT_S))
    append_failures: int = 0
    group: Histogram = field(default_factory=lambda: Histogram(SIZES))
    unpublished: int = 0
    relayed: int = 0
    store_reads: int = 0
    store_ranges: int = 0
    read: Histogram = field(default_factory=lambda: Histogram(SHORT_S))
    store_failures: int = 0
    store_ready: int = 0
    disk_free: int = 0
    disk_size: int = 0
    cursors_saved: int = 0
    retained: int = 0
    # Alerts
    alerts: Counter[str] = field(default_factory=Counter)
    alerts_firing: int = 0
    alert_posts: Counter[str] = field(default_factory=Counter)
    alerts_waiting: int = 0
    # Bus
    bus_published: int = 0
    bus_failures: int = 0
    bus_received: int = 0
    bus_repeats: int = 0
    bus_holes: int = 0
    bus_gaps: int = 0
    bus_healthy: int = 0
    # Connections
    handshakes: int = 0
    rejects: Counter[str] = field(default_factory=Counter)
    opening: int = 0
    hellos: int = 0
    hello: Histogram = field(default_factory=lambda: Histogram(SHORT_S))
    opened: int = 0
    closed: Counter[int] = field(default_factory=Counter)
    sessions: int = 0
    behind: int = 0
    stalled: int = 0
    feeds: int = 0
    draining: int = 0
    # Tokens
    tokens_verified: int = 0
    tokens_cached: int = 0
    tokens_refused: Counter[int] = field(default_factory=Counter)
    keys_failures: int = 0
    # Delivery
    delivered: list[int] = field(default_factory=_by_priority)
    to_socket: list[Histogram] = field(default_factory=_latencies)
    to_ack: list[Histogram] = field(default_factory=_latencies)
    written_bytes: int = 0
    replayed: int = 0
    batches: int = 0
    resyncs: Counter[str] = field(default_factory=Counter)
    messages: int = 0
    acks: int = 0
    seen: int = 0
    errors: Counter[str] = field(default_factory=Counter)
    window_stalls: int = 0
    socket_stalls: int = 0
    beats: int = 0
    # Tail and sweep
    tail_bytes: int = 0
    tail_entries: int = 0
    tail_evicted: int = 0
    sweeps: int = 0
    sweep_behind: int = 0
    # The loop
    loop_lag: Histogram = field(default_factory=lambda: Histogram(SHORT_S))

    def copy(self) -> "Counts":
        """What all stand at now."""
        return Counts(**{item.name: _copied(getattr(self, item.name)) for item in fields(self)})


def _copied(value: Any) -> Any:
    if isinstance(value, list):
        return [_copied(one) for one in value]
    return value if isinstance(value, int) else value.copy()


class Sender:
    """What was counted of one agency that is known."""

    __slots__ = ("accepted", "delay", "last", "late", "rejected")

    def __init__(self) -> None:
        self.accepted = 0  # new events
        self.late = 0  # those of them that came over LATE_S after their time
        self.rejected: Counter[str] = Counter()  # events and whole requests, by the word of the problem
        self.last: float | None = None  # when the latest was recorded
        self.delay = Histogram()  # from the events' own `time` to their commit

    def took(self, recorded: float, time: float) -> None:
        """A new event of this `time` was recorded."""
        self.accepted += 1
        self.last = recorded
        self.delay.observe(recorded - time)
        if recorded - time > LATE_S:
            self.late += 1

    def copy(self) -> "Sender":
        other = Sender()
        other.accepted, other.late, other.last = self.accepted, self.late, self.last
        other.rejected = self.rejected.copy()
        other.delay = self.delay.copy()
        return other


@dataclass(frozen=True, slots=True)
class Entry:
    """One metric: `name` without `vestnik_` and without the `_total` that Prometheus adds to counters."""

    attribute: str
    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    label: str | None = None


def _counter(attribute: str, name: str, help: str, label: str | None = None) -> Entry:
    return Entry(attribute, name, "counter", help, label)


def _gauge(attribute: str, name: str, help: str) -> Entry:
    return Entry(attribute, name, "gauge", help)


def _histogram(attribute: str, name: str, help: str, label: str | None = None) -> Entry:
    return Entry(attribute, name, "histogram", help, label)


TABLE = (
    # Intake
    _counter("requests", "intake_requests", "Requests of agencies, by the status answered.", "status"),
    _counter(
        "events",
        "intake_events",
        "Events of agencies, by outcome: stored, duplicate, conflict, stale, forbidden, invalid, malformed, …",
        "outcome",
    ),
    _counter("agency_events", "agency_events", "New events of each agency.", "agency"),
    _counter(
        "agency_rejects", "agency_rejects", "Events and whole requests of each agency that were refused.", "agency"
    ),
    _counter(
        "agency_late", "agency_late", "New events of each agency that came over 300 s after their time.", "agency"
    ),
    _histogram("intake", "intake_seconds", "From a request's last byte to its answer, commit included."),
    # Store
    _histogram("append", "append_seconds", "One commit of events, fsync included."),
    _counter("append_failures", "append_failures", "Commits that failed; their senders were answered 503."),
    _histogram("group", "append_group_events", "Events in one commit."),
    _gauge("unpublished", "unpublished_events", "Committed and not yet given to the bus. The relay keeps it near 0."),
    _counter("relayed", "relayed_events", "Events that the relay published because their gateway did not."),
    _counter("store_reads", "store_reads", "Trips to the store for events."),
    _counter("store_ranges", "store_read_ranges", "Pages of events read; many in one trip."),
    _histogram("read", "store_read_seconds", "One trip to the store for events."),
    _counter("store_failures", "store_failures", "Calls of the store that failed, commits of events apart."),
    _gauge("store_ready", "store_ready", "1 while the store can read and commit."),
    _gauge("disk_free", "disk_free_bytes", "Free on the disk of the store's file; 0 of 0 when it is not here."),
    _gauge("disk_size", "disk_size_bytes", "Size of that disk. Both are as of the last figures (VESTNIK_OPS_S)."),
    _counter("cursors_saved", "cursors_saved", "Acknowledged positions written to the store."),
    _counter("retained", "retention_events", "Events deleted because they were older than the retention."),
    # Alerts
    _counter("alerts", "alerts", "Alerts told, by state: firing, resolved.", "state"),
    _gauge("alerts_firing", "alerts_firing", "Alerts that fire, in the process that watches; 0 in the others."),
    _counter(
        "alert_posts", "alert_posts", "Posts of alerts to VESTNIK_ALERT_URL, by outcome: taken, failed.", "outcome"
    ),
    _gauge("alerts_waiting", "alerts_waiting", "Alerts not yet posted, in the process that posts; 0 in the others."),
    # Bus
    _counter("bus_published", "bus_published", "Events given to the bus."),
    _counter("bus_failures", "bus_publish_failures", "Events that the bus did not take; the relay repeats them."),
    _counter("bus_received", "bus_received", "Events that came from the bus."),
    _counter("bus_repeats", "bus_repeats", "Events from the bus that were known already and dropped."),
    _counter("bus_holes", "bus_holes", "Events from the bus that came after a hole; the store filled it."),
    _counter("bus_gaps", "bus_gaps", "Times that the bus may have lost messages; heads were compared at once."),
    _gauge("bus_healthy", "bus_healthy", "1 while a probe comes back through the subscription."),
    # Connections
    _counter("handshakes", "handshakes", "WebSocket handshakes accepted."),
    _counter(
        "rejects",
        "handshake_rejects",
        "WebSocket handshakes refused, by reason: origin, subprotocol, full, rate, draining, malformed, deadline.",
        "reason",
    ),
    _gauge("opening", "connections_opening", "Connections that have not finished their hello."),
    _counter("hellos", "hellos", "Hellos received, the refused ones included."),
    _histogram("hello", "hello_seconds", "From a hello to its welcome."),
    _counter("opened", "sessions_opened", "Sessions that were welcomed."),
    _counter("closed", "connections_closed", "Connections closed, by close code; 1006 means without one.", "code"),
    _gauge("sessions", "sessions", "Sessions now."),
    _gauge("behind", "sessions_behind", "Sessions with a feed below its head, as of the last figures."),
    _gauge("stalled", "sessions_stalled", "Sessions whose window or socket is full, as of the last figures."),
    _gauge("feeds", "feeds", "Feeds with a session here."),
    _gauge("draining", "draining", "1 while this node asks its devices to leave."),
    # Tokens
    _counter("tokens_verified", "tokens_verified", "Tokens whose signature was checked and good."),
    _counter("tokens_cached", "tokens_cached", "Tokens known from an earlier check; end and revocation were checked."),
    _counter("tokens_refused", "tokens_refused", "Tokens refused, by close code.", "code"),
    _counter("keys_failures", "keys_failures", "Attempts to load the identity provider's keys that failed."),
    # Delivery
    _counter("delivered", "delivered_events", "Events written to sockets, replays included.", "priority"),
    _histogram("to_socket", "commit_to_socket_seconds", "From commit to write, live events only.", "priority"),
    _histogram("to_ack", "commit_to_ack_seconds", "From commit to the device's ack, live events only.", "priority"),
    _counter("written_bytes", "written_bytes", "Bytes of frames written to sockets."),
    _counter("replayed", "replayed_events", "Events written from the store because the tail had them no more."),
    _counter("batches", "batches", "Batches written in traffic saving mode."),
    _counter("resyncs", "resyncs", "Devices told that continuity is broken, by reason.", "reason"),
    _counter("messages", "messages", "Messages of devices."),
    _counter("acks", "acks", "Acks that moved a cursor."),
    _counter("seen", "seen_events", "Events reported as shown to the person."),
    _counter("errors", "errors", "Error answers to devices, by code.", "code"),
    _counter("window_stalls", "window_stalls", "Times that a feed waited because its window was full."),
    _counter("socket_stalls", "socket_stalls", "Times that a session waited because its socket was full."),
    _counter("beats", "beats", "Beats sent."),
    # Tail and sweep
    _gauge("tail_bytes", "tail_bytes", "Bytes of the tail."),
    _gauge("tail_entries", "tail_entries", "Events in the tail."),
    _counter("tail_evicted", "tail_evicted", "Events that left the tail for its byte budget."),
    _counter("sweeps", "sweeps", "Comparisons of heads with the store."),
    _counter("sweep_behind", "sweep_behind", "Feeds that a sweep found behind: the bus had lost their last event."),
    # The loop
    _histogram("loop_lag", "loop_lag_seconds", "How late the event loop ran a timer."),
)


class _Table(Collector):
    """Reads `Counts` when Prometheus asks."""

    def __init__(self, counts: Counts):
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        for entry in TABLE:
            yield _family(entry, getattr(self._counts, entry.attribute))


def _family(entry: Entry, value: object) -> Metric:
    name, labels = f"vestnik_{entry.name}", [entry.label] if entry.label else []
    if entry.kind == "gauge":
        assert isinstance(value, int | float)
        return GaugeMetricFamily(name, entry.help, value=value)
    if entry.kind == "histogram":
        histogram = HistogramMetricFamily(name, entry.help, labels=labels)
        for label, one in _labelled(entry, value):
            assert isinstance(one, Histogram)
            histogram.add_metric(label, one.buckets(), one.sum)
        return histogram
    counter = CounterMetricFamily(name, entry.help, labels=labels)
    for label, one in _labelled(entry, value):
        assert isinstance(one, int)
        counter.add_metric(label, one)
    return counter


def _labelled(entry: Entry, value: object) -> list[tuple[list[str], object]]:
    if entry.label is None:
        return [([], value)]
    if isinstance(value, list):
        return [([word], one) for word, one in zip(PRIORITIES, value, strict=True)]
    assert isinstance(value, Counter)
    return [([str(word)], one) for word, one in sorted(value.items(), key=lambda item: str(item[0]))]


class Metrics:
    """The process's counts and their text for Prometheus. The registry is its own: nothing global, many in one test."""

    def __init__(self, counts: Counts | None = None):
        self.counts = counts if counts is not None else Counts()
        self.refresh: list[Callable[[], None]] = []  # called before each reading, to fill gauges
        self.registry = CollectorRegistry(auto_describe=False)
        self.registry.register(_Table(self.counts))
        ProcessCollector(namespace="vestnik", registry=self.registry)  # memory, CPU, open files

    def render(self) -> bytes:
        """The exposition in Prometheus text format 0.0.4, with `CONTENT_TYPE`."""
        for fill in self.refresh:
            fill()
        return generate_latest(self.registry)


def merge(texts: Mapping[str, bytes | None]) -> bytes:
    """The expositions of several processes as one: each sample gets the label `process`, each metric its head once.

    None stands for a process that did not answer."""
    families: dict[str, tuple[list[str], list[str]]] = {}  # name -> (head, samples)
    for process, text in texts.items():
        label = f'process="{process}"'
        head, samples = families.setdefault(
            "vestnik_process_up",
            (["# HELP vestnik_process_up 1 if it answered.", "# TYPE vestnik_process_up gauge"], []),
        )
        samples.append(f"vestnik_process_up{{{label}}} {int(text is not None)}.0")
        for line in (text or b"").decode().splitlines():
            if line.startswith("# HELP "):
                head, samples = families.setdefault(line.split(" ", 3)[2], ([], []))
                if not head:
                    head.append(line)
            elif line.startswith("#"):
                if line not in head:
                    head.append(line)
            else:
                name, brace, rest = line.partition("{")
                if brace:
                    samples.append(f"{name}{{{label},{rest}")
                else:
                    name, _, rest = line.partition(" ")
                    samples.append(f"{name}{{{label}}} {rest}")
    lines = [line for head, samples in families.values() for line in (*head, *samples)]
    return ("\n".join(lines) + "\n").encode()


PROCESS = (
    ("process_resident_memory_bytes", "gauge", "Memory in use."),
    ("process_virtual_memory_bytes", "gauge", "Address space in use."),
    ("process_cpu_seconds_total", "counter", "CPU used."),
    ("process_open_fds", "gauge", "Open files and sockets."),
    ("process_max_fds", "gauge", "How many there may be."),
    ("process_start_time_seconds", "gauge", "Start of the process, Unix seconds."),
)


def document() -> str:
    """The text of METRICS.md."""
    rows = [
        (
            f"vestnik_{entry.name}{'_total' if entry.kind == 'counter' else ''}",
            entry.kind,
            entry.label or "",
            entry.help,
        )
        for entry in TABLE
    ] + [(f"vestnik_{name}", kind, "", text) for name, kind, text in PROCESS]
    lines = [
        "# Metrics",
        "",
        "`GET /metrics`, Prometheus text format. Counters start at 0 with the process. Priorities are urgent, high,",
        "normal, bulk. With several processes on one port whoever is asked answers for all: each sample has the label",
        "`process`, and `vestnik_process_up` is 0 for one that does not answer. Made from `metrics.py`:",
        "`python -m gateway.metrics > gateway/METRICS.md`.",
        "",
        "| name | kind | label | what |",
        "|---|---|---|---|",
    ]
    return "\n".join(lines + [f"| `{name}` | {kind} | {label} | {text} |" for name, kind, label, text in rows]) + "\n"


if __name__ == "__main__":
    print(document(), end="")

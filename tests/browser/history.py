"""What operators' feeds of a large installation hold after some minutes, made up and committed for real: figures of
many nodes and agencies, rejects and alerts. The same for the same seed."""

import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from client_sim.agencies import rfc3339
from gateway.metrics import LATENCY_S, PRIORITIES, SHORT_S, Histogram
from gateway.opsfeeds import ALERTS, FIGURES, REJECTED, TYPES, draft, new_id
from gateway.store import open_store
from gateway.store.base import Draft
from gateway.types import registry

SECONDS = 10.0
CODES = ("fns", "sfr", "gibdd", "mvd", "court", "mchs", *(f"region-{number:02d}" for number in range(1, 86)))
FLOW = dict(zip(PRIORITIES, (4, 30, 160, 60), strict=True))  # deliveries a second of one node
WAIT_S = dict(zip(PRIORITIES, (0.004, 0.007, 0.012, 0.05), strict=True))
ROLES = ("alerts", "relay", "retention", "tidy", "webhook")


def spread(rng: random.Random, middle_s: float, count: int, bounds: tuple[float, ...] = LATENCY_S) -> list[Any]:
    """A histogram of `count` values around `middle_s`, as it travels."""
    histogram = Histogram(bounds)
    for _ in range(min(count, 40)):
        histogram.observe(rng.lognormvariate(0, 0.7) * middle_s, max(1, count // 40))
    return [[bound, n] for bound, n in zip((*bounds, None), histogram.counts, strict=True) if n]


def agency(rng: random.Random, index: int, now: float) -> dict[str, Any]:
    """One of the many: most are well, one is silent, one is late, one sends what is refused."""
    code = CODES[index]
    accepted = 0 if code == "region-07" else max(0, round(rng.gauss(9 / (1 + index / 6), 1.5)))
    refused = {"invalid": rng.randrange(3), "unsigned": 1} if code == "region-11" else {}
    late = 900.0 if code == "region-03" else 2.0 + index % 7
    last = None if code == "region-20" else rfc3339(now - (1500 if code == "region-07" else rng.random() * 9))
    return {
        "accepted": 0 if code == "region-20" else accepted,
        "rejected": {reason: count for reason, count in refused.items() if count},
        "last": last,
        "delay": spread(rng, late, accepted) if accepted and code != "region-20" else [],
    }


def figures(rng: random.Random, index: int, nodes: int, agencies: int, now: float, start: float) -> dict[str, Any]:
    """Of the node `index` at `now`. Of one the disk is slow for a while, and its sessions fall behind."""
    bad = index == 2 and 300 < now - start < 420
    slow = 20.0 if bad else 1.0
    swing = 1 + 0.3 * rng.random()
    flow = {name: round(rate * SECONDS * swing) for name, rate in FLOW.items()}
    shares = {CODES[n]: agency(rng, n, now) for n in range(agencies)}
    closed = {
        "1000": rng.randrange(20, 40),
        "1006": rng.randrange(10, 25),
        "4401": rng.randrange(4),
        "4508": 3 if bad else 0,
    }
    session = {"who": "a1b2c3d4e5f6", "device_agent": "vestnik-android/3.1", "why": rng.choice(("window", "socket"))}
    stalled = [
        session | {"session": f"{index}-{n}", "seconds": 4.0 + 7 * n, "behind": 300 + n}
        for n in range(3 if index < 3 else 0)
    ]
    return {
        "node": f"{0x1F2E3D40 + index * 0x11:08x}",
        "version": "1.0.0",
        "started": rfc3339(start - 86_400 * (index + 1)),
        "seconds": SECONDS,
        "sessions": 14_000 + 300 * index + rng.randrange(400),
        "opening": rng.randrange(8),
        "feeds": 15_000 + 300 * index,
        "draining": index == 6,
        "stalled": len(stalled),
        "behind": rng.randrange(400, 700) if bad else rng.randrange(6),
        "opened": rng.randrange(35, 65),
        "closed": {code: count for code, count in closed.items() if count},
        "handshake_rejects": {"origin": rng.randrange(2)} if index == 1 else {},
        "hellos": 50,
        "hello": spread(rng, 0.003, 50, SHORT_S),
        "accepted": sum(said["accepted"] for said in shares.values()),
        "duplicates": rng.randrange(4),
        "rejected": {"invalid": rng.randrange(3), "unsigned": rng.randrange(2)},
        "delivered": flow,
        "replayed": rng.randrange(4000, 9000) if bad else rng.randrange(60),
        "acks": sum(flow.values()) // 3,
        "resyncs": {"retention": 1} if bad else {},
        "to_socket": {name: spread(rng, WAIT_S[name] * slow, count) for name, count in flow.items()},
        "to_ack": {name: spread(rng, 0.08 + 4 * WAIT_S[name] * slow, count) for name, count in flow.items()},
        "append": spread(rng, 0.004 * slow, 200, SHORT_S),
        "loop_lag": spread(rng, 0.0008 * slow, 50, SHORT_S),
        "sweeps": 1,
        "sweep_behind": rng.randrange(40) if bad else 0,
        "relayed": rng.randrange(10) if bad else 0,
        "store": {
            "ready": not bad,
            "failures": 2 if bad else 0,
            "disk_free": (62 - index) << 30,
            "disk_size": 200 << 30,
        },
        "bus": {"healthy": True, "failures": 0, "gaps": 0, "holes": rng.randrange(2)},
        "memory": (380 << 20) + rng.randrange(9 << 20),
        "cpu": SECONDS * (0.28 + 0.06 * rng.random()),
        "open_files": 14_100 + 300 * index,
        "max_open_files": 20_000,
        "slow": stalled,
        "agencies": shares
        if index < 3
        else {code: said | {"accepted": 0, "rejected": {}, "delay": []} for code, said in shares.items()},
        "leases": [
            {"name": role, "owner": f"{0x1F2E3D40 + n % nodes * 0x11:08x}", "left": 6.0 + n}
            for n, role in enumerate(ROLES)
        ],
    }


def all_figures(nodes: int, agencies: int, minutes: float, now: float, seed: int = 1) -> Iterator[Draft]:
    """Of `nodes` nodes, each every `SECONDS`, up to `now`."""
    rng = random.Random(seed)
    start = now - 60 * minutes
    for step in range(1, round(60 * minutes / SECONDS) + 1):
        at = start + step * SECONDS
        for index in range(nodes):
            # One node was gone two minutes ago.
            if index == 5 and now - at < 120:
                continue
            data = figures(rng, index, nodes, agencies, at, start)
            yield made(FIGURES, data, at - 0.3 * index)


REFUSALS = (
    (
        "invalid",
        422,
        "The data break the schema of gov.status.changed.",
        [("/data/status", "is none of the known statuses"), ("/data/deadline", "is no date")],
    ),
    ("unsigned", 401, "No signature of this request fits a key of the agency.", []),
    ("stale", 409, "The sequence 41 is lower than the highest stored, 44.", []),
    ("malformed", 400, "Not JSON: duplicate keys in an object.", []),
    ("quota", 429, "Over the quota of the agency.", []),
)


def rejects(count: int, now: float, seed: int = 1) -> Iterator[Draft]:
    rng = random.Random(seed)
    for number in range(count):
        reason, status, detail, errors = REFUSALS[rng.randrange(len(REFUSALS)) if number % 3 else 0]
        known = reason not in ("unsigned", "malformed", "quota")
        data = {
            "node": f"{0x1F2E3D40 + rng.randrange(8) * 0x11:08x}",
            "agency": rng.choice(("region-11", "fns", "region-11", "stranger")) if number % 9 else None,
            "reason": reason,
            "status": status,
            "id": f"2026-{number:06d}" if known else None,
            "type": "gov.status.changed" if known else None,
            "detail": detail,
            "errors": [{"pointer": pointer, "detail": text} for pointer, text in errors],
            "bytes": rng.randrange(300, 4000),
            "omitted": 12 if number % 40 == 7 else 0,
        }
        yield made(REJECTED, data, now - (count - number) * 4)


def alert(rule: str, subject: str, state: str, at: float, since: float, **more: Any) -> Draft:
    """What the rules say of a subject."""
    severity = more.pop("severity", "warning")
    said = {"rule": rule, "subject": subject, "state": state, "severity": severity, "since": rfc3339(since), **more}
    return made(ALERTS, said, at, "urgent" if state == "firing" and severity == "critical" else "high")


def made(feed: str, data: dict[str, Any], at: float, priority: str | None = None) -> Draft:
    assert registry()[TYPES[feed]].faults(data) == []
    return draft(feed, TYPES[feed], data, id=new_id(), now=at, priority=priority)


async def commit(url: str, folder: Path, drafts: Sequence[Draft], now: float, step: int = 500) -> None:
    """Append them to the store of a gateway that runs, beside it."""
    store = open_store(url, folder)
    await store.open()
    try:
        for begin in range(0, len(drafts), step):
            await store.append(drafts[begin : begin + step], now)
    finally:
        await store.close()

"""Figures as gateways tell them, for tests of what reads them."""

import json
from collections.abc import Mapping
from typing import Any

from gateway.opsfeeds import FIGURES, TYPES, draft
from gateway.rfc3339 import format_time
from gateway.store.base import Draft
from gateway.types import registry

Map = dict[str, Any]
QUIET = (
    *("sessions", "opening", "feeds", "stalled", "behind", "opened", "hellos", "accepted", "duplicates", "replayed"),
    *("acks", "sweeps", "sweep_behind", "relayed", "memory", "cpu"),
)
NOW = 1_800_000_000.0


def agency(accepted: int = 0, last: float | None = None, delay: list[Any] | None = None, **rejected: int) -> Map:
    told = None if last is None else format_time(last)
    return {"accepted": accepted, "rejected": rejected, "last": told, "delay": delay or []}


def figures(node: str = "n1", started: float = NOW - 86400, **given: Any) -> Map:
    """A quiet node in good health, apart from what is given; `store` and `bus` only what differs."""
    store = {"ready": True, "failures": 0, "disk_free": 50, "disk_size": 100, **given.pop("store", {})}
    bus = {"healthy": True, "failures": 0, "gaps": 0, "holes": 0, **given.pop("bus", {})}
    quiet = dict.fromkeys(QUIET, 0)
    words: Map = {"node": node, "version": "0.1.0", "started": format_time(started), "seconds": 5.0, "draining": False}
    maps: Map = {name: {} for name in ("closed", "handshake_rejects", "rejected", "resyncs", "to_socket", "to_ack")}
    lists: Map = {name: [] for name in ("hello", "append", "loop_lag", "slow", "leases")}
    delivered = {"urgent": 0, "high": 0, "normal": 0, "bulk": 0}
    files = {"open_files": 100, "max_open_files": 1000}
    rest = {"delivered": delivered, "agencies": {}, "store": store, "bus": bus}
    data = {**quiet, **words, **maps, **lists, **files, **rest, **given}
    assert not registry()[TYPES[FIGURES]].faults(data)
    return data


def event(data: Mapping[str, Any]) -> bytes:
    return json.dumps({"data": data}).encode()


def drafted(data: Mapping[str, Any], id: str, now: float) -> Draft:
    return draft(FIGURES, TYPES[FIGURES], data, id=id, now=now)

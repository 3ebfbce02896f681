"""HTTP for operators: one account, and the way of one of its events. Contract, 8.6.

Only with a token whose scope has the word `ops`, never what an event says, and nothing before the look itself is on
disk in the feed `ops:audit`: who looked for whom can be read there by every operator.
"""

from __future__ import annotations

import time
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from gateway import opsfeeds, tokens
from gateway.errors import Close, Problem
from gateway.events import is_account
from gateway.hub import Hub
from gateway.publisher import Publisher
from gateway.rfc3339 import format_time
from gateway.session import Gate, Session
from gateway.store.base import Device, Head, Range, Row, Store, Trace
from gateway.strict import MAX_INTEGER
from gateway.tail import Entry
from gateway.tokens import Claims
from gateway.types import PRIORITIES

NEWEST = 50  # events of an account that are told
NEWEST_BYTES = 4 << 20  # of them, as they are read: each is 64 KiB at most

Map = dict[str, Any]


class Operators:
    def __init__(self, gate: Gate, store: Store, hub: Hub, publisher: Publisher):
        self.gate, self.store, self.hub, self.publisher = gate, store, hub, publisher

    def _who(self, request: Request) -> Claims:
        token = tokens.bearer(request.headers.get("authorization"))
        try:
            claims = self.gate.verifier.verify(token, time.time())
        except Close as refusal:
            raise tokens.problem(refusal) from None
        if opsfeeds.SCOPE not in claims.scopes:
            raise Problem(403, "forbidden", "Not allowed with this token", "It has not the scope ops.")
        return claims

    async def _audit(self, request: Request, claims: Claims, account: str, offset: int | None) -> None:
        """From here on it is known that this operator looked. Raises StoreUnavailable: then nothing is told."""
        now = time.time()
        data = {
            "operator": claims.account,
            "action": "account" if offset is None else "event",
            "account": account,
            "offset": offset,
            "client": request.client.host if request.client else "",
        }
        type = opsfeeds.TYPES[opsfeeds.AUDIT]
        await self.publisher.tell([opsfeeds.draft(opsfeeds.AUDIT, type, data, id=opsfeeds.new_id(), now=now)], now)

    # GET /v1/ops/accounts/<id>

    async def account(self, request: Request) -> Response:
        """Who is connected with what, how far each device is, and the newest events without what they say."""
        claims = self._who(request)
        account = request.path_params["account"]
        if not is_account(account):
            raise _not_found()
        await self._audit(request, claims, account, None)
        feed = f"account:{account}"
        devices, cursors = await self.store.devices(account), await self.store.cursors(account)
        heads = await self.store.heads({feed, *(name for found in cursors.values() for name in found)})
        head = heads[feed]
        if head.head == 0 and not devices:
            raise _not_found()
        connected = await self._connected(account)
        return _json(
            {
                "account": account,
                "feed": {"feed": feed, "epoch": self.store.epoch, "oldest": head.oldest, "head": head.head},
                "devices": [
                    self._device(device, device.device in connected, cursors.get(device.device, {}), heads)
                    for device in devices
                ],
                "events": await self._newest(feed, head),
                "sessions_here": [_session(session) for session in self.hub.sessions_of(account)],
            }
        )

    async def _connected(self, account: str) -> frozenset[str]:
        return self.hub.connected(account) | await self.hub.roster.connected(account)

    def _device(
        self, device: Device, connected: bool, cursors: dict[str, tuple[str, int]], heads: dict[str, Head]
    ) -> Map:
        return {
            "device": device.device,
            "agent": device.agent,
            "created": format_time(device.created),
            "last_seen": format_time(device.last_seen),
            "connected": connected,
            "positions": [
                {
                    "feed": feed,
                    "epoch": epoch,
                    "offset": offset,
                    "behind": max(0, heads[feed].head - (offset if epoch == self.store.epoch else 0)),
                }
                for feed, (epoch, offset) in sorted(cursors.items())
            ],
        }

    async def _newest(self, feed: str, head: Head) -> list[Map]:
        (page,) = await self.store.read([Range(feed, max(0, head.head - NEWEST), NEWEST, NEWEST_BYTES)])
        traces = {trace.offset: trace for trace in await self.store.traces(feed, [row.offset for row in page.rows])}
        return [_event(row, traces[row.offset]) for row in reversed(page.rows) if row.offset in traces]

    # GET /v1/ops/accounts/<id>/events/<offset>

    async def event(self, request: Request) -> Response:
        """When one event passed each stage, as far as this process knows, and how far each device is with it."""
        claims = self._who(request)
        account, given = request.path_params["account"], request.path_params["offset"]
        if not (is_account(account) and given.isascii() and given.isdigit() and 0 < len(given) <= 16):
            raise _not_found()
        offset = int(given)
        if not 0 < offset <= MAX_INTEGER:
            raise _not_found()
        await self._audit(request, claims, account, offset)
        feed = f"account:{account}"
        (page,) = await self.store.read([Range(feed, offset - 1, 1)])
        traces = await self.store.traces(feed, [offset])
        if not traces or not page.rows or page.rows[0].offset != offset:
            raise _not_found()
        row, trace, entry = page.rows[0], traces[0], self._entry(feed, offset)
        shown = _event(row, trace)
        return _json(
            {
                **{name: shown[name] for name in ("offset", "id", "source", "type", "priority", "erased")},
                "stages": stages(row, trace, entry),
                "devices": await self._places(account, feed, offset, entry),
            }
        )

    def _entry(self, feed: str, offset: int) -> Entry | None:
        known = self.hub.feeds.get(feed)
        return known.entries.get(offset) if known is not None and known.entries else None

    async def _places(self, account: str, feed: str, offset: int, entry: Entry | None) -> list[Map]:
        devices, cursors = await self.store.devices(account), await self.store.cursors(account)
        connected = await self._connected(account)
        here = {session.device: session for session in self.hub.sessions_of(account)}
        places = []
        for device in devices:
            epoch, kept = cursors.get(device.device, {}).get(feed, ("", 0))
            kept = kept if epoch == self.store.epoch else 0
            session = here.get(device.device)
            follow = None if session is None else session.find(feed)
            told = 0 if follow is None else follow.sent
            if follow is not None and not follow.owing:
                kept = max(kept, follow.acked)
            at: float | None = None
            if kept >= offset:
                state = "acknowledged"
            elif told >= offset:
                state, at = "written", entry.written if entry is not None and entry.written else None
            elif device.device in connected:
                state = "waiting"
            else:
                state, at = "away", device.last_seen
            places.append({"device": device.device, "state": state, "time": None if at is None else format_time(at)})
        return places


def stages(row: Row, trace: Trace, entry: Entry | None) -> list[Map]:
    """The way of an event, in order. `done` without a `time`: it was there, and nobody kept when."""
    event = _read(row)
    created = event.get("time")
    written = entry.written if entry is not None and entry.written else None
    reached = [
        ("created", created, True),
        ("signed", _time(trace.signed), trace.signed is not None or trace.verified is not None),
        ("verified", _time(trace.verified), trace.verified is not None),
        ("committed", _time(row.recorded), True),
        ("published", None, trace.published or entry is not None or trace.delivered is not None),
        ("written", _time(written), written is not None or trace.delivered is not None),
        ("delivered", _time(trace.delivered), trace.delivered is not None),
        ("seen", _time(trace.seen), trace.seen is not None),
    ]
    return [{"stage": stage, "time": at, "done": done} for stage, at, done in reached]


def _event(row: Row, trace: Trace) -> Map:
    """What is told of an event: its attributes without the subject, and no data."""
    event = _read(row)
    return {
        "offset": row.offset,
        "id": event.get("id"),
        "source": event.get("source"),
        "type": event.get("type"),
        "priority": PRIORITIES[row.priority],
        "time": event.get("time"),
        "recorded": format_time(row.recorded),
        "delivered": _time(trace.delivered),
        "seen": _time(trace.seen),
        "erased": row.event is None,
    }


def _read(row: Row) -> Map:
    event: Map = {} if row.event is None else orjson.loads(row.event)
    return event


def _session(session: Session) -> Map:
    return {
        "session": session.id,
        "device": session.device,
        "agent": session.agent,
        "mode": "saver" if session.saver else "full",
        "stalled": bool(session.stalled),
        "feeds": [
            {"feed": follow.feed.name, "sent": follow.sent, "acked": follow.acked, "head": follow.feed.head}
            for follow in session.follows
        ],
    }


def _time(seconds: float | None) -> str | None:
    return None if seconds is None else format_time(seconds)


def _not_found() -> Problem:
    return Problem(404, "not-found", "Not found", "Nothing is known of this account, or of this event of it.")


def _json(document: Map) -> Response:
    return Response(orjson.dumps(document), media_type="application/json", headers={"Cache-Control": "no-store"})

"""HTTP for the account: snapshot, history, devices, ending sessions. Contract, section 4."""

from __future__ import annotations

import base64
import csv
import io
import re
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from gateway import opsfeeds, tokens
from gateway.control import Control
from gateway.errors import Close, Problem
from gateway.events import is_agency
from gateway.hub import Hub
from gateway.rfc3339 import format_time, parse_moment
from gateway.session import Gate
from gateway.snapshot import Snapshot
from gateway.store.base import Filter, Page, Range, Revocation, Row, Store
from gateway.strict import MAX_INTEGER
from gateway.tokens import Claims
from gateway.types import registry

MAX_LIMIT = 500  # events of a page: bounds what one answer costs
LIMIT = 100
CSV_PAGE = 100  # events put into lines before the loop gets its turn: 2 ms
MAX_WORDS = 100  # of a filter: bounds what one query asks of the store
CSV_COLUMNS = ("offset", "time", "recordedtime", "agency", "type", "id", "subject", "status", "title", "text", "data")
_FORMULA = ("=", "+", "-", "@", "＝", "＋", "－", "＠")  # how a cell begins that a spreadsheet would compute
# Where a spreadsheet may begin a cell of its own: a line ends at `;` where the comma is the decimal sign, as in Russia.
_BREAK = re.compile(r"([;\t\r\n])")


@dataclass(frozen=True, slots=True)
class Query:
    """One request for a page of history."""

    feed: str
    after: int | None
    before: int | None
    limit: int | None
    filter: Filter


class Accounts:
    def __init__(self, gate: Gate, store: Store, hub: Hub, control: Control):
        self.gate, self.store, self.hub, self.control = gate, store, hub, control

    def _who(self, request: Request) -> Claims:
        token = tokens.bearer(request.headers.get("authorization"))
        try:
            return self.gate.verifier.verify(token, time.time())
        except Close as refusal:
            raise tokens.problem(refusal) from None

    def _readable(self, feed: str, claims: Claims) -> None:
        """Raises Problem 404: whether another account exists is nobody's business."""
        kind, _, key = feed.partition(":")
        if feed == f"account:{claims.account}":
            return
        if kind == "agency" and is_agency(key) and key in self.gate.agencies:
            return
        if feed in opsfeeds.TYPES and opsfeeds.SCOPE in claims.scopes:
            return
        raise Problem(404, "not-found", "Not found", "There is no such feed for this token.")

    # GET /v1/snapshot

    async def snapshot(self, request: Request) -> Response:
        """The current state made from the account's feed; it covers all that was committed when it was asked for."""
        claims = self._who(request)
        feed = f"account:{claims.account}"
        snapshot, after, head = Snapshot(), 0, None
        while head is None or after < head:
            (page,) = await self.store.read([Range(feed, after, MAX_LIMIT, 1_048_576)])
            head = page.head if head is None else head
            for row in page.rows:
                snapshot.add(row)
            if not page.rows:
                break
            after = page.rows[-1].offset
        offset = max(after, head)
        seen = await self.store.seen_offsets(feed)
        document = snapshot.document({feed: (self.store.epoch, offset)}, seen, time.time())
        return _json(document)

    # GET /v1/feeds/<feed>/events

    async def history(self, request: Request) -> Response:
        claims = self._who(request)
        feed = request.path_params["feed"]
        self._readable(feed, claims)
        query = read_query(feed, request, self.store.epoch)
        if "text/csv" in request.headers.get("accept", ""):
            headers = {"Content-Disposition": 'attachment; filename="events.csv"', "Cache-Control": "no-store"}
            lines = self._csv(query)
            # Before the status is sent: a store that is away must be a 503, not half a file.
            first = await anext(lines)
            return StreamingResponse(_after(first, lines), media_type="text/csv; charset=utf-8", headers=headers)
        page, further = await self._page(query, query.limit or LIMIT)
        document = b'{"feed":%b,"epoch":%b,"oldest":%d,"head":%d,"events":[%b],"next":%b}' % (
            orjson.dumps(feed),
            orjson.dumps(self.store.epoch),
            page.oldest,
            page.head,
            b",".join([b"[%d,%b]" % (row.offset, row.event or b"null") for row in page.rows]),
            orjson.dumps(page_token(self.store.epoch, query, further)),
        )
        return Response(document, media_type="application/json", headers={"Cache-Control": "no-store"})

    async def _page(self, query: Query, limit: int) -> tuple[Page, int | None]:
        return await self.store.history(
            query.feed, after=query.after, before=query.before, limit=limit, filter=query.filter
        )

    async def _csv(self, query: Query) -> AsyncIterator[bytes]:
        """All matching events, or as many as `limit` says, a page at a time; the columns' names with the first."""
        left, after, before = query.limit, query.after, query.before
        head = [CSV_COLUMNS]
        while left is None or left > 0:
            part = Query(query.feed, after, before, None, query.filter)
            page, further = await self._page(part, min(CSV_PAGE, left or CSV_PAGE))
            yield csv_lines(head + [csv_row(row) for row in page.rows])
            head = []
            if left is not None:
                left -= len(page.rows)
            if further is None:
                return
            after, before = (further, None) if query.after is not None else (None, further)

    # GET /v1/agencies

    async def agencies(self, request: Request) -> Response:
        """The agencies that may publish to everybody; who may send personal events only is none (contract, 7.3)."""
        self._who(request)
        public = {kind.name for kind in registry().values() if kind.audience == "public"}
        known = sorted(self.gate.agencies.items())
        codes = [code for code, agency in known if not agency.types or not public.isdisjoint(agency.types)]
        return _json([{"code": code, "feed": f"agency:{code}"} for code in codes])

    # Devices and sessions

    async def devices(self, request: Request) -> Response:
        claims = self._who(request)
        connected = self.hub.connected(claims.account) | await self.hub.roster.connected(claims.account)
        found = [
            {
                "device": device.device,
                "agent": device.agent,
                "created": format_time(device.created),
                "last_seen": format_time(device.last_seen),
                "connected": device.device in connected,
            }
            for device in await self.store.devices(claims.account)
        ]
        return _json(found)

    async def forget_device(self, request: Request) -> Response:
        claims = self._who(request)
        device = request.path_params["device"]
        known = await self.store.forget(claims.account, device)
        await self.control.sign_out(claims.account, device)
        if not known:
            raise Problem(404, "not-found", "Not found", "The account has no such device.")
        return Response(status_code=204)

    async def end_sessions(self, request: Request) -> Response:
        """Refuse every token issued so far, and close what they opened."""
        claims = self._who(request)
        # A provider whose clock is a little ahead dates its tokens later than now; this one was issued all the same.
        await self.store.revoke(Revocation("sub", claims.account, max(time.time(), claims.iat)))
        await self.control.look()
        await self.control.tell(k="look")
        return Response(status_code=204)


async def _after(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    yield first
    async for part in rest:
        yield part


def _json(document: Any) -> Response:
    return Response(orjson.dumps(document), media_type="application/json", headers={"Cache-Control": "no-store"})


# The query


def read_query(feed: str, request: Request, epoch: str) -> Query:
    """Raises Problem: 422 for wrong parameters, all at once; 410 for the `next` of another epoch."""
    given = request.query_params
    faults: list[dict[str, str]] = []

    def number(name: str, low: int, high: int) -> int | None:
        text = given.get(name)
        if text is None:
            return None
        if not (text.isascii() and text.isdigit() and len(text) <= 16 and low <= int(text) <= high):
            faults.append({"pointer": f"/{name}", "detail": f"must be a whole number from {low} to {high}"})
            return None
        return int(text)

    def moment(name: str) -> float | None:
        text = given.get(name)
        if text is None:
            return None
        try:
            return parse_moment(text.replace(" ", "+"))  # a `+` of a zone that nobody escaped
        except ValueError:
            faults.append({"pointer": f"/{name}", "detail": "must be a time or a date of RFC 3339"})
            return None

    def words(name: str) -> tuple[str, ...]:
        found = tuple(word for text in given.getlist(name) for word in text.split(",") if word)
        if len(found) > MAX_WORDS:
            faults.append({"pointer": f"/{name}", "detail": f"must be up to {MAX_WORDS} words"})
        return found

    after, before = number("after", 0, MAX_INTEGER), number("before", 0, MAX_INTEGER)
    limit = number("limit", 1, MAX_LIMIT)
    if after is not None and before is not None:
        faults.append({"pointer": "/before", "detail": "give after or before, not both"})
    wanted = Filter(words("type"), words("status"), moment("from"), moment("to"))
    if faults:
        raise Problem(422, "invalid", "Wrong parameters", errors=faults)
    if "page" in given:
        after, before = read_page_token(given["page"], feed, epoch)
    return Query(feed, after, before, limit, wanted)


def page_token(epoch: str, query: Query, further: int | None) -> str | None:
    """The opaque `next`; the filters are given again with it."""
    if further is None:
        return None
    way = "a" if query.after is not None else "b"
    return base64.urlsafe_b64encode(orjson.dumps([query.feed, epoch, way, further])).decode().rstrip("=")


def read_page_token(text: str, feed: str, epoch: str) -> tuple[int | None, int | None]:
    wrong = Problem(
        422, "invalid", "Wrong parameters", errors=[{"pointer": "/page", "detail": "is no `next` of this feed"}]
    )
    try:
        its_feed, its_epoch, way, further = orjson.loads(base64.urlsafe_b64decode(text + "=" * (-len(text) % 4)))
    except (ValueError, TypeError):
        raise wrong from None
    if its_feed != feed or way not in ("a", "b") or type(further) is not int or not 0 <= further <= MAX_INTEGER:
        raise wrong
    if its_epoch != epoch:
        raise Problem(410, "gone", "Another epoch", "The feed was restored since this page: begin again.")
    return (further, None) if way == "a" else (None, further)


# CSV


def csv_lines(rows: list[tuple[str, ...]]) -> bytes:
    out = io.StringIO()
    csv.writer(out).writerows(rows)  # RFC 4180, CRLF
    return out.getvalue().encode()


def csv_row(row: Row) -> tuple[str, ...]:
    event: dict[str, Any] = orjson.loads(row.event) if row.event is not None else {}
    data = event.get("data") if isinstance(event.get("data"), dict) else {}
    assert isinstance(data, dict)
    cells = (
        row.offset,
        event.get("time"),
        event.get("recordedtime"),
        str(event.get("source", "")).removeprefix("/agencies/"),
        event.get("type"),
        event.get("id"),
        event.get("subject"),
        data.get("status"),
        data.get("title"),
        data.get("text"),
        orjson.dumps(data).decode().replace(";", r"\u003b") if data else None,  # the same JSON, and nothing to split at
    )
    return tuple(harmless("" if cell is None else str(cell)) for cell in cells)


def harmless(cell: str) -> str:
    """A cell that no spreadsheet takes for a formula, nor any part of it (OWASP, CSV injection)."""
    if _BREAK.search(cell) is None:
        return f"'{cell}" if cell.lstrip().startswith(_FORMULA) else cell
    cell = "".join([f"'{part}" if part.lstrip().startswith(_FORMULA) else part for part in _BREAK.split(cell)])
    return f"'{cell}" if cell.startswith(("\t", "\r", "\n")) else cell

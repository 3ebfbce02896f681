"""Intake: from an agency's signed POST to the answer. Contract, section 2.

The signature is checked before the body is parsed, everything is checked before anything is stored, and 202 is said
only when the commit is on disk. Requests that come together are committed together (`Batcher`): one fsync for all.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Sequence
from email.message import Message
from typing import Any

import orjson
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from gateway import events, strict, verify
from gateway.batcher import Batcher
from gateway.errors import Problem, StoreUnavailable
from gateway.limits import Buckets
from gateway.metrics import Counts, Sender
from gateway.publisher import Publisher
from gateway.rejects import Rejects
from gateway.rfc3339 import format_time
from gateway.settings import Settings
from gateway.store.base import Agency, Conflict, Draft, Original, Outcome, Receipt, Stale, Store, Stored

BODY_DEADLINE_S = 30.0  # a request that comes slower is dropped: it holds up to 1 MiB
READING_BYTES = 64 << 20  # of bodies still on their way, whose signature nobody could check yet; more drops the slowest
WAITING_BYTES = 64 << 20  # of bodies whose events wait for a commit: memory while the disk is slow; more is 503
INLINE_BYTES = 65_536  # a longer body is read on a thread: a full batch takes 40 ms, one made to hurt over a second
MAX_RECEIPTS = 100  # ids of one request: bounds one trip to the store
READERS = 2  # such threads at once, one an agency: they share the interpreter with the loop
SLICE = 50  # events put into words before the loop gets its turn


class Intake:
    """The agencies' side of the gateway. One for a process."""

    def __init__(
        self,
        settings: Settings,
        store: Store,
        publisher: Publisher,
        counts: Counts,
        agencies: dict[str, Agency],
        rejects: Rejects,
    ):
        self.settings, self.store, self.publisher, self.counts = settings, store, publisher, counts
        self.agencies, self.rejects = agencies, rejects
        self.commits: Batcher[Draft, Outcome] = Batcher(
            self._commit, max_items=settings.group_events, delay_s=settings.group_wait_s
        )
        self.quotas = Buckets(settings.agency_rate, settings.agency_burst)
        self.waiting_bytes = 0
        self.bodies = Bodies()
        self.senders: dict[str, Sender] = {}  # by agency, from its first request on
        self._readers = asyncio.Semaphore(READERS)
        self._reading: dict[str, asyncio.Lock] = {}  # by agency: who sends what takes long waits for itself

    async def close(self) -> None:
        """Let the commits under way finish."""
        await self.commits.close()

    async def _commit(self, drafts: list[Draft]) -> list[Outcome]:
        """One group: commit, then publish at once, then let the senders be answered."""
        begun = time.perf_counter()
        try:
            outcomes = await self.store.append(drafts, time.time())
        except StoreUnavailable:
            self.counts.append_failures += 1
            raise
        self.counts.append.observe(time.perf_counter() - begun)
        self.counts.group.observe(len(drafts))
        fresh = [outcome for outcome in outcomes if isinstance(outcome, Stored) and not outcome.duplicate]
        if fresh:
            self.publisher.put(fresh)
        return outcomes

    # POST /v1/agencies/<code>/events

    async def post_events(self, request: Request) -> Response:
        code, size, signed = request.path_params["code"], declared(request), False
        try:
            body = await self.bodies.read(request)
            begun, size = time.perf_counter(), len(body)
            agency, original = self._signed(request, body)
            signed = True
            response = await self._post_events(request, body, agency, original)
        except Problem as problem:
            self.counts.requests[problem.status] += 1
            self._refused(code, problem, size, signed=signed)
            raise
        except StoreUnavailable:
            self.counts.requests[503] += 1
            raise
        self.counts.intake.observe(time.perf_counter() - begun)
        self.counts.requests[response.status_code] += 1
        return response

    async def _post_events(self, request: Request, body: bytes, agency: Agency, original: Original) -> Response:
        media = media_of(request)
        parsed = await self._parse(body, media, agency, original)
        self._grant(agency.code, len(parsed))
        drafts = [item.draft for item in parsed if not isinstance(item, Problem)]
        outcomes = await self._append(drafts, len(body))
        return await self._answer(agency.code, parsed, outcomes, size=len(body), single=media == "event")

    def _signed(self, request: Request, body: bytes) -> tuple[Agency, Original]:
        """ "`<code>` alone selects the keys … and it is checked before the body is parsed"."""
        now = time.time()
        agency = self.agencies.get(request.path_params["code"])
        key, signature, webhook_id, timestamp = verify.verify(
            request.headers.raw, body, agency.keys if agency is not None else (), now
        )
        assert agency is not None
        return agency, Original(agency.code, key.id, webhook_id, timestamp, signature, body, now)

    async def _parse(
        self, body: bytes, media: events.Media, agency: Agency, original: Original
    ) -> list[events.Parsed | Problem]:
        if len(body) <= INLINE_BYTES:
            return events.parse(body, media, agency, original=original)
        async with self._reading.setdefault(agency.code, asyncio.Lock()), self._readers:
            return await asyncio.to_thread(events.parse, body, media, agency, original=original)

    def _grant(self, code: str, count: int) -> None:
        wait = self.quotas.take(code, time.monotonic(), count)
        if wait > 0:
            detail = f"More than {self.settings.agency_rate:g} events a second. Nothing of this request was stored."
            headers = {"Retry-After": str(max(1, round(wait + 0.5)))}
            raise Problem(429, "quota", "Over the agency's quota", detail, headers=headers)

    async def _append(self, drafts: list[Draft], size: int) -> list[Outcome]:
        """Commit the events of a body of `size` bytes."""
        if not drafts:
            return []
        if self.waiting_bytes + size > WAITING_BYTES:
            raise StoreUnavailable("too many events wait for the disk")
        self.waiting_bytes += size
        commit = asyncio.ensure_future(self.commits.many(drafts))
        commit.add_done_callback(lambda _: self._committed(size))
        # Shielded: a sender that hangs up does not take back what others wait for in the same commit.
        return await asyncio.shield(commit)

    def _committed(self, size: int) -> None:
        self.waiting_bytes -= size

    async def _answer(
        self, code: str, parsed: Sequence[events.Parsed | Problem], outcomes: list[Outcome], *, size: int, single: bool
    ) -> Response:
        results: list[dict[str, Any]] = []
        left, sender = iter(outcomes), self.sender(code)
        for index, item in enumerate(parsed):
            problem = item if isinstance(item, Problem) else None
            if not isinstance(item, Problem):
                outcome = next(left)
                if isinstance(outcome, Stored):
                    self.counts.events["duplicate" if outcome.duplicate else "stored"] += 1
                    if not outcome.duplicate:
                        sender.took(outcome.row.recorded, item.draft.time)
                    results.append(_accepted(item.id, outcome))
                else:
                    problem = _rejected(item, outcome)
            if problem is not None:
                if single:
                    raise problem
                self._refused(code, problem, size, signed=True)
                results.append(problem.document())
            if index % SLICE == SLICE - 1:
                await asyncio.sleep(0)
        self.counts.agency_events[code], self.counts.agency_late[code] = sender.accepted, sender.late
        status = 202 if all(result["status"] == 202 for result in results) else 207
        return Response(orjson.dumps({"results": results}), status, media_type="application/json")

    def _refused(self, code: str, problem: Problem, size: int, *, signed: bool) -> None:
        """An event, or a whole request. `code` is what the address says: anybody's word until it was `signed`."""
        self.rejects.put(code, problem, size, signed=signed)
        self.counts.events[problem.word] += 1
        if code in self.agencies:
            self.counts.agency_rejects[code] += 1
            self.sender(code).rejected[problem.word] += 1

    def sender(self, code: str) -> Sender:
        """The counts of an agency that is known."""
        found = self.senders.get(code)
        if found is None:
            found = self.senders[code] = Sender()
        return found

    # POST /v1/agencies/<code>/receipts

    async def post_receipts(self, request: Request) -> Response:
        """What became of the agency's personal events: for the account as a whole, nothing about devices."""
        body = await self.bodies.read(request)
        agency, _ = self._signed(request, body)
        ids = receipt_ids(body)
        source = events.source_of(agency.code)
        receipts = await self.store.receipts([events.key_of(source, id) for id in ids])
        found = [_receipt(id, receipt) for id, receipt in zip(ids, receipts, strict=True)]
        return Response(orjson.dumps({"results": found}), media_type="application/json")


class Bodies:
    """Reads the bodies of requests, and bounds what all of them hold while anybody may have sent them."""

    def __init__(self) -> None:
        self.bytes = 0
        self._sizes: dict[asyncio.Timeout, int] = {}  # in the order in which they began

    async def read(self, request: Request) -> bytes:
        """The whole body, at most 1 MiB of it, in time; and when more than READING_BYTES are on their way, the one that
        has been coming longest goes: a true sender's is there in a moment. Raises Problem 413 or 408."""
        limit = events.MAX_BODY_BYTES
        too_large = Problem(413, "too-large", "Request too large", f"A request has at most {limit} bytes.")
        if declared(request) > limit:
            raise too_large
        body = bytearray()
        timeout = asyncio.timeout(BODY_DEADLINE_S)
        try:
            async with timeout:
                async for part in request.stream():
                    body += part
                    if len(body) > limit:
                        raise too_large
                    self._hold(timeout, len(part))
        except TimeoutError:
            detail = f"The body did not come within {BODY_DEADLINE_S:g} s, or others needed the room."
            raise Problem(408, "timeout", "Too slow", detail, headers={"Connection": "close"}) from None
        except ClientDisconnect:
            raise Problem(400, "malformed", "Incomplete request", "The connection ended before the body did.") from None
        finally:
            self.bytes -= self._sizes.pop(timeout, 0)
        return bytes(body)

    def _hold(self, timeout: asyncio.Timeout, size: int) -> None:
        self._sizes[timeout] = self._sizes.get(timeout, 0) + size
        self.bytes += size
        if self.bytes > READING_BYTES:
            slowest = next(iter(self._sizes))
            if not slowest.expired():
                slowest.reschedule(0.0)


def declared(request: Request) -> int:
    """How many bytes the request says to have; 0 when it does not say."""
    length = request.headers.get("content-length", "")
    return min(int(length[:17]), strict.MAX_INTEGER) if length.isascii() and length.isdigit() else 0


def media_of(request: Request) -> events.Media:
    """Structured or batched CloudEvents. Raises Problem 415."""
    header = Message()
    header["content-type"] = request.headers.get("content-type", "")
    given = header.get_content_type() if "content-type" in request.headers else ""
    media = events.MEDIA_TYPES.get(given)
    charset = header.get_param("charset", "utf-8")
    if media is not None and isinstance(charset, str) and charset.lower() in ("utf-8", "utf8"):
        return media
    wanted = " or ".join(events.MEDIA_TYPES)
    detail = f"Send {wanted}, in UTF-8."
    if any(name.startswith(b"ce-") for name, _ in request.headers.raw):
        detail = f"Binary mode puts attributes into headers, which the signature does not cover. {detail}"
    raise Problem(415, "media-type", "Unknown media type", detail)


def receipt_ids(body: bytes) -> list[str]:
    """The ids of `{"ids": […]}`, up to 100 of them. Raises Problem 400 or 422."""
    document = strict.read(body)
    faults = strict.faults(document)
    if faults and faults[0].rule != "range":
        raise strict.malformed("see `errors`", faults)
    ids = document.get("ids") if isinstance(document, dict) else None
    errors = [{"pointer": fault.pointer, "detail": strict.DETAILS[fault.rule]} for fault in faults]
    if not isinstance(ids, list) or len(ids) > MAX_RECEIPTS:
        errors.append({"pointer": "/ids", "detail": f"must be a list of up to {MAX_RECEIPTS} ids"})
    else:
        errors += [
            {"pointer": f"/ids/{index}", "detail": "must be a string, not empty"}
            for index, id in enumerate(ids)
            if not (id and isinstance(id, str))
        ]
    if errors:
        raise Problem(422, "invalid", "Invalid request", "see `errors`", errors=errors[: strict.MAX_FAULTS])
    assert isinstance(ids, list)
    return ids


def _accepted(id: str, outcome: Stored) -> dict[str, Any]:
    return {
        "status": 202,
        "id": id,
        "feed": outcome.feed,
        "epoch": outcome.epoch,
        "offset": outcome.offset,
        "duplicate": outcome.duplicate,
    }


def _rejected(item: events.Parsed, outcome: Conflict | Stale) -> Problem:
    if isinstance(outcome, Conflict):
        word, title, detail = "conflict", "Other content", "An event with this id and other content is stored."
    else:
        word, title, detail = "stale", "Out of date", f"A higher sequence of this thing is stored: {outcome.highest}."
    problem = Problem(409, word, title, detail, extra={"id": item.id})
    problem.about = item.id, item.draft.type
    return problem


def _receipt(id: str, receipt: Receipt | None) -> dict[str, Any]:
    """An unknown id, and one of a public notice, are the same to the sender: there is no receipt."""
    if receipt is None:
        return {"id": id, "status": "unknown"}
    times = {"delivered": receipt.delivered, "seen": receipt.seen}
    return {"id": id, "status": receipt.status} | {
        name: format_time(at) for name, at in times.items() if at is not None
    }

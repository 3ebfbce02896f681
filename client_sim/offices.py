"""The agencies of a run: they send on a seeded schedule, in order, until each event is answered, and note every try.

An agency has one post on its way at a time, so that what it says of one thing arrives in the order in which it
happened; what happens meanwhile goes with the next post, up to a hundred events in it. No event is given up while `run`
and `finish` go on: an outcome that is unknown is asked for again, with the same ids.
"""

import asyncio
import itertools
import json
import time
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any

import httpx

from client_sim.agencies import AGENCIES, BY_CODE, Agency, Desk, Event, Publisher, rfc3339
from client_sim.arrivals import Arrival, Pattern
from client_sim.journal import Note, post
from client_sim.measure import Tally
from gateway.protocol.backoff import full_jitter

BATCH = 100  # events of one post; the contract allows 1,000
TWICE = 0.01  # share of the posts that are sent a second time, as after a lost answer: recognised by their ids
MOST_WAITING = 50_000  # events of one agency; then it stops working until the gateway takes some
PUBLIC_WEIGHT = 0.1  # how often an agency of public notices sends, against the others
PATIENCE_S = 10.0  # longest pause between two tries


class WrongFile(ValueError):
    """A file of events cannot be used. One sentence."""


class Offices:
    """The agencies with these secrets, and the accounts that they know.

    `heads` are the offsets that were answered 202, by feed: what every device must have in the end.
    """

    def __init__(
        self,
        address: str,
        secrets: Mapping[str, str],
        accounts: Sequence[str],
        http: httpx.AsyncClient,
        note: Note,
        tally: Tally,
        seed: int,
    ):
        self.accounts, self.tally = list(accounts), tally
        self.heads: dict[str, int] = {}
        self.refusals: dict[int, str] = {}  # status → why, of the first one
        self.rng = Random(f"{seed}/offices")
        self.offices = {
            code: _Office(
                Desk(BY_CODE.get(code, Agency(code, code, AGENCIES[0].acts)), self.accounts, Random(f"{seed}/{code}")),
                Publisher(address, code, secret, http, Random(f"{seed}/{code}/posts"), tries=1),
                self,
                note,
            )
            for code, secret in secrets.items()
        }
        # One public notice reaches thousands of devices: they are rare, here as in life.
        self._weights = [PUBLIC_WEIGHT if code == "mchs" else 1.0 for code in self.offices]
        self._wave = itertools.cycle(self.accounts)

    @property
    def waiting(self) -> int:
        """Events that are not answered yet."""
        return sum(len(office.queue) + office.posting for office in self.offices.values())

    async def run(self, pattern: Pattern, rate: float, seconds: float) -> None:
        """Send as `pattern` says, `rate` events a second on average, for so long; then return, with what was not
        answered yet still waiting. Cancelling loses nothing that was noted."""
        arrivals = pattern.arrivals(self.rng, rate, seconds) if rate else iter(())
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(office.work()) for office in self.offices.values()]
            began = time.monotonic()
            for arrival in arrivals:
                await asyncio.sleep(max(0.0, began + arrival.at - time.monotonic()))
                self._happen(pattern, arrival)
            await asyncio.sleep(max(0.0, began + seconds - time.monotonic()))
            for worker in workers:
                worker.cancel()

    async def send(self, events: Iterable[tuple[str, Event]], rate: float) -> None:
        """Send events of somebody else, (agency, event), `rate` a second, and wait for their answers."""
        async with asyncio.TaskGroup() as group:
            workers = [group.create_task(office.work()) for office in self.offices.values()]
            for code, event in events:
                while len(self.offices[code].queue) >= MOST_WAITING:  # noqa: ASYNC110 - several agencies, one look
                    await asyncio.sleep(0.01)
                self.offices[code].happen([event])
                await asyncio.sleep(1 / rate if rate else 0)
            while self.waiting:  # noqa: ASYNC110 - the same
                await asyncio.sleep(0.01)
            for worker in workers:
                worker.cancel()

    async def finish(self, patience_s: float) -> bool:
        """Try until everything is answered; false when that took too long."""
        workers = [asyncio.create_task(office.work()) for office in self.offices.values()]
        try:
            async with asyncio.timeout(patience_s):
                while self.waiting:  # noqa: ASYNC110 - the same
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return True

    def restored(self) -> None:
        """The store was brought back from a backup: what must be there in the end is what is accepted from now on."""
        self.heads.clear()

    def close(self, code: str, closed: bool) -> None:
        """An agency whose network is out: what happens there waits, and comes at once when it is back."""
        if code in self.offices:
            self.offices[code].closed = closed

    def _happen(self, pattern: Pattern, arrival: Arrival) -> None:
        office = self.offices.get(pattern.agency or "")
        now = time.time()
        if arrival.wave and pattern.act is not None and office is not None:
            accounts = itertools.islice(self._wave, arrival.events)
            return office.happen([pattern.act(office.desk, now, account) for account in accounts])
        office = self.rng.choices(list(self.offices.values()), self._weights)[0]
        return office.happen([office.desk.next(now) for _ in range(arrival.events)])


class _Office:
    """One agency at work."""

    def __init__(self, desk: Desk, publisher: Publisher, offices: Offices, note: Note):
        self.desk, self.publisher, self.offices, self.note = desk, publisher, offices, note
        self.queue: deque[Event] = deque()
        self.posting = 0
        self.closed = False
        self._some = asyncio.Event()
        self._unanswered: list[Event] = []

    def happen(self, events: Sequence[Event]) -> None:
        if len(self.queue) < MOST_WAITING:
            self.queue.extend(events)
            self._some.set()
        else:
            self.offices.tally.counts["never_happened"] += len(events)

    async def work(self) -> None:
        """Post what happens until cancelled."""
        while True:
            while not (self.queue or self._unanswered) or self.closed:
                self._some.clear()
                if self.closed:
                    await asyncio.sleep(0.05)
                else:
                    await self._some.wait()
            if not self._unanswered:
                self._unanswered = [self.queue.popleft() for _ in range(min(BATCH, len(self.queue)))]
                self.posting = len(self._unanswered)
            await self._settle(self._unanswered)
            if self.offices.rng.random() < TWICE:
                await self._settle(self._unanswered)
            self._unanswered, self.posting = [], 0

    async def _settle(self, events: Sequence[Event]) -> None:
        """Post until every outcome is known."""
        tally = self.offices.tally
        pauses = full_jitter(self.publisher.rng, 0.2, PATIENCE_S)
        while True:
            began = time.monotonic()
            answers: list[dict[str, Any]] = []

            def note(record: dict[str, Any], answers: list[dict[str, Any]] = answers) -> None:
                self.note(record)
                if record["t"] == "answer":
                    answers.append(record)

            known = await post(self.publisher, events, note)
            self._count(events, answers, time.monotonic() - began)
            # 401 may be a clock that jumped, or an agency that is known within 2 s; 429 asks for patience.
            if known and not any(answer["status"] in (401, 429) for answer in answers):
                return
            tally.counts["unanswered"] += 1
            await asyncio.sleep(next(pauses))

    def _count(self, events: Sequence[Event], answers: Sequence[dict[str, Any]], took_s: float) -> None:
        tally, heads = self.offices.tally, self.offices.heads
        for event, answer in zip(events, answers, strict=False):
            if answer["status"] != 202:
                tally.counts[f"answered_{answer['status']}"] += 1
                self.offices.refusals.setdefault(answer["status"], answer.get("detail", ""))
                continue
            feed = answer.get("feed") or _feed(self.publisher.code, event)
            heads[feed] = max(heads.get(feed, 0), answer["offset"])
            tally.counts["duplicates" if answer.get("duplicate") else "published"] += 1
        if answers and answers[0]["status"] == 202:
            tally.answer.add(took_s)


def _feed(code: str, event: Event) -> str:
    return f"account:{event['account']}" if "account" in event else f"agency:{code}"


# Events of somebody else


def read_events(path: Path, codes: Sequence[str], now: float, rng: Random) -> Iterator[tuple[str, Event]]:
    """(agency, event) of each line of a file, JSON objects. A line needs a `type` and `data`; what it does not say of
    `specversion`, `id`, `source` (the first of `codes`) and `time` is filled in, because here the sender is us.

    Raises WrongFile at the first line that cannot be used.
    """
    try:
        lines = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as error:
        raise WrongFile(f"The events in {path} cannot be read: {error}.") from None
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            event = json.loads(line)
        except ValueError as error:
            raise WrongFile(f"Line {number} of {path} is no JSON: {error}.") from None
        if not isinstance(event, dict) or not isinstance(event.get("type"), str) or "data" not in event:
            raise WrongFile(f"Line {number} of {path} must be an object with `type` and `data`.")
        made = {
            "specversion": "1.0",
            "id": f"{rng.getrandbits(128):032x}",
            "source": f"/agencies/{codes[0]}",
            "time": rfc3339(now),
            **event,
        }
        code = str(made["source"]).removeprefix("/agencies/")
        if code not in codes:
            raise WrongFile(
                f"Line {number} of {path} is of {made['source']}, and there are secrets for {', '.join(codes)}."
            )
        yield code, made

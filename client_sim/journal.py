"""Journals: what agencies and devices saw with their own eyes, one JSON object a line. `ledger` judges them.

Every line has `t`, what happened, and `at`, when (Unix seconds). Events are named by `source` and `id`; `digest` is the
`digest()` of their content. Lines of an agency:

    post     feed source id subject sequence digest    about to be sent; each attempt again
    answer   source id digest status [epoch offset duplicate | detail]    no line: no answer, the outcome is unknown

Lines of a device, each with `device`, `<account>/<device>`; most are messages of the contract, section 3, as they are:

    hello (without `token`), welcome, subscribe, subscribed, unsubscribed, resync, ack, beat
    event    feed epoch offset source id digest    as it came, repeats included; erased: the last three are null
    keep     feed epoch first offset events        passed the device's own deduplication: `events` up to `offset`
    snapshot feed epoch offset                     kept in place of the account's state
    lost     code                                  the connection ended
    away     why                                   the device does not come back: nothing is owed to it

A dump of the store, for each feed first `feed`, then its rows in the order of their offsets:

    feed     feed epoch oldest head
    row      feed epoch offset source id digest erased    erased: the three are null
"""

import contextlib
import hashlib
import json
import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import asyncpg

from client_sim.agencies import Event, Publisher, Unsent
from client_sim.client import Keeper, Message, Numbered, Position

Record = dict[str, Any]
Note = Callable[[Record], None]

_HEARD = frozenset(("welcome", "subscribed", "unsubscribed", "resync", "beat"))
_SAID = frozenset(("hello", "subscribe", "ack"))


class Unreadable(Exception):
    """A store cannot be dumped. One sentence."""


def digest(event: Mapping[str, Any]) -> str:
    """SHA-256 of the content that the agency sent: without `recordedtime`, the same for equal JSON values."""
    sent = {name: value for name, value in event.items() if name != "recordedtime"}
    text = json.dumps(sent, ensure_ascii=False, separators=(",", ":"), sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


class Journal:
    """Appends lines to a file. What was noted before a crash of this process is on disk but for the last buffer."""

    def __init__(self, file: BinaryIO, clock: Callable[[], float] = time.time):
        self._file, self._clock = file, clock

    def note(self, record: Record) -> None:
        line = {"t": record["t"], "at": round(self._clock(), 3), **record}
        self._file.write(json.dumps(line, ensure_ascii=False, separators=(",", ":")).encode() + b"\n")


def read(path: Path) -> Iterator[Record]:
    """The lines of a journal. A last line that was cut short is left out; another that is no JSON raises ValueError."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                yield json.loads(line)
            except ValueError:
                if line.endswith(b"\n"):
                    raise ValueError(f"{path}, line {number}: no JSON") from None


# Agencies


async def post(publisher: Publisher, events: Sequence[Event], note: Note) -> bool:
    """Send the events of one request, once for each of the publisher's `tries`; true when all outcomes are known.

    Give the publisher one try, so that each attempt has its line; send again, with the same ids, what is unknown."""
    digests = [digest(event) for event in events]
    for event, content in zip(events, digests, strict=True):
        feed = f"account:{event['account']}" if "account" in event else f"agency:{publisher.code}"
        names = {name: event.get(name) for name in ("source", "id", "subject", "sequence")}
        note({"t": "post", "feed": feed, **names, "digest": content})
    try:
        results = await publisher.send(events)
    except Unsent as unsent:
        if unsent.status is None:
            return False
        results = [{**unsent.problem, "status": unsent.status}] * len(events)
    for event, content, result in zip(events, digests, results, strict=True):
        where: Record = {name: result[name] for name in ("feed", "epoch", "offset", "duplicate") if name in result}
        about = {"source": event["source"], "id": event["id"], "digest": content}
        note({"t": "answer", **about, "status": result["status"], **where, **_why(result)})
    return all(result["status"] < 500 for result in results)


def _why(result: Mapping[str, Any]) -> Record:
    """What the problem document says was wrong, the first fault of it."""
    if result["status"] == 202:
        return {}
    for error in result.get("errors") or ():
        return {"detail": f"{error['pointer']}: {error['detail']}"}
    return {"detail": result["detail"]} if result.get("detail") else {}


# Devices


class Diary:
    """Notes the life of one device. Give `Client` it as `keeper`, `tap` and `observe`; it keeps by another Keeper."""

    def __init__(self, account: str, device: str, keeper: Keeper, note: Note):
        self.keeper, self._note, self._device = keeper, note, f"{account}/{device}"
        self._epochs: dict[str, str] = {}
        self._kept: Record | None = None  # a run of kept events, not noted yet

    def note(self, t: str, **fields: Any) -> None:
        self.flush()
        self._note({"t": t, **fields, "device": self._device})

    def flush(self) -> None:
        kept, self._kept = self._kept, None
        if kept is not None:
            self._note(kept)

    # As a Keeper

    def positions(self) -> Mapping[str, Position]:
        return self.keeper.positions()

    def keep(self, feed: str, position: Position, events: Sequence[Numbered]) -> None:
        self.keeper.keep(feed, position, events)
        first = events[0][0] if events else position.offset
        kept = self._kept
        if (
            kept
            and kept["events"]
            and events
            and (kept["feed"], kept["epoch"], kept["offset"] + 1) == (feed, position.epoch, first)
        ):
            kept["offset"] = position.offset
            kept["events"] += len(events)
            return
        self.flush()
        run = {"first": first, "offset": position.offset, "events": len(events)}
        self._kept = {"t": "keep", "device": self._device, "feed": feed, "epoch": position.epoch, **run}

    def replace(self, feed: str, position: Position, snapshot: Message) -> None:
        self.keeper.replace(feed, position, snapshot)
        self.note("snapshot", feed=feed, epoch=position.epoch, offset=position.offset)

    def knows(self, source: str, id: str) -> bool:
        return self.keeper.knows(source, id)

    def forget(self, feed: str) -> None:
        self.flush()
        self.keeper.forget(feed)

    # As `tap` and `observe` of a Client

    def tap(self, way: str, message: Message) -> None:
        t = message["t"]
        if way == "<" and t == "event":
            self._came(message["feed"], [(message["offset"], message["event"])])
        elif way == "<" and t == "batch":
            self._came(message["feed"], message["events"])
        elif t in (_HEARD if way == "<" else _SAID):
            for item in message["feeds"] if t == "welcome" else [message]:
                if "epoch" in item:
                    self._epochs[item["feed"]] = item["epoch"]
            self.note(t, **{name: value for name, value in message.items() if name not in ("t", "token", "device")})

    def observe(self, t: str, message: Message) -> None:
        if t == "lost":
            self.note("lost", code=message["code"])

    def _came(self, feed: str, events: Iterable[Sequence[Any]]) -> None:
        for offset, event in events:
            content = digest(event) if event is not None else None
            source, id = (event["source"], event["id"]) if event is not None else (None, None)
            where = {"feed": feed, "epoch": self._epochs.get(feed), "offset": offset}
            # Not `self.note`: the run of kept events may go on.
            self._note({"t": "event", "device": self._device, **where, "source": source, "id": id, "digest": content})


# The store


def dump(path: Path) -> Iterator[Record]:
    """What lies in an SQLite store, read without any of its code. The gateway may be running. Raises Unreadable."""
    try:
        yield from _dump(path)
    except sqlite3.Error as error:
        raise Unreadable(f"The store in {path} cannot be read: {error}.") from None


def _dump(path: Path) -> Iterator[Record]:
    with contextlib.closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro", uri=True)) as conn:
        conn.execute("BEGIN")
        epoch = conn.execute("SELECT epoch FROM meta").fetchone()[0]
        for key, feed, floor in conn.execute("SELECT id, name, floor FROM feeds").fetchall():
            last = conn.execute("SELECT max(offset) FROM events WHERE feed = ?", (key,)).fetchone()[0]
            head = floor if last is None else last
            yield {"t": "feed", "feed": feed, "epoch": epoch, "oldest": floor + 1, "head": head}
            rows = conn.execute("SELECT offset, event FROM events WHERE feed = ? ORDER BY offset", (key,))
            for offset, text in rows:
                yield _row(feed, epoch, offset, text)


async def dump_postgresql(url: str, file: Path) -> None:
    """The same of a PostgreSQL store, as one transaction sees it, into `file`, to be `read`. Raises Unreadable."""
    try:
        await _dump_postgresql(url, file)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise Unreadable(f"The store on PostgreSQL cannot be read: {error}.") from None


async def _dump_postgresql(url: str, file: Path) -> None:
    connection = await asyncpg.connect(url)
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            epoch = await connection.fetchval("SELECT epoch FROM vestnik.meta")
            feeds = await connection.fetch("SELECT id, name, oldest, head FROM vestnik.feeds")
            with file.open("wb") as out:
                for key, feed, oldest, head in feeds:
                    lines = [{"t": "feed", "feed": feed, "epoch": epoch, "oldest": oldest, "head": head}]
                    query = 'SELECT "offset", event FROM vestnik.events WHERE feed = $1 ORDER BY "offset"'
                    for offset, text in await connection.fetch(query, key):
                        lines.append(_row(feed, epoch, offset, text))
                    out.writelines(json.dumps(line, ensure_ascii=False).encode() + b"\n" for line in lines)
    finally:
        await connection.close()


def _row(feed: str, epoch: str, offset: int, text: str | bytes | None) -> Record:
    event = json.loads(text) if text is not None else None
    names = {"source": event["source"], "id": event["id"], "digest": digest(event)} if event else {}
    about = {"source": None, "id": None, "digest": None, **names}
    return {"t": "row", "feed": feed, "epoch": epoch, "offset": offset, **about, "erased": event is None}

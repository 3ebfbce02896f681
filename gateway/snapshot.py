"""The current state of an account, folded from its feed: the body of `GET /v1/snapshot` (contract, section 4). Pure.

It holds exactly what a device would show that had applied every event of the feed: for each application and record the
latest event alone decides, a lower `sequence` never over a higher one, and an erased event counts as never sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson

from gateway.events import source_of
from gateway.rfc3339 import format_time, is_date, is_time, parse_moment, parse_time
from gateway.store.base import Row
from gateway.types import EventType, registry

_AGENCIES = source_of("")
_DAY_S = 86_400

Thing = tuple[str | int | None, ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    """One event, as far as the snapshot needs it."""

    offset: int
    recorded: float
    event: dict[str, Any]

    def outranks(self, earlier: "_Entry") -> bool:
        """May it be shown in place of an event with a lower offset? Sequences compare within one subject only."""
        mine, theirs = self.event, earlier.event
        if mine.get("subject") != theirs.get("subject"):
            return True
        if mine.get("sequence") is None or theirs.get("sequence") is None:
            return True
        return int(mine["sequence"]) >= int(theirs["sequence"])


@dataclass(slots=True)
class Snapshot:
    """Takes the rows of one account's feed in offset order, then makes the document. Memory grows with the feed kept.

    A reader that pages while an event is being erased is right too: `gov.erased` takes back what earlier pages brought.
    """

    types: Mapping[str, EventType] = field(default_factory=registry)
    _entries: dict[int, tuple[Thing, _Entry]] = field(default_factory=dict)

    def add(self, row: Row) -> None:
        """One more row. Offsets must rise; an erased row (`event` None) is nothing."""
        if row.event is None:
            return
        event = orjson.loads(row.event)
        if event["type"] == "gov.erased":
            self._erase(event["data"]["ranges"])
            return
        self._entries[row.offset] = _thing(event, row.offset), _Entry(row.offset, row.recorded, event)

    def document(self, positions: Mapping[str, tuple[str, int]], seen: set[int], now: float) -> dict[str, Any]:
        """The body of the answer.

        `positions` are (epoch, offset) by feed, the account's own never above the last row added: a device drops what
        lies at or below it. `seen` are the offsets that the person was shown; `now` (Unix seconds) ends notices.
        """
        applications, records, notices = [], [], []
        for thing, entry in self._current():
            if thing[0] == "application":
                applications.append(_application(entry, seen))
            elif thing[0] == "record":
                if entry.event["data"]["change"] != "removed":
                    records.append(_record(entry, seen))
            elif not _expired(entry.event, now):
                notices.append(self._notice(entry, seen))
        return {
            "positions": {feed: {"epoch": epoch, "offset": offset} for feed, (epoch, offset) in positions.items()},
            "applications": applications,
            "records": records,
            "notices": notices,
            "agencies": self._agencies(),
        }

    def _erase(self, ranges: list[list[int]]) -> None:
        for offset in [offset for offset in self._entries if any(low <= offset <= high for low, high in ranges)]:
            del self._entries[offset]

    def _current(self) -> list[tuple[Thing, _Entry]]:
        """The entry that decides for each thing, by offset."""
        current: dict[Thing, _Entry] = {}
        for thing, entry in self._entries.values():
            if thing not in current or entry.outranks(current[thing]):
                current[thing] = entry
        return sorted(current.items(), key=lambda item: item[1].offset)

    def _notice(self, entry: _Entry, seen: set[int]) -> dict[str, Any]:
        event = entry.event
        data = event["data"]
        kind = self.types.get(event["type"])
        title = data.get("title") or (kind.titles["ru"] if kind else event["type"])
        shown = {"title": title, "text": data.get("text"), "url": data.get("url"), "until": data.get("until")}
        more = {name: value for name, value in data.items() if name not in shown}
        return _item(entry, seen, shown | {"expirytime": event.get("expirytime"), "data": more or None})

    def _agencies(self) -> list[dict[str, Any]]:
        updated: dict[str, float] = {}
        for _, entry in self._entries.values():
            code = _agency(entry.event)
            updated[code] = max(entry.recorded, updated.get(code, 0.0))
        # `next` is the next planned update; none is planned for what agencies send when it happens.
        return [{"code": code, "updated": format_time(when), "next": None} for code, when in sorted(updated.items())]


def _thing(event: dict[str, Any], offset: int) -> Thing:
    """What the event is about: of all events about one thing the latest shows."""
    kind, source, data = event["type"], event["source"], event["data"]
    if kind == "gov.status.changed":
        return "application", source, data["application"]
    if kind == "gov.record.changed":
        return "record", source, data["registry"], data["key"]
    if kind == "gov.notice.sent" or event.get("subject") is None:
        return "notice", offset
    return "notice", source, kind, event["subject"]


def _application(entry: _Entry, seen: set[int]) -> dict[str, Any]:
    data = entry.event["data"]
    names = ("application", "service", "title", "status", "previous", "reason", "deadline")
    return _item(entry, seen, {name: data.get(name) for name in names})


def _record(entry: _Entry, seen: set[int]) -> dict[str, Any]:
    data = entry.event["data"]
    return _item(entry, seen, {name: data[name] for name in ("registry", "key", "change", "fields", "as_of")})


def _item(entry: _Entry, seen: set[int], members: dict[str, Any]) -> dict[str, Any]:
    """What every item has, around what it shows; optional members that the event does not have are left out."""
    event = entry.event
    head = {"offset": entry.offset, "id": event["id"], "type": event["type"], "agency": _agency(event)}
    tail = {"time": event["time"], "updated": format_time(entry.recorded), "seen": entry.offset in seen}
    optional = {"subject": event.get("subject")} | members
    return head | {name: value for name, value in optional.items() if value is not None} | tail


def _agency(event: dict[str, Any]) -> str:
    return str(event["source"]).removeprefix(_AGENCIES)


def _expired(event: dict[str, Any], now: float) -> bool:
    """Past its `expirytime` or its `data.until`?"""
    ends = (event.get("expirytime"), event["data"].get("until"))
    return any(isinstance(end, str) and _is_past(end, now) for end in ends)


def _is_past(end: str, now: float) -> bool:
    if is_date(end):
        return parse_moment(end) + _DAY_S <= now  # all of that day, also where it ends before it does in UTC
    return is_time(end) and parse_time(end) <= now

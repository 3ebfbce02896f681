"""What an agency posts, checked and made ready for the log: CloudEvents 1.0, contract section 2. Pure.

`parse` is strict where libraries are helpful: nothing is invented for the sender, nothing ambiguous is let in, and all
faults of an event are told at once. What comes out is a `Draft` whose bytes every later part can copy without a look.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from hashlib import blake2b, sha256
from typing import Any, Literal, NamedTuple

from gateway import strict
from gateway.errors import Problem
from gateway.rfc3339 import format_time as format_time
from gateway.rfc3339 import is_time
from gateway.rfc3339 import parse_time as parse_time
from gateway.store.base import Agency, Draft, Original
from gateway.types import EventType, registry

MAX_BODY_BYTES = 1_048_576  # of a request; the HTTP layer stops reading there. Bounds the memory and time of one post
MAX_BATCH_EVENTS = 1_000  # of a batch: one commit stays short
MAX_EVENT_BYTES = 65_536  # of an event as compact UTF-8 JSON: one frame, one page, one row stay small

Media = Literal["event", "batch"]
MEDIA_TYPES: Mapping[str, Media] = {
    "application/cloudevents+json": "event",
    "application/cloudevents-batch+json": "batch",
}

GATEWAY_SOURCE = "/gateway"

_ACCOUNT = re.compile(r"[A-Za-z0-9._-]{1,64}")
_AGENCY = re.compile(r"[a-z0-9-]{1,32}")
_EXTENSION = re.compile(r"[a-z0-9]+")
_INTEGER = re.compile(r"-?[0-9]{1,32}")
_JSON_MEDIA = re.compile(r"[\w.+-]+/([\w.-]+\+)*json\s*(;.*)?", re.ASCII | re.IGNORECASE)
_URI = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:[!-~]+")
# CloudEvents 1.0.2, Type System, String: control characters and noncharacters are disallowed.
_NONCHARACTERS = "".join(chr(plane + 0xFFFE) + chr(plane + 0xFFFF) for plane in range(0, 0x110000, 0x10000))
_NOT_TEXT = re.compile(f"[\x00-\x1f\x7f-\x9f\ufdd0-\ufdef{_NONCHARACTERS}]")


class Parsed(NamedTuple):
    """An event that may be committed. `id` is its own, for the results."""

    id: str
    draft: Draft


def is_account(text: str) -> bool:
    """May this be the id of an account, or of a device? (contract, section 1)"""
    return _ACCOUNT.fullmatch(text) is not None


def is_agency(text: str) -> bool:
    """May this be the code of an agency? (contract, section 1)"""
    return _AGENCY.fullmatch(text) is not None


def source_of(agency: str) -> str:
    """The `source` of everything that this agency sends."""
    return f"/agencies/{agency}"


def key_of(source: str, id: str) -> bytes:
    """16 bytes that name an event: the same for the same (`source`, `id`), whatever else it holds."""
    # No source holds a NUL, so that the first one ends it.
    return blake2b(f"{source}\0{id}".encode("utf-8", "surrogatepass"), digest_size=16).digest()


def parse(
    body: bytes,
    media: Media,
    agency: Agency,
    *,
    types: Mapping[str, EventType] | None = None,
    original: Original | None = None,
) -> list[Parsed | Problem]:
    """The events of a request whose signature has been checked, in order: each a `Parsed`, or that item's `Problem`.

    `media` "event" gives one item. `types` is `gateway.types.registry()` when not given; `original` goes into every
    draft. Raises Problem for what concerns the whole request: no JSON (400), a batch that is no array (422) or has too
    many events (413). Raises nothing else, whatever the bytes are.
    """
    known = registry() if types is None else types
    if media == "event":
        items = [strict.read(body)]
    else:
        items = strict.read_items(body)
        if isinstance(items, strict.Mark):
            raise strict.malformed(strict.DETAILS[items.rule])
        if not isinstance(items, list):
            raise _invalid([_fault("", "a batch is an array of events")])
        if len(items) > MAX_BATCH_EVENTS:
            raise Problem(413, "too-large", "Too many events", f"a batch has at most {MAX_BATCH_EVENTS} events")
    source = source_of(agency.code)
    results: list[Parsed | Problem] = []
    for index, item in enumerate(items):
        try:
            results.append(_parse_item(item, index, source, agency, known, original))
        except Problem as problem:
            problem.about = _named(item)
            results.append(problem)
    return results


def erased_event(account: str, ranges: Sequence[tuple[int, int]], now: float, id: str) -> Draft:
    """The `gov.erased` event that tells devices which offsets (both ends inclusive) became `null`."""
    data = {"ranges": [list(pair) for pair in ranges]}
    return gateway_event("gov.erased", f"account:{account}", data, id=id, now=now, account=account)


def gateway_event(
    type: str, feed: str, data: Mapping[str, Any], *, id: str, now: float, account: str | None = None
) -> Draft:
    """An event that the gateway itself sends: not signed, and trusted to obey its type's schema."""
    kind = registry()[type]
    event = {
        "specversion": "1.0",
        "id": id,
        "source": GATEWAY_SOURCE,
        "type": kind.name,
        "time": format_time(now),
        **({} if account is None else {"account": account}),
        "data": data,
    }
    written = strict.compact(event)
    assert written is not None, "our own values can be written"
    return _draft(event, written, feed, kind, now)


def with_recordedtime(event: bytes, now: float) -> bytes:
    """The event with `recordedtime` as its last member: the one attribute that the gateway adds, at commit."""
    return event[:-1] + _recordedtime(now)


@lru_cache(maxsize=16)  # all events of a commit share it
def _recordedtime(now: float) -> bytes:
    return f',"recordedtime":"{format_time(now)}"}}'.encode()


def _parse_item(
    item: Any, index: int, source: str, agency: Agency, types: Mapping[str, EventType], original: Original | None
) -> Parsed:
    written = strict.compact(item)
    errors: list[dict[str, str]] = []
    if written is None:
        item, written, errors = _repair(item)
    if len(written) > MAX_EVENT_BYTES:
        detail = f"{len(written)} bytes as compact JSON; an event has at most {MAX_EVENT_BYTES}"
        raise Problem(413, "too-large", "Event too large", detail)
    if not isinstance(item, dict):
        raise _invalid([_fault("", "an event is an object")])
    kind = types.get(item["type"]) if isinstance(item.get("type"), str) else None
    _check_allowed(item, kind, source, agency)
    errors += _attribute_faults(item, kind)
    if kind is not None:
        errors += _data_faults(item, kind)
    if errors:
        raise _invalid(errors)
    assert kind is not None, "a missing or unknown type is a fault"
    feed = f"agency:{agency.code}" if kind.audience == "public" else f"account:{item['account']}"
    return Parsed(item["id"], _draft(item, written, feed, kind, parse_time(item["time"]), original, index))


def _named(item: Any) -> tuple[str | None, str | None]:
    """Id and type of an item that was refused, where they can be read."""
    if not isinstance(item, dict):
        return None, None
    id, type = item.get("id"), item.get("type")
    return id if isinstance(id, str) else None, type if isinstance(type, str) else None


def _repair(item: Any) -> tuple[Any, bytes, list[dict[str, str]]]:
    """The faults of an item that cannot be written. Those that leave it readable come back beside a writable item."""
    faults = strict.faults(item)
    if faults[0].rule != "range":
        raise strict.malformed("see `errors`", faults)
    item = strict.clamped(item)
    written = strict.compact(item)
    assert written is not None, "only integers were out of range"
    return item, written, [_fault(fault.pointer, strict.DETAILS[fault.rule]) for fault in faults]


def _check_allowed(event: dict[str, Any], kind: EventType | None, source: str, agency: Agency) -> None:
    """403: the event is another's, or of a type that this agency may not send."""
    theirs = event.get("source")
    if isinstance(theirs, str) and theirs not in ("", source):
        raise _forbidden("/source", f"the source of this agency is {source}")
    if kind is None:
        return
    if kind.senders != "agencies":
        raise _forbidden("/type", f"{kind.name} is made by the gateway alone")
    if agency.types and kind.name not in agency.types:
        raise _forbidden("/type", f"this agency may not send {kind.name}")


def _attribute_faults(event: dict[str, Any], kind: EventType | None) -> list[dict[str, str]]:
    """CloudEvents 1.0, Context Attributes, and the contract's own rules. Null counts as absent (JSON format, 2.2)."""
    errors = []
    for name, value in event.items():
        if value is None:
            continue
        detail = _CHECKS.get(name, _extension)(value)
        if detail:
            errors.append(_fault(strict.pointer(name), detail))
        if name not in _CHECKS and not _EXTENSION.fullmatch(name):
            errors.append(_fault(strict.pointer(name), "attribute names are made of a-z and 0-9"))
    for name in _REQUIRED:
        if event.get(name) is None:
            errors.append(_fault(f"/{name}", "is required"))
    if kind is None:
        if event.get("type") and isinstance(event["type"], str):
            errors.append(_fault("/type", "is not a registered type"))
    elif kind.audience == "personal":
        if event.get("account") is None:
            errors.append(_fault("/account", f"is required: {kind.name} is personal"))
    elif event.get("account") is not None:
        errors.append(_fault("/account", f"must be absent: {kind.name} is public"))
    return errors


def _data_faults(event: dict[str, Any], kind: EventType) -> list[dict[str, str]]:
    data = event.get("data")
    return [_fault("/data", "is required")] if data is None else kind.faults(data)


def _draft(
    event: dict[str, Any],
    written: bytes,
    feed: str,
    kind: EventType,
    time: float,
    original: Original | None = None,
    item: int = 0,
) -> Draft:
    """Everything that the store keeps of an event that is known to be good."""
    status, sequence = event["data"].get("status"), event.get("sequence")
    thing = None
    if sequence is not None:
        # No part holds a NUL, and no subject is empty: nothing else spells the same.
        named = f"{feed}\0{event['source']}\0{event.get('subject') or ''}"
        thing = blake2b(named.encode(), digest_size=16).digest()
    return Draft(
        feed=feed,
        key=key_of(event["source"], event["id"]),
        digest=sha256(strict.canonical(event)).digest(),
        event=written,
        type=kind.name,
        status=status if isinstance(status, str) else None,
        time=time,
        priority=kind.priority,
        thing=thing,
        sequence=None if sequence is None else int(sequence),
        original=original,
        item=item,
    )


# What may stand in an attribute: each check gives what is wrong, or an empty string.


def _text(value: Any) -> str:
    if not isinstance(value, str) or not value:
        return "must be a string that is not empty"
    # isprintable is the quick look: it says no to some good text too, such as U+00A0.
    good = value.isprintable() or not _NOT_TEXT.search(value)
    return "" if good else "control characters and noncharacters are not text"


def _version(value: Any) -> str:
    return "" if value == "1.0" else 'must be "1.0"'


def _time(value: Any) -> str:
    return "" if isinstance(value, str) and is_time(value) else "must be an RFC 3339 date-time"


def _account(value: Any) -> str:
    return "" if isinstance(value, str) and is_account(value) else "must be 1 to 64 of A-Za-z0-9._-"


def _sequence(value: Any) -> str:
    if not isinstance(value, str) or not _INTEGER.fullmatch(value):
        return "must be an integer as a string"
    return "" if abs(int(value)) <= strict.MAX_INTEGER else strict.DETAILS["range"]


def _uri(value: Any) -> str:
    return "" if isinstance(value, str) and _URI.fullmatch(value) else "must be an absolute URI"


def _content_type(value: Any) -> str:
    return "" if isinstance(value, str) and _JSON_MEDIA.fullmatch(value) else "must be a JSON media type"


def _extension(value: Any) -> str:
    # CloudEvents 1.0.2, Type System: booleans, integers and strings; it has no fractions.
    if isinstance(value, str):
        return _text(value) if value else ""
    return "" if isinstance(value, bool | int) else "must be a string, an integer or a boolean"


_CHECKS: dict[str, Callable[[Any], str]] = {
    "specversion": _version,
    "id": _text,
    "source": _text,
    "type": _text,
    "time": _time,
    "account": _account,
    "subject": _text,
    "sequence": _sequence,
    "expirytime": _time,
    "dataschema": _uri,
    "datacontenttype": _content_type,
    "data": lambda _: "",  # its type's schema looks at it
    "data_base64": lambda _: "binary data is not taken: send JSON in `data`",
    "recordedtime": lambda _: "is the gateway's own attribute",
}
_REQUIRED = ("specversion", "id", "source", "type", "time")


def _fault(pointer: str, detail: str) -> dict[str, str]:
    return {"pointer": pointer, "detail": detail}


def _invalid(errors: list[dict[str, str]]) -> Problem:
    return Problem(422, "invalid", "Not a valid event", "see `errors`", errors=errors[: strict.MAX_FAULTS])


def _forbidden(pointer: str, detail: str) -> Problem:
    return Problem(403, "forbidden", "Not allowed to this agency", detail, errors=[_fault(pointer, detail)])

"""Fuzzing what comes from agencies.

Invariant: whatever bytes a request has, `verify` gives a `Verified` or raises Problem 401, and `parse` gives, for each
item in order, a `Parsed` or a `Problem`, or raises one Problem for the whole request. Every problem document can be
written as JSON. Every `Parsed` holds bytes that strict JSON readers, msgpack and another parse of them agree on.

The only exception allowed is `gateway.errors.Problem`, and its status is 400, 401, 403, 413 or 422.
"""

import json
from collections.abc import Collection
from typing import Any

import msgpack
import orjson
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gateway import strict
from gateway.errors import Problem
from gateway.events import MAX_EVENT_BYTES, Media, Parsed, parse, with_recordedtime
from gateway.store.base import Agency, AgencyKey
from gateway.types import registry
from gateway.verify import Verified, parse_key, verify

AGENCY = Agency("fns", ())
KEYS = [AgencyKey("a", "hmac", bytes(32), 0.0), parse_key("whsk_" + "A" * 43 + "=")]

WORDS = [
    *registry(),
    "1.0",
    "/agencies/fns",
    "/agencies/mvd",
    "2026-03-01T09:30:00Z",
    "ivan",
    "checking",
    "7",
    "\ud800",
    "\x00",
]
NAMES = [
    *("specversion", "id", "source", "type", "time", "account", "subject", "sequence", "expirytime", "dataschema"),
    *("datacontenttype", "data", "data_base64", "recordedtime", "zone", "application", "service", "status", "title"),
    *("text", "url", "until", "reason", "fields"),
]
names = st.sampled_from(NAMES) | st.text(max_size=4)
leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.sampled_from(WORDS)
    | st.text(st.characters(), max_size=8)
)
values = st.recursive(
    leaves, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6), max_leaves=20
)

GOOD: dict[str, Any] = {
    "specversion": "1.0",
    "id": "e-1",
    "source": "/agencies/fns",
    "type": "gov.status.changed",
    "time": "2026-03-01T09:30:00Z",
    "account": "ivan",
    "data": {"application": "1", "service": "s", "status": "checking"},
}
near = st.dictionaries(names, values, max_size=4).map(lambda changes: GOOD | changes)
texts = (near | values | st.lists(near | values, max_size=4)).map(json.dumps)
SPLICES = [
    '"a":1,"a":2',
    "NaN",
    "1e999",
    "[" * 40,
    "]" * 40,
    "{" * 2000,
    r'"\ud800"',
    "9" * 5000,
    "\ufeff",
    ",",
    '"',
    "\\",
]


@st.composite
def spliced(draw: st.DrawFn) -> bytes:
    """A text that is nearly JSON: a piece of it replaced by something nasty."""
    text = draw(texts)
    start = draw(st.integers(0, len(text)))
    end = draw(st.integers(start, min(len(text), start + 12)))
    piece = draw(st.sampled_from(SPLICES) | st.text(max_size=3))
    return (text[:start] + piece + text[end:]).encode("utf-8", "surrogatepass")


bodies = st.one_of(texts.map(str.encode), spliced(), st.binary(max_size=200))


def answerable(problem: Problem, statuses: Collection[int] = (400, 403, 413, 422)) -> None:
    assert problem.status in statuses
    document = orjson.loads(orjson.dumps(problem.document()))
    assert all(set(error) == {"pointer", "detail"} for error in document.get("errors", ()))
    assert len(document.get("errors", ())) <= 2 * strict.MAX_FAULTS


def agreed(parsed: Parsed) -> None:
    draft = parsed.draft
    event = json.loads(draft.event, parse_constant=lambda _: pytest.fail("a constant that is no JSON"))
    assert orjson.loads(draft.event) == event
    assert msgpack.unpackb(msgpack.packb(event)) == event
    assert len(draft.event) <= MAX_EVENT_BYTES
    assert (event["id"], event["type"]) == (parsed.id, draft.type)
    assert draft.feed in (f"account:{event.get('account')}", "agency:fns")
    (again,) = parse(draft.event, "event", AGENCY)
    assert isinstance(again, Parsed)
    assert (again.draft.event, again.draft.digest, again.draft.key) == (draft.event, draft.digest, draft.key)
    assert orjson.loads(with_recordedtime(draft.event, 0.0)) == event | {"recordedtime": "1970-01-01T00:00:00.000Z"}


@settings(deadline=None)
@given(bodies, st.sampled_from(["event", "batch"]))
@example(json.dumps([GOOD] * 3).encode(), "batch")
@example(b"[" * 100_000, "batch")
@example(b'{"a":' * 100_000, "event")
@example(b"[" + b"9" * 100_000 + b"]", "batch")
@example(json.dumps(GOOD | {"zone": 2**53}).encode(), "event")
def test_parse_answers_whatever_it_is_given(body: bytes, media: Media) -> None:
    try:
        results = parse(body, media, AGENCY)
    except Problem as problem:
        answerable(problem)
        return
    assert media == "batch" or len(results) == 1
    for result in results:
        if isinstance(result, Problem):
            answerable(result)
        else:
            agreed(result)


@settings(deadline=None)
@given(st.lists(near, min_size=1, max_size=4), spliced())
def test_a_bad_item_does_not_change_the_others(items: list[Any], bad: bytes) -> None:
    texts = [json.dumps(item).encode() for item in items]
    alone = [outcome(text) for text in texts]
    try:
        results = parse(b"[" + b",".join([*texts, bad]) + b"]", "batch", AGENCY)
    except Problem:
        return  # the bad one broke the array itself
    for index, expected in enumerate(alone):
        result = results[index]
        assert (result.status if isinstance(result, Problem) else result.draft.event) == expected


def outcome(text: bytes) -> int | bytes:
    (result,) = parse(text, "event", AGENCY)
    return result.status if isinstance(result, Problem) else result.draft.event


header_names = st.sampled_from([b"webhook-id", b"webhook-timestamp", b"webhook-signature", b"Webhook-Id", b"host"])
header_values = st.binary(max_size=60) | st.sampled_from(
    [b"msg_1", b"1772357400", b"v1,AAAA", b"v1a," + b"A" * 86 + b"==", b"v1,=", b"v2,x v1,AAAA", b"9" * 5000]
)


@settings(deadline=None)
@given(st.lists(st.tuples(header_names, header_values), max_size=6), st.binary(max_size=50))
def test_verify_answers_whatever_it_is_given(headers: list[tuple[bytes, bytes]], body: bytes) -> None:
    try:
        result = verify(headers, body, KEYS, 1772357400.0)
    except Problem as problem:
        answerable(problem, {401})
    else:
        assert isinstance(result, Verified)

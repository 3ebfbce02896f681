"""The codecs against any payload.

Invariants: only Close(4400) comes out; what is accepted is a plain map that both subprotocols carry unchanged; the two
spellings of a value are accepted or refused alike; `parse` of an accepted map raises only Refused, and what it accepts
is what the AsyncAPI document accepts.
"""

import contextlib
import json
import os
from typing import Any

import msgpack
import orjson
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway.errors import Close, Refused
from gateway.protocol import schema
from gateway.protocol.codec import JSON, MAX_DEPTH, MAX_INTEGER, MAX_MEMBERS, MSGPACK, Codec
from gateway.protocol.messages import parse, ref_of

RUNS = int(os.environ.get("FUZZ_RUNS", "200"))  # of each test; 10,000 take minutes
BOTH = pytest.mark.parametrize("kind", [JSON, MSGPACK], ids=lambda kind: kind.subprotocol)

PIECES = rb"""{ } [ ] " : , "t" "ack" "feed" "account:1" "offset" 1 -0 1.5e3 null true \ \u0074" NaN 99999999999999999
"\ud83d\ude00" "\ud800" """.split()
fragments = st.sampled_from([*PIECES, b" ", b"\xd0"])
jsonish = st.lists(fragments | st.binary(max_size=3), max_size=30).map(b"".join)
heads = st.sampled_from(
    [0x80, 0x81, 0x82, 0x90, 0x93, 0xA1, 0xC0, 0xC1, 0xC4, 0xC7, 0xCA, 0xCB, 0xCF, 0xD3, 0xD6, 0xD9]
)
packish = st.lists(heads.map(lambda head: bytes([head])) | st.binary(max_size=4), max_size=30).map(b"".join)
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**64), 2**64) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=10,
)
maps = st.dictionaries(st.text(max_size=3), values, max_size=4)


def accept(kind: Codec, payload: bytes) -> dict[str, Any] | None:
    try:
        return kind.decode(payload)
    except Close as close:
        code = close.code
    assert code == 4400
    return None


def plain(value: Any, depth: int = 1) -> bool:
    """The rule, said another way than the codec says it."""
    match value:
        case None | bool() | str():
            return True
        case int():
            return abs(value) <= MAX_INTEGER
        case float():
            return value - value == 0
        case list():
            return depth <= MAX_DEPTH and len(value) <= MAX_MEMBERS and all(plain(item, depth + 1) for item in value)
        case dict():
            return (
                depth <= MAX_DEPTH
                and len(value) <= MAX_MEMBERS
                and all(type(key) is str and plain(item, depth + 1) for key, item in value.items())
            )
    return False


@BOTH
@settings(max_examples=RUNS)
@given(data=st.data())
def test_any_payload_is_a_plain_map_or_4400(kind: Codec, data: st.DataObject) -> None:
    payload = data.draw(jsonish | packish | st.binary(max_size=60))
    message = accept(kind, payload)
    if message is not None:
        assert plain(message)
        assert kind.decode(JSON.encode(message) if kind is JSON else MSGPACK.encode(message)) == message
        assert JSON.decode(JSON.encode(message)) == message == MSGPACK.decode(MSGPACK.encode(message))


@settings(max_examples=RUNS)
@given(payload=jsonish)
def test_what_json_refuses_no_strict_reader_takes(payload: bytes) -> None:
    def pairs(items: list[tuple[str, Any]]) -> dict[str, Any]:
        assert len({key for key, _ in items}) == len(items)
        return dict(items)

    message = accept(JSON, payload)
    expected = None
    with contextlib.suppress(ValueError, AssertionError):
        orjson.loads(payload)
        expected = json.loads(payload.decode(), object_pairs_hook=pairs)
    assert message == (expected if isinstance(expected, dict) and plain(expected) else None)


@settings(max_examples=RUNS)
@given(message=maps)
def test_both_subprotocols_take_the_same_maps(message: dict[str, Any]) -> None:
    as_json = json.dumps(message, ensure_ascii=False)
    try:
        packed = msgpack.packb(message)
        spelled = as_json.encode()
    except (OverflowError, UnicodeEncodeError):
        return  # neither could have said it
    assert (accept(JSON, spelled) is not None) == (accept(MSGPACK, packed) is not None) == plain(message)


position = st.fixed_dictionaries(
    {"epoch": st.sampled_from(["e", "", 1]), "offset": st.sampled_from([0, 5, -1, 1.5, True])}
)
right = {
    "token": st.text(min_size=1, max_size=5),
    "device": st.from_regex(r"[A-Za-z0-9._-]{1,64}", fullmatch=True),
    "resume": st.just({"epoch": "e", "offset": 1}) | st.just({"account:42": {"epoch": "e", "offset": 1}}),
    "feeds": st.lists(st.sampled_from(["agency:mvd", "x:y"]), max_size=3),
    "mode": st.sampled_from(["full", "saver"]),
    "fresh": st.booleans(),
    "agent": st.text(min_size=1, max_size=5),
    "feed": st.from_regex(r"(account|agency|x):[a-z0-9]{1,8}", fullmatch=True),
    "offset": st.integers(0, MAX_INTEGER),
    "offsets": st.lists(st.integers(0, MAX_INTEGER), min_size=1, max_size=4),
    "source": st.text(min_size=1, max_size=5),
    "ref": st.integers(-MAX_INTEGER, MAX_INTEGER) | st.text(max_size=5),
}
wrong = (
    values
    | st.sampled_from(["account:42", "account:", "agency:MVD", "x", "d" * 65, 7, 0, True, -1, 2**53])
    | st.lists(st.sampled_from([1, -1, "agency:mvd"]), max_size=3)
    | st.dictionaries(st.sampled_from(["account:42", "agency:mvd", "x"]), position, max_size=2)
    | position
)
TYPES = ["hello", "ack", "seen", "subscribe", "unsubscribe", "mode", "refresh", "token", "ping"]


@st.composite
def almost(draw: st.DrawFn) -> dict[str, Any]:
    """A message with all that it needs, and now and then something wrong or missing."""
    t = draw(st.sampled_from([*TYPES, "event"]) | values)
    names = schema.names("device")
    made = schema.document()["components"]["schemas"][names[t]] if type(t) is str and t in names else {}
    message = {"t": t} | {name: draw(right[name]) for name in made.get("required", ()) if name != "t"}
    message |= draw(st.fixed_dictionaries({}, optional=right)) if draw(st.booleans()) else {}
    for name in draw(st.lists(st.sampled_from([*right, "t"]), max_size=2)):
        if draw(st.booleans()):
            message[name] = draw(wrong)
        else:
            message.pop(name, None)
    return message


@settings(max_examples=RUNS)
@given(message=almost())
def test_parse_and_the_document_judge_alike(message: dict[str, Any]) -> None:
    ref_of(message)
    try:
        parse(message)
        code = None
    except Refused as refused:
        code = refused.code
    assert code in (None, "invalid", "unknown_type")
    accepted = code is None
    judged = message if message.get("t") != "unsubscribe" else {k: v for k, v in message.items() if k != "resume"}
    try:
        schema.check("device", judged)
    except schema.Mismatch:
        assert not accepted
    else:
        # The document counts 1.0 as an integer, as JSON Schema does; the gateway wants integers written as such.
        assert accepted or "1.0" in str(message) or any(isinstance(v, float) for v in message.values())

"""Both subprotocols carry the same maps; a device is read strictly; frames for many are spliced, not parsed."""

import json
import struct
from typing import Any

import msgpack
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from websockets.extensions.permessage_deflate import PerMessageDeflate
from websockets.frames import Frame, Opcode

from gateway.errors import Close
from gateway.protocol import codec, frames
from gateway.protocol.codec import JSON, MSGPACK, Codec

BOTH = pytest.mark.parametrize("kind", [JSON, MSGPACK], ids=lambda kind: kind.subprotocol)
plain = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-codec.MAX_INTEGER, codec.MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4)
    ),
    max_leaves=12,
)
maps = st.dictionaries(st.text(st.characters(codec="utf-8")), plain, max_size=6)


def packed(value: Any) -> bytes:
    return msgpack.packb(value)  # type: ignore[no-any-return]


def refused(kind: Codec, payload: bytes) -> str:
    with pytest.raises(Close) as caught:
        kind.decode(payload)
    assert caught.value.code == 4400
    return caught.value.reason


def body(frame: bytes) -> bytes:
    return bytes(frames.payload_of(frame))


# Reading


@BOTH
@given(message=maps)
def test_every_plain_map_comes_back(kind: Codec, message: dict[str, Any]) -> None:
    assert kind.decode(kind.encode(message)) == message
    assert kind.read(kind.encode(message)) == message


@BOTH
@pytest.mark.parametrize("value", [[], "x", 1, None, True, [{"t": "ping"}]])
def test_what_is_not_a_map_is_refused(kind: Codec, value: Any) -> None:
    assert "map" in refused(kind, kind.encode(value))


@BOTH
def test_depth_is_bounded(kind: Codec) -> None:
    def nested(depth: int) -> dict[str, Any]:
        value: Any = []
        for _ in range(depth - 2):
            value = [value]
        return {"a": value}

    assert kind.decode(kind.encode(nested(32))) == nested(32)
    assert "deeper" in refused(kind, kind.encode(nested(33)))


@BOTH
@pytest.mark.parametrize("number", [2**53, -(2**53), 2**63, 2**64 - 1, -(2**63)])
def test_integers_beyond_the_range_are_refused(kind: Codec, number: int) -> None:
    refused(kind, kind.encode({"a": [number]}))


@BOTH
def test_width_is_bounded(kind: Codec) -> None:
    assert len(kind.decode(kind.encode({"a": [0] * 512}))["a"]) == 512
    refused(kind, kind.encode({"a": [0] * 513}))
    assert len(kind.decode(kind.encode({str(i): 0 for i in range(512)}))) == 512
    refused(kind, kind.encode({str(i): 0 for i in range(513)}))


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"{",
        b'{"t":"ping"}}',
        b'{"t":"ping",}',
        b'{"t":"ping","t":"pong"}',
        b'{"t":"ack","feed":"account:42","offset":7,"offset":8}',
        b'{"t":"x","a":{"b":1,"\\u0062":2}}',
        b'{"a":NaN}',
        b'{"a":Infinity}',
        b'{"a":-Infinity}',
        b'{"a":1e999}',
        b'{"a":123456789012345678901234567890}',
        b'{"t":"ack","feed":"account:42","offset":9007199254740992}',
        b'{"a":"\\ud800"}',
        b'{"\\udc00":1}',
        b'{"a":"\xff"}',
        b"{'a':1}",
        b'\xef\xbb\xbf{"t":"ping"}',
        '{"t":"ping"}'.encode("utf-16"),
        b"[" * 8000 + b"]" * 8000,
        b'{"a":' * 3000,
        b'{"a":01}',
        b'{"a":"\n"}',
    ],
)
def test_wrong_json_is_refused(payload: bytes) -> None:
    refused(JSON, payload)


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"\xc1",
        b"\x81\xa1t",
        packed({"t": "ping"}) + b"\x00",
        b"\x82\xa1t\x01\xa1t\x02",
        b"\x81\xa1a\x82\xa1b\x01\xa1b\x01",
        packed({1: 2}),
        packed({b"t": 2}),
        b"\x81\x90\x01",
        b"\x81\x80\x01",
        packed({"a": b"bytes"}),
        packed({"a": msgpack.ExtType(5, b"x")}),
        packed({"a": msgpack.Timestamp(1)}),
        b"\x81\xa1a\xa1\xff",
        b"\x81\xa1\xff\x01",
        b"\x81\xa1a\xa3\xed\xa0\x80",
        b"\x81\xa1a\xcb" + struct.pack(">d", float("nan")),
        b"\x81\xa1a\xca" + struct.pack(">f", float("inf")),
        b"\x91" * 16000 + b"\x00",
        b"\xdd\x00\x00\x02\x00" * 3000,
        b"\xdf\x00\x00\x02\x00\xa1a" * 2000,
        b"\xdb\xff\xff\xff\xff",
    ],
)
def test_wrong_messagepack_is_refused(payload: bytes) -> None:
    refused(MSGPACK, payload)


@pytest.mark.parametrize("offset", [0, 1, 7, 999999999999999, 9007199254740991])
@pytest.mark.parametrize("kind", [JSON, MSGPACK])
def test_acks_are_read(kind: Codec, offset: int) -> None:
    ack = {"t": "ack", "feed": "account:42", "offset": offset}
    assert kind.decode(kind.encode(ack)) == ack


@pytest.mark.parametrize(
    "payload",
    [
        b'{ "t": "ack", "feed": "account:42", "offset": 7 }',
        b'{"feed":"account:42","offset":7,"t":"ack"}',
        b'{"t":"ack","feed":"\\u0061ccount:42","offset":7}',
        b'{"t":"ack","feed":"account:42","offset":7}\n',
    ],
)
def test_other_spellings_of_an_ack_mean_the_same(payload: bytes) -> None:
    assert JSON.decode(payload) == {"t": "ack", "feed": "account:42", "offset": 7}


@given(feed=st.from_regex(r"[a-z]{1,16}:[A-Za-z0-9._-]{1,64}", fullmatch=True), offset=st.integers(0, 10**16))
def test_the_fast_way_of_an_ack_agrees_with_the_strict_one(feed: str, offset: int) -> None:
    fast = b'{"t":"ack","feed":"%b","offset":%d}' % (feed.encode(), offset)
    try:
        strict = JSON.decode(fast + b" ")  # the blank keeps it off the fast way
    except Close:
        refused(JSON, fast)
    else:
        assert JSON.decode(fast) == strict


# Frames


EVENT = '{"specversion":"1.0","id":"a","data":{"title":"Готово","n":1.50}}'.encode()


def test_an_event_is_spliced_as_it_is() -> None:
    frame = JSON.event_frame("account:42", 7, EVENT)
    assert body(frame) == b'{"t":"event","feed":"account:42","offset":7,"event":' + EVENT + b"}"
    assert frame[0] == 0x81


@BOTH
@pytest.mark.parametrize("event", [EVENT, None])
def test_an_event_is_a_map_with_t_first(kind: Codec, event: bytes | None) -> None:
    frame = kind.event_frame("account:42", 2**40, event)
    message = kind.read(body(frame))
    assert list(message) == ["t", "feed", "offset", "event"]
    assert message == {
        "t": "event",
        "feed": "account:42",
        "offset": 2**40,
        "event": None if event is None else json.loads(event),
    }
    assert frame[0] == 0x80 | kind.opcode


@BOTH
def test_a_feed_name_cannot_break_out_of_its_string(kind: Codec) -> None:
    feed = 'x:"},\\'
    assert kind.read(body(kind.event_frame(feed, 1, None)))["feed"] == feed
    assert kind.read(body(kind.batch_frames(feed, [(1, None)])[0]))["feed"] == feed


@BOTH
def test_a_message_is_one_frame(kind: Codec) -> None:
    message = {"t": "pong", "ref": "ж"}
    assert kind.message_frame(message) == frames.frame(kind.opcode, kind.encode(message))


def events_of(kind: Codec, built: list[bytes]) -> list[list[list[Any]]]:
    out = []
    for frame in built:
        message = kind.read(body(frame))
        assert list(message) == ["t", "feed", "events"]
        assert (message["t"], message["feed"]) == ("batch", "account:42")
        out.append(message["events"])
    return out


@BOTH
@pytest.mark.parametrize("count", [1, 2, 15, 16, 17, 100, 101, 250])
def test_a_batch_holds_up_to_100_events(kind: Codec, count: int) -> None:
    items = [(i + 1, None if i % 7 == 3 else EVENT) for i in range(count)]
    batches = events_of(kind, kind.batch_frames("account:42", items))
    assert [len(batch) for batch in batches] == [min(100, count - i) for i in range(0, count, 100)]
    assert [tuple(item) for batch in batches for item in batch] == [
        (offset, event and orjson.loads(event)) for offset, event in items
    ]


@BOTH
@given(sizes=st.lists(st.integers(2, 70_000), max_size=12))
def test_a_batch_holds_up_to_64_kib_but_always_one(kind: Codec, sizes: list[int]) -> None:
    items: list[codec.Item] = [(i, b'"' + b"x" * (size - 2) + b'"') for i, size in enumerate(sizes)]
    built = kind.batch_frames("account:42", items)
    batches = events_of(kind, built)
    assert [item[0] for batch in batches for item in batch] == list(range(len(sizes)))
    for i, (frame, batch) in enumerate(zip(built, batches, strict=True)):
        assert batch
        assert len(body(frame)) <= 65536 or len(batch) == 1
        if i + 1 < len(batches):  # no more than needed: the next event would not have fitted
            assert len(body(frame)) + sizes[batches[i + 1][0][0]] + 16 > 65536


@BOTH
def test_no_events_are_no_batch(kind: Codec) -> None:
    assert kind.batch_frames("account:42", []) == []


@BOTH
def test_a_compressed_batch_is_read_by_the_library(kind: Codec) -> None:
    items: list[codec.Item] = [(i, EVENT) for i in range(50)]
    (squeezed,) = kind.batch_frames("account:42", items, compress=True)
    (whole,) = kind.batch_frames("account:42", items)
    assert squeezed[0] == 0xC0 | kind.opcode
    assert len(squeezed) < len(whole) / 5
    peer = PerMessageDeflate(True, True, frames.WINDOW_BITS, 15)
    assert peer.decode(Frame(Opcode(kind.opcode), body(squeezed), rsv1=True)).data == body(whole)


# Choice


@pytest.mark.parametrize(
    ("offered", "chosen"),
    [
        ([], JSON),
        ([""], JSON),
        ([" ", ""], JSON),
        (["vestnik.v1.json"], JSON),
        (["vestnik.v1.msgpack", "vestnik.v1.json"], MSGPACK),
        (["graphql-ws", " vestnik.v1.msgpack"], MSGPACK),
        (["graphql-ws"], None),
        (["VESTNIK.V1.JSON"], None),
    ],
)
def test_the_first_known_subprotocol_is_taken(offered: list[str], chosen: Codec | None) -> None:
    assert codec.choose(offered) is chosen

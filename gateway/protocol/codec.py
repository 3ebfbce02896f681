"""The two subprotocols: the same maps as JSON text or MessagePack binary frames (contract, section 3.1). Pure.

`decode` is for what a device sends: it raises `Close(4400)` for everything that is not one map of plain values, so that
no two programs can read the same bytes differently. `read` is for what a gateway wrote, and trusts it. `event_frame`
and `batch_frames` give whole WebSocket frames, the same bytes for every device; for JSON an event is never parsed.
"""

import json
import math
import re
from collections.abc import Mapping, Sequence
from typing import Any, Final, Protocol

import msgpack
import orjson

from gateway.errors import Close
from gateway.protocol import frames

MAX_INTEGER: Final = 2**53 - 1  # what every JSON reader keeps exact (contract, section 1)
MAX_DEPTH: Final = 32  # as for events (contract, section 2); recursion stays far from Python's own limit
# Members of one map or list. MessagePack announces them and a reader makes room before they come: 16 KiB of nested
# announcements cost 4 ms at this limit, 35 ms at eight times it. `seen` needs 256.
MAX_MEMBERS: Final = 512
BATCH_EVENTS: Final = 100
BATCH_BYTES: Final = 65536

Map = dict[str, Any]
Item = tuple[int, bytes | None]  # (offset, compact JSON of the event, None when it was erased)


class Codec(Protocol):
    """One subprotocol. Stateless: one object serves all connections."""

    subprotocol: str
    opcode: int

    def encode(self, message: Mapping[str, Any]) -> bytes:
        """The payload of one message, compact, keys in the order of the map."""

    def decode(self, payload: bytes) -> Map:
        """A device's message. Raises Close(4400): not decodable, not a map, a key twice or not a string, too deep or
        wide, NaN, infinity, an integer beyond ±(2^53-1), bytes or extension types."""

    def read(self, payload: bytes) -> Map:
        """A gateway's message, for those who trust it: a simulated device."""

    def message_frame(self, message: Mapping[str, Any]) -> bytes:
        """One message as a whole frame."""

    def event_frame(self, feed: str, offset: int, event: bytes | None) -> bytes:
        """One `event` as a whole frame. `event` is compact JSON, None when erased."""

    def batch_frames(self, feed: str, items: Sequence[Item], *, compress: bool = False) -> list[bytes]:
        """Events of one feed, in order, in few `batch` frames: each holds up to 100 events and up to 64 KiB before
        compression, but always one event. `compress` only for a connection that negotiated permessage-deflate."""


class _Json:
    subprotocol = "vestnik.v1.json"
    opcode = frames.TEXT

    def encode(self, message: Mapping[str, Any]) -> bytes:
        return orjson.dumps(message)

    def decode(self, payload: bytes) -> Map:
        # Nearly all that a device sends; the pattern admits nothing that the strict way would refuse or read otherwise.
        if ack := _JSON_ACK(payload):
            return {"t": "ack", "feed": ack[1].decode(), "offset": int(ack[2])}
        try:
            # Refuses wrong UTF-8, lone surrogates, NaN and infinities, but of two equal keys it takes the last. What it
            # writes back byte for byte had none; any other spelling goes the slow way, which sees them.
            value = orjson.loads(payload)
            if orjson.dumps(value) != payload:
                value = _STRICT(payload.decode())
        except (ValueError, TypeError, RecursionError):
            raise _bad("not a JSON map") from None
        return _checked(value)

    def read(self, payload: bytes) -> Map:
        value: Map = orjson.loads(payload)
        return value

    def message_frame(self, message: Mapping[str, Any]) -> bytes:
        return frames.frame(self.opcode, orjson.dumps(message))

    def event_frame(self, feed: str, offset: int, event: bytes | None) -> bytes:
        return frames.frame(
            self.opcode,
            b'{"t":"event","feed":%b,"offset":%d,"event":%b}' % (orjson.dumps(feed), offset, event or b"null"),
        )

    def batch_frames(self, feed: str, items: Sequence[Item], *, compress: bool = False) -> list[bytes]:
        head = b'{"t":"batch","feed":%b,"events":[' % orjson.dumps(feed)
        parts = [b"[%d,%b]" % (offset, event or b"null") for offset, event in items]
        return [
            _batch(self.opcode, head + b",".join(parts[start:end]) + b"]}", compress)
            for start, end in _portions(parts, len(head) + 2)
        ]


class _MsgPack:
    subprotocol = "vestnik.v1.msgpack"
    opcode = frames.BINARY

    def encode(self, message: Mapping[str, Any]) -> bytes:
        return _pack(message)

    def decode(self, payload: bytes) -> Map:
        try:
            value = msgpack.unpackb(
                payload,
                object_pairs_hook=_distinct,
                strict_map_key=False,  # or it would take bytes as keys; `_distinct` takes strings alone
                max_map_len=MAX_MEMBERS,
                max_array_len=MAX_MEMBERS,
            )
        except (ValueError, TypeError, RecursionError):
            raise _bad("not a MessagePack map") from None
        return _checked(value)

    def read(self, payload: bytes) -> Map:
        value: Map = msgpack.unpackb(payload)
        return value

    def message_frame(self, message: Mapping[str, Any]) -> bytes:
        return frames.frame(self.opcode, _pack(message))

    def event_frame(self, feed: str, offset: int, event: bytes | None) -> bytes:
        return frames.frame(self.opcode, _pack({"t": "event", "feed": feed, "offset": offset, "event": _value(event)}))

    def batch_frames(self, feed: str, items: Sequence[Item], *, compress: bool = False) -> list[bytes]:
        # The map without its list, which is the last of its three members.
        head = _pack({"t": "batch", "feed": feed, "events": []})[:-1]
        parts = [_pack((offset, _value(event))) for offset, event in items]
        return [
            _batch(self.opcode, head + _array_header(end - start) + b"".join(parts[start:end]), compress)
            for start, end in _portions(parts, len(head) + 3)
        ]


JSON: Final[Codec] = _Json()
MSGPACK: Final[Codec] = _MsgPack()
by_subprotocol: Final[Mapping[str, Codec]] = {codec.subprotocol: codec for codec in (JSON, MSGPACK)}


def choose(offered: Sequence[str]) -> Codec | None:
    """The codec of a connection from the subprotocols that the client offers, in its order.

    The first known one is taken; none offered (or an empty header, which real clients send) means JSON; offered but
    none known is None: answer 400.
    """
    names = [name for raw in offered if (name := raw.strip())]
    if not names:
        return JSON
    return next((by_subprotocol[name] for name in names if name in by_subprotocol), None)


# Strictness

_JSON_ACK = re.compile(
    rb'\{"t":"ack","feed":"([a-z]{1,16}:[A-Za-z0-9._-]{1,64})","offset":(0|[1-9][0-9]{0,14})\}'
).fullmatch


def _bad(reason: str) -> Close:
    return Close(4400, reason)


def _distinct(pairs: list[tuple[Any, Any]]) -> Map:
    """A map of a message: keys are strings, each once."""
    value: Map = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError
    for key in value:
        if type(key) is not str:
            raise ValueError
    return value


_STRICT = json.JSONDecoder(object_pairs_hook=_distinct).decode  # `json.loads` would make a decoder each time


def _checked(value: Any) -> Map:
    if type(value) is not dict:
        raise _bad("a message is a map")
    _check(value, 1)
    return value


def _check(value: Any, depth: int) -> None:
    """Refuse what is not a plain value that both subprotocols can carry. Recursion ends at MAX_DEPTH."""
    kind = type(value)
    if kind is str or value is None or kind is bool:
        return
    if kind is int:
        if not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise _bad("integer out of range")
    elif kind is float:
        if not math.isfinite(value):
            raise _bad("number is not finite")
    elif kind is dict or kind is list:
        if depth > MAX_DEPTH:
            raise _bad(f"nested deeper than {MAX_DEPTH}")
        if len(value) > MAX_MEMBERS:
            raise _bad("too many members")
        for member in value.values() if kind is dict else value:
            if type(member) is not str:
                _check(member, depth + 1)
    else:
        raise _bad("bytes and extension types are not plain values")


# Building


def _pack(value: Any) -> bytes:
    packed: bytes = msgpack.packb(value)
    return packed


def _value(event: bytes | None) -> Any:
    return None if event is None else orjson.loads(event)


def _array_header(size: int) -> bytes:
    return bytes((0x90 | size,)) if size < 16 else b"\xdc" + size.to_bytes(2, "big")


def _portions(parts: Sequence[bytes], overhead: int) -> list[tuple[int, int]]:
    """Slices of `parts` that fit one batch each; a part is counted with one byte for what stands between."""
    slices = []
    start, size = 0, overhead
    for i, part in enumerate(parts):
        if i > start and (i - start >= BATCH_EVENTS or size + len(part) + 1 > BATCH_BYTES):
            slices.append((start, i))
            start, size = i, overhead
        size += len(part) + 1
    if parts:
        slices.append((start, len(parts)))
    return slices


def _batch(opcode: int, payload: bytes, compress: bool) -> bytes:
    if compress:
        return frames.frame(opcode, frames.deflate(payload), rsv1=True)
    return frames.frame(opcode, payload)

"""What a hostile device sends, and what the gateway must do about it. Pure.

An attack is data: bytes at one moment of a connection's life, and the outcomes that the contract allows. An outcome is
`closed <code>`, `closed` (no close frame), `error <code>` of a session that lives, `refused <status>` of a handshake,
or `nothing`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random
from typing import Any, Final, Literal

import orjson

from client_sim.framing import BINARY, TEXT, masked

Hello = Mapping[str, Any]
Make = Callable[[Random, Hello, str], bytes]


@dataclass(frozen=True, slots=True)
class Attack:
    """`moment`: when `make(rng, a good hello, its feed)` is written, instead of what a good device would write then.
    `rule` is the contract's."""

    name: str
    moment: Literal["connected", "upgraded", "welcomed"]
    make: Make
    allowed: frozenset[str]
    rule: str
    patience_s: float = 20.0  # by then the gateway must have done something


def _text(message: Any) -> bytes:
    return masked(TEXT, orjson.dumps(message))


def _half_head(rng: Random, hello: Hello, feed: str) -> bytes:
    return b"GET /v1/socket HTTP/1.1\r\nHost: gateway\r\nX-Slow: "


def _garbage(rng: Random, hello: Hello, feed: str) -> bytes:
    return b"\xff" + rng.randbytes(rng.randrange(2, 400))  # reserved bits and an unknown opcode


def _unmasked(rng: Random, hello: Hello, feed: str) -> bytes:
    text = orjson.dumps({"t": "ping"})
    return bytes((0x81, len(text))) + text


def _wrong_token(rng: Random, hello: Hello, feed: str) -> bytes:
    token = str(hello["token"])
    at = rng.randrange(len(token) // 2, len(token) - 2)
    return _text({**hello, "token": token[:at] + ("A" if token[at] != "A" else "B") + token[at + 1 :]})


def _others_feed(rng: Random, hello: Hello, feed: str) -> bytes:
    return _text({"t": "subscribe", "feed": f"account:someone-{rng.randrange(1000)}"})


def _big_message(rng: Random, hello: Hello, feed: str) -> bytes:
    return _text({"t": "ping", "x": "x" * 17_000})


def _endless_frame(rng: Random, hello: Hello, feed: str) -> bytes:
    return bytes((0x80 | BINARY, 0xFF)) + (1 << 40).to_bytes(8, "big") + b"\0\0\0\0" + rng.randbytes(64)


def _flood(rng: Random, hello: Hello, feed: str) -> bytes:
    return _text({"t": "ping"}) * 400


def _ack_ahead(rng: Random, hello: Hello, feed: str) -> bytes:
    return _text({"t": "ack", "feed": feed, "offset": 10**12})


def _hello_twice(rng: Random, hello: Hello, feed: str) -> bytes:
    return _text(hello)


def _always(message: Any) -> Make:
    return lambda rng, hello, feed: _text(message)


def _raw(payload: bytes) -> Make:
    return lambda rng, hello, feed: masked(TEXT, payload)


def _closed(*codes: int) -> frozenset[str]:
    return frozenset({f"closed {code}" for code in codes})


_LIVES: Final = frozenset({"error invalid", "error unknown_feed", "error forbidden", "error unknown_type"})

ATTACKS: Final[Mapping[str, Attack]] = {
    attack.name: attack
    for attack in (
        Attack(
            "half_head",
            "connected",
            _half_head,
            frozenset({"closed", "refused 408", "refused 400"}),
            "request head within 10 s",
        ),
        Attack("no_hello", "upgraded", lambda rng, hello, feed: b"", _closed(4508), "hello within 10 s"),
        Attack("garbage", "upgraded", _garbage, _closed(1002, 4400), "RFC 6455, 5.2"),
        Attack("unmasked", "upgraded", _unmasked, _closed(1002), "RFC 6455, 5.1"),
        Attack("not_json", "upgraded", _raw(b'{"t":"hello",'), _closed(4400), "what is not decodable closes with 4400"),
        Attack("not_a_map", "upgraded", _always(["hello"]), _closed(4400), "what is not a map closes with 4400"),
        Attack("wrong_token", "upgraded", _wrong_token, _closed(4401), "token missing, wrong or ended"),
        Attack("hello_twice", "welcomed", _hello_twice, _closed(4400) | _LIVES, "hello is first"),
        Attack("others_feed", "welcomed", _others_feed, _LIVES, "another account's feed"),
        Attack("big_message", "welcomed", _big_message, _closed(4400), "a message over 16 KiB"),
        Attack("endless_frame", "welcomed", _endless_frame, _closed(4400), "a message over 16 KiB"),
        Attack("ack_ahead", "welcomed", _ack_ahead, _LIVES, "an ack past what was told is error"),
        Attack("unknown_type", "welcomed", _always({"t": "drop-tables"}), _LIVES, "the gateway answers one with error"),
        Attack(
            "wrong_fields",
            "welcomed",
            _always({"t": "seen", "feed": 7, "offsets": "all"}),
            _LIVES,
            "a wrong field is error",
        ),
        Attack("flood", "welcomed", _flood, _closed(4529), "120 messages a minute, bursts of 60"),
    )
}

"""The messages of the socket: what devices say, checked, and what the gateway says (contract, 3.2 to 3.6). Pure.

`parse` turns a decoded map into one of the dataclasses below or raises `Refused`: then the answer is `error` and the
session lives, except for `hello`, where the caller closes with 4400. The builders return maps with `t` first, ready for
a codec.

    device  -> Hello Ack Seen Subscribe Unsubscribe Mode Refresh Token Ping
    gateway -> welcome live resync seen beat subscribed unsubscribed refresh mode expiring renewed drain error pong
               (`event` and `batch` are built as whole frames by the codec)
"""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, Literal

from gateway.errors import Refused
from gateway.protocol.codec import MAX_INTEGER, Map

Ref = str | int
ModeName = Literal["full", "saver"]
Position = tuple[str, int]  # (epoch, offset)

MAX_SEEN: Final = 256  # offsets of one `seen`
MAX_TOKEN: Final = 8192  # characters; a token with many scopes has 2 KiB
MAX_AGENT: Final = 256
MAX_EPOCH: Final = 64
MAX_SOURCE: Final = 128

is_id: Final = re.compile(r"[A-Za-z0-9._-]{1,64}").fullmatch  # of an account or a device (contract, section 1)
is_agency: Final = re.compile(r"[a-z0-9-]{1,32}").fullmatch
# A kind that is not known yet parses, so that the session can say `unknown_feed` rather than `invalid`.
_is_feed = re.compile(
    r"account:[A-Za-z0-9._-]{1,64}|agency:[a-z0-9-]{1,32}|(?!account:|agency:)[a-z][a-z0-9-]{0,31}:[!-~]{1,128}"
).fullmatch


# From the device


@dataclass(frozen=True, slots=True)
class Hello:
    """The first message, within 10 s: who is here and what it keeps.

    `resume` is by feed and outranks the stored cursor; `feeds` are agency feeds to follow in this session, each once;
    `fresh` says that the device keeps nothing and is to be treated as new.
    """

    token: str
    device: str
    resume: Mapping[str, Position] = field(default_factory=dict)
    feeds: tuple[str, ...] = ()
    mode: ModeName = "full"
    fresh: bool = False
    agent: str | None = None
    ref: Ref | None = None


@dataclass(frozen=True, slots=True)
class Ack:
    """All events of the feed up to `offset` are kept by the device. Opens the window, moves the cursor."""

    feed: str
    offset: int
    ref: Ref | None = None


@dataclass(frozen=True, slots=True)
class Seen:
    """The person was shown these events. The other devices of the account are told."""

    feed: str
    offsets: tuple[int, ...]
    ref: Ref | None = None


@dataclass(frozen=True, slots=True)
class Subscribe:
    """Follow an agency feed from now on, or after `resume`. Answered by `subscribed`, `resync` if needed, `live`."""

    feed: str
    resume: Position | None = None
    ref: Ref | None = None


@dataclass(frozen=True, slots=True)
class Unsubscribe:
    """Stop following an agency feed and forget its cursor. Answered by `unsubscribed`."""

    feed: str
    ref: Ref | None = None


@dataclass(frozen=True, slots=True)
class Mode:
    """Traffic saving on (`saver`) or off (`full`). Answered by `mode` when it is in force."""

    mode: ModeName
    ref: Ref | None = None


@dataclass(frozen=True, slots=True)
class Refresh:
    """«Обновить данные»: ask the agency now. The same `ref` again asks once."""

    source: str
    ref: Ref | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A new token of the same account. Answered by `renewed`, or by `error`, and then the old one stays."""

    token: str
    ref: Ref | None = None


@dataclass(frozen=True, slots=True)
class Ping:
    """Is anybody there? Answered by `pong`. Browsers cannot send the ping of WebSocket itself."""

    ref: Ref | None = None


Message = Hello | Ack | Seen | Subscribe | Unsubscribe | Mode | Refresh | Token | Ping


def parse(message: Map) -> Message:
    """The message as its dataclass. Unknown keys are ignored.

    Raises Refused: `unknown_type` when `t` names none, `invalid` with the field named in `detail`, and `feed` where the
    message has a good one.
    """
    kind = message.get("t")
    if type(kind) is not str:
        raise _invalid(message, "t", "a string that names a message")
    if kind not in _PARSERS:
        raise Refused("unknown_type", f"no message is called {kind[:64]!r}")
    return _PARSERS[kind](message)


def parse_ack(message: Map) -> Ack | Refused:
    """The same for a message whose `t` is known to be `ack`, the one that comes all the time."""
    try:
        return _ack(message)
    except Refused as refused:
        return refused


def ref_of(message: Map) -> Ref | None:
    """The `ref` to send back in an answer; None when there is none, or not a good one."""
    ref = message.get("ref")
    if type(ref) is str:
        return ref
    return ref if type(ref) is int and -MAX_INTEGER <= ref <= MAX_INTEGER else None


# The fields, each by what is right for it. They look at exact types: True is an int for isinstance.


def _invalid(message: Map, name: str, wanted: str) -> Refused:
    feed = message.get("feed")
    return Refused("invalid", f"{name}: must be {wanted}", feed if type(feed) is str and _is_feed(feed) else None)


def _ref(message: Map) -> Ref | None:
    if "ref" not in message:
        return None
    ref = ref_of(message)
    if ref is None:
        raise _invalid(message, "ref", "a string or an integer")
    return ref


def _feed(message: Map) -> str:
    feed = message.get("feed")
    if type(feed) is str and _is_feed(feed):
        return feed
    raise _invalid(message, "feed", "the name of a feed")


def _is_offset(value: Any) -> bool:
    return type(value) is int and 0 <= value <= MAX_INTEGER


def _offset(message: Map) -> int:
    offset = message.get("offset")
    if type(offset) is int and 0 <= offset <= MAX_INTEGER:
        return offset
    raise _invalid(message, "offset", "an integer from 0 to 2^53-1")


def _offsets(message: Map) -> tuple[int, ...]:
    offsets = message.get("offsets")
    if type(offsets) is list and 1 <= len(offsets) <= MAX_SEEN and all(map(_is_offset, offsets)):
        return tuple(offsets)
    raise _invalid(message, "offsets", f"a list of 1 to {MAX_SEEN} integers from 0 to 2^53-1")


def _text(message: Map, name: str, limit: int) -> str:
    text = message.get(name)
    if type(text) is str and 1 <= len(text) <= limit:
        return text
    raise _invalid(message, name, f"a string of 1 to {limit} characters")


def _mode(message: Map) -> ModeName:
    mode = message.get("mode")
    if mode == "full" or mode == "saver":
        return mode  # type: ignore[no-any-return]
    raise _invalid(message, "mode", "`full` or `saver`")


def _position(message: Map, name: str, position: Any) -> Position:
    if type(position) is dict:
        epoch, offset = position.get("epoch"), position.get("offset")
        if type(epoch) is str and 1 <= len(epoch) <= MAX_EPOCH and _is_offset(offset):
            return epoch, offset  # type: ignore[return-value]
    raise _invalid(message, name, f"{{epoch, offset}}: a string of 1 to {MAX_EPOCH} characters and an offset")


def _device(message: Map) -> str:
    device = message.get("device")
    if type(device) is str and is_id(device):
        return device
    raise _invalid(message, "device", "1 to 64 of A-Za-z0-9._-")


def _resume(message: Map) -> dict[str, Position]:
    resume = message.get("resume", {})
    if type(resume) is not dict:
        raise _invalid(message, "resume", "a map of feeds to positions")
    for feed in resume:
        if not _is_feed(feed):
            raise _invalid(message, "resume", "a map whose keys are names of feeds")
    return {feed: _position(message, f"resume[{feed}]", position) for feed, position in resume.items()}


def _feeds(message: Map) -> tuple[str, ...]:
    feeds = message.get("feeds", [])
    if type(feeds) is list and all(type(feed) is str and _is_feed(feed) for feed in feeds):
        return tuple(dict.fromkeys(feeds))
    raise _invalid(message, "feeds", "a list of names of feeds")


def _fresh(message: Map) -> bool:
    fresh = message.get("fresh", False)
    if type(fresh) is bool:
        return fresh
    raise _invalid(message, "fresh", "true or false")


# The messages, from their fields


def _hello(message: Map) -> Hello:
    return Hello(
        token=_text(message, "token", MAX_TOKEN),
        device=_device(message),
        resume=_resume(message),
        feeds=_feeds(message),
        mode=_mode(message) if "mode" in message else "full",
        fresh=_fresh(message),
        agent=_text(message, "agent", MAX_AGENT) if "agent" in message else None,
        ref=_ref(message),
    )


def _ack(message: Map) -> Ack:
    return Ack(_feed(message), _offset(message), _ref(message))


def _subscribe(message: Map) -> Subscribe:
    feed = _feed(message)
    resume = _position(message, "resume", message["resume"]) if "resume" in message else None
    return Subscribe(feed, resume, _ref(message))


_PARSERS: Final[Mapping[str, Callable[[Map], Message]]] = {
    "hello": _hello,
    "ack": _ack,
    "seen": lambda message: Seen(_feed(message), _offsets(message), _ref(message)),
    "subscribe": _subscribe,
    "unsubscribe": lambda message: Unsubscribe(_feed(message), _ref(message)),
    "mode": lambda message: Mode(_mode(message), _ref(message)),
    "refresh": lambda message: Refresh(_text(message, "source", MAX_SOURCE), _ref(message)),
    "token": lambda message: Token(_text(message, "token", MAX_TOKEN), _ref(message)),
    "ping": lambda message: Ping(_ref(message)),
}

# From the gateway. Times are RFC 3339 text, durations seconds.


def welcome(
    *,
    session: str,
    account: str,
    new: bool,
    time: str,
    expires: str,
    window: int,
    limits: Mapping[str, float],
    feeds: Sequence[Mapping[str, Any]],
    ref: Ref | None = None,
) -> Map:
    """The session is open. `feeds` are `{feed, epoch, head, from}`: events follow from `from` + 1. `limits` are
    `feeds`, `message`, `rate` and `backoff`. With `new` the device loads the snapshot."""
    return _with_ref(
        {
            "t": "welcome",
            "session": session,
            "account": account,
            "new": new,
            "time": time,
            "expires": expires,
            "window": window,
            "limits": dict(limits),
            "feeds": list(feeds),
        },
        ref,
    )


def live(feed: str) -> Map:
    """Caught up: once for each feed after `welcome` or `subscribed`."""
    return {"t": "live", "feed": feed}


def resync(feed: str, epoch: str, offset: int, reason: Literal["retention", "epoch"]) -> Map:
    """Continuity is broken; `offset` is the head and events follow after it."""
    return {"t": "resync", "feed": feed, "epoch": epoch, "offset": offset, "reason": reason}


def seen(feed: str, offsets: Sequence[int]) -> Map:
    """Another device of the account showed these."""
    return {"t": "seen", "feed": feed, "offsets": list(offsets)}


def beat(heads: Mapping[str, int], next_s: float) -> Map:
    """The heads as the store had them at the last comparison; the next beat comes in `next_s`."""
    return {"t": "beat", "heads": dict(heads), "next": next_s}


def subscribed(*, feed: str, epoch: str, head: int, from_: int, ref: Ref | None = None) -> Map:
    """The feed is followed: events follow from `from` + 1."""
    return _with_ref({"t": "subscribed", "feed": feed, "epoch": epoch, "head": head, "from": from_}, ref)


def unsubscribed(feed: str, ref: Ref | None = None) -> Map:
    return _with_ref({"t": "unsubscribed", "feed": feed}, ref)


def refresh(
    source: str,
    status: Literal["accepted", "done", "failed", "cooldown"],
    *,
    reason: str | None = None,
    retry_after_s: float | None = None,
    updated: str | None = None,
    ref: Ref | None = None,
) -> Map:
    """How the request to the agency stands. `updated` is when the agency's data were last brought up to date."""
    message: Map = {"t": "refresh", "source": source, "status": status}
    if reason is not None:
        message["reason"] = reason
    if retry_after_s is not None:
        message["retry_after"] = retry_after_s
    if updated is not None:
        message["updated"] = updated
    return _with_ref(message, ref)


def mode(name: ModeName, ref: Ref | None = None) -> Map:
    """Now in force."""
    return _with_ref({"t": "mode", "mode": name}, ref)


def expiring(in_s: float) -> Map:
    """The token ends in so many seconds."""
    return {"t": "expiring", "in": in_s}


def renewed(expires: str, ref: Ref | None = None) -> Map:
    """The new token is in force."""
    return _with_ref({"t": "renewed", "expires": expires}, ref)


def drain(after_s: float) -> Map:
    """This node goes away: reconnect at a random moment within so many seconds."""
    return {"t": "drain", "after": after_s}


def error(code: str, detail: str, *, feed: str | None = None, ref: Ref | None = None) -> Map:
    """A message of the device was refused, and nothing else changed. `code` is that of the `Refused`."""
    message: Map = {"t": "error", "code": code, "detail": detail}
    if feed is not None:
        message["feed"] = feed
    return _with_ref(message, ref)


def pong(ref: Ref | None = None) -> Map:
    return _with_ref({"t": "pong"}, ref)


def _with_ref(message: Map, ref: Ref | None) -> Map:
    if ref is not None:
        message["ref"] = ref
    return message

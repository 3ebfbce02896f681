"""Strict JSON: what the gateway takes from outside is I-JSON (RFC 7493) or nothing. Pure.

Whatever is read here can be written again as UTF-8 JSON and as msgpack, means the same to every reader, and fits its
stack: no duplicate keys, no NaN or infinities, no lone surrogates, no integers beyond ±(2^53−1), no nesting deeper than
`MAX_DEPTH`. One event that cannot be written would block its feed for ever, so it is refused at the door.

The standard library reads, because it alone shows duplicate keys; it is forgiving otherwise. A place that breaks a rule
becomes a `Mark` in the value that is read, so that one bad item of a batch leaves the others alone; `compact` refuses a
value with marks, at the speed of the writer, and only then `faults` looks for them one by one.
"""

import json
import math
import re
from collections.abc import Iterator
from typing import Any, Literal, NamedTuple

import orjson

from gateway.errors import Problem

MAX_DEPTH = 32  # protects every later reader's stack; real events nest 3 to 6 deep
MAX_INTEGER = 2**53 - 1  # what a double, and so every browser, holds exactly
MAX_FAULTS = 100  # of one value: an answer need not be larger than the question

Rule = Literal["duplicate", "infinite", "surrogate", "deep", "range"]

DETAILS: dict[Rule, str] = {
    "duplicate": "this object has a key twice",
    "infinite": "NaN and infinities are not JSON numbers",
    "surrogate": "a lone surrogate is not text",
    "deep": f"nested deeper than {MAX_DEPTH}",
    "range": "integers stay within ±(2^53−1)",
}


class Fault(NamedTuple):
    """A place (RFC 6901) that breaks a rule. All are malformed JSON to us, but `range`, which is a wrong value."""

    pointer: str
    rule: Rule


class Mark:
    """Stands where the text broke a rule. No writer takes it, so it cannot slip through."""

    __slots__ = ("rule",)

    def __init__(self, rule: Rule):
        self.rule = rule


def _object(pairs: list[tuple[str, Any]]) -> Any:
    members = dict(pairs)
    return members if len(members) == len(pairs) else Mark("duplicate")


def _integer(digits: str) -> Any:
    # 17 characters hold ±(2^53−1). int() raises beyond 4,300 digits, and its time grows with their square before that.
    return int(digits) if len(digits) <= 17 else Mark("range")


def _float(digits: str) -> Any:
    number = float(digits)
    if not math.isfinite(number):  # 1e999
        return Mark("infinite")
    if number.is_integer() and abs(number) <= MAX_INTEGER:
        return int(number)  # 1 and 1.0 are one JSON value: written, compared and digested as one
    return number


_decoder = json.JSONDecoder(
    object_pairs_hook=_object, parse_int=_integer, parse_float=_float, parse_constant=lambda _: Mark("infinite")
)


def malformed(detail: str, faults: list[Fault] | None = None) -> Problem:
    """The problem for text that is not JSON as the contract wants it (400)."""
    errors = [{"pointer": fault.pointer, "detail": DETAILS[fault.rule]} for fault in faults or ()]
    return Problem(400, "malformed", "Not well-formed JSON", detail, errors=errors)


def read(body: bytes) -> Any:
    """The value of a JSON text; faults that have a place are `Mark`s in it, to be found by `compact` and `faults`.

    Raises Problem 400 for what is no JSON text at all: a syntax error, bytes that are not UTF-8, a byte order mark.
    """
    text = _text(body)
    try:
        return _decode(text)
    except RecursionError:
        return Mark("deep")


def read_items(body: bytes) -> Any:
    """Like `read`, for an array: an item nested too deep even for the parser becomes a `Mark` of its own."""
    text = _text(body)
    try:
        return _decode(text)
    except RecursionError:
        pass
    return [_read_item(part) for part in _split(text)] if text.lstrip(" \t\n\r").startswith("[") else Mark("deep")


def compact(value: Any) -> bytes | None:
    """The value as compact UTF-8 JSON in the order of its members; None when it breaks a rule, which `faults` names."""
    try:
        written = orjson.dumps(value, option=orjson.OPT_STRICT_INTEGER)
    except orjson.JSONEncodeError:
        return None
    # Brackets bound the depth from above at the speed of a byte count; few events need the walk.
    if written.count(b"{") + written.count(b"[") > MAX_DEPTH and _deeper(value, MAX_DEPTH):
        return None
    return written


def canonical(value: Any) -> bytes:
    """One spelling for equal JSON values. The value must have passed `compact`."""
    return orjson.dumps(value, option=orjson.OPT_SORT_KEYS)


def faults(value: Any) -> list[Fault]:
    """Every place that makes it malformed or, when there is none, every integer out of range; at most `MAX_FAULTS`.

    In reading order; empty exactly when `compact` writes the value.
    """
    grave: list[Fault] = []
    slight: list[Fault] = []
    for fault in _walk(value):
        kept = slight if fault.rule == "range" else grave
        if len(kept) < MAX_FAULTS:
            kept.append(fault)
        elif kept is grave:
            break
    return grave or slight


def clamped(value: Any) -> Any:
    """The value with integers out of range put back into it, so that its other faults can be looked for.

    The value must have no fault but `range`.
    """
    if isinstance(value, dict):
        return {key: clamped(member) for key, member in value.items()}
    if isinstance(value, list):
        return [clamped(item) for item in value]
    if isinstance(value, Mark) or (type(value) is int and abs(value) > MAX_INTEGER):
        return 0
    return value


def pointer(*path: str | int) -> str:
    """RFC 6901."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in path)


def _text(body: bytes) -> str:
    try:
        text = body.decode()
    except UnicodeDecodeError as error:
        raise malformed(f"not UTF-8 at byte {error.start}") from None
    if text.startswith("\ufeff"):  # RFC 8259, 8.1: "MUST NOT add a byte order mark"
        raise malformed("a byte order mark is not JSON")
    return text


def _decode(text: str) -> Any:
    try:
        return _decoder.decode(text)
    except json.JSONDecodeError as error:
        raise malformed(f"{error.msg} at line {error.lineno} column {error.colno}") from None


def _read_item(text: str) -> Any:
    try:
        return _decode(text)
    except RecursionError:
        return Mark("deep")


# A quote that opens no string is a token of its own, so that the scan ends there and stays linear.
_TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|["\[\]{},]', re.DOTALL)
_CLOSES = {"]": "[", "}": "{"}


def _split(text: str) -> list[str]:
    """The items of an array, as text, found by its brackets alone: no depth is too deep for this."""
    parts: list[str] = []
    opened: list[str] = []
    begin = end = 0
    for match in _TOKEN.finditer(text):
        sign = match[0]
        if end or sign == '"':
            raise malformed(f"unexpected character at {match.start()}")
        if sign in "[{":
            opened.append(sign)
            begin = begin or match.end()
        elif sign in "]}":
            if not opened or opened.pop() != _CLOSES[sign]:
                raise malformed(f"unexpected bracket at {match.start()}")
            if not opened:
                end = match.end()
        if (sign == "," and len(opened) == 1) or end:
            parts.append(text[begin : match.start()])
            begin = match.end()
    if not end or text[end:].strip(" \t\n\r"):
        raise malformed("the array does not end, or something follows it")
    return parts


def _deeper(value: Any, levels: int) -> bool:
    """Does it nest deeper than so many levels?"""
    if levels == 0:
        return True
    children = value.values() if type(value) is dict else value
    return any(_deeper(child, levels - 1) for child in children if type(child) is dict or type(child) is list)


def _walk(value: Any, path: tuple[str | int, ...] = ()) -> Iterator[Fault]:
    """Depth first, in reading order; never deeper than one level past the limit."""
    rule: Rule | None = None
    if isinstance(value, Mark):
        rule = value.rule
    elif isinstance(value, str):
        rule = "surrogate" if _has_surrogate(value) else None
    elif type(value) is int:
        rule = "range" if abs(value) > MAX_INTEGER else None
    elif isinstance(value, dict | list):
        if len(path) < MAX_DEPTH:
            yield from _walk_members(value, path)
            return
        rule = "deep"
    if rule:
        yield Fault(pointer(*path), rule)


def _walk_members(value: dict[str, Any] | list[Any], path: tuple[str | int, ...]) -> Iterator[Fault]:
    if isinstance(value, list):
        for index, item in enumerate(value):
            yield from _walk(item, (*path, index))
        return
    for key, member in value.items():
        if _has_surrogate(key):
            yield Fault(pointer(*path), "surrogate")
        else:
            yield from _walk(member, (*path, key))


def _has_surrogate(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False

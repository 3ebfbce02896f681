"""The reader of JSON from outside, against an oracle that is written the slow way."""

import contextlib
import json
import math
import time
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gateway import strict
from gateway.errors import Problem

scalars = (
    st.none()
    | st.booleans()
    | st.integers(-strict.MAX_INTEGER, strict.MAX_INTEGER)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
)
values = st.recursive(scalars, lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner), max_leaves=30)


def rules(text: str | bytes) -> list[tuple[str, str]]:
    return [tuple(fault) for fault in strict.faults(strict.read(text.encode() if isinstance(text, str) else text))]


def nested(levels: int) -> str:
    return "[" * levels + "]" * levels


@settings(deadline=None)
@given(values)
def test_good_values_are_read_and_written(value: Any) -> None:
    read = strict.read(json.dumps(value).encode())
    assert read == value
    written = strict.compact(read)
    assert written is not None
    assert json.loads(written) == value
    assert strict.faults(read) == []


@settings(deadline=None)
@given(values)
def test_equal_values_have_one_canonical_spelling(value: Any) -> None:
    def respelled(part: Any) -> Any:
        if isinstance(part, dict):
            return dict(reversed([(key, respelled(member)) for key, member in part.items()]))
        if isinstance(part, list):
            return [respelled(item) for item in part]
        if isinstance(part, int) and not isinstance(part, bool):
            return float(part)
        return part

    first = strict.read(json.dumps(value, ensure_ascii=True).encode())
    second = strict.read(json.dumps(respelled(value), ensure_ascii=False, indent=1).encode())
    assert strict.canonical(first) == strict.canonical(second)


@settings(deadline=None)
@given(values, values)
def test_other_values_have_another(one: Any, two: Any) -> None:
    def same(a: Any, b: Any) -> bool:
        if isinstance(a, bool) or isinstance(b, bool):
            return a is b
        if isinstance(a, dict) and isinstance(b, dict):
            return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
        if isinstance(a, list) and isinstance(b, list):
            return len(a) == len(b) and all(map(same, a, b))
        return bool(a == b)

    one, two = (strict.read(json.dumps(value).encode()) for value in (one, two))
    assert (strict.canonical(one) == strict.canonical(two)) == same(one, two)


@pytest.mark.parametrize("text", ["1.0", "1e0", "10e-1", "1"])
def test_one_is_one(text: str) -> None:
    assert strict.compact(strict.read(text.encode())) == b"1"


def test_minus_zero_is_zero_and_large_floats_stay() -> None:
    assert strict.compact(strict.read(b"[-0, -0.0, 1e300, 1.5]")) == b"[0,0,1e+300,1.5]"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b" ",
        b"{",
        b"[1,]",
        b'{"a":1,}',
        b"{'a':1}",
        b"[01]",
        b"[+1]",
        b"[.5]",
        b"[1.]",
        b"[0x10]",
        b"nan",
        b"[undefined]",
        b'"\x01"',
        b'"\\x41"',
        b'"\\u12"',
        b"[1] [2]",
        b"[1] x",
        b"// no\n[1]",
        b"\xef\xbb\xbf[1]",
        b"\xff\xfe[\x001\x00]\x00",
        b'"\xed\xa0\x80"',  # a surrogate as bytes
        b'"\xc0\x80"',
        b'"\xff"',
        b"\x0b[1]",
        "[1]\u00a0".encode(),
    ],
)
def test_what_is_no_json_at_all(body: bytes) -> None:
    for read in (strict.read, strict.read_items):
        with pytest.raises(Problem) as caught:
            read(body)
        assert (caught.value.status, caught.value.word) == (400, "malformed")
        assert caught.value.detail


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ('{"a":1,"a":1}', [("", "duplicate")]),
        ('{"x":[{"a":1,"\\u0061":2}]}', [("/x/0", "duplicate")]),
        ("[NaN, Infinity, -Infinity, 1e999, -1e999]", [(f"/{index}", "infinite") for index in range(5)]),
        (r'["\ud800", "\udc00x", "\ud83d\ude00"]', [("/0", "surrogate"), ("/1", "surrogate")]),
        (r'{"a/b~c": {"\udfff": 1}}', [("/a~1b~0c", "surrogate")]),
        ("[9007199254740991, -9007199254740991]", []),
        ("[9007199254740992, -9007199254740992]", [("/0", "range"), ("/1", "range")]),
        ("[" + "9" * 5000 + "]", [("/0", "range")]),
        ("[" + "9" * 5000 + ".0]", [("/0", "infinite")]),
        ('[9007199254740992, "\\ud800"]', [("/1", "surrogate")]),  # the graver kind only
    ],
)
def test_faults_with_a_place(text: str, expected: list[tuple[str, str]]) -> None:
    assert rules(text) == expected
    assert (strict.compact(strict.read(text.encode())) is None) == bool(expected)


def test_depth_is_counted_from_the_value() -> None:
    assert rules(nested(32)) == []
    assert strict.compact(strict.read(nested(32).encode())) is not None
    assert rules(nested(33)) == [("/0" * 32, "deep")]
    assert strict.compact(strict.read(nested(33).encode())) is None
    many = json.dumps([[[]]] * 100 + ["[{" * 100]).encode()  # many brackets, but flat
    assert strict.compact(strict.read(many)) == many.replace(b" ", b"")


@pytest.mark.parametrize("levels", [200, 900, 5_000, 500_000])
def test_any_depth_is_an_answer(levels: int) -> None:
    assert [rule for _, rule in rules(nested(levels))] == ["deep"]
    assert strict.faults(strict.read(("[" * levels + "]" * levels).encode()))[0].rule == "deep"


@pytest.mark.parametrize("deep", [nested(33), nested(100_000), '{"a":' * 5_000 + r'"]}\""' + "}" * 5_000])
def test_one_item_too_deep_leaves_the_others(deep: str) -> None:
    items = strict.read_items(f' [ {{"a":"],[\\"{{"}} ,{deep}, 3 , "\\\\" ] \n'.encode())
    assert [bool(strict.faults(item)) for item in items] == [False, True, False, False]
    assert (items[0], items[2], items[3]) == ({"a": '],["{'}, 3, "\\")


@pytest.mark.parametrize(
    "body",
    [
        "[1," + nested(5_000),
        "[1," + nested(5_000) + "]]",
        "[1," + nested(5_000) + "] 2",
        "[1," + nested(5_000) + ",]",
        "[1,," + nested(5_000) + "]",
        '[1,"' + nested(5_000) + "]",
        "[1," + "[" * 5_000 + "}" * 5_000 + "]",
        "[x," + nested(5_000) + "]",
    ],
)
def test_beside_an_item_too_deep_the_rest_must_still_be_json(body: str) -> None:
    with pytest.raises(Problem) as caught:
        strict.read_items(body.encode())
    assert caught.value.word == "malformed"


def test_deep_bodies_that_are_no_array() -> None:
    body = ('{"a":' * 5_000 + "1" + "}" * 5_000).encode()
    assert strict.faults(strict.read_items(body)) == [("", "deep")]


def test_faults_are_bounded_and_the_grave_ones_are_found_behind_many_slight_ones() -> None:
    big = strict.read(b"[" + b"9007199254740992," * 500 + b"0]")
    assert len(strict.faults(big)) == strict.MAX_FAULTS
    mixed = strict.read(b"[" + b"9007199254740992," * 500 + b"NaN]")
    assert strict.faults(mixed) == [("/500", "infinite")]


def test_clamped_can_be_written() -> None:
    value = strict.read(b'{"a":[9007199254740992,' + b"9" * 5000 + b',"x",true]}')
    assert strict.clamped(value) == {"a": [0, 0, "x", True]}


def test_hostile_bodies_take_linear_time() -> None:
    bodies = [
        b'"' + b'\\"' * 500_000,
        b"[" * 5_000 + b'"' + b'\\"' * 500_000,
        b"9" * 1_000_000,
        b"0." + b"9" * 1_000_000,
    ]
    started = time.process_time()
    for body in bodies:
        for read in (strict.read, strict.read_items):
            with contextlib.suppress(Problem):
                strict.faults(read(body))
    assert time.process_time() - started < 3


def test_pointers_are_escaped() -> None:
    assert strict.pointer("a/b", 0, "~", "") == "/a~1b/0/~0/"
    assert strict.pointer() == ""


def test_nothing_infinite_is_ever_written() -> None:
    assert strict.compact([strict.read(b"1e400")]) is None
    assert math.isfinite(strict.read(b"1e308"))

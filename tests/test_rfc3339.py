"""Times in and out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gateway.rfc3339 import format_time, is_date, is_time, parse_moment, parse_time


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("2026-03-01T09:30:00Z", "2026-03-01T09:30:00+00:00"),
        ("2026-03-01t09:30:00.5z", "2026-03-01T12:30:00.500+03:00"),
        ("2026-03-01T09:30:00-00:00", "2026-03-01T09:30:00Z"),
        ("2016-12-31T23:59:60Z", "2017-01-01T00:00:00Z"),  # the leap second
        ("2017-01-01T02:59:60.25+03:00", "2017-01-01T00:00:00.25Z"),
        ("0001-01-01T00:00:00+23:59", "0001-01-01T00:00:00+23:59"),
        ("2026-03-01T09:30:00.1234567890123Z", "2026-03-01T09:30:00.123456Z"),
    ],
)
def test_spellings_of_one_moment(text: str, same: str) -> None:
    assert parse_time(text) == parse_time(same)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "2026-03-01",
        "2026-03-01T09:30Z",
        "2026-03-01T09:30:00",
        "2026-03-01 09:30:00Z",
        "2026-03-01T24:00:00Z",
        "2026-03-01T09:30:61Z",
        "2026-02-29T00:00:00Z",
        "0000-01-01T00:00:00Z",
        "2026-03-01T09:30:00+24:00",
        "2026-03-01T09:30:00+0300",
        "2026-03-01T09:30:00.Z",
        "2026-03-01T09:30:00,5Z",
        "2026-W09-7T09:30:00Z",
        "20260301T093000Z",
        "2026-03-01T09:30:00Z\n",
        "٢٠٢٦-03-01T09:30:00Z",
    ],
)
def test_what_is_no_time(text: str) -> None:
    assert not is_time(text)


def test_dates() -> None:
    assert is_date("2024-02-29")
    assert not is_date("2026-02-29")
    assert not is_date("20260301")
    assert parse_moment("2026-03-01") == parse_time("2026-03-01T00:00:00Z")
    assert parse_moment("2026-03-01T03:00:00+03:00") == parse_time("2026-03-01T00:00:00Z")


def test_written_with_milliseconds() -> None:
    assert format_time(1772357400.125) == "2026-03-01T09:30:00.125Z"
    assert format_time(0) == "1970-01-01T00:00:00.000Z"


@given(st.integers(0, 7_000_000_000_000_000))
def test_read_back_to_the_millisecond(microseconds: int) -> None:
    unix = microseconds / 1e6
    assert -1e-6 <= unix - parse_time(format_time(unix)) < 0.001001

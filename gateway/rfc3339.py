"""Times as the contract writes them: RFC 3339 text outside, Unix seconds inside. Pure."""

import re
from datetime import UTC, date, datetime

_TIME = re.compile(
    r"\d{4}-\d{2}-\d{2}[Tt](?:[01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(?:\.\d+)?(?:[Zz]|[+-](?:[01]\d|2[0-3]):[0-5]\d)",
    re.ASCII,
)
_DATE = re.compile(r"\d{4}-\d{2}-\d{2}", re.ASCII)


def parse_time(text: str) -> float:
    """Unix seconds of a date-time (RFC 3339, 5.6), to the microsecond. A leap second is the second after :59.

    Raises ValueError.
    """
    match = _TIME.fullmatch(text)
    if match is None:
        raise ValueError("not an RFC 3339 date-time")
    leap = match[1] == "60"
    if leap:
        text = f"{text[:17]}59{text[19:]}"
    return datetime.fromisoformat(text.upper()).timestamp() + leap


def parse_moment(text: str) -> float:
    """Unix seconds of a date-time, or of the first moment of a full-date in UTC. Raises ValueError."""
    return parse_time(f"{text}T00:00:00Z") if _DATE.fullmatch(text) else parse_time(text)


def format_time(unix: float) -> str:
    """RFC 3339 in UTC with milliseconds: `2026-03-01T09:30:00.125Z`."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds")[:-6] + "Z"


def is_time(text: str) -> bool:
    """Is it an RFC 3339 date-time?"""
    try:
        parse_time(text)
    except ValueError:
        return False
    return True


def is_date(text: str) -> bool:
    """Is it an RFC 3339 full-date?"""
    try:
        return bool(_DATE.fullmatch(text)) and bool(date.fromisoformat(text))
    except ValueError:
        return False

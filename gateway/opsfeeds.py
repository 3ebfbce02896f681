"""The operators' feeds: what the gateway and its workers tell about themselves, delivered like everything else.
Contract, section 8. Pure.

`ops:<name>` are feeds of the same store, read only with a token whose scope has the word `ops`. Their events have the
source `/gateway`, are never signed, and no agency may send their types.
"""

import secrets
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Final

from gateway.events import gateway_event
from gateway.store.base import Draft
from gateway.types import PRIORITIES

SCOPE: Final = "ops"
"""The word in a token's `scope` that opens these feeds."""

PREFIX: Final = "ops:"
FIGURES: Final = "ops:figures"
REJECTED: Final = "ops:rejected"
ALERTS: Final = "ops:alerts"
AUDIT: Final = "ops:audit"

TYPES: Final[Mapping[str, str]] = {
    FIGURES: "gov.vestnik.figures",
    REJECTED: "gov.vestnik.rejected",
    ALERTS: "gov.vestnik.alert",
    AUDIT: "gov.vestnik.audited",
}
"""All of them, with the one type of event that each holds."""


def new_id() -> str:
    """An id for one more event: no other has it."""
    return secrets.token_hex(16)


def draft(
    feed: str, type: str, data: Mapping[str, Any], *, id: str, now: float, priority: str | int | None = None
) -> Draft:
    """An event on its way into `feed`; `append` it to the store and hand what was stored to the bus.

    The same `id` twice is one event (and a conflict when the data differ), so whoever repeats a step gives the same.
    `now` is the event's `time`, Unix seconds. `priority` (word or index) is the type's own when not given. The caller
    answers for the data: they obey the type's schema, hold no more than 64 KiB and only what JSON can write."""
    made = gateway_event(type, feed, data, id=id, now=now)
    if priority is None:
        return made
    return replace(made, priority=PRIORITIES.index(priority) if isinstance(priority, str) else priority)

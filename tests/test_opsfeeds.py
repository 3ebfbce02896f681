"""Events for operators."""

import json

import pytest

from gateway import opsfeeds
from gateway.events import key_of
from gateway.store.memory import MemoryStore
from gateway.types import registry
from tests.test_types import GOOD

ALERT = "gov.vestnik.alert"
NOW = 1772357400.5


def test_an_event_of_the_gateways_own() -> None:
    data = GOOD[ALERT]
    draft = opsfeeds.draft(opsfeeds.ALERTS, ALERT, data, id="a-1", now=NOW)
    assert json.loads(draft.event) == {
        "specversion": "1.0",
        "id": "a-1",
        "source": "/gateway",
        "type": ALERT,
        "time": "2026-03-01T09:30:00.500Z",
        "data": data,
    }
    assert (draft.feed, draft.key, draft.priority) == ("ops:alerts", key_of("/gateway", "a-1"), 1)
    assert (draft.time, draft.original, draft.thing) == (NOW, None, None)


@pytest.mark.parametrize(("given", "index"), [("urgent", 0), (0, 0), ("bulk", 3), (None, 1)])
def test_the_priority_may_be_another_than_the_types(given: str | int | None, index: int) -> None:
    assert opsfeeds.draft("ops:alerts", ALERT, GOOD[ALERT], id="a", now=NOW, priority=given).priority == index


def test_every_type_of_this_audience_has_its_feed() -> None:
    assert set(opsfeeds.TYPES.values()) == {name for name, kind in registry().items() if kind.audience == "ops"}
    assert all(feed.startswith(opsfeeds.PREFIX) for feed in opsfeeds.TYPES)


async def test_a_step_that_is_repeated_is_one_event() -> None:
    store = MemoryStore()
    await store.open()
    draft = opsfeeds.draft("ops:alerts", ALERT, GOOD[ALERT], id=opsfeeds.new_id(), now=NOW)
    [first, again] = await store.append([draft, draft], NOW)
    assert (first.duplicate, again.duplicate, again.offset) == (False, True, 1)  # type: ignore[union-attr]


def test_ids_are_new() -> None:
    assert len({opsfeeds.new_id() for _ in range(100)}) == 100

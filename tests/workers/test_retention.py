import pytest

from gateway.metrics import Counts
from gateway.opsfeeds import ALERTS, FIGURES, REJECTED, draft, new_id
from gateway.store.base import Head, Range
from gateway.store.memory import MemoryStore
from tests.test_types import GOOD
from tests.workers.test_relay import NOW, append, claim
from workers import retention
from workers.retention import Retention


async def test_deletes_from_the_old_end_in_chunks_until_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "CHUNK", 10)
    store, counts = MemoryStore(), Counts()
    await store.open()
    await append(store, 0, 25, NOW)
    await append(store, 25, 30, NOW + 100)
    role = Retention(store, claim(store), counts, keep_s=50, breath_s=0, clock=lambda: NOW + 100)
    steps = 1
    while await role.step():
        steps += 1
        assert steps < 10
    (page,) = await store.read([Range("account:a", 0)])
    assert (page.oldest, page.head, counts.retained) == (26, 30, 25)
    assert [row.offset for row in page.rows] == [26, 27, 28, 29, 30]
    assert not await role.step()


async def test_figures_are_kept_for_two_hours_and_rejects_for_a_week(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(retention, "CHUNK", 10)
    store, counts = MemoryStore(), Counts()
    await store.open()
    data = GOOD["gov.vestnik.figures"]
    week = 7 * 24
    for hours, feed in (
        (0, FIGURES),
        (0, ALERTS),
        (0, REJECTED),
        (1, REJECTED),
        (week - 1.5, FIGURES),
        (week + 0.5, FIGURES),
    ):
        now = NOW + hours * 3600
        await store.append([draft(feed, "gov.vestnik.figures", data, id=new_id(), now=now) for _ in range(15)], now)
    end = NOW + (week + 0.5) * 3600
    role = Retention(store, claim(store), counts, keep_s=90 * 86400, breath_s=0, clock=lambda: end)
    for _ in range(10):
        if not await role.step():
            break
    assert await store.heads([FIGURES, ALERTS]) == {FIGURES: Head(16, 45), ALERTS: Head(1, 15)}
    assert await store.heads([REJECTED]) == {REJECTED: Head(16, 30)}
    assert counts.retained == 30

"""Alerts on their way out, to a receiver that checks signatures and sometimes fails."""

import random
import time
from collections.abc import AsyncIterator
from typing import Any

import pytest

from gateway.errors import ConfigError, StoreUnavailable
from gateway.metrics import Counts
from gateway.opsfeeds import ALERTS, TYPES, draft
from gateway.store.base import CursorSave, Store
from gateway.store.memory import MemoryStore
from gateway.verify import parse_key, verify
from tests.contracts.test_store import Backend, backend
from tests.receiver import SECRET, Receiver
from tests.test_types import GOOD
from tests.workers.test_relay import NOW
from workers import webhook
from workers.claims import Claim
from workers.webhook import FIRST_RETRY_S, LONGEST_RETRY_S, Webhook, headers

__all__ = ["backend"]

Map = dict[str, Any]


class Longest(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return b


class Poster:
    """The role of one process; `ticks` is its clock for pauses."""

    def __init__(self, store: Store, url: str | None, at: float = NOW):
        self.ticks, self.now, self.counts = 0.0, at, Counts()
        self.role = Webhook(
            store,
            Claim(store, "webhook", 15.0, lambda: self.now),
            url,
            SECRET if url else None,
            self.counts,
            clock=time.time,
            ticks=lambda: self.ticks,
            rng=Longest(),
        )

    async def work(self) -> None:
        """Until nothing is to be done now."""
        while await self.role.step():
            pass


@pytest.fixture
async def store() -> AsyncIterator[MemoryStore]:
    made = MemoryStore()
    await made.open()
    yield made
    await made.close()


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    async with Receiver() as made:
        yield made


async def alert(store: Store, *names: str) -> None:
    await store.append(
        [draft(ALERTS, TYPES[ALERTS], GOOD["gov.vestnik.alert"], id=name, now=NOW) for name in names], NOW
    )


async def test_every_alert_is_posted_once_and_in_order(store: MemoryStore, receiver: Receiver) -> None:
    await alert(store, "before the setting was made")
    poster = Poster(store, receiver.url)
    await poster.work()
    await alert(store, "a", "b", "c")
    await poster.work()
    await poster.work()
    assert [post.id for post in receiver.posts] == ["a", "b", "c"]
    assert receiver.posts[0].event["data"] == GOOD["gov.vestnik.alert"]
    assert "recordedtime" in receiver.posts[0].event
    assert poster.counts.alert_posts == {"taken": 3}
    assert poster.counts.alerts_waiting == 0


async def test_what_was_not_taken_is_tried_again_later_each_time(store: MemoryStore, receiver: Receiver) -> None:
    poster = Poster(store, receiver.url)
    await poster.work()
    await alert(store, "a", "b")
    receiver.script.extend([500, 404, "drop", 301, 204, 503])
    pauses = []
    while len(receiver.taken) < 2:
        tried = len(receiver.posts)
        await poster.work()
        if len(receiver.taken) < 2:
            await poster.work()
            assert len(receiver.posts) <= tried + 2, "not before its time"
            pauses.append(poster.role._not_before - poster.ticks)
            poster.ticks = poster.role._not_before
    assert [post.id for post in receiver.posts] == ["a"] * 5 + ["b"] * 2
    assert pauses == [1, 2, 4, 8, 1], "it begins anew when one was taken"
    assert poster.counts.alert_posts == {"failed": 5, "taken": 2}
    assert receiver.posts[3].answer == 301, "and was not followed"


async def test_nobody_listens(store: MemoryStore, unused_url: str) -> None:
    poster = Poster(store, unused_url)
    await poster.work()
    await alert(store, "a", "b")
    for _ in range(10):
        await poster.work()
        poster.ticks = poster.role._not_before
    assert poster.counts.alert_posts == {"failed": 10}
    assert poster.counts.alerts_waiting == 2
    assert poster.role._not_before - poster.ticks <= LONGEST_RETRY_S


@pytest.fixture
async def unused_url() -> str:
    async with Receiver() as gone:
        return gone.url


async def test_one_that_does_not_answer(
    store: MemoryStore, receiver: Receiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    poster = Poster(store, receiver.url)
    await poster.work()
    await alert(store, "a")
    receiver.script.append("hang")
    with monkeypatch.context() as patch:
        patch.setattr(webhook, "ANSWER_S", 0.5)
        await poster.work()
    assert poster.counts.alert_posts == {"failed": 1}
    receiver.script.clear()  # should the first post have come too late to hang
    poster.ticks += FIRST_RETRY_S
    await poster.work()
    assert [post.id for post in receiver.taken] == ["a"]


async def test_after_a_restart_it_goes_on(backend: Backend, receiver: Receiver) -> None:
    store = await backend.open()
    await Poster(store, receiver.url).work()
    await alert(store, "a", "b", "c")
    receiver.script.extend([204, 500])
    await Poster(store, receiver.url).work()
    again = await backend.open()
    await alert(again, "d")
    await Poster(again, receiver.url, at=NOW + 16).work()
    assert [post.id for post in receiver.taken] == ["a", "b", "c", "d"]


async def test_a_restored_store_is_not_posted_again(backend: Backend, receiver: Receiver) -> None:
    store = await backend.open()
    await Poster(store, receiver.url).work()
    await alert(store, "a")
    await Poster(store, receiver.url).work()
    await store.close()
    store = await backend.restored()
    await Poster(store, receiver.url).work()
    await alert(store, "b")
    await Poster(store, receiver.url).work()
    assert [post.id for post in receiver.taken] == ["a", "b"]


async def test_one_that_dies_before_it_noted_posts_twice(store: MemoryStore, receiver: Receiver) -> None:
    first = Poster(store, receiver.url)
    await first.work()
    await alert(store, "a")

    async def no_save(cursors: list[CursorSave]) -> None:
        raise StoreUnavailable("it died")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(store, "save", no_save)
        with pytest.raises(StoreUnavailable):
            await first.work()
    await Poster(store, receiver.url, at=NOW + 16).work()
    assert [post.id for post in receiver.taken] == ["a", "a"]
    assert len({post.headers["webhook-signature"] for post in receiver.taken}) <= 2


async def test_of_two_one_posts_and_keeps_at_it_while_it_waits(store: MemoryStore, receiver: Receiver) -> None:
    one, other = Poster(store, receiver.url), Poster(store, receiver.url)
    await one.work()
    await other.work()
    await alert(store, "a")
    receiver.script.append(500)
    for second in range(5):
        one.now = other.now = NOW + 5 * second
        await one.work()
        await other.work()
    assert len(receiver.posts) == 1, "the other leaves it alone"
    one.ticks += FIRST_RETRY_S
    await one.work()
    await other.work()
    assert [post.id for post in receiver.taken] == ["a"]
    assert other.role._done == 1
    await alert(store, "b")
    await other.work()
    await one.work()
    assert [post.id for post in receiver.taken] == ["a", "b"]


async def test_what_the_retention_took_is_passed_over(store: MemoryStore, receiver: Receiver) -> None:
    await Poster(store, receiver.url).work()
    await alert(store, "a", "b")
    await store.retain(NOW + 1)
    await Poster(store, receiver.url).work()
    await alert(store, "c")
    await Poster(store, receiver.url).work()
    assert [post.id for post in receiver.taken] == ["c"]


async def test_without_an_address_it_does_nothing(store: MemoryStore) -> None:
    poster = Poster(store, None)
    assert not await poster.role.step()
    assert await store.devices(webhook.ACCOUNT) == []


async def test_it_is_nobodys_device(store: MemoryStore, receiver: Receiver) -> None:
    from gateway.events import is_account

    await Poster(store, receiver.url).work()
    assert [device.device for device in await store.devices(webhook.ACCOUNT)] == [webhook.DEVICE]
    assert not is_account(webhook.ACCOUNT)


def test_our_own_check_takes_its_signature() -> None:
    body = '{"data":"событие"}'.encode()
    signed = headers("a-1", body, parse_key(SECRET).material, NOW)
    raw = [(name.encode(), value.encode()) for name, value in signed.items()]
    assert verify(raw, body, [parse_key(SECRET)], NOW).webhook_id == "a-1"


def test_the_example_of_the_standard() -> None:
    """Of the reference libraries' own tests: Standard Webhooks, `test_sign_function`."""
    body = b'{"test": 2432232314}'
    secret = parse_key("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw").material
    signed = headers("msg_p5jXN8AQM9LWM0D4loKWxJek", body, secret, 1614265330)
    assert signed["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_a_secret_must_be_one() -> None:
    with pytest.raises(ConfigError, match="base64"):
        Webhook(MemoryStore(), Claim(MemoryStore(), "webhook", 15.0), "http://x", "whsec_?")

"""HTTP for operators, in this process: contract section 8.6. Each answer is held against the OpenAPI document."""

import asyncio
import json
import time
from collections.abc import Sequence
from typing import Any

import httpx
import pytest

from gateway import events
from gateway.errors import StoreUnavailable
from gateway.opsfeeds import AUDIT
from gateway.rfc3339 import format_time
from gateway.store.base import Draft, Join, Range
from gateway.types import registry
from tests.kit import Phone
from tests.running import Running, here, notice, status

__all__ = ["here"]

IVAN, EVENT = "/v1/ops/accounts/ivan", "/v1/ops/accounts/ivan/events/1"


async def ask(here: Running, path: str = IVAN, scope: str | None = "ops") -> httpx.Response:
    return await here.client.get(path, headers=here.bearer("op", scope=scope))


async def found(here: Running, path: str = IVAN) -> dict[str, Any]:
    answer = await ask(here, path)
    assert answer.status_code == 200, answer.text
    return dict(answer.json())


async def audited(here: Running) -> list[dict[str, Any]]:
    (page,) = await here.store.read([Range(AUDIT, 0, 500)])
    data = [json.loads(row.event)["data"] for row in page.rows if row.event is not None]
    assert [registry()["gov.vestnik.audited"].faults(one) for one in data] == [[]] * len(data)
    return data


async def stages(here: Running) -> dict[str, tuple[str | None, bool]]:
    return {one["stage"]: (one["time"], one["done"]) for one in (await found(here, EVENT))["stages"]}


async def saved(here: Running, phone: Phone, offset: int) -> None:
    phone.ack("account:ivan", offset)
    await here.gateway.hub._flush()


# Who may look


@pytest.mark.parametrize("path", [IVAN, EVENT])
async def test_only_with_the_scope(here: Running, path: str) -> None:
    await here.post(status())
    assert (await here.client.get(path)).status_code == 401
    for scope in (None, "read", "opsy"):
        answer = await ask(here, path, scope)
        assert answer.status_code == 403
        assert answer.json()["type"].endswith("/forbidden")
    assert await audited(here) == []
    assert (await ask(here, path, "read ops")).status_code == 200


async def test_every_look_is_on_disk_before_its_answer(here: Running) -> None:
    await here.post(status())
    await ask(here)
    await ask(here, EVENT)
    await ask(here, "/v1/ops/accounts/nobody")
    await ask(here, "/v1/ops/accounts/ivan/events/7")
    look = {"operator": "op", "client": "127.0.0.1"}
    assert await audited(here) == [
        look | {"action": "account", "account": "ivan", "offset": None},
        look | {"action": "event", "account": "ivan", "offset": 1},
        look | {"action": "account", "account": "nobody", "offset": None},
        look | {"action": "event", "account": "ivan", "offset": 7},
    ]


@pytest.mark.parametrize("path", [IVAN, EVENT])
async def test_what_cannot_be_audited_is_not_told(here: Running, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    await here.post(status())

    async def append(drafts: Sequence[Draft], now: float) -> Any:
        raise StoreUnavailable("full")

    monkeypatch.setattr(here.store, "append", append)
    assert (await ask(here, path)).status_code == 503


@pytest.mark.parametrize(
    "path",
    [
        "/v1/ops/accounts/nobody",
        "/v1/ops/accounts/a%20b",
        f"/v1/ops/accounts/{'a' * 65}",
        "/v1/ops/accounts/ivan/events/2",
        "/v1/ops/accounts/ivan/events/0",
        "/v1/ops/accounts/ivan/events/x",
        "/v1/ops/accounts/ivan/events/-1",
        "/v1/ops/accounts/ivan/events/9999999999999999",
        "/v1/ops/accounts/ivan/events/١",
        "/v1/ops/accounts/nobody/events/1",
    ],
)
async def test_what_is_not_known(here: Running, path: str) -> None:
    await here.post(status())
    answer = await ask(here, path)
    assert answer.status_code == 404
    assert answer.json()["type"].endswith("/not-found")


# One account


async def test_an_account(here: Running) -> None:
    await here.batch([status(), notice("секрет"), notice()])
    phone = await here.phone(device="phone")
    phone.say("subscribe", feed="agency:fns")
    await here.store.join([Join("ivan", "old", ("account:ivan",), agent="android/1.0", now=time.time() - 86400)])
    await saved(here, phone, 2)
    answer = await found(here)
    assert answer["feed"] == {"feed": "account:ivan", "epoch": here.store.epoch, "oldest": 1, "head": 3}
    old, young = sorted(answer["devices"], key=lambda device: str(device["device"]))
    assert (old["device"], old["agent"], old["connected"]) == ("old", "android/1.0", False)
    assert (young["device"], young["connected"]) == ("phone", True)
    assert young["positions"][0] == {
        "feed": "account:ivan",
        "epoch": here.store.epoch,
        "offset": 2,
        "behind": 1,
    }
    newest, second, first = answer["events"]
    assert [one["offset"] for one in (newest, second, first)] == [3, 2, 1]
    assert (first["type"], first["source"], first["priority"]) == ("gov.status.changed", "/agencies/fns", "high")
    assert first["time"] == "2026-03-01T12:30:00+03:00"
    assert second["delivered"] is not None
    assert newest["delivered"] is None
    (session,) = answer["sessions_here"]
    assert (session["session"], session["mode"], session["stalled"]) == (phone.session.id, "full", False)
    assert session["feeds"][0] == {"feed": "account:ivan", "sent": 3, "acked": 2, "head": 3}
    assert "секрет" not in json.dumps(answer, ensure_ascii=False)
    assert "2026-000123" not in json.dumps(answer)


async def test_an_account_that_has_only_a_device(here: Running) -> None:
    await here.phone("anna")
    answer = await found(here, "/v1/ops/accounts/anna")
    assert (answer["feed"]["head"], answer["events"], len(answer["devices"])) == (0, [], 1)


async def test_only_the_newest_events_are_told(here: Running) -> None:
    await here.batch([notice() for _ in range(70)])
    assert [one["offset"] for one in (await found(here))["events"]] == list(range(70, 20, -1))


async def test_an_erased_event_says_nothing_but_its_times(here: Running) -> None:
    await here.post(status())
    await here.store.erase(
        "account:ivan", 1, lambda ranges: events.erased_event("ivan", ranges, time.time(), "e"), time.time()
    )
    erased = (await found(here))["events"][1]
    assert erased["erased"]
    assert (erased["id"], erased["source"], erased["type"], erased["time"]) == (None, None, None, None)
    event = await found(here, EVENT)
    assert (event["erased"], event["id"]) == (True, None)
    way = {one["stage"]: (one["time"], one["done"]) for one in event["stages"]}
    assert way["created"] == way["signed"] == (None, True)
    assert way["verified"][0] is not None


# One event


async def test_the_way_of_an_event(here: Running) -> None:
    sent = status()
    begun = format_time(int(time.time()))
    await here.post(sent)
    way = await stages(here)
    assert list(way) == ["created", "signed", "verified", "committed", "published", "written", "delivered", "seen"]
    assert way["created"] == (sent["time"], True)
    assert way["signed"][0] is not None
    assert way["verified"][0] is not None
    assert way["committed"][0] is not None
    assert begun <= way["signed"][0] <= way["committed"][0]
    assert way["verified"][0] <= way["committed"][0]
    assert (way["written"], way["delivered"], way["seen"]) == ((None, False),) * 3
    phone = await here.phone()
    await saved(here, phone, 1)
    phone.say("seen", feed="account:ivan", offsets=[1])
    await here.gateway.hub._flush()
    way = await stages(here)
    assert way["published"] == way["written"] == (None, True), "it was read from the store, and nobody kept when"
    assert way["delivered"][0] is not None
    assert way["seen"][0] is not None
    assert way["delivered"][0] <= way["seen"][0]


async def test_when_it_was_first_written(here: Running) -> None:
    phone = await here.phone()
    await here.post(status())
    async with asyncio.timeout(5):
        while not any(message["t"] == "event" for message in phone.read()):
            await asyncio.sleep(0)
    way = await stages(here)
    assert way["written"][0] is not None
    assert way["committed"][0] is not None
    assert way["committed"][0] <= way["written"][0]
    assert way["published"] == (None, True)
    assert way["delivered"] == (None, False)


async def test_where_each_device_is_with_it(here: Running) -> None:
    await here.post(status())
    now = time.time()
    await here.store.join([Join("ivan", "away", ("account:ivan",), now=now - 60)])
    has = await here.phone(device="has")
    await here.phone(device="shown")
    paused = await here.phone(device="paused")
    paused.session.find("account:ivan").sent = 0  # type: ignore[union-attr]
    has.ack("account:ivan", 1)
    places = {one["device"]: (one["state"], one["time"]) for one in (await found(here, EVENT))["devices"]}
    assert places == {
        "away": ("away", format_time(now - 60)),
        "has": ("acknowledged", None),
        "shown": ("written", None),
        "paused": ("waiting", None),
    }
    has.session.close(1000, "")
    await here.gateway.hub._flush()
    places = {one["device"]: (one["state"], one["time"]) for one in (await found(here, EVENT))["devices"]}
    assert places["has"] == ("acknowledged", None), "it is stored"

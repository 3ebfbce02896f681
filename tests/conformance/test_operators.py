"""Section 8 of the contract: what operators see, and that nobody else does."""

import asyncio
import time
import uuid
from typing import Any

import pytest

from .agent import Agency, Answer, get
from .conftest import Gateway
from .device import BOTH, Device, moment

FEEDS = {
    "ops:figures": "gov.vestnik.figures",
    "ops:rejected": "gov.vestnik.rejected",
    "ops:alerts": "gov.vestnik.alert",
    "ops:audit": "gov.vestnik.audited",
}
STAGES = ["created", "signed", "verified", "committed", "published", "written", "delivered", "seen"]
NOT_OPS = [{}, {"scope": ""}, {"scope": "read"}, {"scope": "opsy"}, {"scope": "OPS"}, {"scope": "ops:figures"}]


def operator(gateway: Gateway, **options: Any) -> Device:
    return gateway.device(f"op-{uuid.uuid4().hex[:8]}", scope="read ops", **options)


def ask(gateway: Gateway, path: str, **claims: Any) -> Answer:
    return get(gateway.port, path, gateway.token("op", **claims))


def data_of(event: Any, feed: str) -> dict[str, Any]:
    assert event["source"] == "/gateway"
    assert event["type"] == FEEDS[feed]
    assert "account" not in event
    data = event["data"]
    assert isinstance(data, dict)
    return data


async def following(op: Device, feed: str) -> dict[str, Any]:
    await op.start(feeds=[feed])
    await op.caught_up()
    return next(dict(item) for item in op.welcome["feeds"] if item["feed"] == feed)


async def told(op: Device, feed: str, count: int = 1, timeout: float = 10) -> list[dict[str, Any]]:
    """The data of the next events of this feed, so many of them at least."""
    deadline = time.monotonic() + timeout
    while len(op.received(feed)) < count:
        assert time.monotonic() < deadline, (feed, op.received(feed))
        await op.idle(0.05)
    return [data_of(op.kept[feed][at], feed) for at in sorted(op.kept[feed])]


class TestScope:
    @pytest.mark.parametrize("protocol", BOTH)
    async def test_with_it(self, gateway: Gateway, protocol: str) -> None:
        async with operator(gateway, protocol=protocol) as op:
            welcome = await op.start(feeds=list(FEEDS))
            assert [item["feed"] for item in welcome["feeds"]] == [op.feed, *FEEDS]
            assert all(item["from"] == item["head"] for item in welcome["feeds"]), "at its head, like an agency's"
            await op.caught_up()
            await op.send("unsubscribe", feed="ops:figures", ref=1)
            assert (await op.until("unsubscribed", "error"))["t"] == "unsubscribed"
            await op.send("subscribe", feed="ops:figures", ref=2)
            assert (await op.until("subscribed", "error"))["t"] == "subscribed"

    @pytest.mark.parametrize("claims", NOT_OPS)
    async def test_without_it(self, gateway: Gateway, account: str, claims: dict[str, Any]) -> None:
        async with gateway.device(account, **claims) as device:
            await device.start(feeds=list(FEEDS))
            assert [item["feed"] for item in device.welcome["feeds"]] == [device.feed]
            for number, feed in enumerate(FEEDS):
                await device.send("subscribe", feed=feed, resume={"epoch": "x", "offset": 0}, ref=number)
                error = await device.until("error", "subscribed", ref=number)
                assert (error["t"], error["code"]) == ("error", "forbidden")
            refused = [m for m in device.answers("error") if "ref" not in m]
            assert [(m["code"], m["feed"]) for m in refused] == [("forbidden", feed) for feed in FEEDS]
            await device.idle(0.2)
            assert not any(device.received(feed) for feed in FEEDS)
        for feed in FEEDS:
            assert ask(gateway, f"/v1/feeds/{feed}/events", **claims).status == 404

    async def test_history(self, gateway: Gateway) -> None:
        for feed in FEEDS:
            answer = ask(gateway, f"/v1/feeds/{feed}/events?after=0&limit=500", scope="ops")
            assert (answer.status, answer.json["feed"]) == (200, feed)
            for _, event in answer.json["events"]:
                data_of(event, feed)

    @pytest.mark.parametrize("feed", ["ops:nothing", "ops:figures2", "ops:FIGURES"])
    async def test_no_such_feed(self, gateway: Gateway, feed: str) -> None:
        async with operator(gateway) as op:
            await op.start()
            await op.send("subscribe", feed=feed, ref=1)
            error = await op.until("error", "subscribed")
            assert (error["t"], error["code"]) == ("error", "unknown_feed")
        assert ask(gateway, f"/v1/feeds/{feed}/events", scope="ops").status == 404

    async def test_it_cannot_be_lost_while_a_feed_is_followed(self, gateway: Gateway) -> None:
        async with operator(gateway) as op:
            await op.start(feeds=["ops:figures"])
            await op.send("token", token=gateway.token(op.account), ref=1)
            error = await op.until("error", "renewed")
            assert (error["t"], error["code"]) == ("error", "forbidden")
            await op.send("unsubscribe", feed="ops:figures")
            await op.until("unsubscribed")
            await op.send("token", token=gateway.token(op.account), ref=2)
            assert (await op.until("error", "renewed", ref=2))["t"] == "renewed"
            await op.send("subscribe", feed="ops:figures", ref=3)
            assert (await op.until("error", "subscribed", ref=3))["code"] == "forbidden"

    @pytest.mark.parametrize("kind", list(FEEDS.values()))
    def test_agencies_never_send_these(self, tax: Agency, account: str, kind: str) -> None:
        for event in (tax.event(kind, {}), tax.event(kind, {}, account=account), tax.public() | {"type": kind}):
            tax.post(event).problem(403, "forbidden")
        tax.post(tax.event(kind, {}) | {"source": "/gateway"}).problem(403, "forbidden")


class TestFigures:
    async def test_they_come_and_add_up(self, quick: Gateway, account: str) -> None:
        tax = quick.agencies["tax"]
        async with operator(quick) as op, quick.device(account) as device:
            await following(op, "ops:figures")
            await device.start()
            before = len(await told(op, "ops:figures"))  # what other tests did is told by now
            tax.send(tax.notice(account))
            await device.reach(1, ack=True)
            tax.raw(b"{}", replace={"webhook-signature": "v1,AAAA"}).problem(401, "unsigned")
            await op.settle()
            figures = (await told(op, "ops:figures", len(op.received("ops:figures")) + 2))[before:]
        assert len({data["node"] for data in figures}) == 1
        assert all(0.5 < data["seconds"] < 10 for data in figures)
        assert all(moment(data["started"]) for data in figures)
        assert sum(data["accepted"] for data in figures) == 1
        assert sum(sum(data["delivered"].values()) for data in figures) >= 1
        assert sum(count for data in figures for _, count in data["to_ack"].get("normal", [])) == 1
        assert sum(data["rejected"].get("unsigned", 0) for data in figures) == 1
        assert figures[-1]["agencies"].keys() == quick.agencies.keys(), "the quiet ones, too"
        of_tax = [data["agencies"]["tax"] for data in figures]
        assert sum(one["accepted"] for one in of_tax) == 1
        assert sum(one["rejected"].get("unsigned", 0) for one in of_tax) == 1
        assert moment(of_tax[-1]["last"])
        last = figures[-1]
        assert last["store"]["ready"]
        assert last["bus"]["healthy"]
        assert 0 < last["store"]["disk_free"] <= last["store"]["disk_size"]
        assert account not in str(figures)


class TestRejected:
    async def test_the_journal(self, gateway: Gateway, tax: Agency, account: str) -> None:
        wrong = tax.notice(account, "Совсем-Личное") | {"data": {"title": "Совсем-Личное"}}
        async with operator(gateway) as op:
            await following(op, "ops:rejected")
            for attempt in range(5):  # another test may have used up what is told in a second
                wrong["id"] = f"{account}-{attempt}"
                tax.post(wrong).problem(422, "invalid")
                await op.idle(1)
                found = [data for data in await told(op, "ops:rejected", 0) if data["id"] == wrong["id"]]
                if found:
                    break
            [data] = found
        assert (data["agency"], data["reason"], data["status"]) == ("tax", "invalid", 422)
        assert data["type"] == wrong["type"]
        assert data["errors"] == [{"pointer": "/data/text", "detail": data["errors"][0]["detail"]}]
        assert data["bytes"] > 50
        assert "Личное" not in str(data)
        assert account not in str(data | {"id": None})


class TestAccount:
    async def test_who_may(self, gateway: Gateway, tax: Agency, account: str) -> None:
        tax.send(tax.notice(account))
        for path in (f"/v1/ops/accounts/{account}", f"/v1/ops/accounts/{account}/events/1"):
            assert gateway.get(path).status == 401
            for claims in NOT_OPS:
                ask(gateway, path, **claims).problem(403, "forbidden")
            assert gateway.get(path, account).status == 403, "not even its own"
            assert ask(gateway, path, scope="ops").status == 200

    async def test_an_account_and_the_way_of_an_event(self, gateway: Gateway, tax: Agency, account: str) -> None:
        sent = tax.notice(account, "Совсем-Личное")
        async with operator(gateway) as op, gateway.device(account, device="phone") as device:
            await following(op, "ops:audit")
            await device.start()
            tax.send(sent, tax.notice(account))
            await device.reach(2)
            await device.ack(at=1)
            await device.send("seen", feed=device.feed, offsets=[1])
            found = await self.until_saved(gateway, account)
            assert found["feed"] == {**found["feed"], "feed": device.feed, "oldest": 1, "head": 2}
            [known] = found["devices"]
            assert (known["device"], known["connected"]) == ("phone", True)
            [position] = [one for one in known["positions"] if one["feed"] == device.feed]
            assert (position["offset"], position["behind"]) == (1, 1)
            second, first = found["events"]
            assert (first["offset"], first["id"], first["type"]) == (1, sent["id"], sent["type"])
            assert (first["source"], first["erased"]) == (sent["source"], False)
            assert moment(first["delivered"])
            assert moment(first["seen"])
            assert second["delivered"] is None
            assert "Личное" not in str(found)

            event = ask(gateway, f"/v1/ops/accounts/{account}/events/1", scope="ops").json
            assert [stage["stage"] for stage in event["stages"]] == STAGES
            assert all(stage["done"] for stage in event["stages"])
            times = [stage["time"] for stage in event["stages"] if stage["time"] is not None]
            assert len(times) == 7, "when the bus took it is not kept"
            assert all(map(moment, times))
            assert event["devices"] == [{"device": "phone", "state": "acknowledged", "time": None}]
            event = ask(gateway, f"/v1/ops/accounts/{account}/events/2", scope="ops").json
            assert [stage["done"] for stage in event["stages"]] == [True] * 6 + [False] * 2
            assert event["devices"][0]["state"] == "written"
            assert ask(gateway, f"/v1/ops/accounts/{account}/events/3", scope="ops").status == 404

            looks = [data for data in await told(op, "ops:audit", 3) if data["account"] == account]
            assert {data["operator"] for data in looks} == {"op"}
            assert [(data["action"], data["offset"]) for data in looks[-3:]] == [
                ("event", 1),
                ("event", 2),
                ("event", 3),
            ]
            assert looks[0]["action"] == "account"

    async def until_saved(self, gateway: Gateway, account: str) -> dict[str, Any]:
        """Acks are saved within a second."""
        deadline = time.monotonic() + 5
        while True:
            answer = ask(gateway, f"/v1/ops/accounts/{account}", scope="ops")
            assert answer.status == 200
            found: dict[str, Any] = answer.json
            if found["events"][-1]["seen"] or time.monotonic() > deadline:
                return found
            await asyncio.sleep(0.1)

    def test_unknown(self, gateway: Gateway, account: str) -> None:
        for path in (account, "a%20b", f"{account}/events/1", f"{account}/events/x", "a" * 65):
            assert ask(gateway, f"/v1/ops/accounts/{path}", scope="ops").status == 404
        audit = ask(gateway, "/v1/feeds/ops:audit/events?limit=5", scope="ops").json["events"]
        assert account in {event["data"]["account"] for _, event in audit}, "who asked for nobody is told, too"

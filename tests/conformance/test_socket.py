"""Section 3 of the contract: the socket as a device sees it, in both subprotocols."""

import asyncio
import json
import re
import threading
import time
import zlib
from collections.abc import AsyncIterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from websockets.exceptions import InvalidStatus

from .agent import Agency
from .conftest import ORIGIN, Gateway, together
from .device import BOTH, JSON, MSGPACK, WINDOW, Closed, Device, Message, encode, parse_time
from .identity import Identity
from .rawsocket import PING, TEXT, RawSocket, build

both = pytest.mark.parametrize("protocol", BOTH)


@pytest.fixture(params=BOTH)
def protocol(request: pytest.FixtureRequest) -> str:
    value = request.param
    assert isinstance(value, str)
    return value


@pytest.fixture
async def device(gateway: Gateway, account: str, protocol: str) -> AsyncIterator[Device]:
    """A device of a new account, in both subprotocols, not connected yet."""
    async with gateway.device(account, protocol=protocol) as device:
        yield device


async def starts_at(device: Device, offset: int) -> Message:
    """A session by the stored cursor, which must be this. Acks are saved within a second, and soon after a session
    ends: one that starts at once may start before them (the promise is at least once), and is tried again."""
    deadline = time.monotonic() + 3
    while (welcome := await device.start())["feeds"][0]["from"] != offset and time.monotonic() < deadline:
        await device.close()
        await asyncio.sleep(0.12)
    assert welcome["feeds"][0]["from"] == offset
    return welcome


def notices(agency: Agency, account: str, count: int, **more: Any) -> list[Message]:
    return [agency.notice(account, text=f"№ {number}", **more) for number in range(count)]


class TestHandshake:
    """Subprotocols, Origin."""

    @pytest.mark.parametrize(
        ("offered", "taken"),
        [
            (None, None),
            ("", None),
            ("vestnik.v1.json", JSON),
            ("vestnik.v1.msgpack", MSGPACK),
            ("vestnik.v1.msgpack, vestnik.v1.json", MSGPACK),
            ("vestnik.v1.json, vestnik.v1.msgpack", JSON),
            ("chat, vestnik.v9.json , vestnik.v1.msgpack", MSGPACK),
        ],
    )
    def test_first_known_is_taken(self, gateway: Gateway, account: str, offered: str | None, taken: str | None) -> None:
        with RawSocket(gateway.port) as raw:
            assert raw.request({"Sec-WebSocket-Protocol": offered}) == 101
            # None offered means JSON; naming one that was not offered would fail the client (RFC 6455, 4.1).
            assert raw.headers.get("sec-websocket-protocol") == taken
            if taken != MSGPACK:
                raw.say({"t": "hello", "token": gateway.token(account), "device": "d"})
                assert raw.until(TEXT).json["t"] == "welcome"

    @pytest.mark.parametrize(
        "offered", ["chat", "vestnik.v2.json", "vestnik.v1", "VESTNIK.V1.JSON", "vestnik.v1.json.x, graphql-ws"]
    )
    def test_none_known(self, gateway: Gateway, offered: str) -> None:
        with RawSocket(gateway.port) as raw:
            assert raw.request({"Sec-WebSocket-Protocol": offered}) == 400

    @pytest.mark.parametrize("origin", [ORIGIN, None])
    def test_origin_on_the_list(self, gateway: Gateway, origin: str | None) -> None:
        with RawSocket(gateway.port) as raw:
            assert raw.request({"Origin": origin}) == 101

    @pytest.mark.parametrize("origin", ["https://evil.example", "http://lk.example.ru",
    "https://lk.example.ru.evil.example", "null",
                                        "https://lk.example.ru:8443", f"{ORIGIN} {ORIGIN}"])  # fmt: skip
    def test_origin_not_on_the_list(self, gateway: Gateway, origin: str) -> None:
        with RawSocket(gateway.port) as raw:
            assert raw.request({"Origin": origin}) == 403

    async def test_node_at_its_limit(self, quick: Gateway, account: str) -> None:
        """503 with `Retry-After`; here 12 sessions by the setting."""
        devices = [quick.device(f"{account}-{number}") for number in range(12)]
        await asyncio.gather(*(device.start() for device in devices))
        try:
            with pytest.raises(InvalidStatus) as refused:
                await quick.device(account).open()
            assert refused.value.response.status_code == 503
            assert int(refused.value.response.headers["Retry-After"]) > 0
        finally:
            await asyncio.gather(*(device.close() for device in devices))


class TestHello:
    async def test_welcome(self, gateway: Gateway, device: Device) -> None:
        """`session`, `account`, `new`, `time`, `expires`, `window`, `limits`, `feeds`."""
        device.token = gateway.token(device.account, ttl=900)
        welcome = await device.start(agent="test/1.0")
        assert welcome["account"] == device.account
        assert welcome["new"] is True
        assert welcome["window"] == 256
        assert {name: welcome["limits"][name] for name in ("feeds", "message", "rate", "backoff")} == {
            "feeds": 32, "message": 16384, "rate": 120, "backoff": 60,
        }  # fmt: skip
        assert abs(parse_time(welcome["time"]).timestamp() - time.time()) < 5
        assert 880 < parse_time(welcome["expires"]).timestamp() - time.time() <= 901
        [item] = welcome["feeds"]
        assert (item["feed"], item["head"], item["from"]) == (device.feed, 0, 0)
        live = await device.next()
        assert live == {"t": "live", "feed": device.feed}

    async def test_sessions_have_their_own_names(self, gateway: Gateway, account: str) -> None:
        async with gateway.device(account) as one, gateway.device(account) as two:
            assert (await one.start())["session"] != (await two.start())["session"]

    async def test_order_of_the_start(self, tax: Agency, city: Agency, device: Device) -> None:
        """`welcome`, events, `live`, for each feed."""
        tax.send(*notices(tax, device.account, 5))
        welcome = await device.start(feeds=[city.feed])
        assert [item["feed"] for item in welcome["feeds"]] == [device.feed, city.feed]
        await device.caught_up()
        mine = [message["t"] for message in device.messages if message.get("feed") == device.feed]
        assert mine[-1] == "live"
        assert device.received() == [1, 2, 3, 4, 5]
        await device.settle()
        assert len(device.answers("live")) == 2, "once for each feed"

    async def test_resync_comes_before_events(self, tax: Agency, device: Device) -> None:
        tax.send(*notices(tax, device.account, 3))
        await device.start(resume={device.feed: {"epoch": "another-life", "offset": 1}})
        resync = await device.next()
        assert resync["t"] == "resync"
        assert (resync["feed"], resync["offset"], resync["reason"]) == (device.feed, 3, "epoch")
        assert device.welcome["feeds"][0]["from"] == 3
        assert (await device.next())["t"] == "live"

    async def test_unknown_keys_are_ignored(self, device: Device) -> None:
        await device.start(colour="red", nested={"a": [1]}, agent="x", mode="full")
        await device.caught_up()

    async def test_ref(self, device: Device) -> None:
        """ "A `ref` in a request comes back in its answer": welcome answers hello."""
        welcome = await device.start(ref="h1")
        assert welcome.get("ref") == "h1"

    @pytest.mark.parametrize("mode", ["full", "saver"])
    async def test_mode_in_hello(self, device: Device, mode: str) -> None:
        await device.start(mode=mode)
        await device.caught_up()

    @pytest.mark.parametrize(
        "message",
        [
            {"t": "ping"},
            {"t": "ack", "feed": "account:x", "offset": 1},
            {"t": "nonsense"},
            {"hello": 1},
            {},
            [],
            "hello",
            7,
            None,
        ],
    )
    async def test_anything_else_at_first(self, device: Device, message: Any) -> None:
        """ "What is not a map, not decodable or over 16 KiB, and anything but a good `hello` at first, closes with
        4400"."""
        await device.open()
        assert device.ws is not None
        await device.ws.send(encode(message, device.protocol))
        assert (await device.closed()).code == 4400

    @pytest.mark.parametrize(
        "fields",
        [
            {"device": ""},
            {"device": "a b"},
            {"device": "x" * 65},
            {"device": "д"},
            {"device": 5},
            {"device": None},
            {"resume": []},
            {"resume": {"account:x": 5}},
            {"resume": {"account:x": {"epoch": 1, "offset": "a"}}},
            {"feeds": "agency:tax"},
            {"feeds": [5]},
            {"mode": "turbo"},
            {"fresh": "yes"},
        ],
    )
    async def test_bad_hello(self, device: Device, fields: dict[str, Any]) -> None:
        """No good hello: 4400. "A wrong field is `error`, the session lives" is said as well: both are taken, but for
        `device`, without which there is no session."""
        await device.open()
        await device.send("hello", **({"token": device.token, "device": device.device} | fields))
        answer = await device.answered("error")
        assert answer is None or "device" not in fields

    async def test_no_device(self, device: Device) -> None:
        await device.open()
        await device.send("hello", token=device.token)
        assert (await device.closed()).code == 4400

    async def test_no_token(self, device: Device) -> None:
        """4401 "token missing"; not "a good hello" (4400) is true as well."""
        await device.open()
        await device.send("hello", device=device.device)
        assert (await device.closed()).code in {4400, 4401}

    async def test_second_hello(self, device: Device) -> None:
        """Not said: an error, or the program's fault."""
        await device.start()
        await device.send("hello", token=device.token, device=device.device, ref="again")
        answer = await device.answered("error", "welcome")
        assert answer is None or answer["t"] == "error"


class TestTokens:
    """Section 5 at the door."""

    async def refused(
        self, gateway: Gateway, account: str, token: Any, code: int | set[int] = 4401, **fields: Any
    ) -> None:
        async with Device(gateway.port, account, token) as device:
            await device.open()
            await device.send("hello", token=token, device=device.device, **fields)
            closed = await device.closed()
            assert closed.code in (code if isinstance(code, set) else {code}), closed
            assert device.messages == [], "nothing is told before the token is good"

    @pytest.mark.parametrize("algorithm", ["ES256", "EdDSA", "RS256"])
    async def test_algorithms(self, gateway: Gateway, account: str, algorithm: str) -> None:
        async with gateway.device(account, algorithm=algorithm) as device:
            await device.start()

    @pytest.mark.parametrize(
        "options",
        [
            {"algorithm": "none"},
            {"algorithm": "HS256", "kid": "RS256"},
            {"algorithm": "HS256", "kid": "ES256"},
            {"algorithm": "RS256", "kid": "ES256"},
            {"kid": "unknown"},
            {"ttl": -10},
            {"ttl": -86400},
            {"aud": "other"},
            {"aud": ["other", "another"]},
            {"without": ("aud",)},
            {"without": ("exp",)},
            {"without": ("sub",)},
            {"without": ("iat",)},
            {"exp": "soon"},
        ],
    )
    async def test_refused(self, gateway: Gateway, account: str, options: dict[str, Any]) -> None:
        await self.refused(gateway, account, gateway.token(account, **options))

    async def test_garbage(self, gateway: Gateway, account: str) -> None:
        good = gateway.token(account)
        head, body, signature = good.split(".")
        flipped = ("A" if signature[0] != "A" else "B") + signature[1:]
        for token in ("", "x", "a.b.c", f"{head}.{body}.", f"{head}.{body}.{flipped}", f"{head}.{body}", good + ".x"):
            await self.refused(gateway, account, token, {4400, 4401} if token == "" else 4401)

    async def test_of_the_wrong_type(self, gateway: Gateway, account: str) -> None:
        await self.refused(gateway, account, 5, {4400, 4401})

    async def test_subject_that_is_no_account(self, gateway: Gateway, account: str) -> None:
        for name in ("a b", "x" * 65, "", "агент"):
            await self.refused(gateway, account, gateway.token(name), {4401, 4403})

    async def test_bound_to_a_device(self, gateway: Gateway, account: str) -> None:
        """`device` must equal `hello.device`, else 4403."""
        async with gateway.device(account, device="mine") as device:
            device.token = gateway.token(account, device="mine")
            await device.start()
        await self.refused(gateway, account, gateway.token(account, device="mine"), 4403)

    async def test_audience_in_a_list(self, gateway: Gateway, account: str) -> None:
        """RFC 7519, 4.1.3."""
        async with gateway.device(account, aud=["other", "vestnik"]) as device:
            await device.start()

    async def test_renewed(self, gateway: Gateway, device: Device) -> None:
        device.token = gateway.token(device.account, ttl=600)
        await device.start()
        await device.send("token", token=gateway.token(device.account, ttl=1200), ref="r")
        renewed = await device.until("renewed")
        assert renewed["ref"] == "r"
        assert 1150 < parse_time(renewed["expires"]).timestamp() - time.time() <= 1201

    async def test_refused_token_is_an_error(self, gateway: Gateway, device: Device) -> None:
        """ "A refused `token` is `error`, the old one stays"."""
        await device.start()
        for token in (
            gateway.token("someone-else"), gateway.token(device.account, ttl=-5), "garbage", 5, None,
            gateway.token(device.account, device="another-device"),
        ):  # fmt: skip
            await device.send("token", token=token, ref="x")
            error = await device.until("error", "renewed")
            assert (error["t"], error["ref"]) == ("error", "x")
        await device.settle()


class TestStart:
    """ "Where a feed starts"."""

    async def acked(self, gateway: Gateway, device: Device, offset: int) -> None:
        """A session that acknowledges up to `offset` and ends; returns when the cursor is stored."""
        await device.start()
        await device.reach(offset)
        await device.ack(at=offset)
        await device.settle()
        await device.close()
        await starts_at(device, offset)
        await device.close()

    async def test_stored_cursor(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        tax.send(*notices(tax, device.account, 5))
        await self.acked(gateway, device, 3)
        welcome = await device.start()
        assert welcome["new"] is False
        assert welcome["feeds"][0]["from"] == 3
        await device.reach(5)

    async def test_resume_outranks_the_cursor(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        tax.send(*notices(tax, device.account, 5))
        await self.acked(gateway, device, 3)
        epoch = device.positions[device.feed][0]
        for offset in (1, 0, 4, 5):
            welcome = await device.start(resume={device.feed: {"epoch": epoch, "offset": offset}})
            assert welcome["feeds"][0]["from"] == offset
            await device.caught_up()
            assert not device.answers("resync")
            await device.close()

    async def test_resume_counts_as_an_ack(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        tax.send(*notices(tax, device.account, 5))
        welcome = await device.start()
        await device.reach(5)
        await device.close()
        await device.start(resume={device.feed: {"epoch": welcome["feeds"][0]["epoch"], "offset": 4}})
        await device.settle()
        await device.close()
        assert (await device.start())["feeds"][0]["from"] == 4

    async def test_resume_never_moves_the_cursor_back(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        """ "Within an epoch it never goes back"."""
        tax.send(*notices(tax, device.account, 5))
        await self.acked(gateway, device, 4)
        await device.start(resume={device.feed: {"epoch": device.positions[device.feed][0], "offset": 1}})
        await device.reach(5)
        await device.close()
        await asyncio.sleep(0.3)
        assert (await device.start())["feeds"][0]["from"] == 4

    @pytest.mark.parametrize("past", [1, 1000, 2**53 - 3])
    async def test_resume_past_the_head(self, gateway: Gateway, tax: Agency, device: Device, past: int) -> None:
        tax.send(*notices(tax, device.account, 2))
        epoch = (await device.start())["feeds"][0]["epoch"]
        await device.close()
        await device.start(resume={device.feed: {"epoch": epoch, "offset": 2 + past}})
        resync = await device.next()
        assert (resync["t"], resync["offset"], resync["epoch"]) == ("resync", 2, epoch)
        tax.send(tax.notice(device.account))
        await device.reach(3)

    async def test_resync_moves_no_cursor(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        """ "until it is kept, nothing of the feed is acknowledged and the stored cursor does not move"."""
        tax.send(*notices(tax, device.account, 5))
        await self.acked(gateway, device, 2)
        await device.start(resume={device.feed: {"epoch": "old", "offset": 9}})
        assert (await device.until("resync"))["offset"] == 5
        await device.caught_up()
        await device.close()
        await asyncio.sleep(0.3)
        welcome = await device.start()
        assert welcome["feeds"][0]["from"] == 2
        await device.reach(5)

    async def test_ack_of_a_resync(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        """The snapshot is kept: the device says so by an ack of its position, which this session was told."""
        tax.send(*notices(tax, device.account, 5))
        await self.acked(gateway, device, 2)
        await device.start(resume={device.feed: {"epoch": "old", "offset": 9}})
        await device.until("resync")
        await device.ack(at=5)
        assert not [message for message in await device.settle() if message["t"] == "error"]
        await device.close()
        await starts_at(device, 5)

    async def test_new_device_gets_what_nobody_received(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        tax.send(*notices(tax, device.account, 5))
        await self.acked(gateway, device, 3)
        async with gateway.device(device.account, protocol=device.protocol) as second:
            welcome = await second.start()
            assert welcome["new"] is True
            assert welcome["feeds"][0]["from"] == 3
            await second.caught_up()
            assert second.received() == [4, 5]
            assert not second.answers("resync")

    async def test_first_login_gets_all(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        tax.send(*notices(tax, device.account, 5))
        welcome = await device.start()
        assert (welcome["new"], welcome["feeds"][0]["from"], welcome["feeds"][0]["head"]) == (True, 0, 5)
        await device.reach(5)

    async def test_start_of_a_new_device_is_stored(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        """ "Start positions are stored before they are announced": what another device acknowledges later does not
        move it."""
        tax.send(*notices(tax, device.account, 4))
        await device.start()
        await device.close()
        async with gateway.device(device.account) as other:
            await self.acked(gateway, other, 4)
        welcome = await device.start()
        assert (welcome["new"], welcome["feeds"][0]["from"]) == (False, 0)

    async def test_fresh(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        """`fresh: true`: the device keeps nothing, treat it as new."""
        tax.send(*notices(tax, device.account, 5))
        await self.acked(gateway, device, 1)
        async with gateway.device(device.account) as other:
            await self.acked(gateway, other, 4)
        welcome = await device.start(fresh=True)
        assert (welcome["new"], welcome["feeds"][0]["from"]) == (True, 4)
        await device.caught_up()
        assert set(device.received()) >= {5}

    async def test_agency_feed_at_its_head(self, gateway: Gateway, city: Agency, device: Device) -> None:
        before = city.post(city.public()).result["offset"]
        welcome = await device.start(feeds=[city.feed])
        item = welcome["feeds"][1]
        assert (item["from"], item["head"]) == (before, before)
        await device.caught_up()
        city.post(city.public("Новое"))
        await device.reach(before + 1, city.feed)
        assert device.received(city.feed) == [before + 1]

    async def test_agency_feed_by_its_cursor(self, gateway: Gateway, city: Agency, device: Device) -> None:
        """Followed before: after the stored cursor, and the start position was stored without any ack."""
        before = city.post(city.public()).result["offset"]
        await device.start(feeds=[city.feed])
        await device.caught_up()
        await device.close()
        city.send(city.public(), city.public())
        welcome = await device.start(feeds=[city.feed])
        assert welcome["feeds"][1]["from"] == before
        await device.reach(before + 2, city.feed)

    async def test_agency_feed_by_resume(self, gateway: Gateway, city: Agency, device: Device) -> None:
        epoch, head = (lambda item: (item["epoch"], item["offset"]))(city.post(city.public()).result)
        welcome = await device.start(feeds=[city.feed], resume={city.feed: {"epoch": epoch, "offset": head - 1}})
        assert welcome["feeds"][1]["from"] == head - 1
        await device.reach(head, city.feed)
        await device.close()
        await device.start(feeds=[city.feed], resume={city.feed: {"epoch": "old", "offset": 1}})
        assert (await device.until("resync"))["feed"] == city.feed

    async def test_feeds_are_of_this_session(self, gateway: Gateway, city: Agency, device: Device) -> None:
        """`feeds`: agency feeds to follow in this session."""
        await device.start(feeds=[city.feed])
        await device.close()
        welcome = await device.start()
        assert [item["feed"] for item in welcome["feeds"]] == [device.feed]

    async def test_foreign_feed_in_hello(self, gateway: Gateway, tax: Agency, account: str, device: Device) -> None:
        """Another account's feed is never given, whatever the answer: an error, 4400 or 4403."""
        victim = f"{account}-victim"
        tax.send(tax.notice(victim))
        await device.open()
        await device.send(
            "hello",
            token=device.token,
            device=device.device,
            feeds=[f"account:{victim}"],
            resume={f"account:{victim}": {"epoch": "x", "offset": 0}},
        )
        if await device.answered("welcome") is not None:
            assert [item["feed"] for item in device.welcome["feeds"]] == [device.feed]
            tax.send(tax.notice(victim), tax.notice(device.account))
            await device.reach(1)
            await device.settle()
            assert device.received(f"account:{victim}") == []

    @pytest.mark.parametrize("feed", ["agency:nobody", "agency:TAX", "planet:mars", "agency:"])
    async def test_unknown_feed_in_hello(self, device: Device, feed: str) -> None:
        """`error`, or no good hello."""
        await device.open()
        await device.send("hello", token=device.token, device=device.device, feeds=[feed])
        error = await device.answered("error")
        if error is not None:
            assert error["code"] in {"unknown_feed", "invalid"}
            assert error.get("feed", feed) == feed

    async def test_too_many_feeds_in_hello(self, device: Device) -> None:
        """`limits.feeds` is 32."""
        feeds = [f"agency:a{number}" for number in range(33)]
        await device.open()
        await device.send("hello", token=device.token, device=device.device, feeds=feeds)
        error = await device.answered("error")
        assert error is None or error["code"] in {"limit", "unknown_feed"}


class TestDelivery:
    async def test_live(self, tax: Agency, device: Device) -> None:
        await device.start()
        await device.caught_up()
        tax.send(*notices(tax, device.account, 3))
        await device.reach(3)
        assert len(device.answers("live")) == 1, "live comes once"

    async def test_what_was_sent_is_what_arrives(self, tax: Agency, device: Device) -> None:
        event = tax.record(
            device.account,
            "77",
            {
                "int": 2**53 - 1,
                "neg": -(2**53) + 1,
                "float": 0.1,
                "text": 'Ж😀\u2028"\\',
                "none": None,
                "list": [[], {}],
            },
        )
        await device.start()
        tax.send(event)
        await device.reach(1)
        kept = device.kept[device.feed][1]
        assert kept.pop("recordedtime")
        assert kept == event

    async def test_compact_utf8(self, tax: Agency, account: str, gateway: Gateway) -> None:
        """ "text is compact UTF-8": no escapes, no white space."""
        async with gateway.device(account) as device:
            await device.start()
            tax.send(tax.notice(account, text="Привет 😀"))
            await device.reach(1)
            raw = device.raw[device.feed, 1]
            assert isinstance(raw, str)
            assert "Привет 😀" in raw
            assert not re.search(r'[,:{\[]\s+["\d{\[]', raw)

    @both
    async def test_same_bytes_for_every_device(
        self, gateway: Gateway, tax: Agency, account: str, protocol: str
    ) -> None:
        devices = [gateway.device(account, protocol=protocol) for _ in range(3)]
        try:
            await asyncio.gather(*(device.start() for device in devices[:2]))
            tax.send(*notices(tax, account, 3))
            await asyncio.gather(*(device.reach(3) for device in devices[:2]))
            # A replay from the store as well, where it comes as single events.
            await devices[2].start()
            await devices[2].reach(3)
            assert devices[0].raw == devices[1].raw
            assert len(devices[0].raw) == 3
            for key, raw in devices[2].raw.items():
                assert raw == devices[0].raw[key]
        finally:
            await asyncio.gather(*(device.close() for device in devices))

    async def test_both_subprotocols_say_the_same(self, gateway: Gateway, tax: Agency, account: str) -> None:
        async with gateway.device(account, protocol=JSON) as one, gateway.device(account, protocol=MSGPACK) as two:
            await asyncio.gather(one.start(), two.start())
            tax.send(tax.record(account, "k", {"a": 1.5, "b": "é"}), tax.status(account))
            await asyncio.gather(one.reach(2), two.reach(2))
            assert one.kept == two.kept

    async def test_accounts_are_apart(self, gateway: Gateway, tax: Agency, account: str) -> None:
        async with gateway.device(account) as one, gateway.device(f"{account}-2") as two:
            await asyncio.gather(one.start(), two.start())
            tax.send(tax.notice(account), tax.notice(f"{account}-2"), tax.notice(account))
            await asyncio.gather(one.reach(2), two.reach(1))
            for device in (one, two):
                await device.settle()
                assert set(device.kept) == {device.feed}

    async def test_replay_of_1000(self, tax: Agency, device: Device) -> None:
        tax.send(*notices(tax, device.account, 1000))
        await device.start()
        await device.reach(1000, ack=True)
        await device.caught_up()
        assert device.received() == list(range(1, 1001))
        assert device.repeats == 0

    async def test_large_events(self, tax: Agency, device: Device) -> None:
        """64 KiB events pass in both directions of time: replayed and live."""
        tax.send(*(tax.notice(device.account, text="ж" * 32_000) for _ in range(3)))
        await device.start()
        await device.reach(3)
        tax.send(tax.notice(device.account, text="я" * 32_000))
        await device.reach(4)

    async def test_seam(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        """Invariant 12: events keep coming while the device connects, is cut and connects again: no loss, no swap;
        repeats
        only of what it had not acknowledged (`Device` counts and compares them)."""
        total, batch = 600, 6
        done = threading.Event()

        def publish() -> None:
            for at in range(0, total, batch):
                tax.send(*(tax.notice(device.account, text=str(number)) for number in range(at, at + batch)))
            done.set()

        publisher = asyncio.get_running_loop().run_in_executor(None, publish)
        connections = 0
        while not (done.is_set() and len(device.received()) == total):
            connections += 1
            assert connections < 25
            resume = connections % 3 != 0  # sometimes by its own position, sometimes by the stored cursor
            await device.start(resume=resume)
            deadline = time.monotonic() + 0.12
            while time.monotonic() < deadline or (done.is_set() and len(device.received()) < total):
                try:
                    await device.next(0.05)
                except TimeoutError:
                    if done.is_set() and device.told[device.feed] == total:
                        break
                    continue
                if device.told[device.feed] - device.acked[device.feed] >= 20:
                    await device.ack()
            assert not device.answers("resync")
            if connections % 2:
                await device.close()
            elif device.ws is not None:
                device.ws.transport.abort()  # no goodbye
                device.ws = None
        await publisher
        assert device.received() == list(range(1, total + 1))
        texts = [device.kept[device.feed][at]["data"]["text"] for at in device.received()]
        assert texts == [str(number) for number in range(total)]
        assert connections > 3

    async def test_abrupt_end_loses_nothing(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        await device.start()
        tax.send(*notices(tax, device.account, 10))
        await device.reach(4)
        assert device.ws is not None
        device.ws.transport.abort()
        device.kept.clear()
        device.positions.clear()
        await device.start()
        await device.reach(10)
        assert device.received() == list(range(1, 11))


class TestAck:
    async def test_past_what_was_told(self, tax: Agency, device: Device) -> None:
        """ "An `ack` past what this session was told is `error`"; it moves nothing (invariant 7)."""
        tax.send(*notices(tax, device.account, 3))
        await device.start()
        await device.reach(3)
        await device.send("ack", feed=device.feed, offset=4, ref="a")
        error = await device.until("error")
        assert (error["code"], error["ref"]) == ("invalid", "a")
        assert error.get("feed", device.feed) == device.feed
        await device.close()
        assert (await device.start())["feeds"][0]["from"] == 0

    async def test_feed_not_followed_is_ignored(self, tax: Agency, device: Device) -> None:
        await device.start()
        for feed in ("agency:city", "agency:nobody", "account:someone-else"):
            await device.send("ack", feed=feed, offset=1)
        assert [m for m in await device.settle() if m["t"] != "live"] == []

    async def test_lower_is_harmless(self, tax: Agency, device: Device) -> None:
        tax.send(*notices(tax, device.account, 5))
        await device.start()
        await device.reach(5)
        for offset in (5, 2, 0, 5):
            await device.ack(at=offset)
        assert not [m for m in await device.settle() if m["t"] == "error"]
        await device.close()
        await starts_at(device, 5)

    @pytest.mark.parametrize("value", ["1", -1, 1.5, True, None, [1], {}])
    async def test_wrong_field(self, tax: Agency, device: Device, value: Any) -> None:
        """ "A wrong field is `error`, the session lives"."""
        await device.start()
        await device.send("ack", feed=device.feed, offset=value, ref=1)
        error = await device.until("error")
        assert error["code"] == "invalid"
        await device.settle()

    async def test_missing_field(self, device: Device) -> None:
        await device.start()
        for fields in ({"feed": device.feed}, {"offset": 0}, {}, {"feed": 5, "offset": 0}):
            await device.send("ack", **fields)
            assert (await device.until("error"))["code"] == "invalid"

    async def test_is_kept_while_connected(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        """Saved every second, not only at the end: another device's start shows it."""
        tax.send(*notices(tax, device.account, 3))
        await device.start()
        await device.reach(3)
        await device.ack()
        for _ in range(30):
            async with gateway.device(device.account) as other:
                if (await other.start())["feeds"][0]["from"] == 3:
                    return
            await asyncio.sleep(0.1)
        pytest.fail("the ack was not saved within 3 s")


class TestWindow:
    """ "at most `window` (256) events of a feed beyond the last ack of this session; then the gateway waits with that
    feed"."""

    async def test_replay(self, tax: Agency, city: Agency, device: Device) -> None:
        tax.send(*notices(tax, device.account, 600))
        await device.start(feeds=[city.feed])
        await device.reach(WINDOW)
        assert [m for m in await device.idle(0.3) if m["t"] not in ("beat", "live")] == []
        assert device.feed not in device.live
        # Other feeds are not held up.
        head = city.post(city.public()).result["offset"]
        await device.reach(head, city.feed)
        await device.ack(at=100)
        await device.reach(WINDOW + 100)
        assert [m for m in await device.idle(0.2) if m["t"] != "beat"] == []
        await device.ack()
        await device.reach(600, ack=True)
        await device.caught_up()

    async def test_live(self, tax: Agency, device: Device) -> None:
        await device.start()
        await device.caught_up()
        tax.send(*notices(tax, device.account, WINDOW + 10))
        await device.reach(WINDOW)
        assert [m for m in await device.idle(0.3) if m["t"] != "beat"] == []
        await device.ack(at=5)
        await device.reach(WINDOW + 5)
        await device.ack()
        await device.reach(WINDOW + 10)


class TestSeen:
    async def test_told_to_other_devices(self, gateway: Gateway, tax: Agency, account: str) -> None:
        tax.send(*notices(tax, account, 4))
        async with (
            gateway.device(account) as one,
            gateway.device(account, protocol=MSGPACK) as two,
            gateway.device(f"{account}-2") as other,
        ):
            for device in (one, two, other):
                await device.start()
                await device.caught_up()
            await one.send("seen", feed=one.feed, offsets=[1, 3])
            seen = await two.until("seen")
            assert seen["feed"] == one.feed
            assert sorted(seen["offsets"]) == [1, 3]
            for device in (one, other):
                await device.settle()
                assert device.answers("seen", "error") == [], "not to itself, not to another account"
        deadline = time.monotonic() + 3  # saved within a second
        while sum(bool(item["seen"]) for item in gateway.get("/v1/snapshot", account).json["notices"]) != 2:
            assert time.monotonic() < deadline
            await asyncio.sleep(0.1)

    @pytest.mark.parametrize("offsets", ["1", [-1], ["1"], [1.5], [True], None, list(range(1, 258))])
    async def test_wrong(self, device: Device, offsets: Any) -> None:
        """`offsets` (up to 256)."""
        await device.start()
        await device.send("seen", feed=device.feed, offsets=offsets, ref="s")
        error = await device.until("error")
        assert error["code"] in {"invalid", "limit"}
        await device.settle()

    async def test_256(self, tax: Agency, device: Device) -> None:
        tax.send(*notices(tax, device.account, 256))
        await device.start()
        await device.reach(256)
        await device.send("seen", feed=device.feed, offsets=list(range(1, 257)))
        assert not [m for m in await device.settle() if m["t"] == "error"]


class TestSubscribe:
    async def test_follow_and_stop(self, gateway: Gateway, city: Agency, device: Device) -> None:
        head = city.post(city.public()).result["offset"]
        await device.start()
        await device.caught_up()
        await device.send("subscribe", feed=city.feed, ref="s")
        subscribed = await device.until("subscribed")
        assert (subscribed["feed"], subscribed["from"], subscribed["head"], subscribed["ref"]) == (
            city.feed,
            head,
            head,
            "s",
        )
        assert await device.until("live") == {"t": "live", "feed": city.feed}
        city.post(city.public())
        await device.reach(head + 1, city.feed)
        await device.ack(city.feed)
        await device.send("unsubscribe", feed=city.feed, ref="u")
        assert await device.until("unsubscribed") == {"t": "unsubscribed", "feed": city.feed, "ref": "u"}
        city.send(city.public(), city.public())
        await device.settle()
        assert device.received(city.feed) == [head + 1]
        # "stop and forget its cursor": it starts at the head again.
        await device.send("subscribe", feed=city.feed)
        assert (await device.until("subscribed"))["from"] == head + 3

    async def test_resume(self, city: Agency, device: Device) -> None:
        result = city.post(city.public()).result
        await device.start()
        await device.send(
            "subscribe", feed=city.feed, resume={"epoch": result["epoch"], "offset": result["offset"] - 1}, ref=7
        )
        assert (await device.until("subscribed"))["from"] == result["offset"] - 1
        await device.reach(result["offset"], city.feed)
        await device.until("live", feed=city.feed)

    async def test_resync(self, city: Agency, device: Device) -> None:
        result = city.post(city.public()).result
        await device.start()
        await device.send("subscribe", feed=city.feed, resume={"epoch": "old", "offset": 1})
        subscribed = await device.until("subscribed")
        assert subscribed["from"] == result["offset"]
        resync = await device.until("resync")
        assert (resync["feed"], resync["offset"]) == (city.feed, result["offset"])
        await device.until("live", feed=city.feed)

    async def test_twice(self, city: Agency, device: Device) -> None:
        """Not said: the same answer or an error, but no second stream (`Device` would see the repeat)."""
        await device.start()
        await device.send("subscribe", feed=city.feed, ref=1)
        await device.until("subscribed", ref=1)
        await device.until("live", feed=city.feed)
        await device.send("subscribe", feed=city.feed, ref=2)
        assert (await device.until("subscribed", "error"))["ref"] == 2
        offset = city.post(city.public()).result["offset"]
        await device.reach(offset, city.feed)
        await device.settle()
        assert sum(m["t"] == "event" and m["feed"] == city.feed for m in device.messages) == 1

    @pytest.mark.parametrize(
        ("feed", "codes"),
        [
            ("agency:nobody", {"unknown_feed"}),
            ("agency:", {"unknown_feed", "invalid"}),
            ("planet:mars", {"unknown_feed", "invalid"}),
            ("tax", {"unknown_feed", "invalid"}),
            ("account:someone-else", {"unknown_feed", "forbidden"}),
            (5, {"invalid"}),
            (None, {"invalid"}),
        ],
    )
    async def test_wrong(self, device: Device, feed: Any, codes: set[str]) -> None:
        await device.start()
        await device.send("subscribe", feed=feed, ref="x")
        error = await device.until("error", "subscribed")
        assert (error["t"], error["ref"]) == ("error", "x")
        assert error["code"] in codes
        if isinstance(feed, str) and "feed" in error:
            assert error["feed"] == feed

    async def test_in_the_order_of_asking(self, city: Agency, device: Device) -> None:
        """Asked at once: answered in order, and what is said last holds."""
        await device.start()
        for number in range(6):
            await device.send(("subscribe", "unsubscribe")[number % 2], feed=city.feed, ref=number)
        await device.send("subscribe", feed=city.feed, ref="last")
        await device.until("subscribed", ref="last")
        answers = [m["ref"] for m in device.answers("subscribed", "unsubscribed")]
        assert answers == [0, 1, 2, 3, 4, 5, "last"]
        await device.caught_up()
        offset = city.post(city.public()).result["offset"]
        await device.reach(offset, city.feed)

    async def test_seam(self, city: Agency, device: Device) -> None:
        """Invariant 12 for a feed that is left and followed again by its position while events keep coming."""
        first = city.post(city.public()).result
        epoch, start = first["epoch"], first["offset"]

        def publish() -> None:
            for _ in range(40):
                city.send(*(city.public() for _ in range(5)))

        publisher = asyncio.get_running_loop().run_in_executor(None, publish)
        await device.start()
        for _ in range(12):
            position = max([start, *device.received(city.feed)])
            await device.send("subscribe", feed=city.feed, resume={"epoch": epoch, "offset": position})
            assert (await device.until("subscribed"))["from"] == position
            await device.idle(0.03)
            await device.send("unsubscribe", feed=city.feed)
            await device.until("unsubscribed")
        await publisher
        position = max([start, *device.received(city.feed)])
        await device.send("subscribe", feed=city.feed, resume={"epoch": epoch, "offset": position})
        await device.until("live", feed=city.feed)
        assert device.received(city.feed) == list(range(start + 1, start + 201))
        assert device.repeats == 0

    async def test_own_feed_stays(self, tax: Agency, device: Device) -> None:
        """`unsubscribe` is for agency feeds: the account's own cannot be left."""
        await device.start()
        await device.send("unsubscribe", feed=device.feed, ref="u")
        assert (await device.until("error", "unsubscribed"))["t"] == "error"
        tax.send(tax.notice(device.account))
        await device.reach(1)

    async def test_unsubscribe_what_is_not_followed(self, device: Device) -> None:
        """Not said: it is not followed either way."""
        await device.start()
        await device.send("unsubscribe", feed="agency:court", ref="u")
        answer = await device.until("error", "unsubscribed")
        assert answer["ref"] == "u"

    async def test_broadcast_reaches_all(self, gateway: Gateway, city: Agency, account: str) -> None:
        devices = [gateway.device(f"{account}-{number}", protocol=BOTH[number % 2]) for number in range(20)]
        try:
            await asyncio.gather(*(device.start(feeds=[city.feed]) for device in devices))
            await asyncio.gather(*(device.caught_up() for device in devices))
            offset = city.post(city.public()).result["offset"]
            await asyncio.gather(*(device.reach(offset, city.feed) for device in devices))
            assert len({device.raw[city.feed, offset] for device in devices}) == 2
        finally:
            await asyncio.gather(*(device.close() for device in devices))


class TestSmallMessages:
    async def test_ping(self, device: Device) -> None:
        await device.start()
        await device.send("ping", ref="p")
        assert await device.until("pong") == {"t": "pong", "ref": "p"}
        await device.send("ping")
        assert await device.until("pong") == {"t": "pong"}

    @pytest.mark.parametrize("ref", ["text", 5, "ж", "x" * 100])
    async def test_ref_comes_back(self, device: Device, ref: Any) -> None:
        await device.start()
        await device.send("ping", ref=ref)
        assert (await device.until("pong"))["ref"] == ref

    async def test_unknown_type(self, device: Device) -> None:
        """ "the gateway answers one with `error`"."""
        await device.start()
        for name in ("dance", "welcome", "event", ""):
            await device.send(name, ref="x")
            error = await device.until("error")
            assert error["ref"] == "x"
            assert error["code"] in ({"unknown_type"} if name else {"unknown_type", "invalid"})
        await device.settle()

    @pytest.mark.parametrize("message", [{"ref": 1}, {"t": 5}, {"t": None}, {"t": ["ping"]}])
    async def test_no_type(self, device: Device, message: Message) -> None:
        """A map without a good `t`: its `t` is unknown, or a wrong field; the session lives either way."""
        await device.start()
        assert device.ws is not None
        await device.ws.send(encode(message, device.protocol))
        assert (await device.until("error"))["code"] in {"unknown_type", "invalid"}
        await device.settle()

    async def test_t_need_not_come_first_from_a_device(self, device: Device) -> None:
        """JSON and msgpack maps have no order: `{"ref":…,"t":…}` is the same map. The gateway may insist on it with
        an error."""
        await device.start()
        assert device.ws is not None
        await device.ws.send(encode({"ref": "r", "t": "ping"}, device.protocol))
        assert (await device.until("pong", "error")).get("ref", "r") == "r"

    @pytest.mark.parametrize("message", [[], [1, 2], "ping", 5, None, True])
    async def test_not_a_map(self, device: Device, message: Any) -> None:
        await device.start()
        assert device.ws is not None
        await device.ws.send(encode(message, device.protocol))
        assert (await device.closed()).code == 4400

    async def test_not_decodable(self, device: Device) -> None:
        await device.start()
        assert device.ws is not None
        await device.ws.send("{nonsense" if device.protocol == JSON else b"\xc1\xff\x00")
        assert (await device.closed()).code == 4400

    async def test_trailing_bytes(self, device: Device) -> None:
        await device.start()
        assert device.ws is not None
        message = encode({"t": "ping"}, device.protocol)
        await device.ws.send(message + "x" if isinstance(message, str) else message + b"\x01")
        assert (await device.closed()).code == 4400

    async def test_deep_nesting(self, device: Device) -> None:
        """Decoded or not, nothing breaks: an ignored unknown key, or 4400."""
        await device.start()
        assert device.ws is not None
        depth = 7000
        raw = (
            '{"t":"ping","x":' + "[" * depth + "]" * depth + "}"
            if device.protocol == JSON
            else b"\x82\xa1t\xa4ping\xa1x" + b"\x91" * (2 * depth) + b"\xc0"
        )
        await device.ws.send(raw)
        await device.answered("pong", "error")

    async def test_over_16_kib(self, device: Device) -> None:
        await device.start()
        await device.send("ping", pad="x" * 17_000)
        assert (await device.closed()).code == 4400

    async def test_mode(self, device: Device) -> None:
        await device.start()
        for mode in ("saver", "full", "full"):
            await device.send("mode", mode=mode, ref=mode)
            assert await device.until("mode") == {"t": "mode", "mode": mode, "ref": mode}
        await device.send("mode", mode="turbo", ref="x")
        assert (await device.until("error", "mode"))["t"] == "error"

    async def test_refresh(self, device: Device) -> None:
        """Agencies cannot be asked yet: `failed` with a reason. Repeating with the same `ref` asks once, and may
        answer once."""
        await device.start()
        for source in ("/agencies/tax", "/agencies/tax"):
            await device.send("refresh", source=source, ref="same")
        refresh = await device.until("refresh", "error")
        assert refresh["ref"] == "same"
        assert refresh["t"] == "refresh", refresh
        assert refresh["source"] == "/agencies/tax"
        assert refresh["status"] == "failed"
        assert refresh["reason"]
        await device.settle()

    async def test_refresh_of_nothing(self, device: Device) -> None:
        await device.start()
        for source in ("/agencies/nobody", "x", 5, None):
            await device.send("refresh", source=source, ref="r")
            answer = await device.until("refresh", "error")
            assert answer["ref"] == "r"
            assert answer["t"] == "error" or answer["status"] in {"failed", "cooldown"}


class TestDevices:
    """ "One session a device: a newer one closes the older with 4409." "An account has up to 10 devices"."""

    async def test_newer_session(self, gateway: Gateway, tax: Agency, device: Device) -> None:
        await device.start()
        async with gateway.device(device.account, device=device.device) as newer:
            await newer.start()
            assert (await device.closed()).code == 4409
            tax.send(tax.notice(device.account))
            await newer.reach(1)

    async def test_many_sessions_of_a_device_at_once(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """Whichever was the newest lives, all others end with 4409."""
        sessions = [gateway.device(account, device="same") for _ in range(6)]

        async def ended(session: Device) -> int | None:
            try:
                await session.hello()
                await session.settle()
                await session.reach(1)
            except Closed as closed:
                return closed.code
            return 0

        try:
            await asyncio.gather(*(session.open() for session in sessions))
            ends = [asyncio.ensure_future(ended(session)) for session in sessions]
            deadline = time.monotonic() + 4
            while sum(not end.done() for end in ends) > 1:
                assert time.monotonic() < deadline, "more than one lives"
                await asyncio.sleep(0.02)
            tax.send(tax.notice(account))
            assert sorted(await asyncio.gather(*ends)) == [0] + [4409] * 5  # type: ignore[type-var]
        finally:
            await asyncio.gather(*(session.close() for session in sessions))

    async def test_many_devices_at_once(self, gateway: Gateway, account: str) -> None:
        """Ten of them find room, whoever comes first."""
        devices = [gateway.device(account) for _ in range(14)]

        async def enter(device: Device) -> int | None:
            try:
                await device.hello()
                await device.settle()
            except Closed as closed:
                return closed.code
            return 0

        try:
            await asyncio.gather(*(device.open() for device in devices))
            codes = await asyncio.gather(*(enter(device) for device in devices))
            assert [codes.count(code) for code in (0, 4403)] == [10, 4]
            assert len(gateway.get("/v1/devices", account).json) == 10
        finally:
            await asyncio.gather(*(device.close() for device in devices))

    async def test_same_device_name_of_another_account(self, gateway: Gateway, account: str, device: Device) -> None:
        await device.start()
        async with gateway.device(f"{account}-other", device=device.device) as other:
            await other.start()
            await device.settle()

    async def test_eleventh_device(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """ "then the one longest away is forgotten; if all are connected, 4403"."""
        devices = [gateway.device(account, device=f"d{number}") for number in range(10)]
        extra = gateway.device(account, device="extra")
        try:
            for device in devices:
                await device.start()
            await extra.open()
            await extra.send("hello", token=extra.token, device=extra.device)
            assert (await extra.closed()).code == 4403
            # Two go away, the first of them longest.
            tax.send(tax.notice(account))
            for device in devices[3:5]:
                await device.reach(1)
                await device.ack()
                await device.settle()
                await device.close()
                await asyncio.sleep(0.4)  # when a device was last here is kept as exactly as acks are saved
            deadline = time.monotonic() + 5
            while sum(item["connected"] for item in gateway.get("/v1/devices", account).json) > 8:
                assert time.monotonic() < deadline, "closed sessions still count as connected"
                await asyncio.sleep(0.05)
            await extra.start()
            names = {item["device"] for item in gateway.get("/v1/devices", account).json}
            assert names == {f"d{number}" for number in range(10) if number != 3} | {"extra"}
        finally:
            await asyncio.gather(*(device.close() for device in [*devices, extra]))


class TestLimits:
    """ "120 messages a minute sustained, bursts of 60, pings and pongs included, acks that free window space not; 30
    hellos a
    minute of a device; else 4529"."""

    async def test_burst(self, device: Device) -> None:
        await device.start()
        assert await device.send_many("ping", 45) is None
        closed = await device.send_many("ping", 40)
        assert closed is not None
        assert closed.code == 4529

    async def test_control_frames_count(self, gateway: Gateway, account: str) -> None:
        with RawSocket(gateway.port) as raw:
            raw.open()
            raw.say({"t": "hello", "token": gateway.token(account), "device": "pinger"})
            raw.until(TEXT, t="live")
            raw.send(build(PING, b"x") * 90)
            assert raw.closing() == 4529

    async def test_acks_that_free_the_window_are_free(self, tax: Agency, device: Device) -> None:
        tax.send(*notices(tax, device.account, 150))
        await device.start()
        await device.reach(150)
        for offset in range(1, 151):
            await device.ack(at=offset)
        await device.settle()

    async def test_other_acks_count(self, device: Device) -> None:
        await device.start()
        closed = await device.send_many("ack", 90, feed=device.feed, offset=0)
        assert closed is not None
        assert closed.code == 4529

    async def test_hellos(self, gateway: Gateway, device: Device) -> None:
        codes: list[int | None] = []
        said = 0
        while not codes and said < 36:
            said += 1
            await device.open()
            await device.send("hello", token=device.token, device=device.device)
            try:
                await device.next()
            except Closed as closed:
                codes.append(closed.code)
            await device.close()
        assert codes == [4529]
        assert said > 30


class TestIdle:
    """What the contract does after seconds, here by short settings; slow things wait together."""

    async def test_what_ends_a_session(self, quick: Gateway, account: str) -> None:
        parts = (self.hello_deadline, self.silence, self.token_end, self.window_full_too_long)
        await together(*(part(quick, f"{account}-{number}") for number, part in enumerate(parts)))

    async def hello_deadline(self, quick: Gateway, _account: str) -> None:
        """First, within 10 s (here 1 s); else 4508 "too slow: hello, …"."""

        async def silent() -> None:
            async with Device(quick.port, "x", "x") as device:
                await device.open()
                began = time.monotonic()
                assert (await device.closed(6)).code == 4508
                assert time.monotonic() - began > 0.5

        async def pinging() -> None:
            """Frames are no hello."""
            async with Device(quick.port, "x", "x") as device:
                await device.open()
                assert device.ws is not None
                for _ in range(4):
                    await (await device.ws.ping())
                    await asyncio.sleep(0.15)
                assert (await device.closed(6)).code == 4508

        await together(silent(), pinging())

    async def silence(self, quick: Gateway, account: str) -> None:
        """ "The gateway ends a session without a frame for two beats": pongs are frames, and keep it."""

        def dead() -> None:
            with RawSocket(quick.port, timeout=8) as raw:
                raw.open()
                raw.say({"t": "hello", "token": quick.token(account), "device": "dead"})
                began = time.monotonic()
                assert raw.closing() == 4508
                assert 1.5 < time.monotonic() - began < 6

        async def living() -> None:
            async with quick.device(account, device="living") as device:
                await device.start()
                assert all(message["t"] in ("beat", "live") for message in await device.idle(4))

        await together(asyncio.to_thread(dead), living())

    async def token_end(self, quick: Gateway, account: str) -> None:
        """`expiring` 60 s before the end; 4401 within 5 s of it; renewal in time keeps the session."""

        async def ends() -> None:
            async with quick.device(account, ttl=2) as device:
                await device.start()
                expiring = await device.until("expiring", timeout=3)
                assert 0 <= expiring["in"] <= 60
                began = time.monotonic()
                assert (await device.closed(9)).code == 4401
                assert time.monotonic() - began < 7.5

        async def warned() -> None:
            async with quick.device(account, ttl=62) as device:
                await device.start()
                expiring = await device.until("expiring", timeout=8)
                assert 50 <= expiring["in"] <= 60
                await device.send("token", token=quick.token(account, ttl=600))
                await device.until("renewed")

        async def renewed() -> None:
            async with quick.device(account, ttl=2) as device:
                await device.start()
                await device.send("token", token=quick.token(account, ttl=600))
                await device.until("renewed")
                await device.idle(7.5)
                await device.settle()

        async def renewed_by_a_shorter_one() -> None:
            async with quick.device(account, ttl=600) as device:
                await device.start()
                await device.send("token", token=quick.token(account, ttl=2))
                await device.until("renewed", "error")
                if device.answers("renewed"):
                    await device.until("expiring")
                    assert (await device.closed(9)).code == 4401

        await together(ends(), warned(), renewed(), renewed_by_a_shorter_one())

    async def window_full_too_long(self, quick: Gateway, account: str) -> None:
        """ "A session whose window or socket stays full for 60 s (here 1.5 s) closes with 4508 and loses nothing"."""
        tax = quick.agencies["tax"]
        tax.send(*notices(tax, account, WINDOW + 44))
        async with quick.device(account) as device:
            await device.start()
            began = time.monotonic()
            assert (await device.closed(8)).code == 4508
            assert time.monotonic() - began > 1
            assert device.received() == list(range(1, WINDOW + 1))
            await device.start(resume=True)
            await device.reach(WINDOW + 44, ack=True)
            await device.idle(2.5)  # an acknowledged window is not full
            assert device.received() == list(range(1, WINDOW + 45))

    async def test_beats(self, quick: Gateway, account: str) -> None:
        """`beat` with `heads` and `next`; the first at a random point of the first interval, in saver mode rarer."""
        tax = quick.agencies["tax"]
        firsts: list[float] = []

        async def one(number: int, mode: str, interval: float) -> None:
            async with quick.device(f"{account}-{number}", protocol=BOTH[number % 2]) as device:
                await device.start(mode=mode, feeds=["agency:tax"])
                began = time.monotonic()
                first = await device.until("beat", timeout=interval + 2)
                came = time.monotonic()
                firsts.append((came - began) / interval)
                assert set(first["heads"]) <= {device.feed, "agency:tax"}
                second = await device.until("beat", timeout=interval + 2)
                gap = time.monotonic() - came
                assert 0.5 * interval < gap < 1.7 * interval
                if isinstance(first["next"], int | float):
                    assert 0.5 * interval <= second["next"] <= 1.5 * interval

        tax.send(tax.notice(f"{account}-0"))
        await together(
            *(one(number, "full", 1.0) for number in range(6)), *(one(number, "saver", 1.5) for number in range(6, 8))
        )
        assert max(firsts) < 1.5
        assert max(firsts) - min(firsts) > 0.05, "spread"

    async def test_heads_show_what_there_is(self, quick: Gateway, account: str) -> None:
        """A head of a feed that has events comes with a beat after the sweep (here 1 s)."""
        tax = quick.agencies["tax"]
        tax.send(tax.notice(account), tax.notice(account))
        async with quick.device(account) as device:
            await device.start()
            for _ in range(4):
                beat = await device.until("beat")
                if beat["heads"].get(device.feed) == 2:
                    return
            pytest.fail(f"no head 2 in {device.answers('beat')}")

    def test_beat_and_ping_in_one_write(self, quick: Gateway, account: str) -> None:
        with RawSocket(quick.port) as raw:
            raw.open()
            raw.say({"t": "hello", "token": quick.token(account), "device": "raw"})
            raw.until(TEXT, t="live")
            kinds = []
            for _ in range(4):
                frame = raw.frame()
                assert frame is not None
                kinds.append("ping" if frame.opcode == PING else frame.json["t"])
                if len(kinds) == 2:
                    break
            assert sorted(kinds) == ["beat", "ping"]

    async def test_socket_full_too_long(self, quick: Gateway, account: str) -> None:
        """The same when nobody reads; the others are not held up (invariant 19)."""
        tax = quick.agencies["tax"]
        large = [tax.notice(account, text="x" * 60_000) for _ in range(200)]
        for at in range(0, 200, 16):
            tax.send(*large[at : at + 16])

        def never_reads() -> int:
            raw = RawSocket(quick.port, receive_buffer=4096)
            with raw:
                raw.open()
                raw.say({"t": "hello", "token": quick.token(account), "device": "stuck"})
                time.sleep(3.5)
                # What the kernel still holds comes first; then the end.
                size = 0
                try:
                    while data := raw.sock.recv(1 << 20):
                        size += len(data)
                except ConnectionResetError:
                    pass
                return size

        async def reads() -> None:
            async with quick.device(account, device="reader") as device:
                await device.start()
                await device.reach(200, ack=True)

        sizes: list[int] = []

        async def stuck() -> None:
            sizes.append(await asyncio.to_thread(never_reads))

        await together(stuck(), reads())
        assert sizes[0] < 12_000_000, "it was cut before it got all"
        async with quick.device(account, device="stuck") as device:
            await device.start()
            await device.reach(200, ack=True)

    async def test_saver(self, quick: Gateway, account: str) -> None:
        """ "normal and bulk events of a feed wait up to 30 s (here 1.2 s) and come as `batch`"; nothing is dropped."""
        tax = quick.agencies["tax"]
        async with (
            quick.device(account) as device,
            quick.device(account, protocol=MSGPACK) as other,
            quick.device(account) as full,
        ):
            await asyncio.gather(device.start(mode="saver"), other.start(mode="saver"), full.start())
            await asyncio.gather(device.caught_up(), other.caught_up(), full.caught_up())
            began = time.monotonic()
            tax.send(*notices(tax, account, 5))
            await full.reach(5)
            assert time.monotonic() - began < 1, "a device that saves nothing waits for nothing"
            for saver in (device, other):
                await saver.reach(5)
                assert 0.3 < saver.at[f"{saver.feed}/1"] - began < 2.5
                assert [len(message["events"]) for message in saver.answers("batch")] == [5]
                assert saver.answers("event") == []

    async def test_saver_batches_are_bounded(self, quick: Gateway, account: str) -> None:
        """ "up to 100 events or 64 KiB" (`Device` measures each), compressed or not, replayed or live."""
        tax = quick.agencies["tax"]

        def some() -> list[Message]:
            return notices(tax, account, 70) + [tax.notice(account, text="x" * 30_000) for _ in range(3)]

        devices = [quick.device(account, protocol=protocol) for protocol in (*BOTH, *BOTH)]
        try:
            for at, device in enumerate(devices):
                await device.start(mode="saver", compression="deflate" if at < 2 else None)
                await device.caught_up()
            tax.send(*some())
            await asyncio.gather(*(device.reach(73, ack=True) for device in devices))
            for device in devices:
                assert len(device.answers("batch")) >= 2
                await device.close()
            tax.send(*some())
            await devices[0].start(mode="saver", compression="deflate", resume=True)
            await devices[0].reach(146, ack=True)
            assert devices[0].received() == list(range(1, 147))
        finally:
            await asyncio.gather(*(device.close() for device in devices))

    async def test_saver_urgent(self, quick: Gateway, account: str) -> None:
        """ "an urgent one takes everything gathered before it in its feed along at once"."""
        tax = quick.agencies["tax"]
        decided = {"court": "c", "case": "1", "title": "t", "text": "x", "decided": "2026-11-22"}
        async with quick.device(account) as device:
            await device.start(mode="saver")
            await device.caught_up()
            tax.send(*notices(tax, account, 3))
            began = time.monotonic()
            tax.send(tax.event("gov.court.decided", decided, account=account))
            await device.reach(4)
            assert time.monotonic() - began < 0.7
            assert device.received() == [1, 2, 3, 4]

    async def test_saver_switched_off(self, quick: Gateway, account: str) -> None:
        """Leaving the mode leaves nothing behind."""
        tax = quick.agencies["tax"]
        async with quick.device(account) as device:
            await device.start(mode="saver")
            await device.caught_up()
            tax.send(*notices(tax, account, 2))
            await device.send("mode", mode="full")
            began = time.monotonic()
            await device.reach(2)
            assert time.monotonic() - began < 2.5
            tax.send(tax.notice(account))
            began = time.monotonic()
            await device.reach(3)
            assert time.monotonic() - began < 0.7

    def test_saver_compresses_batches_alone(self, quick: Gateway, account: str) -> None:
        tax = quick.agencies["tax"]
        with RawSocket(quick.port) as raw:
            raw.open(Sec_WebSocket_Extensions="permessage-deflate")
            assert "permessage-deflate" in raw.headers.get("sec-websocket-extensions", "")
            raw.say({"t": "hello", "token": quick.token(account), "device": "raw", "mode": "saver"})
            raw.until(TEXT, t="live")
            for _ in range(2):
                tax.send(*(tax.notice(account, text="одно и то же " * 50) for _ in range(5)))
                while True:
                    frame = raw.frame()
                    assert frame is not None
                    if frame.opcode == TEXT and frame.rsv1:
                        break
                    assert frame.opcode != TEXT or frame.json["t"] in ("beat", "live")
                # Each by itself: no context from the one before.
                text = zlib.decompressobj(-15).decompress(frame.payload + b"\0\0\xff\xff")
                batch = json.loads(text)
                assert (batch["t"], len(batch["events"])) == ("batch", 5)
                assert len(frame.payload) < len(text) / 2


class TestOtherNodes:
    """Gateways of their own: they are stopped, killed, and forget."""

    async def test_retention(self, make_gateway: Any, account: str) -> None:
        """What is gone is told: `resync` with `retention`; offsets are never used again (invariant 21)."""
        gateway = make_gateway(retention_days=1.5 / 86400, retain_every_s=0.2, drain_s=0)
        tax = gateway.add_agency("tax")
        gateway.start()
        try:
            tax.send(*notices(tax, account, 5))
            async with gateway.device(account) as device:
                await device.start()
                await device.reach(2)
                await device.ack(at=2)
                await device.settle()
                await device.close()
                deadline = time.monotonic() + 12
                while gateway.offsets(account):
                    assert time.monotonic() < deadline, "retention took nothing away"
                    await asyncio.sleep(0.2)
                await device.start(resume=True)
                resync = await device.next()
                # What it had acknowledged is position 2 by the cursor, and 2 or more by what it keeps.
                if device.positions[device.feed][1] < 5 or resync["t"] == "resync":
                    assert (resync["t"], resync["reason"], resync["offset"]) == ("resync", "retention", 5)
                offset = tax.send(tax.notice(account))
                assert offset == [6]
                await device.reach(6)
        finally:
            gateway.stop()

    async def test_keys_by_url(self, make_gateway: Any, identity: Identity, account: str) -> None:
        """Section 5: a JWKS URL, keys by `kid`, a new key soon, and "last good keys are kept when a fetch fails"."""
        document = {"keys": identity.document()["keys"][:1]}

        class Provider(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(document).encode()
                self.send_response(200 if document["keys"] else 500)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        with ThreadingHTTPServer(("127.0.0.1", 0), Provider) as provider:
            threading.Thread(target=provider.serve_forever, daemon=True).start()
            url = f"http://127.0.0.1:{provider.server_address[1]}/jwks.json"
            gateway: Gateway = make_gateway(identity=None, jwks=url, jwks_refresh_s=1, drain_s=0)

            async def enters(algorithm: str) -> bool:
                token = identity.token(account, algorithm=algorithm)
                async with Device(gateway.port, account, token) as device:
                    await device.open()
                    await device.send("hello", token=token, device=device.device)
                    try:
                        await device.until("welcome")
                        return True
                    except Closed as closed:
                        code = closed.code
                # 4503 tells it to come back: the key of that name may be on its way.
                assert code in {4401, 4503}
                return False

            try:
                await asyncio.to_thread(gateway.start)
                assert await enters("ES256")
                assert not await enters("EdDSA")
                document["keys"] = identity.document()["keys"][:2]
                deadline = time.monotonic() + 8
                while not await enters("EdDSA"):
                    assert time.monotonic() < deadline, "the new key was not fetched"
                    await asyncio.sleep(0.2)
                document["keys"] = []  # the provider fails from now on
                await asyncio.sleep(1.5)
                assert await enters("ES256")
                assert await enters("EdDSA")
            finally:
                await asyncio.to_thread(gateway.stop)
                provider.shutdown()

    async def test_drain_restart_and_crash(self, make_gateway: Any, account: str) -> None:
        """SIGTERM: `drain`, delivery goes on, 4512, exit code 0. Then a start on the same data, SIGKILL, and another
        start:
        the same epoch, the same offsets, no resync, nothing lost (invariants 14 and 20)."""
        gateway: Gateway = make_gateway(drain_s=1)
        tax = gateway.add_agency("tax")
        gateway.start()
        first, second = gateway.device(account), gateway.device(account, protocol=MSGPACK)
        try:
            await asyncio.gather(first.start(), second.start())
            tax.send(*notices(tax, account, 3))
            await asyncio.gather(first.reach(3), second.reach(3))
            epoch = first.positions[first.feed][0]
            await second.ack()
            await second.settle()

            gateway.signal(15)
            began = time.monotonic()
            drain = await first.until("drain")
            assert 0 < drain["after"] <= 1
            try:
                offsets = tax.send(tax.notice(account))
            except OSError:
                offsets = []  # a node on its way out need not take new connections
            if offsets:
                await first.reach(4)
            closed = await asyncio.gather(first.closed(10), second.closed(10))
            assert [item.code for item in closed] == [4512, 4512]
            assert await asyncio.to_thread(gateway.wait) == 0
            assert time.monotonic() - began < 10

            gateway.start()
            stored = 3 + len(offsets)
            welcome = await first.start(resume=True)
            assert welcome["feeds"][0]["epoch"] == epoch
            assert welcome["feeds"][0]["head"] == stored
            await first.caught_up()
            assert not first.answers("resync")
            assert (await second.start())["feeds"][0]["from"] == 3

            sent = tax.send(*notices(tax, account, 20))
            assert sent == list(range(stored + 1, stored + 21))
            await first.reach(stored + 5)
            gateway.kill()
            assert (await first.closed()).code is None

            gateway.start()
            welcome = await first.start(resume=True)
            assert (welcome["feeds"][0]["epoch"], welcome["feeds"][0]["head"]) == (epoch, stored + 20)
            await first.reach(stored + 20)
            assert first.received() == list(range(1, stored + 21))
            assert not first.answers("resync")
        finally:
            await first.close()
            await second.close()
            gateway.stop()
        assert "Traceback" not in gateway.log(10**6)

"""Section 4 of the contract: HTTP for the account, and the operations' addresses."""

import asyncio
import csv
import io
import time
from typing import Any
from urllib.parse import quote

import pytest

from .agent import PROBLEM, Agency, Answer, call, get, rfc3339
from .conftest import Gateway
from .device import moment

PATHS = ["/v1/snapshot", "/v1/feeds/account:{}/events", "/v1/devices"]


def history(gateway: Gateway, account: str, query: str = "", feed: str | None = None, **headers: str) -> Answer:
    return gateway.get(f"/v1/feeds/{feed or f'account:{account}'}/events{query}", account, **headers)


def offsets(answer: Answer) -> list[int]:
    assert answer.status == 200, (answer.status, answer.body)
    return [offset for offset, _ in answer.json["events"]]


class TestTokens:
    """Bearer token of the account."""

    @pytest.mark.parametrize("path", PATHS)
    def test_missing(self, gateway: Gateway, account: str, path: str) -> None:
        answer = gateway.get(path.format(account))
        assert answer.status == 401
        assert answer.media_type == PROBLEM
        assert answer.json["status"] == 401
        assert "bearer" in answer.headers.get("www-authenticate", "bearer").lower()  # RFC 6750, 3

    @pytest.mark.parametrize("path", PATHS)
    def test_wrong(self, gateway: Gateway, account: str, path: str) -> None:
        wrong: list[dict[str, Any]] = [
            {"ttl": -10},
            {"aud": "other"},
            {"algorithm": "none"},
            {"algorithm": "HS256", "kid": "RS256"},
        ]
        for token in ("garbage", *(gateway.token(account, **options) for options in wrong)):
            assert get(gateway.port, path.format(account), token).status == 401

    @pytest.mark.parametrize("scheme", ["Basic", "Token", ""])
    def test_other_scheme(self, gateway: Gateway, account: str, scheme: str) -> None:
        answer = get(gateway.port, "/v1/snapshot", Authorization=f"{scheme} {gateway.token(account)}".strip())
        assert answer.status == 401

    def test_scheme_ignores_case(self, gateway: Gateway, account: str) -> None:
        """RFC 9110, 11.1."""
        assert get(gateway.port, "/v1/snapshot", Authorization=f"bearer {gateway.token(account)}").status == 200

    def test_ending_needs_one_too(self, gateway: Gateway) -> None:
        assert gateway.call("DELETE", "/v1/sessions").status == 401
        assert gateway.call("DELETE", "/v1/devices/x").status == 401

    def test_not_in_the_address(self, gateway: Gateway, account: str) -> None:
        """A token in a URL would be in every log."""
        token = gateway.token(account)
        assert get(gateway.port, f"/v1/snapshot?token={token}&access_token={token}").status == 401


class TestSnapshot:
    def test_of_nobody(self, gateway: Gateway, account: str) -> None:
        answer = gateway.get("/v1/snapshot", account)
        assert answer.status == 200
        document = answer.json
        assert set(document) >= {"positions", "applications", "records", "notices", "agencies"}
        assert (document["applications"], document["records"], document["notices"]) == ([], [], [])
        position = document["positions"][f"account:{account}"]
        assert position["offset"] == 0
        assert position["epoch"]

    def test_current_state(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """latest status of each application with its dates and reason, latest of each record with `as_of` and
        `updated`,
        notices not yet expired, `seen` on each, per agency the last update and the next planned one."""
        first = {"application": "2026-1", "service": "passport"}
        second = {"application": "2026-2", "service": "visa"}
        reason = {"code": "E12", "text": "Скан нечитаем"}
        tax.send(
            tax.event("gov.status.changed", first | {"status": "processing"}, account=account),
            tax.event("gov.status.changed", second | {"status": "checking"}, account=account),
            tax.event("gov.status.changed", first | {"status": "rejected", "previous": "processing", "reason": reason,
                      "deadline": "2026-12-31", "title": "Паспорт"}, account=account),
            tax.record(account, "77-0042", {"owner": "А"}, "created"),
            tax.record(account, "77-0042", {"owner": "Б"}, "updated"),
            tax.record(account, "77-0043", {"owner": "В"}, "created"),
            tax.notice(account, "действует", expirytime=rfc3339(time.time() + 3600)),
            tax.notice(account, "истекло", expirytime=rfc3339(time.time() - 3600)),
            tax.notice(account, "без срока"),
        )  # fmt: skip
        document = gateway.get("/v1/snapshot", account).json
        assert document["positions"][f"account:{account}"]["offset"] == 9

        applications = {item["application"]: item for item in document["applications"]}
        assert set(applications) == {"2026-1", "2026-2"}
        assert len(document["applications"]) == 2
        assert applications["2026-1"]["status"] == "rejected"
        assert applications["2026-1"]["reason"] == reason
        assert applications["2026-1"]["deadline"] == "2026-12-31"
        assert applications["2026-2"]["status"] == "checking"

        records = {item["key"]: item for item in document["records"]}
        assert set(records) == {"77-0042", "77-0043"}
        assert records["77-0042"]["fields"]["owner"] == "Б"
        for record in records.values():
            assert moment(record["as_of"])
            assert moment(record["updated"])

        texts = {notice["text"] for notice in document["notices"]}
        assert texts == {"действует", "без срока"}
        for item in [*document["applications"], *document["records"], *document["notices"]]:
            assert not item["seen"]
        agencies = {item["code"]: item for item in document["agencies"]}
        assert moment(agencies["tax"]["updated"])
        assert "next" in agencies["tax"]

    def test_removed_record(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """The latest of a removed record is that it is gone: left out, or shown as removed."""
        tax.send(tax.record(account, "k", {"a": 1}, "created"), tax.record(account, "k", {}, "removed"))
        records = gateway.get("/v1/snapshot", account).json["records"]
        assert records == [] or [record["change"] for record in records] == ["removed"]

    def test_lower_sequence_is_never_shown_over_a_higher(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """Invariant 6."""
        same = {"application": "2026-1", "service": "visa"}
        tax.send(
            tax.event(
                "gov.status.changed",
                same | {"status": "done"},
                account=account,
                subject="application/2026-1",
                sequence="5",
            )
        )
        old = tax.event(
            "gov.status.changed",
            same | {"status": "processing"},
            account=account,
            subject="application/2026-1",
            sequence="4",
        )
        assert tax.post(old).status == 409
        [application] = gateway.get("/v1/snapshot", account).json["applications"]
        assert application["status"] == "done"

    async def test_seen(self, gateway: Gateway, tax: Agency, account: str) -> None:
        tax.send(tax.notice(account, "a"), tax.notice(account, "b"))
        async with gateway.device(account) as device:
            await device.start()
            await device.reach(2)
            await device.send("seen", feed=device.feed, offsets=[2])
            await device.settle()
            deadline = time.monotonic() + 5
            while True:
                seen = {
                    item["text"]: bool(item["seen"]) for item in gateway.get("/v1/snapshot", account).json["notices"]
                }
                if seen == {"a": False, "b": True}:
                    break
                assert time.monotonic() < deadline, seen
                await asyncio.sleep(0.1)

    def test_covers_what_was_accepted(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """At once after each 202: the position is never behind."""
        for number in range(1, 6):
            tax.send(tax.notice(account))
            document = gateway.get("/v1/snapshot", account).json
            assert document["positions"][f"account:{account}"]["offset"] == number
            assert len(document["notices"]) == number

    def test_isolation(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """Invariant 17."""
        tax.send(tax.notice(f"{account}-victim", "секрет"))
        answer = gateway.get("/v1/snapshot", account)
        assert "секрет" not in answer.body.decode()
        assert set(answer.json["positions"]) & {f"account:{account}-victim"} == set()


class TestHistory:
    """`GET /v1/feeds/<feed>/events?after=|before=&limit=&type=&status=&from=&to=`."""

    @pytest.fixture
    def filled(self, tax: Agency, account: str) -> str:
        """Ten events: odd offsets are notices, even ones statuses."""
        words = iter(["processing", "checking", "approved", "done", "done"])
        tax.send(*(tax.notice(account, str(at)) if at % 2 else tax.status(account, next(words)) for at in range(1, 11)))
        return account

    def test_members(self, gateway: Gateway, filled: str) -> None:
        document = history(gateway, filled).json
        assert set(document) >= {"feed", "epoch", "oldest", "head", "events", "next"}
        assert (document["feed"], document["oldest"], document["head"]) == (f"account:{filled}", 1, 10)
        assert document["epoch"]

    def test_newest_first(self, gateway: Gateway, filled: str) -> None:
        answer = history(gateway, filled)
        assert offsets(answer) == list(range(10, 0, -1))
        assert answer.json["next"] is None
        assert offsets(history(gateway, filled, "?before=4")) == [3, 2, 1], "exclusive"

    def test_oldest_first_after(self, gateway: Gateway, filled: str) -> None:
        assert offsets(history(gateway, filled, "?after=0")) == list(range(1, 11))
        assert offsets(history(gateway, filled, "?after=7")) == [8, 9, 10], "exclusive"
        assert offsets(history(gateway, filled, "?after=10")) == []
        assert offsets(history(gateway, filled, "?after=1000")) == []

    @pytest.mark.parametrize("direction", ["after=0&", "", "before=11&"])
    def test_pages(self, gateway: Gateway, filled: str, direction: str) -> None:
        """Pages carry `next`, opaque, given back as `page`."""
        answer = history(gateway, filled, f"?{direction}limit=3")
        found, pages = offsets(answer), 1
        while answer.json["next"] is not None:
            # With or without the other parameters again: the page knows where it was.
            answer = history(gateway, filled, f"?limit=3&page={quote(answer.json['next'], safe='')}")
            found += offsets(answer)
            pages += 1
            assert pages < 10
        assert found == (list(range(1, 11)) if "after" in direction else list(range(10, 0, -1)))

    def test_pages_do_not_shift(self, gateway: Gateway, tax: Agency, filled: str) -> None:
        """What comes in the meantime repeats and drops nothing."""
        answer = history(gateway, filled, "?limit=4")
        tax.send(tax.notice(filled), tax.notice(filled))
        page = quote(answer.json["next"], safe="")
        assert offsets(history(gateway, filled, f"?limit=4&page={page}")) == [6, 5, 4, 3]

    def test_filters(self, gateway: Gateway, filled: str) -> None:
        assert offsets(history(gateway, filled, "?type=gov.notice.sent")) == [9, 7, 5, 3, 1]
        assert offsets(history(gateway, filled, "?status=done&after=0")) == [8, 10]
        assert offsets(history(gateway, filled, "?type=gov.status.changed&status=checking")) == [4]
        assert offsets(history(gateway, filled, "?type=gov.notice.sent&status=done")) == []

    def test_filtered_pages(self, gateway: Gateway, filled: str) -> None:
        """`next` carries the filter, or the caller repeats it: both lead through all of it."""
        query = "type=gov.notice.sent&limit=2"
        answer = history(gateway, filled, f"?{query}")
        found = offsets(answer)
        for _ in range(10):
            if answer.json["next"] is None:
                break
            answer = history(gateway, filled, f"?{query}&page={quote(answer.json['next'], safe='')}")
            found += offsets(answer)
        assert found == [9, 7, 5, 3, 1]

    def test_times(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """The event's own `time`: `from` inclusive; whether `to` is, the contract does not say."""
        days = [f"2026-03-0{day}T12:00:00Z" for day in range(1, 6)]
        tax.send(*(tax.notice(account, time=day) for day in days))
        query = f"?after=0&from={days[1]}&to=2026-03-04T11:00:00Z"
        assert offsets(history(gateway, account, query)) == [2, 3]
        assert offsets(history(gateway, account, f"?after=0&from={quote('2026-03-04T15:00:00+03:00')}")) == [4, 5]
        assert offsets(history(gateway, account, "?after=0&to=2026-03-01T12:00:01Z")) == [1]

    def test_limit(self, gateway: Gateway, filled: str) -> None:
        """`limit` up to 500: more is refused or cut."""
        assert offsets(history(gateway, filled, "?limit=500")) == list(range(10, 0, -1))
        assert offsets(history(gateway, filled, "?limit=1")) == [10]
        assert history(gateway, filled, "?limit=501").status in {200, 400, 422}

    def test_more_than_500(self, gateway: Gateway, tax: Agency, account: str) -> None:
        tax.send(*(tax.notice(account, text="x") for _ in range(510)))
        answer = history(gateway, account, "?after=0&limit=500")
        assert offsets(answer) == list(range(1, 501))
        page = quote(answer.json["next"], safe="")
        assert offsets(history(gateway, account, f"?page={page}&limit=500")) == list(range(501, 511))

    @pytest.mark.parametrize(
        "query",
        ["limit=0", "limit=-1", "limit=x", "after=-1", "after=x", "after=1.5", "before=x", "from=yesterday", "to=5",
        "page=nonsense",
         "page=%00", "after=1&before=5", "after=99999999999999999999999"],
    )  # fmt: skip
    def test_wrong_parameters(self, gateway: Gateway, filled: str, query: str) -> None:
        """A problem document; `after` with `before` is not said to be wrong, nor is an `after` past any head."""
        answer = history(gateway, filled, f"?{query}")
        assert answer.status in {400, 410, 422} or (
            answer.status == 200 and query.startswith("after=") and query[6:7] in "19"
        )
        if answer.status != 200:
            assert answer.media_type == PROBLEM
            assert answer.json["status"] == answer.status

    def test_public_feed(self, gateway: Gateway, city: Agency, account: str) -> None:
        """Any account may read an agency's public notices."""
        event = city.public("Для всех")
        offset = city.post(event).result["offset"]
        document = history(gateway, account, "?limit=1", feed="agency:city").json
        [[at, stored]] = document["events"]
        assert (at, stored["id"]) == (offset, event["id"])

    @pytest.mark.parametrize("feed", ["account:someone-else", "agency:nobody", "planet:mars", "account:", "x"])
    def test_other_feeds_are_404(self, gateway: Gateway, account: str, feed: str) -> None:
        """ "another account's feed is 404", whether or not there is one."""
        answer = history(gateway, account, feed=feed)
        assert answer.status == 404
        assert answer.media_type == PROBLEM

    def test_of_another_account_is_like_of_nobody(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """Invariant 17: not even that it exists."""
        tax.send(tax.notice(f"{account}-victim"))
        there = history(gateway, account, feed=f"account:{account}-victim")
        nowhere = history(gateway, account, feed=f"account:{account}-nobody")
        assert there.status == nowhere.status == 404
        assert there.body.replace(b"-victim", b"") == nowhere.body.replace(b"-nobody", b"")

    def test_page_of_another_feed(self, gateway: Gateway, tax: Agency, city: Agency, account: str) -> None:
        """A page token opens nothing that the token does not."""
        victim = f"{account}-victim"
        tax.send(*(tax.notice(victim, "секрет") for _ in range(3)))
        page = quote(history(gateway, victim, "?limit=1").json["next"], safe="")
        tax.send(tax.notice(account))
        answer = history(gateway, account, f"?page={page}")
        assert "секрет" not in answer.body.decode()
        assert history(gateway, account, f"?page={page}", feed=f"account:{victim}").status == 404


class TestCsv:
    """CSV by `Accept: text/csv`, safe against formula injection."""

    def rows(self, answer: Answer) -> list[list[str]]:
        assert answer.status == 200
        assert answer.media_type == "text/csv"
        return list(csv.reader(io.StringIO(answer.body.decode("utf-8-sig"))))

    def test_all_events(self, gateway: Gateway, tax: Agency, account: str) -> None:
        tax.send(tax.notice(account, 'запятая, "кавычки"\nстрока'), tax.status(account, "approved"))
        header, *lines = self.rows(history(gateway, account, "?after=0", Accept="text/csv"))
        assert len(lines) == 2
        assert all(len(line) == len(header) for line in lines)
        assert any("approved" in cell for cell in lines[1])

    @pytest.mark.parametrize("start", ["=", "+", "-", "@", "\t=", "\r=", "\n=", " =", "＝", "'="])
    def test_formulas(self, gateway: Gateway, tax: Agency, account: str, start: str) -> None:
        evil = start + 'cmd|" /C calc"!A1'
        tax.send(
            tax.event("gov.notice.sent", {"title": evil, "text": evil}, account=account, subject=evil.strip() or "x"),
            tax.event(
                "gov.status.changed",
                {"application": evil, "service": evil, "status": "done", "title": evil},
                account=account,
            ),
            tax.event(
                "gov.record.changed",
                {"registry": evil, "key": evil, "change": "created", "fields": {evil: evil}, "as_of": rfc3339()},
                account=account,
            ),
        )
        for row in self.rows(history(gateway, account, "?after=0", Accept="text/csv")):
            for cell in row:
                assert not cell.startswith(("=", "+", "-", "@", "\t", "\r")), cell

    def test_accept_with_weights(self, gateway: Gateway, tax: Agency, account: str) -> None:
        tax.send(tax.notice(account))
        assert history(gateway, account, Accept="text/csv, application/json;q=0.5").media_type == "text/csv"
        assert history(gateway, account, Accept="application/json").media_type == "application/json"
        assert history(gateway, account, Accept="*/*").media_type == "application/json"


class TestDevices:
    async def test_list(self, gateway: Gateway, account: str) -> None:
        """`[{"device","agent","created","last_seen","connected"}]`."""
        assert gateway.get("/v1/devices", account).json == []
        async with (
            gateway.device(account, device="phone") as phone,
            gateway.device(account, device="browser") as browser,
        ):
            await phone.start(agent="App/5.1")
            await browser.start()
            await browser.close()
            deadline = time.monotonic() + 5
            while True:
                devices = {item["device"]: item for item in gateway.get("/v1/devices", account).json}
                assert set(devices) == {"phone", "browser"}
                if (devices["phone"]["connected"], devices["browser"]["connected"]) == (True, False):
                    break
                assert time.monotonic() < deadline, devices
                await asyncio.sleep(0.05)
        assert devices["phone"]["agent"] == "App/5.1"
        assert devices["browser"]["agent"] is None
        for device in devices.values():
            assert moment(device["created"])
            assert moment(device["last_seen"])

    async def test_delete(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """ "ends its session and forgets it": the next hello of it is new."""
        tax.send(tax.notice(account))
        async with gateway.device(account, device="lost") as lost, gateway.device(account, device="mine") as mine:
            await lost.start()
            await lost.reach(1)
            await lost.ack()
            await mine.start()
            answer = gateway.call("DELETE", "/v1/devices/lost", account)
            assert answer.status in {200, 202, 204}
            # Which code is not said: the device has to sign in again (4410, 4403), or not.
            assert (await lost.closed()).code in {4410, 4403}
            await mine.settle()
            assert [item["device"] for item in gateway.get("/v1/devices", account).json] == ["mine"]
            # Saving a cursor late does not bring it back (invariant 7).
            await asyncio.sleep(1.3)
            assert [item["device"] for item in gateway.get("/v1/devices", account).json] == ["mine"]

    def test_delete_unknown(self, gateway: Gateway, account: str) -> None:
        """Gone already, or never there: 404, or nothing to do."""
        assert gateway.call("DELETE", "/v1/devices/nothing", account).status in {204, 404}

    async def test_delete_of_another_account(self, gateway: Gateway, account: str) -> None:
        async with gateway.device(account, device="phone") as phone:
            await phone.start()
            gateway.call("DELETE", "/v1/devices/phone", f"{account}-thief")
            await phone.settle()
            assert [item["device"] for item in gateway.get("/v1/devices", account).json] == ["phone"]

    async def test_end_all_sessions(self, gateway: Gateway, account: str) -> None:
        """`DELETE /v1/sessions` ends all and refuses every token issued so far; within 5 s, 4410."""
        tokens = [gateway.token(account, iat=int(time.time()) - 5) for _ in range(2)]
        async with (
            gateway.device(account) as one,
            gateway.device(account) as two,
            gateway.device(f"{account}-2") as other,
        ):
            one.token, two.token = tokens
            for device in (one, two, other):
                await device.start()
            answer = call(gateway.port, "DELETE", "/v1/sessions", tokens[0])
            assert answer.status in {200, 202, 204}
            assert [closed.code for closed in await asyncio.gather(one.closed(), two.closed())] == [4410, 4410]
            await other.settle()
            for token in tokens:
                assert get(gateway.port, "/v1/snapshot", token).status == 401
            await one.open()
            await one.send("hello", token=tokens[0], device=one.device)
            # Revoked (4410 "a new sign-in") and "wrong" (4401 "a new token") both lead there.
            assert (await one.closed()).code in {4401, 4410}
            # A token issued later is good; `iat` has whole seconds, so the next second is surely later.
            await asyncio.sleep(1.1)
            one.token = gateway.token(account)
            await one.start()
            assert get(gateway.port, "/v1/snapshot", one.token).status == 200


class TestOperations:
    @pytest.mark.parametrize("path", ["/health/live", "/health/ready"])
    def test_health(self, gateway: Gateway, path: str) -> None:
        assert gateway.get(path).status == 200

    async def test_metrics(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """Prometheus' text format; no account in it."""
        async with gateway.device(account) as device:
            await device.start()
            tax.send(tax.notice(account))
            await device.reach(1)
            answer = gateway.get("/metrics")
            assert answer.status == 200
            assert answer.media_type in {"text/plain", "application/openmetrics-text"}
            text = answer.body.decode()
            for line in text.splitlines():
                assert line.startswith("#") or float(line.rpartition(" ")[2]) is not None
            assert account not in text
            assert device.device not in text

    def test_unknown_path(self, gateway: Gateway) -> None:
        assert gateway.get("/v1/nothing").status == 404

    @pytest.mark.parametrize(
        ("method", "path"), [("POST", "/v1/snapshot"), ("PUT", "/v1/devices"), ("GET", "/v1/sessions")]
    )
    def test_other_methods(self, gateway: Gateway, account: str, method: str, path: str) -> None:
        assert gateway.call(method, path, account).status in {404, 405}

    def test_nothing_personal_in_the_log(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """Structured logs, never a token, a body or an account id in clear."""
        token = gateway.token(account)
        secret = "Совершенно-Особый-Текст"
        tax.send(tax.notice(account, secret))
        get(gateway.port, "/v1/snapshot", token)
        text: Any = gateway.log(10**6)
        assert account not in text
        assert token not in text
        assert secret not in text

"""HTTP for the account, in this process: contract section 4. Each answer is held against the OpenAPI document."""

import asyncio
import base64
import csv
import io
import json
import re
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

import httpx
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st
from starlette.requests import Request

from gateway import accounts, events, opsfeeds
from gateway.accounts import csv_row, harmless
from gateway.errors import Problem
from gateway.store import open_store
from gateway.store.base import Agency, CursorSave, Join, Row
from gateway.tokens import KeySet, LocalKey
from tests.openapi import PROBLEM
from tests.running import Running, event, here, notice, public, running, status
from tests.test_types import GOOD

__all__ = ["here"]

ACCOUNT = [
    ("GET", "/v1/snapshot"),
    ("GET", "/v1/feeds/account:ivan/events"),
    ("GET", "/v1/agencies"),
    ("GET", "/v1/devices"),
    ("DELETE", "/v1/devices/phone"),
    ("DELETE", "/v1/sessions"),
]


def problem(answer: httpx.Response, code: int, word: str) -> dict[str, Any]:
    assert answer.status_code == code, answer.text
    assert answer.headers["content-type"] == PROBLEM
    document = dict(answer.json())
    assert document["type"].endswith(f"/{word}")
    return document


def offsets(answer: httpx.Response) -> list[int]:
    assert answer.status_code == 200, answer.text
    return [offset for offset, _ in answer.json()["events"]]


def rows(answer: httpx.Response) -> list[list[str]]:
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    return list(csv.reader(io.StringIO(answer.text, newline="")))


async def erase(here: Running, account: str, offset: int) -> None:
    def make(ranges: Sequence[tuple[int, int]]) -> Any:
        return events.erased_event(account, ranges, time.time(), f"erased-{offset}")

    assert await here.store.erase(f"account:{account}", offset, make, time.time())


# Who asks


@pytest.mark.parametrize(("method", "path"), ACCOUNT)
async def test_a_token_is_needed(here: Running, method: str, path: str, tmp_path: Path) -> None:
    other = LocalKey.open(tmp_path / "other")
    wrong = [
        None,
        "Bearer",
        "Bearer nonsense",
        f"Basic {here.token()}",
        f"Bearer {other.issue('ivan')}",
        f"Bearer {here.token(now=time.time() - 100, ttl=50)}",
        f"Bearer {here.token(audience='else')}",
    ]
    for header in wrong:
        answer = await here.client.request(method, path, headers={"authorization": header} if header else {})
        problem(answer, 401, "unauthorized")
        assert answer.headers["www-authenticate"].startswith("Bearer")


async def test_a_token_in_the_address_is_none(here: Running) -> None:
    token = here.token()
    problem(await here.client.get(f"/v1/snapshot?token={token}&access_token={token}"), 401, "unauthorized")


async def test_a_token_of_one_device_may_ask_too(here: Running) -> None:
    answer = await here.client.get("/v1/snapshot", headers=here.bearer(device="phone"))
    assert answer.status_code == 200


async def test_no_keys_to_check_with(here: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    header = here.bearer()
    here.gateway.verifier.use(KeySet())
    answer = await here.client.get("/v1/snapshot", headers=header)
    problem(answer, 503, "unavailable")
    assert answer.headers["retry-after"]


async def test_operators_feeds_need_the_scope(here: Running) -> None:
    alert = opsfeeds.draft(opsfeeds.ALERTS, "gov.vestnik.alert", GOOD["gov.vestnik.alert"], id="a", now=time.time())
    await here.store.append([alert], time.time())
    path = "/v1/feeds/ops:alerts/events"
    answer = await here.client.get(path, headers=here.bearer("op", scope="ops"))
    assert offsets(answer) == [1]
    assert answer.json()["events"][0][1]["source"] == "/gateway"
    for scope in (None, "opsy"):
        problem(await here.client.get(path, headers=here.bearer("op", scope=scope)), 404, "not-found")
    unknown = await here.client.get("/v1/feeds/ops:nothing/events", headers=here.bearer("op", scope="ops"))
    problem(unknown, 404, "not-found")


# Snapshot


async def test_the_snapshot_of_nobody(here: Running) -> None:
    answer = await here.get("/v1/snapshot")
    assert answer.json() == {
        "positions": {"account:ivan": {"epoch": here.store.epoch, "offset": 0}},
        "applications": [],
        "records": [],
        "notices": [],
        "agencies": [],
    }


async def test_the_snapshot(here: Running) -> None:
    reason = {"code": "E12", "text": "Скан нечитаем"}
    record = {"registry": "vehicle", "key": "77-0042", "as_of": "2026-03-01", "fields": {"марка": "Лада"}}
    code = {"code": "123456", "purpose": "вход", "until": "2099-01-01T00:00:00Z"}
    rejected = {"application": "1", "service": "s", "status": "rejected", "previous": "checking", "title": "Паспорт"}
    await here.batch(
        [
            event("gov.status.changed", {"application": "1", "service": "s", "status": "checking"}),
            event("gov.record.changed", record | {"change": "created"}),
            event("gov.record.changed", record | {"change": "updated"}),
            event("gov.record.changed", record | {"change": "created", "key": "gone"}),
            event("gov.record.changed", record | {"change": "removed", "key": "gone"}),
            event(
                "gov.status.changed", rejected | {"reason": reason, "deadline": "2026-12-31"}, subject="application/1"
            ),
            notice("действует", expirytime="2099-01-01T00:00:00Z"),
            notice("истекло", expirytime="2020-01-01T00:00:00Z"),
            event("gov.code.sent", code),
            public(),
        ]
    )
    await here.post(status(source="/agencies/mvd", account="maria"), "mvd")
    await here.store.seen([("account:ivan", [6], 1.0)])
    document = (await here.get("/v1/snapshot")).json()
    assert document["positions"]["account:ivan"]["offset"] == 9
    (application,) = document["applications"]
    assert (application["status"], application["reason"], application["seen"]) == ("rejected", reason, True)
    assert (application["subject"], application["deadline"]) == ("application/1", "2026-12-31")
    (shown,) = document["records"]
    assert (shown["change"], shown["fields"], shown["seen"]) == ("updated", {"марка": "Лада"}, False)
    first, second = document["notices"]
    assert (first["text"], first["expirytime"]) == ("действует", "2099-01-01T00:00:00Z")
    assert (second["title"], second["data"]) == ("Код подтверждения", {"code": "123456", "purpose": "вход"})
    assert [agency["code"] for agency in document["agencies"]] == ["fns"]


async def test_the_snapshot_covers_many_pages(here: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(accounts, "MAX_LIMIT", 7)
    await here.batch([notice(f"{n}") for n in range(50)])
    document = (await here.get("/v1/snapshot")).json()
    assert len(document["notices"]) == 50
    assert document["positions"]["account:ivan"]["offset"] == 50


async def test_the_snapshot_after_erasure(here: Running) -> None:
    await here.batch([notice("останется"), notice("уйдёт")])
    await erase(here, "ivan", 2)
    document = (await here.get("/v1/snapshot")).json()
    assert [shown["text"] for shown in document["notices"]] == ["останется"]
    assert document["positions"]["account:ivan"]["offset"] == 3


async def test_accounts_are_apart(here: Running) -> None:
    """Invariant 17."""
    await here.batch([notice("тайна"), public()])
    await here.phone("ivan")
    assert "тайна" not in (await here.get("/v1/snapshot", "maria")).text
    assert (await here.get("/v1/devices", "maria")).json() == []
    known = await here.history(account="maria", feed="account:ivan")
    nobody = await here.history(account="maria", feed="account:nobody")
    problem(known, 404, "not-found")
    assert known.content == nobody.content


# History


@pytest.fixture
async def filled(here: Running) -> Running:
    """Ten events of ivan: odd offsets are notices, even ones statuses; each on its day of March."""
    words = ["processing", "checking", "approved", "done", "done"]
    made = []
    for day in range(1, 11):
        at = {"time": f"2026-03-{day:02}T12:00:00Z"}
        made.append(notice(f"{day}", **at) if day % 2 else status(words[day // 2 - 1], **at))
    assert (await here.batch(made)).status_code == 202
    return here


async def test_newest_first(filled: Running) -> None:
    answer = await filled.history()
    document = answer.json()
    assert offsets(answer) == list(range(10, 0, -1))
    assert (document["feed"], document["epoch"]) == ("account:ivan", filled.store.epoch)
    assert (document["oldest"], document["head"], document["next"]) == (1, 10, None)
    assert offsets(await filled.history("?before=4")) == [3, 2, 1], "exclusive"
    assert offsets(await filled.history("?before=1")) == []


async def test_oldest_first(filled: Running) -> None:
    assert offsets(await filled.history("?after=0")) == list(range(1, 11))
    assert offsets(await filled.history("?after=7")) == [8, 9, 10], "exclusive"
    for past in (10, 1000, 2**53 - 1):
        assert offsets(await filled.history(f"?after={past}")) == []


async def test_an_empty_feed(here: Running) -> None:
    document = (await here.history()).json()
    assert (document["oldest"], document["head"], document["events"], document["next"]) == (1, 0, [], None)


async def walk(here: Running, query: str, limit: int) -> list[int]:
    """All offsets, page by page to the end."""
    answer = await here.history(f"?{query}&limit={limit}")
    found = offsets(answer)
    for _ in range(50):
        page = answer.json()["next"]
        if page is None:
            return found
        filters = "&".join(part for part in query.split("&") if not part.startswith(("after", "before")))
        answer = await here.history(f"?{filters}&limit={limit}&page={quote(page)}")
        assert len(offsets(answer)) <= limit
        found += offsets(answer)
    raise AssertionError("the pages do not end")


@pytest.mark.parametrize("limit", [1, 3, 9, 10, 500])
@pytest.mark.parametrize(
    ("query", "wanted"),
    [
        ("", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("type=gov.notice.sent", [1, 3, 5, 7, 9]),
        ("type=gov.notice.sent,gov.status.changed", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("type=gov.notice.sent&type=gov.status.changed", [1, 2, 3, 4, 5, 6, 7, 8, 9, 10]),
        ("status=done,checking", [4, 8, 10]),
        ("type=gov.notice.sent&status=done", []),
        ("type=gov.unknown", []),
        ("from=2026-03-04&to=2026-03-07", [4, 5, 6]),
        ("from=2026-03-04T12:00:00Z&to=2026-03-06T12:00:00Z", [4, 5]),
        ("from=2026-03-09T15:00:00%2B03:00", [9, 10]),
    ],
)
async def test_pages_both_ways_to_the_end(filled: Running, query: str, wanted: list[int], limit: int) -> None:
    assert await walk(filled, f"{query}&after=0", limit) == wanted
    assert await walk(filled, query, limit) == wanted[::-1]
    assert await walk(filled, f"{query}&before=11", limit) == wanted[::-1]
    assert await walk(filled, f"{query}&after=4", limit) == [offset for offset in wanted if offset > 4]
    assert await walk(filled, f"{query}&before=4", limit) == [offset for offset in wanted if offset < 4][::-1]


async def test_a_plus_that_nobody_escaped(filled: Running) -> None:
    """More than the document promises: a zone is meant, not a space."""
    path = "/v1/feeds/account:ivan/events?after=0&from=2026-03-09T15:00:00+03:00"
    client = httpx.AsyncClient(transport=filled.documented.inner, base_url="http://gateway")
    assert offsets(await client.get(path, headers=filled.bearer())) == [9, 10]


async def test_pages_do_not_shift(filled: Running) -> None:
    first = await filled.history("?limit=4")
    await filled.batch([notice(), notice()])
    answer = await filled.history(f"?limit=4&page={first.json()['next']}")
    assert offsets(answer) == [6, 5, 4, 3]
    assert answer.json()["head"] == 12


async def test_the_limit(here: Running) -> None:
    await here.batch([notice("т") for _ in range(600)])
    assert len(offsets(await here.history())) == accounts.LIMIT
    assert len(offsets(await here.history("?limit=500"))) == 500
    assert sorted(await walk(here, "", 500)) == list(range(1, 601))


async def test_erased_events_are_null(filled: Running) -> None:
    await erase(filled, "ivan", 9)
    found = (await filled.history("?limit=3")).json()["events"]
    assert [offset for offset, _ in found] == [11, 10, 9]
    assert found[0][1]["data"] == {"ranges": [[9, 9]]}
    assert found[2][1] is None
    assert offsets(await filled.history("?type=gov.notice.sent")) == [7, 5, 3, 1]


async def test_a_public_feed(here: Running) -> None:
    await here.batch([public("раз"), public("два")])
    for account in ("ivan", "maria"):
        assert offsets(await here.history(account=account, feed="agency:fns")) == [2, 1]


@pytest.mark.parametrize(
    "feed", ["account:maria", "account:", "agency:nobody", "agency:", "planet:mars", "x", "account:ivan "]
)
async def test_other_feeds(here: Running, feed: str) -> None:
    problem(await here.history(feed=quote(feed)), 404, "not-found")


@pytest.mark.parametrize(
    ("query", "where"),
    [
        ("limit=0", {"/limit"}),
        ("limit=501", {"/limit"}),
        ("limit=-1", {"/limit"}),
        ("limit=x", {"/limit"}),
        ("limit=", {"/limit"}),
        ("after=-1", {"/after"}),
        ("after=1.5", {"/after"}),
        ("after=%D9%A3", {"/after"}),  # a digit, and none of ours
        (f"after={2**53}", {"/after"}),
        ("before=99999999999999999999999", {"/before"}),
        ("after=1&before=5", {"/before"}),
        ("from=yesterday", {"/from"}),
        ("to=5", {"/to"}),
        ("from=2026-02-30", {"/from"}),
        ("after=x&before=y&limit=z&from=a&to=b", {"/after", "/before", "/limit", "/from", "/to"}),
        ("type=" + "a," * 101, {"/type"}),
        ("status=a" * 1 + "&status=b" * 100, {"/status"}),
        ("page=nonsense", {"/page"}),
        ("page=", {"/page"}),
        ("page=%00", {"/page"}),
        ("page=ж", {"/page"}),
    ],
)
async def test_wrong_parameters(filled: Running, query: str, where: set[str]) -> None:
    found = problem(await filled.history(f"?{query}"), 422, "invalid")
    assert {error["pointer"] for error in found["errors"]} == where


def forged(*parts: object) -> str:
    return base64.urlsafe_b64encode(json.dumps(parts).encode()).decode().rstrip("=")


@pytest.mark.parametrize("further", [-1, 2**53, 2**63, 2**64, 1.5, "1", None, True, [1]])
async def test_a_page_that_nobody_gave(filled: Running, further: object) -> None:
    page = forged("account:ivan", filled.store.epoch, "a", further)
    problem(await filled.history(f"?page={page}"), 422, "invalid")


@pytest.mark.parametrize(
    "parts", [(), ("account:ivan",), (1, 2, 3, 4), ("account:ivan", "e", "c", 1), ({}, [], "a", 1)]
)
async def test_a_page_of_another_shape(filled: Running, parts: tuple[object, ...]) -> None:
    problem(await filled.history(f"?page={forged(*parts)}"), 422, "invalid")


async def test_a_page_of_another_feed(filled: Running) -> None:
    await filled.batch([public(), public()])
    page = (await filled.history("?limit=1", feed="agency:fns")).json()["next"]
    problem(await filled.history(f"?page={page}"), 422, "invalid")


@pytest.mark.parametrize("accept", ["application/json", "text/csv"])
async def test_a_page_of_another_epoch(filled: Running, accept: str) -> None:
    page = (await filled.history("?limit=1")).json()["next"]
    filled.store.epoch = "restored"
    problem(await filled.history(f"?page={page}", accept=accept), 410, "gone")


# CSV


@pytest.mark.parametrize("query", ["?after=0", "?after=0&limit=500"])
async def test_csv_is_all_of_it_over_several_pages(here: Running, query: str) -> None:
    await here.batch([notice(f"Письмо {n}") for n in range(1000)])
    await here.batch([notice(f"Письмо {n}") for n in range(1000, 1203)])
    wanted = 500 if "limit" in query else 1203
    head, *lines = rows(await here.history(query, accept="text/csv"))
    assert tuple(head) == accounts.CSV_COLUMNS
    assert [int(line[0]) for line in lines] == list(range(1, wanted + 1))
    assert [line[9] for line in lines] == [f"Письмо {n}" for n in range(wanted)]
    _, *lines = rows(await here.history(accept="text/csv"))
    assert [int(line[0]) for line in lines] == list(range(1203, 0, -1)), "newest first without `after`"


async def test_csv_with_filters_and_bounds(filled: Running) -> None:
    csv_of = {"accept": "text/csv"}
    assert [line[0] for line in rows(await filled.history("?status=done", **csv_of))[1:]] == ["10", "8"]
    assert [line[0] for line in rows(await filled.history("?after=3&limit=2", **csv_of))[1:]] == ["4", "5"]
    assert [line[0] for line in rows(await filled.history("?before=3", **csv_of))[1:]] == ["2", "1"]
    assert rows(await filled.history("?type=none", **csv_of)) == [list(accounts.CSV_COLUMNS)]
    page = (await filled.history("?after=0&limit=4")).json()["next"]
    assert [line[0] for line in rows(await filled.history(f"?page={page}", **csv_of))[1:]] == [*"56789", "10"]


async def test_csv_columns(here: Running) -> None:
    sent = status("approved", subject="application/1", time="2026-03-01T09:30:00Z", id="e;1")
    sent["data"] |= {"title": 'Паспорт, "новый"', "text": "строка\nещё одна; и ещё"}
    await here.post(sent)
    answer = await here.history(accept="text/csv")
    assert answer.headers["content-disposition"] == 'attachment; filename="events.csv"'
    _, line = rows(answer)
    cells = dict(zip(accounts.CSV_COLUMNS, line, strict=True))
    kept = (await here.history()).json()["events"][0][1]
    assert cells | {"data": json.loads(cells["data"])} == {
        "offset": "1",
        "time": sent["time"],
        "recordedtime": kept["recordedtime"],
        "agency": "fns",
        "type": "gov.status.changed",
        "id": "e;1",
        "subject": "application/1",
        "status": "approved",
        "title": 'Паспорт, "новый"',
        "text": "строка\nещё одна; и ещё",
        "data": sent["data"],
    }


async def test_csv_of_an_erased_event(here: Running) -> None:
    await here.post(notice())
    await erase(here, "ivan", 1)
    assert rows(await here.history("?after=0", accept="text/csv"))[1] == ["1", *[""] * 10]


EVIL = [
    *("=1+1", "+1", "-1", "@SUM(A1)", "\t=1", "\r=1", "\n=1", " =1", "\u00a0=1", "＝1", "＋1", "－1", "＠1"),
    *(
        "ok;=1+1",
        "ok; =1+1",
        "ok\n=1+1",
        "ok\r\n-1",
        "ok\t@x",
        ";=1",
        "\n",
        "=1;=2\n=3",
        '";=1;"',
        '=cmd|" /C calc"!A1',
    ),
]


def cells_of(text: str, delimiter: str) -> list[str]:
    """What a spreadsheet with this delimiter makes of it, quotes obeyed or not."""
    obeyed = [cell for line in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) for cell in line]
    return obeyed + [cell for line in text.splitlines() for cell in line.split(delimiter)]


@pytest.mark.parametrize("evil", EVIL)
async def test_csv_holds_no_formula(here: Running, evil: str) -> None:
    """In every field that a sender can fill; opened with commas, or with semicolons as where the comma is the decimal
    sign."""
    await here.batch(
        [
            event("gov.notice.sent", {"title": evil, "text": evil, "more": [evil, {evil: evil}]}),
            status(id=f"{evil.strip()}x", subject=f"{evil.strip()}x") if evil.isprintable() else status(),
        ]
    )
    answer = await here.history(accept="text/csv")
    assert len(rows(answer)) == 3
    for cell in [cell for line in rows(answer) for cell in line] + cells_of(answer.text, ";"):
        bare = cell.lstrip().lstrip('"')
        assert not bare.startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠")), cell
        assert not cell.startswith(("\t", "\r", "\n")), cell


@pytest.mark.parametrize("plain", ["", "обычный текст", "a - b", "1 + 1 = 2", "a;b", "-", "e-mail@example.ru", "№ 5"])
def test_plain_text_stays_plain(plain: str) -> None:
    assert harmless(plain) == ("'-" if plain == "-" else plain)


def test_making_a_cell_harmless_is_linear() -> None:
    begun = time.process_time()
    for part in ("\n", ";", " ", "=", "\n "):
        harmless(part * 65_536)
    assert time.process_time() - begun < 2


def test_a_row_whose_data_is_no_text() -> None:
    data = {"status": 5, "title": None, "text": ["a"], "x": "a;=b"}
    row = Row(3, orjson.dumps({"source": "/agencies/fns", "id": "e", "data": data}), 1, 0.0)
    cells = csv_row(row)
    assert cells[:10] == ("3", "", "", "fns", "", "e", "", "5", "", "['a']")
    assert json.loads(cells[10]) == data


@pytest.mark.parametrize(
    ("accept", "media"),
    [
        ("text/csv", "text/csv"),
        ("text/csv, application/json;q=0.5", "text/csv"),
        ("application/json", "application/json"),
        ("*/*", "application/json"),
    ],
)
async def test_accept(filled: Running, accept: str, media: str) -> None:
    answer = await filled.history(accept=accept)
    assert answer.headers["content-type"].partition(";")[0] == media


async def test_csv_while_the_store_is_away(filled: Running) -> None:
    """Said before the first line, not with half a file."""
    filled.store.away = True
    problem(await filled.history(accept="text/csv"), 503, "unavailable")


async def test_csv_whose_store_goes_away_is_cut(filled: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """After the status was sent nothing can be said any more: the end that a whole answer has must be missing."""
    monkeypatch.setattr(accounts, "CSV_PAGE", 4)
    said: list[dict[str, Any]] = []

    async def send(message: Any) -> None:
        said.append(dict(message))
        filled.store.away = bool(message.get("body"))

    messages = [{"type": "http.request", "body": b"", "more_body": False}]

    async def receive() -> Any:
        return messages.pop() if messages else await asyncio.Event().wait()

    path = "/v1/feeds/account:ivan/events"
    headers = [(b"accept", b"text/csv"), (b"authorization", filled.bearer()["authorization"].encode())]
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"after=0", "headers": headers}
    with pytest.raises(Exception, match="response already started"):
        await filled.gateway.asgi(scope, receive, send)
    assert [message["type"] for message in said] == ["http.response.start", "http.response.body"]
    assert said[1]["more_body"] is True


# Devices and sessions


async def test_agencies_that_may_publish(here: Running) -> None:
    types = {"open": (), "mchs": ("gov.emergency.published",), "registry": ("gov.record.changed",)}
    for code, may in types.items():
        here.gateway.gate.agencies[code] = Agency(code, (), may, 0.0)
    answer = await here.get("/v1/agencies")
    assert answer.status_code == 200
    feeds = {item["code"]: item["feed"] for item in answer.json()}
    assert list(feeds) == sorted(feeds)
    assert {"mchs": "agency:mchs", "open": "agency:open"}.items() <= feeds.items()
    assert "registry" not in feeds


async def test_devices(here: Running) -> None:
    phone = await here.phone("ivan", "phone")
    await here.store.join([Join("ivan", "browser", ("account:ivan",), agent="Firefox/130", now=1_772_357_400.0)])
    browser, mine = sorted((await here.get("/v1/devices")).json(), key=lambda device: device["device"])
    assert browser == {
        "device": "browser",
        "agent": "Firefox/130",
        "created": "2026-03-01T09:30:00.000Z",
        "last_seen": "2026-03-01T09:30:00.000Z",
        "connected": False,
    }
    assert (mine["device"], mine["agent"], mine["connected"]) == ("phone", None, True)
    assert phone.closed is None


async def test_deleting_a_device_ends_its_session_and_forgets_it(here: Running) -> None:
    await here.post(notice())
    lost, kept = await here.phone("ivan", "lost"), await here.phone("ivan", "kept")
    other = await here.phone("maria", "lost")
    answer = await here.client.delete("/v1/devices/lost", headers=here.bearer())
    assert answer.status_code == 204
    assert lost.closed is not None
    assert lost.closed[0] == 4410
    assert (kept.closed, other.closed) == (None, None)
    assert [device["device"] for device in (await here.get("/v1/devices")).json()] == ["kept"]
    # Invariant 7: saving late never brings a forgotten device back.
    await here.store.save([CursorSave("ivan", "lost", "account:ivan", here.store.epoch, 1, time.time())])
    assert [device["device"] for device in (await here.get("/v1/devices")).json()] == ["kept"]


@pytest.mark.parametrize("device", ["nothing", "%D0%B6", "a%20b"])
async def test_deleting_an_unknown_device(here: Running, device: str) -> None:
    problem(await here.client.delete(f"/v1/devices/{device}", headers=here.bearer()), 404, "not-found")


async def test_deleting_the_device_of_another_account(here: Running) -> None:
    phone = await here.phone("ivan", "phone")
    problem(await here.client.delete("/v1/devices/phone", headers=here.bearer("maria")), 404, "not-found")
    assert phone.closed is None
    assert [device["device"] for device in (await here.get("/v1/devices")).json()] == ["phone"]


async def test_ending_all_sessions(here: Running) -> None:
    now = time.time()
    tokens = [here.token("ivan", now=now - 5), here.token("ivan", now=now - 60)]
    one, two = await here.phone("ivan", "one", now=now - 5), await here.phone("ivan", "two", now=now - 60)
    other = await here.phone("maria", "one", now=now - 5)
    answer = await here.client.delete("/v1/sessions", headers={"authorization": f"Bearer {tokens[0]}"})
    assert answer.status_code == 204
    assert [phone.closed[0] for phone in (one, two) if phone.closed] == [4410, 4410]
    assert other.closed is None
    for token in tokens:
        refused = await here.client.get("/v1/snapshot", headers={"authorization": f"Bearer {token}"})
        problem(refused, 401, "revoked")
        assert "invalid_token" in refused.headers["www-authenticate"]
    assert (await here.client.get("/v1/snapshot", headers=here.bearer("maria", now=now - 5))).status_code == 200
    again = here.token("ivan", now=time.time() + 0.01)
    assert (await here.client.get("/v1/snapshot", headers={"authorization": f"Bearer {again}"})).status_code == 200


async def test_a_token_from_a_clock_ahead_is_refused_too(here: Running) -> None:
    """The provider's clock may run ahead a little; "every token issued so far" means this one all the same."""
    header = here.bearer("ivan", now=time.time() + 3)
    assert (await here.client.delete("/v1/sessions", headers=header)).status_code == 204
    problem(await here.client.get("/v1/snapshot", headers=header), 401, "revoked")


async def test_nothing_personal_is_kept_on_the_way(here: Running) -> None:
    await here.post(notice())
    for path in ("/v1/snapshot", "/v1/devices", "/v1/feeds/account:ivan/events"):
        assert (await here.get(path)).headers["cache-control"] == "no-store"
    assert (await here.history(accept="text/csv")).headers["cache-control"] == "no-store"


async def test_history_on_the_embedded_store(tmp_path: Path) -> None:
    """The largest numbers that a page or a bound may have are numbers to SQLite too."""
    async with running(tmp_path, open_store("sqlite:///", tmp_path)) as here:
        await here.batch([notice(), notice()])
        assert offsets(await here.history(f"?after={2**53 - 1}")) == []
        page = forged("account:ivan", here.store.epoch, "b", 2**53 - 1)
        assert offsets(await here.history(f"?page={page}")) == [2, 1]


# Whatever is asked


names = st.sampled_from(["after", "before", "limit", "type", "status", "from", "to", "page"])
values = st.one_of(
    st.text(max_size=12),
    st.integers().map(str),
    st.datetimes().map(lambda at: at.isoformat() + "Z"),
    st.dates().map(str),
    st.recursive(
        st.none() | st.integers() | st.floats() | st.text(max_size=4), lambda inner: st.lists(inner, max_size=5)
    ).map(lambda parts: base64.urlsafe_b64encode(json.dumps(parts).encode()).decode()),
    st.tuples(
        st.sampled_from(["account:ivan", "x"]), st.sampled_from(["e", "f"]), st.sampled_from("abc"), st.integers()
    ).map(lambda parts: forged(*parts)),
)


@given(st.lists(st.tuples(names, values), max_size=6))
def test_any_query_is_read_or_refused(pairs: list[tuple[str, str]]) -> None:
    """Never anything but a Query within bounds, or a Problem 422 or 410."""
    scope = {"type": "http", "query_string": urlencode(pairs, errors="replace").encode(), "headers": []}
    try:
        query = accounts.read_query("account:ivan", Request(scope), "e")
    except Problem as refusal:
        if refusal.status not in (410, 422):
            raise
        return
    assert query.after is None or query.before is None
    for bound in (query.after, query.before):
        assert bound is None or 0 <= bound < 2**53
    assert query.limit is None or 1 <= query.limit <= accounts.MAX_LIMIT
    assert max(len(query.filter.types), len(query.filter.statuses)) <= accounts.MAX_WORDS


@given(st.text(max_size=40))
def test_any_cell_is_made_harmless_and_keeps_its_text(cell: str) -> None:
    made = harmless(cell)
    assert made.replace("'", "") == cell.replace("'", "")
    for part in re.split(r"[;\t\r\n]", made):
        assert not part.lstrip().startswith(("=", "+", "-", "@", "＝", "＋", "－", "＠"))
    assert not made.startswith(("\t", "\r", "\n"))

"""Problem documents as answers: whatever goes wrong looks the same from outside, and tells nothing of the inside."""

import time

import httpx
import orjson
import pytest

from gateway.errors import Problem, StoreUnavailable
from gateway.problems import problem_response, unavailable
from tests import openapi
from tests.openapi import PROBLEM
from tests.running import Running, here, status

__all__ = ["here"]


def test_a_problem_as_an_answer() -> None:
    errors = [{"pointer": "/data/status", "detail": "is required"}]
    problem = Problem(
        422, "invalid", "Not valid", "see `errors`", errors=errors, extra={"id": "e"}, headers={"Retry-After": "3"}
    )
    response = problem_response(problem)
    assert response.status_code == 422
    assert response.headers["content-type"] == PROBLEM
    assert response.headers["retry-after"] == "3"
    document = orjson.loads(response.body)
    assert list(document) == ["type", "title", "status", "detail", "errors", "id"]
    assert document["type"].endswith("/invalid")
    assert openapi.faults({"$ref": "#/components/schemas/Problem"}, document, strict=True) == []


def test_what_is_empty_is_left_out() -> None:
    assert set(Problem(404, "not-found", "Not found").document()) == {"type", "title", "status"}


def test_unavailable_says_when_to_come_again() -> None:
    problem = unavailable(StoreUnavailable("fsync: input/output error on /var/lib/vestnik.db", retry_after_s=7))
    assert (problem.status, problem.word, problem.headers) == (503, "unavailable", {"Retry-After": "7"})
    assert "fsync" not in str(problem.document())


@pytest.mark.parametrize("path", ["/v1", "/v1/nothing", "/v1/snapshot/", "/v1/agencies/fns", "/v1/agencies//events"])
async def test_unknown_addresses(here: Running, path: str) -> None:
    """Also one with a slash too many: a redirect would repeat a Host header that anybody can choose."""
    answer = await here.client.get(path)
    assert answer.status_code == 404
    assert answer.json() == {
        "type": "https://vestnik.example/problems/not-found",
        "title": "Not found",
        "status": 404,
    }


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [
        ("POST", "/v1/snapshot", {"GET", "HEAD"}),
        ("PUT", "/v1/devices", {"GET", "HEAD"}),
        ("GET", "/v1/sessions", {"DELETE"}),
        ("GET", "/v1/agencies/fns/events", {"POST"}),
        ("PATCH", "/health/live", {"GET", "HEAD"}),
    ],
)
async def test_other_methods(here: Running, method: str, path: str, allowed: set[str]) -> None:
    answer = await here.client.request(method, path)
    assert answer.status_code == 405
    assert {name.strip() for name in answer.headers["allow"].split(",")} == allowed
    assert answer.json()["type"].endswith("/method")


async def test_head_is_get_without_the_body(here: Running) -> None:
    answer = await here.client.head("/health/live")
    assert (answer.status_code, answer.content) == (200, b"")


async def test_a_fault_of_ours_tells_nothing(here: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    async def broken(account: str) -> None:
        raise RuntimeError("secret: the row of ivan")

    monkeypatch.setattr(here.store, "devices", broken)
    answer = await here.get("/v1/devices")
    assert answer.status_code == 500
    assert answer.headers["content-type"] == PROBLEM
    assert "secret" not in answer.text
    assert "ivan" not in answer.text


@pytest.mark.parametrize("path", ["/v1/snapshot", "/v1/feeds/account:ivan/events", "/v1/devices"])
async def test_a_store_that_is_away(here: Running, path: str) -> None:
    here.store.away = True
    answer = await here.get(path)
    assert answer.status_code == 503
    assert answer.headers["retry-after"] == "3"
    assert answer.json()["type"].endswith("/unavailable")


@pytest.mark.parametrize("path", ["/v1/devices/phone", "/v1/sessions"])
async def test_a_store_that_is_away_deletes_nothing(here: Running, path: str) -> None:
    here.store.away = True
    answer: httpx.Response = await here.client.delete(path, headers=here.bearer())
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "3")


@pytest.mark.parametrize(
    ("method", "path", "broken"),
    [
        ("POST", "/v1/agencies/fns/events", "append"),
        ("POST", "/v1/agencies/fns/receipts", "receipts"),
        ("GET", "/v1/snapshot", "read"),
        ("GET", "/v1/feeds/account:ivan/events", "history"),
        ("DELETE", "/v1/devices/phone", "forget"),
        ("DELETE", "/v1/sessions", "revoke"),
        ("GET", "/health/ready", "ready"),
    ],
)
async def test_every_operation_may_fail(
    here: Running, monkeypatch: pytest.MonkeyPatch, method: str, path: str, broken: str
) -> None:
    """As documented, and the next request finds everything in place."""

    async def fail(*given: object, **named: object) -> None:
        raise RuntimeError("broken")

    async def ask() -> int:
        if method == "POST":
            sent = here.receipts({"ids": ["x"]}) if path.endswith("receipts") else here.post(event)
            return (await sent).status_code
        return (await here.client.request(method, path, headers=here.bearer(now=time.time() + 1))).status_code

    event = status()
    with monkeypatch.context() as patch:
        patch.setattr(here.store, broken, fail)
        assert await ask() == 500
    assert await ask() in (200, 202, 204, 404)

"""The OpenAPI document: whole, true to the application and to the registered types. Its checker sees what is not."""

import json
import re
from collections.abc import Iterator
from importlib import resources
from typing import Any

import httpx
import jsonschema_rs
import pytest
from starlette.routing import Route, WebSocketRoute

from gateway import problems, spec, web
from gateway.protocol import schema as asyncapi
from gateway.types import STATUSES, load, registry
from tests import openapi
from tests.openapi import Undocumented, check, document, faults, resolve
from tests.running import Running, here
from tests.test_types import GOOD

__all__ = ["here"]

FILE = resources.files("gateway").joinpath("openapi.json")
METHODS = {"get", "post", "delete"}


def operations() -> Iterator[tuple[str, str, dict[str, Any]]]:
    for path, item in document()["paths"].items():
        for method, operation in item.items():
            yield path, method, operation


def refs(part: object) -> Iterator[str]:
    if isinstance(part, dict):
        if isinstance(part.get("$ref"), str):
            yield part["$ref"]
        for inner in part.values():
            yield from refs(inner)
    elif isinstance(part, list):
        for inner in part:
            yield from refs(inner)


def media_types() -> Iterator[tuple[str, dict[str, Any]]]:
    """(where, media type object) of everything that has one."""
    for path, method, operation in operations():
        bodies = [("request", operation.get("requestBody", {}))]
        bodies += [(status, resolve(answer)) for status, answer in operation["responses"].items()]
        for name, body in bodies:
            for media, content in body.get("content", {}).items():
                yield f"{method} {path} {name} {media}", content


# The document


def test_the_file_holds_every_registered_type() -> None:
    """Else: python -m gateway.spec > gateway/openapi.json"""
    assert spec.pretty(spec.openapi()) == FILE.read_text("utf-8")


def test_a_type_that_is_added_is_there_by_itself(tmp_path: Any) -> None:
    kind = {
        "name": "gov.visa.changed",
        "audience": "personal",
        "priority": "normal",
        "senders": "agencies",
        "titles": {"ru": "Виза", "en": "Visa"},
        "data": {"type": "object", "required": ["number"]},
    }
    (tmp_path / "gov.visa.changed.json").write_text(json.dumps(kind))
    made = spec.openapi(load(tmp_path).values())
    assert made["components"]["schemas"]["gov.visa.changed"] == kind["data"]
    (variant,) = made["components"]["schemas"]["Event"]["oneOf"]
    assert variant["properties"]["type"] == {"const": "gov.visa.changed"}


async def test_routes_and_operations_are_the_same(here: Running) -> None:
    found = set()
    pages = {getattr(route, "path", None) for route in web.routes(here.settings)}
    for route in here.gateway.asgi.routes:
        if getattr(route, "path", None) in pages:
            continue  # for people
        assert isinstance(route, Route | WebSocketRoute)
        if isinstance(route, WebSocketRoute):
            found.add((route.path, "get"))
        else:
            # Starlette answers HEAD wherever it answers GET; `info.description` says so once.
            found |= {(route.path, method.lower()) for method in (route.methods or ()) if method != "HEAD"}
    assert found == {(path, method) for path, method, _ in operations()}


def test_operations_are_whole() -> None:
    names = [operation["operationId"] for _, _, operation in operations()]
    assert len(set(names)) == len(names)
    tags = {tag["name"] for tag in document()["tags"]}
    for path, method, operation in operations():
        assert method in METHODS
        assert set(operation["tags"]) <= tags
        assert operation["summary"]
        parameters = [resolve(parameter) for parameter in operation.get("parameters", ())]
        in_path = {parameter["name"] for parameter in parameters if parameter["in"] == "path"}
        assert in_path == set(re.findall(r"\{(\w+)\}", path))
        assert all(parameter.get("required") for parameter in parameters if parameter["in"] == "path")
        for requirement in operation["security"] if "security" in operation else document()["security"]:
            assert set(requirement) <= set(document()["components"]["securitySchemes"])
        for status, answer in operation["responses"].items():
            assert re.fullmatch("[1-5][0-9][0-9]", status)
            assert resolve(answer)["description"]


def test_references_lead_somewhere_and_nothing_is_left_over() -> None:
    used = set(refs(document()))
    for ref in used:
        assert resolve({"$ref": ref})
    made = {
        f"#/components/{kind}/{name}"
        for kind, parts in document()["components"].items()
        if kind != "securitySchemes"
        for name in parts
    }
    # Said once for all addresses, in `info.description`.
    assert made - used == {"#/components/responses/MethodNotAllowed"}


def test_schemas_are_schemas() -> None:
    """Each is valid by the dialect of OpenAPI 3.1, JSON Schema 2020-12, and has no format that nobody checks."""
    for name, schema in document()["components"]["schemas"].items():
        assert jsonschema_rs.meta.is_valid({"$schema": openapi.DIALECT} | schema), name
        faults(schema, None)
    for where, content in media_types():
        assert jsonschema_rs.meta.is_valid({"$schema": openapi.DIALECT} | content["schema"]), where


def test_every_example_is_as_its_schema_says() -> None:
    tried = 0
    for where, content in media_types():
        examples = [example["value"] for example in content.get("examples", {}).values()]
        examples += [content["example"]] if "example" in content else []
        for value in examples:
            assert faults(content["schema"], value, strict="request" not in where) == [], where
            tried += 1
    for _, _, operation in operations():
        for parameter in map(resolve, operation.get("parameters", ())):
            if "example" in parameter:
                assert faults(parameter["schema"], parameter["example"]) == [], parameter["name"]
                tried += 1
    assert tried > 40


def test_examples_are_in_russian() -> None:
    text = json.dumps(document()["paths"]["/v1/agencies/{code}/events"], ensure_ascii=False)
    assert "Возврат налога" in text
    assert set(STATUSES) == set(document()["components"]["schemas"]["Status"]["enum"])


# What the contract and the code say


def test_problems_are_those_of_the_contract() -> None:
    """Section 2, the table; every word with its status, and no other."""
    words = {}
    for variant in document()["components"]["schemas"]["Problem"]["oneOf"]:
        words[variant["properties"]["type"]["const"].rpartition("/")[2]] = variant["properties"]["status"]["const"]
    contract = resources.files("gateway.protocol").joinpath("PROTOCOL.md").read_text("utf-8")
    table = contract[contract.index("| status | `type` ends in |") :].split("\n\n")[0]
    told: dict[str, int] = {}
    for line in table.splitlines()[2:]:
        cells = line.split("|")
        names = re.findall(r"`([a-z-]+)`", cells[2])
        statuses = [int(status) for status in re.findall(r"\d+", cells[1])]
        told |= dict(zip(names, statuses * (len(names) if len(statuses) == 1 else 1), strict=True))
    assert told.items() <= words.items()
    own = {"unauthorized": 401, "revoked": 401, "not-found": 404, "method": 405, "timeout": 408, "gone": 410}
    assert words == told | own | {"fault": 500}


def test_the_posts_promise_every_status_of_the_contract() -> None:
    events = document()["paths"]["/v1/agencies/{code}/events"]["post"]["responses"]
    assert set(events) == {"202", "207", "400", "401", "403", "408", "409", "413", "415", "422", "429", "500", "503"}
    receipts = document()["paths"]["/v1/agencies/{code}/receipts"]["post"]["responses"]
    assert set(receipts) == {"200", "400", "401", "408", "413", "422", "500", "503"}


@pytest.mark.parametrize("name", [name for name, kind in registry().items() if kind.senders == "agencies"])
def test_an_event_of_each_type_is_as_documented(name: str) -> None:
    event: dict[str, Any] = {
        "specversion": "1.0",
        "id": "e",
        "source": "/agencies/fns",
        "type": name,
        "time": "2026-03-01T00:00:00Z",
    }
    good = event | {"data": GOOD[name]}
    personal = registry()[name].audience == "personal"
    schema = {"$ref": "#/components/schemas/Event"}
    assert faults(schema, good | ({"account": "ivan"} if personal else {})) == []
    assert faults(schema, good | ({} if personal else {"account": "ivan"}))
    for member in registry()[name].schema["required"]:
        data = {key: value for key, value in GOOD[name].items() if key != member}
        assert faults(schema, good | ({"account": "ivan"} if personal else {}) | {"data": data})


# Served


async def test_served_as_they_are(here: Running) -> None:
    answer = await here.client.get("/openapi.json")
    assert answer.json() == document()
    assert (await here.client.get("/asyncapi.json")).json() == asyncapi.document()


# The checker itself


REQUEST = httpx.Request("GET", "http://gateway/health/live")


@pytest.mark.parametrize(
    ("request_", "response"),
    [
        (REQUEST, httpx.Response(200, json={"status": "bad"})),
        (REQUEST, httpx.Response(200, json={"status": "ok", "more": 1})),
        (REQUEST, httpx.Response(200, text="ok")),
        (REQUEST, httpx.Response(201, json={"status": "ok"})),
        (httpx.Request("GET", "http://gateway/nothing"), httpx.Response(200)),
        (httpx.Request("GET", "http://gateway/v1/snapshot"), httpx.Response(401, json={})),
        (httpx.Request("DELETE", "http://gateway/v1/sessions"), httpx.Response(204)),  # without a token
        (
            httpx.Request("DELETE", "http://gateway/v1/sessions", headers={"authorization": "Bearer x"}),
            httpx.Response(204, text="a body"),
        ),
        (
            httpx.Request("GET", "http://gateway/v1/devices", headers={"authorization": "Bearer x"}),
            httpx.Response(200, json=[]),  # no Cache-Control
        ),
        (
            httpx.Request("POST", "http://gateway/health/live"),
            httpx.Response(404, json={}, headers={"content-type": problems.MEDIA_TYPE}),
        ),
        (
            httpx.Request("GET", "http://gateway/v1/devices"),
            httpx.Response(
                503,
                headers={"content-type": problems.MEDIA_TYPE},  # no Retry-After
                json={"type": "https://vestnik.example/problems/unavailable", "title": "t", "status": 503},
            ),
        ),
        (
            httpx.Request("GET", "http://gateway/v1/devices"),
            httpx.Response(
                503,
                headers={"content-type": problems.MEDIA_TYPE, "retry-after": "1"},
                json={"type": "https://vestnik.example/problems/quota", "title": "t", "status": 503},
            ),
        ),
    ],
)
def test_the_checker_notices(request_: httpx.Request, response: httpx.Response) -> None:
    with pytest.raises(Undocumented):
        check(request_, response)


def test_the_checker_takes_what_is_right() -> None:
    check(REQUEST, httpx.Response(200, json={"status": "ok"}))
    check(
        httpx.Request("HEAD", "http://gateway/health/live"),
        httpx.Response(200, headers={"content-type": "application/json"}),
    )

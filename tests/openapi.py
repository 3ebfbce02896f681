"""Holds HTTP exchanges against `openapi.json`, as it is served.

`Documented` is a transport for httpx that does it with everything that passes; `check` does it with one exchange. An
answer may carry nothing that the document does not name, and what it promises (a status, a media type, a header) must
be there. A request that was obeyed must be as documented: whoever reads the document only is never told less than the
gateway takes.
"""

import json
import re
from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from typing import Any, NamedTuple
from urllib.parse import unquote

import httpx
import jsonschema_rs

from gateway import rfc3339, spec
from gateway.types import registry

DIALECT = "https://json-schema.org/draft/2020-12/schema"  # of OpenAPI 3.1, unless told otherwise
PROBLEM = "application/problem+json"

Map = dict[str, Any]


class Undocumented(AssertionError):
    """The exchange is not what the document says."""


class Operation(NamedTuple):
    template: str
    method: str
    content: Map
    path_values: Mapping[str, str]


@cache
def document() -> Map:
    """The document as served. Not to be changed."""
    return spec.openapi()


@cache
def _components(strict: bool) -> Map:
    """The components; `strict` closes every object that the gateway makes, so that a member nobody documented is
    seen."""
    components = deepcopy(document()["components"])
    if strict:
        for name, schema in components["schemas"].items():
            if name not in registry():  # what agencies send stays open
                _shut(schema)
    return {"schemas": components["schemas"]}


def _shut(schema: Map) -> None:
    if "properties" in schema:
        schema.setdefault("additionalProperties", False)
    for inner in (*schema.get("properties", {}).values(), schema.get("items")):
        if isinstance(inner, dict):
            _shut(inner)


def resolve(part: Map) -> Map:
    """The part, or what its `$ref` names."""
    while "$ref" in part:
        target: Any = document()
        for step in part["$ref"].removeprefix("#/").split("/"):
            target = target[step.replace("~1", "/").replace("~0", "~")]
        part = target
    return part


def faults(schema: Map, value: object, *, strict: bool = False) -> list[str]:
    """What is wrong with a value, one line each."""
    found = _validator(json.dumps(schema), strict).iter_errors(value)
    return [f"/{'/'.join(map(str, error.instance_path))}: {error.message}" for error in found]


@cache
def _validator(schema: str, strict: bool) -> Any:
    whole = {"$schema": DIALECT, "components": _components(strict), **json.loads(schema)}
    formats = {"date-time": rfc3339.is_time, "date": rfc3339.is_date}
    return jsonschema_rs.validator_for(whole, formats=formats, validate_formats=True, offline=True)


def find(method: str, path: str) -> Operation | None:
    """The operation of a request. None when the document has none; then `methods` tells whether it has the path."""
    for template, item in document()["paths"].items():
        match = re.fullmatch(re.sub(r"\{(\w+)\}", r"(?P<\1>[^/]+)", template), path)
        if match and method.lower() in item:
            values = {name: unquote(value) for name, value in match.groupdict().items()}
            return Operation(template, method.lower(), item[method.lower()], values)
    return None


def methods(path: str) -> set[str]:
    return {name for name in ("get", "post", "put", "patch", "delete") if find(name, path)}


def check(request: httpx.Request, response: httpx.Response) -> None:
    """Raises Undocumented. Both bodies must have been read; that of a request may be missing when it was streamed."""
    path = request.url.raw_path.partition(b"?")[0].decode()
    method = "GET" if request.method == "HEAD" else request.method
    operation = find(method, path)
    wrong: list[str] = []
    if operation is None:
        name = "MethodNotAllowed" if methods(path) else "NotFound"
        answer = document()["components"]["responses"][name]
        if response.status_code != (405 if methods(path) else 404):
            wrong.append(f"status {response.status_code} of an address or method that is not documented")
    else:
        answers = operation.content["responses"]
        if str(response.status_code) not in answers:
            raise Undocumented(f"{method} {path}: status {response.status_code} is not documented: {response.text}")
        answer = resolve(answers[str(response.status_code)])
        if response.status_code < 300:
            wrong += _request_faults(operation, request, response)
    wrong += _header_faults(answer, response)
    wrong += _body_faults(answer, response, empty=request.method == "HEAD")
    if wrong:
        raise Undocumented(
            f"{request.method} {path} {response.status_code}: {'; '.join(wrong)} in {response.text[:500]!r}"
        )


def _header_faults(answer: Map, response: httpx.Response) -> list[str]:
    wrong = []
    for name, header in answer.get("headers", {}).items():
        header = resolve(header)
        value = response.headers.get(name)
        if value is None:
            if header.get("required"):
                wrong.append(f"the header {name} is promised and missing")
        else:
            wrong += [f"{name}: {fault}" for fault in faults(header["schema"], value)]
    return wrong


def _body_faults(answer: Map, response: httpx.Response, *, empty: bool) -> list[str]:
    content = answer.get("content")
    if content is None:
        return [f"a body of {len(response.content)} bytes"] if response.content else []
    media = response.headers.get("content-type", "").partition(";")[0].strip()
    if media not in content:
        return [f"media type {media!r}, not {' or '.join(content)}"]
    if empty:
        return ["a body after HEAD"] if response.content else []
    if media.startswith("text/"):
        return [] if "charset=utf-8" in response.headers["content-type"].lower() else ["text without a charset"]
    return faults(content[media]["schema"], json.loads(response.content), strict=True)


def _request_faults(operation: Operation, request: httpx.Request, response: httpx.Response) -> list[str]:
    wrong = []
    for parameter in operation.content.get("parameters", ()):
        parameter = resolve(parameter)
        name, schema = parameter["name"], resolve(parameter["schema"])
        places: Mapping[str, Mapping[str, str]] = {
            "path": operation.path_values,
            "query": request.url.params,
            "header": request.headers,
        }
        value = places[parameter["in"]].get(name)
        if value is not None:
            wrong += [f"{parameter['in']} {name}: {fault}" for fault in faults(schema, _read(schema, value))]
        elif parameter.get("required"):
            wrong.append(f"{parameter['in']} {name} is missing")
    schemes = operation.content["security"] if "security" in operation.content else document()["security"]
    for name in (name for scheme in schemes for name in scheme):
        header = {"bearer": "authorization", "signature": "webhook-signature"}[name]
        if header not in request.headers:
            wrong.append(f"obeyed without {header}")
    body = operation.content.get("requestBody")
    if body is not None and _has_body(request):
        media = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if media not in body["content"]:
            return [*wrong, f"obeyed with media type {media!r}"]
        given = json.loads(request.content)
        if response.status_code == 207:  # only what was taken has to be as documented
            results = response.json()["results"]
            given = [item for item, answer in zip(given, results, strict=True) if answer["status"] == 202]
        wrong += [f"request {fault}" for fault in faults(body["content"][media]["schema"], given)]
    return wrong


def _has_body(request: httpx.Request) -> bool:
    try:
        return bool(request.content)
    except httpx.RequestNotRead:
        return False


def _read(schema: Map, text: str) -> object:
    """A parameter as its schema wants it."""
    if schema.get("type") == "array":
        return text.split(",")
    if schema.get("type") == "integer":
        return int(text) if text.lstrip("-").isdigit() else text
    return text


class Documented(httpx.AsyncBaseTransport):
    """Hands requests on, and every exchange to `check`. Answers are read whole."""

    def __init__(self, inner: httpx.AsyncBaseTransport):
        self.inner = inner
        self.seen: set[tuple[str, str, int]] = set()  # (method, template, status) of what passed

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        response = await self.inner.handle_async_request(request)
        await response.aread()
        check(request, response)
        operation = find(request.method, request.url.raw_path.partition(b"?")[0].decode())
        if operation is not None:
            self.seen.add((operation.method, operation.template, response.status_code))
        return response

    async def aclose(self) -> None:
        await self.inner.aclose()

"""The machine-readable contract: OpenAPI for HTTP, AsyncAPI 3 for the socket, served at `/openapi.json` and
`/asyncapi.json`.

`openapi.json` names every registered event type with the schema of its `data`; a type that is added without touching it
is there too, because it is filled in at start: `python -m gateway.spec > openapi.json` writes that down.
"""

import json
from collections.abc import Awaitable, Callable, Iterable
from importlib import resources
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.types import EventType, registry


def openapi(types: Iterable[EventType] | None = None) -> dict[str, Any]:
    """The OpenAPI document with these types, those of `gateway.types.registry()` when not given."""
    known = list(registry().values() if types is None else types)
    document: dict[str, Any] = json.loads(resources.files("gateway").joinpath("openapi.json").read_bytes())
    schemas = document["components"]["schemas"]
    schemas["Event"]["oneOf"] = [_variant(kind) for kind in known if kind.senders == "agencies"]
    schemas["StoredEvent"]["oneOf"] = [_variant(kind) for kind in known]
    schemas.update({kind.name: kind.schema for kind in known})
    return document


def _variant(kind: EventType) -> dict[str, Any]:
    """What the type says about an event that names it."""
    personal = kind.audience == "personal"
    properties = {
        "type": {"const": kind.name},
        "account": {"type": "string" if personal else "null"},
        "data": {"$ref": f"#/components/schemas/{kind.name}"},
    }
    return {"title": kind.titles["ru"]} | ({"required": ["account"]} if personal else {}) | {"properties": properties}


def pretty(document: dict[str, Any]) -> str:
    """As it stands in the file."""
    return json.dumps(document, ensure_ascii=False, indent=2) + "\n"


def routes() -> list[BaseRoute]:
    asyncapi = resources.files("gateway.protocol").joinpath("asyncapi.json").read_bytes()
    documents = {"/openapi.json": pretty(openapi()).encode(), "/asyncapi.json": asyncapi}
    return [Route(path, _serve(content), methods=["GET"]) for path, content in documents.items()]


def _serve(content: bytes) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return Response(content, media_type="application/json")

    return serve


if __name__ == "__main__":
    print(pretty(openapi()), end="")

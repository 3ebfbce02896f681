"""The machine-readable contract, served as it is: OpenAPI for HTTP, AsyncAPI 3 for the socket."""

from collections.abc import Awaitable, Callable
from importlib import resources

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

DOCUMENTS = {"/openapi.json": ("gateway", "openapi.json"), "/asyncapi.json": ("gateway.protocol", "asyncapi.json")}


def document(path: str) -> bytes:
    package, name = DOCUMENTS[path]
    return resources.files(package).joinpath(name).read_bytes()


def routes() -> list[BaseRoute]:
    return [Route(path, _serve(document(path)), methods=["GET"]) for path in DOCUMENTS]


def _serve(content: bytes) -> Callable[[Request], Awaitable[Response]]:
    async def serve(request: Request) -> Response:
        return Response(content, media_type="application/json")

    return serve

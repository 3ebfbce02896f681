"""The pages that the gateway serves by itself: the account page at `/`, the operators' page at `/ops`, and the files
under `/static/`.

Everything comes from here and nothing from outside: the Content-Security-Policy lets a page run its own files and speak
with its own gateway, and nothing else, so that what an agency writes can never become code.
"""

import gzip
import hashlib
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from importlib import resources
from importlib.resources.abc import Traversable
from pathlib import PurePath
from typing import Final

import orjson
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import BaseRoute, Route

from gateway.errors import Problem
from gateway.opsfeeds import SCOPE
from gateway.settings import Settings
from gateway.tokens import LocalKey

PAGES: Final = {"/": "index.html", "/ops": "ops.html", "/favicon.ico": "icon.svg"}
TYPES: Final = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
}
POLICY: Final = "; ".join(
    (
        "default-src 'none'",
        "script-src 'self'",
        "style-src 'self'",
        "img-src 'self'",
        "connect-src 'self'",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
        "require-trusted-types-for 'script'",
        "trusted-types 'none'",
    )
)
HEADERS: Final = {
    "Content-Security-Policy": POLICY,
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cache-Control": "no-cache",  # asked for again each time, and answered 304: a new version is there at once
    "Vary": "Accept-Encoding",
}
OPERATOR: Final = "operator"
"""Who the sample operator is in the audit."""
DEMO_TTL_S: Final = 3600.0  # a sample token; the page asks for another before it ends


@dataclass(frozen=True, slots=True)
class File:
    """One file, ready in both encodings."""

    content: bytes
    packed: bytes
    media_type: str
    etag: str

    @classmethod
    def read(cls, file: Traversable) -> "File":
        content = file.read_bytes()
        tag = hashlib.sha256(content).hexdigest()[:32]
        return cls(content, gzip.compress(content, 9, mtime=0), TYPES[PurePath(file.name).suffix], tag)

    def answer(self, request: Request) -> Response:
        """RFC 9110, 13.1.2 and 12.5.3, as far as browsers use them."""
        packed = "gzip" in request.headers.get("accept-encoding", "")
        etag = f'"{self.etag}{"-gz" if packed else ""}"'
        headers = {**HEADERS, "ETag": etag}
        if etag in request.headers.get("if-none-match", ""):
            return Response(status_code=304, headers=headers)
        if packed:
            headers["Content-Encoding"] = "gzip"
        return Response(self.packed if packed else self.content, headers=headers, media_type=self.media_type)


def routes(settings: Settings) -> list[BaseRoute]:
    """The pages, their files, and in a demonstration the sample accounts. Files are read once, at start."""
    here = resources.files("gateway.web")
    places = [*here.joinpath("static").iterdir(), here.joinpath("client", "vestnik-client.js")]
    files = {place.name: File.read(place) for place in places}

    async def static(request: Request) -> Response:
        file = files.get(request.path_params["name"])
        if file is None:
            raise Problem(404, "not-found", "Not found")
        return file.answer(request)

    return [
        *(Route(path, _page(files[name]), methods=["GET"]) for path, name in PAGES.items()),
        Route("/static/{name}", static, methods=["GET"]),
        Route("/demo", _demo(settings), methods=["GET"]),
    ]


def _page(file: File) -> Callable[[Request], Awaitable[Response]]:
    async def page(request: Request) -> Response:
        return file.answer(request)

    return page


def _demo(settings: Settings) -> Callable[[Request], Awaitable[Response]]:
    """Tokens of the sample accounts in `VESTNIK_DEMO` and of an operator, for whoever asks; a real installation names
    no account, and has neither."""
    key = LocalKey.open(settings.data) if settings.demo else None

    async def demo(request: Request) -> Response:
        accounts = [] if key is None else [_sample(key, account, settings) for account in settings.demo]
        operator = None if key is None else _sample(key, OPERATOR, settings, SCOPE)
        content = orjson.dumps({"accounts": accounts, "operator": operator})
        return Response(content, media_type="application/json", headers={"Cache-Control": "no-store"})

    return demo


def _sample(key: LocalKey, account: str, settings: Settings, scope: str | None = None) -> dict[str, str]:
    token = key.issue(account, ttl=DEMO_TTL_S, scope=scope, now=time.time(), audience=settings.audience)
    return {"account": account, "token": token}

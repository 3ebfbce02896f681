"""What the gateway says of itself, to standard error. Never a token, a secret, a body or an account in clear.

Pretty with colours on a terminal, else JSON, one object a line. An account is shown as `who(account)`: a keyed hash,
the same within one data directory, so that lines can be joined but not turned back into people. Code should say
`who(account)`; whatever is forgotten is hidden by the last processor before rendering (`hide`), in messages and
tracebacks too.
"""

import contextlib
import hashlib
import logging
import logging.config
import os
import re
import secrets
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import structlog
from structlog.typing import EventDict, WrappedLogger

from gateway.errors import ConfigError
from gateway.keyfile import make_once

_key = secrets.token_bytes(32)  # until `setup` takes the data directory's

_HIDDEN = frozenset(
    {"token", "tokens", "authorization", "cookie", "headers", "secret", "password", "material", "signature"}
    | {"body", "data", "payload", "content", "raw"}
)
_ACCOUNT = frozenset({"account", "accounts", "sub"})
_JWT = re.compile(r"\b[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{16,}")
_SECRET = re.compile(r"\bwhs[ek]c?_[A-Za-z0-9+/=_-]+")
_BEARER = re.compile(r"(?i)\b(bearer|basic)\s+\S+")
_URL_PASSWORD = re.compile(r"(://[^/@\s:]*):[^/@\s]*@")
_FEED = re.compile(r"\baccount(:|%3[Aa])([A-Za-z0-9._-]{1,64})")
_DEVICE = re.compile(r"^([A-Za-z0-9._-]{1,64})/([A-Za-z0-9._-]{1,64})$")  # a revocation's value
_DEPTH = 4


def who(account: str) -> str:
    """A short name of an account for logs: 12 hex digits of a keyed hash."""
    return hashlib.blake2s(account.encode("utf-8", "replace"), key=_key, digest_size=6).hexdigest()


def hide(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """structlog processor: hides what must not be logged, by the name of the key and by the look of the text."""
    return {name: _clean(str(name), value, 0) for name, value in event.items()}


def _clean(name: str, value: Any, depth: int) -> Any:
    if value is None or isinstance(value, bool | int | float):
        return value
    if name in _HIDDEN:
        return "[hidden]"
    if isinstance(value, bytes | bytearray | memoryview):
        return f"[{len(value)} bytes]"
    if isinstance(value, Mapping):
        return {str(key): _clean(str(key), item, depth + 1) for key, item in value.items()} if depth < _DEPTH else "[…]"
    if isinstance(value, list | tuple | set | frozenset):
        return [_clean(name, item, depth + 1) for item in value] if depth < _DEPTH else "[…]"
    text = scrub(str(value))
    if name in _ACCOUNT:
        return who(text)
    device = _DEVICE.match(text) if name in ("device", "value") else None
    return f"{who(device[1])}/{device[2]}" if device else text


def scrub(text: str) -> str:
    """The text without tokens, secrets, passwords in URLs, and with accounts of feed names hashed."""
    text = _SECRET.sub("[secret]", _JWT.sub("[token]", _BEARER.sub(r"\1 [hidden]", text)))
    text = _URL_PASSWORD.sub(r"\1:***@", text)
    return _FEED.sub(lambda match: f"account{match[1]}{who(match[2])}", text)


def get_logger(part: str) -> Any:
    """A logger that says which part speaks. Cheap to make at import; obeys `setup` whenever that comes."""
    return structlog.stdlib.get_logger(f"vestnik.{part}")


def setup(
    level: str = "info",
    format: str = "auto",
    *,
    data: Path | None = None,
    access: bool = False,
    stream: IO[str] | None = None,
) -> None:
    """Send structlog's and everybody's logging (uvicorn's too) through one way to `stream`, by default standard error.

    `data` gives the key of `who`, made once and kept there; without it, or when it cannot be written, the key lives
    as long as the process. Start uvicorn with `log_config=None`.
    """
    global _key  # noqa: PLW0603 - one process, one way to name an account
    if data is not None:
        with contextlib.suppress(ConfigError):  # logging must not stop what it describes
            _key = make_once(data / "log.key", lambda: secrets.token_bytes(32))[:32] or _key
    stream = sys.stderr if stream is None else stream
    terminal = stream.isatty()
    pretty = format == "pretty" or (format == "auto" and terminal)
    handler = logging.StreamHandler(stream)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(processors=_last(pretty, terminal), foreign_pre_chain=_SHARED)
    )
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    for name in ("vestnik", "gateway", "workers"):
        logging.getLogger(name).setLevel(level.upper())
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "uvicorn.asgi"):
        logger = logging.getLogger(name)
        logger.handlers[:] = []
        logger.propagate = True
        logger.setLevel(level.upper())
    logging.getLogger("uvicorn.access").disabled = not access
    structlog.configure(
        processors=[structlog.stdlib.filter_by_level, *_SHARED, structlog.stdlib.ProcessorFormatter.wrap_for_formatter],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )


def _part(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    event["logger"] = str(event.get("logger", "")).removeprefix("vestnik.").removeprefix("gateway.")
    return event


def _order(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    first = {name: event.pop(name) for name in ("timestamp", "level", "logger", "message") if name in event}
    return {**first, **event}


_SHARED: list[Any] = [
    structlog.contextvars.merge_contextvars,
    structlog.stdlib.add_log_level,
    structlog.stdlib.add_logger_name,
    _part,
    structlog.stdlib.PositionalArgumentsFormatter(),
    structlog.processors.TimeStamper(fmt="iso", utc=True),
    structlog.processors.StackInfoRenderer(),
]


def _last(pretty: bool, colour: bool) -> list[Any]:
    """Tracebacks become text before `hide` reads them; only the renderer comes after it."""
    start: list[Any] = [
        structlog.stdlib.ProcessorFormatter.remove_processors_meta,
        structlog.processors.format_exc_info,
        hide,
    ]
    if pretty:
        colours = colour and not os.environ.get("NO_COLOR")
        return [*start, structlog.dev.ConsoleRenderer(colors=colours, pad_event_to=32)]
    return [
        *start,
        structlog.processors.EventRenamer("message"),
        _order,
        structlog.processors.JSONRenderer(ensure_ascii=False),
    ]

"""Every setting of the gateway, with what it protects. `load()` gives checked settings, or one sentence with what is
wrong.

A setting is a `VESTNIK_*` name in the environment or in a `.env` file; a command's flag outranks the environment, which
outranks the file (contract, section 6). `SETTINGS.md` beside this file is made from the descriptions here:
`python -m gateway.settings > gateway/SETTINGS.md`, and a test holds both together.
"""

import contextlib
import difflib
import math
import os
import re
from base64 import b64decode
from collections.abc import Mapping
from ipaddress import ip_network
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin
from urllib.parse import urlsplit

from dotenv import dotenv_values
from pydantic import AfterValidator, BeforeValidator, Field, SecretStr, ValidationError, model_validator
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict, SettingsError

from gateway.errors import ConfigError

PREFIX = "VESTNIK_"
NOT_SETTINGS = frozenset({"VESTNIK_SECRET"})
"""Names that a command reads by itself: `vestnik publish` takes the agency's secret from `VESTNIK_SECRET`."""

STORES = ("sqlite:///", "memory://", "postgresql://")
BUSES = (
    "memory://",
    *("redis://", "redis+sentinel://", "redis+cluster://"),
    *("rediss://", "rediss+sentinel://", "rediss+cluster://"),  # the same with TLS
)

_ORIGIN = re.compile(r"(https?)://(\[[0-9a-f:.]+\]|[a-z0-9._-]+)(?::([0-9]{1,5}))?", re.ASCII)
_AGENT = re.compile(r"[^/,\s]{1,64}/[0-9]{1,9}(\.[0-9]{1,9}){0,5}", re.ASCII)
_DEFAULT_PORT = {"http": "80", "https": "443"}


def _scheme(allowed: tuple[str, ...]) -> AfterValidator:
    def check(value: str) -> str:
        if not value.startswith(allowed):
            raise ValueError(f"must begin with one of {', '.join(allowed)}")
        return value

    return AfterValidator(check)


def _data(value: Path) -> Path:
    value = value.expanduser().absolute()
    if value.exists() and not value.is_dir():
        raise ValueError("must be a directory")
    return value


def _host(value: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9._:-]{1,253}", value):
        raise ValueError("must be a host name or an IP address without port")
    return value


def _jwks(value: str) -> str:
    if "://" in value and not value.startswith(("https://", "http://")):
        raise ValueError("must be a file or an http(s) URL")
    if "://" in value and not urlsplit(value).hostname:
        raise ValueError("must be a file or an http(s) URL with a host")
    return value


def _file(value: Path) -> Path:
    return value.expanduser().absolute()


def _webhook(value: str) -> str:
    try:
        parts = urlsplit(value)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise ValueError("must be an http(s) URL with a host")
    return value


def normal_origin(origin: str) -> str | None:
    """The origin as a browser writes it (RFC 6454: lower case, no default port, no path); None when it is not one."""
    match = _ORIGIN.fullmatch(origin.strip().lower().removesuffix("/"))
    if match is None:
        return None
    scheme, host, port = match.groups()
    return f"{scheme}://{host}" if port in (None, _DEFAULT_PORT[scheme]) else f"{scheme}://{host}:{port}"


def _split(value: object) -> object:
    return [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else value


def _origins(values: tuple[str, ...]) -> tuple[str, ...]:
    found = []
    for value in values:
        origin = normal_origin(value)
        if origin is None:
            raise ValueError("must be a comma separated list of origins like https://lk.example.ru")
        found.append(origin)
    return tuple(dict.fromkeys(found))


def _agents(values: tuple[str, ...]) -> tuple[str, ...]:
    if not all(map(_AGENT.fullmatch, values)):
        raise ValueError("must be a comma separated list of name/version like gosapp-android/2.10")
    return values


def _networks(values: tuple[str, ...]) -> tuple[str, ...]:
    try:
        return tuple(str(ip_network(value, strict=False)) for value in values)
    except ValueError:
        raise ValueError("must be a comma separated list of addresses or networks like 10.0.0.0/8") from None


def _accounts(values: tuple[str, ...]) -> tuple[str, ...]:
    if not all(re.fullmatch(r"[A-Za-z0-9._-]{1,64}", value) for value in values):
        raise ValueError("must be a comma separated list of accounts, each 1 to 64 of A-Z a-z 0-9 . _ -")
    return values


def _is_secret(text: str) -> bool:
    """Standard Webhooks, "Signature scheme": between 24 bytes and 64 bytes."""
    try:
        return text.startswith("whsec_") and 24 <= len(b64decode(text.removeprefix("whsec_"), validate=True)) <= 64
    except ValueError:
        return False


def _default_store(valid: dict[str, Any]) -> str:
    return f"sqlite:///{valid['data']}/vestnik.db"


Seconds = Annotated[float, Field(allow_inf_nan=False)]


class Settings(BaseSettings):
    """Checked and frozen. The order is the order of SETTINGS.md."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX,
        env_file=".env",
        env_file_encoding="utf-8",
        env_ignore_empty=True,
        extra="ignore",
        frozen=True,
    )

    # Where
    data: Annotated[Path, AfterValidator(_data)] = Field(
        default=Path("data"),
        description="Directory of everything that the gateway keeps: the embedded store, the local token key. Made"
        " readable for its owner only.",
        validate_default=True,
    )
    store: Annotated[str, _scheme(STORES)] = Field(
        default_factory=_default_store,
        description="URL of the store. `memory://` forgets everything at exit and is for tests.",
    )
    bus: Annotated[str, _scheme(BUSES)] = Field(
        default="memory://",
        description="URL of the bus between gateways. `memory://` reaches one process only: a second gateway on the"
        " same store is refused. Redis 7 or newer:"
        " `redis://host:port`, `redis+sentinel://host:port,host:port/SERVICE` or `redis+cluster://host:port,host:port`;"
        " with `rediss` by TLS. User, password and options: [README.md](README.md#redis).",
    )
    host: Annotated[str, AfterValidator(_host)] = Field(
        default="127.0.0.1",
        description="Address to listen on. The default keeps a gateway without TLS in front of it off the network.",
    )
    port: int = Field(default=8080, ge=0, le=65535, description="Port to listen on; 0 takes a free one and says which.")
    processes: int = Field(
        default=1,
        ge=1,
        le=64,
        description="Gateway processes on this port. More than one needs a bus that reaches all.",
    )

    # Who may come
    jwks: Annotated[str, AfterValidator(_jwks)] | None = Field(
        default=None,
        description="JWKS file or URL with the identity provider's keys. Unset: a local key for development is made"
        " under `VESTNIK_DATA`, and `vestnik token` signs with it.",
    )
    jwks_refresh_s: Seconds = Field(
        default=300,
        ge=1,
        le=86400,
        description="How often a JWKS URL is fetched again: how soon a withdrawn key is refused.",
    )
    audience: str = Field(
        default="vestnik",
        min_length=1,
        max_length=200,
        description="The `aud` that a token must carry: a token made for another service opens nothing here.",
    )
    origins: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_origins)] = Field(
        default=(),
        description="Browser origins that may open a socket and ask over HTTP, comma separated, beside the gateway's"
        " own address: a page of someone else cannot use a signed-in browser.",
    )
    oldest_agents: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_agents)] = Field(
        default=(),
        description="Oldest versions of programs that are still served, comma separated, as the `agent` of a hello"
        " begins: `gosapp-android/2.10`. Older ones are closed with 4426; programs not named here are served.",
    )

    proxies: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_networks)] = Field(
        default=(),
        description="Addresses or networks of the proxies in front of the gateway, comma separated. The client's"
        " address is taken from their X-Forwarded-For, for logs only; from anybody else the header means nothing.",
    )

    demo: Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split), AfterValidator(_accounts)] = Field(
        default=(),
        description="Sample accounts, comma separated, that the account page offers to everybody who opens it, and"
        " `/ops` a sample operator. For demonstrations: `make run` sets it. Refused beside `VESTNIK_JWKS`.",
    )

    # How many at once
    max_sessions: int = Field(
        default=18_000,
        ge=1,
        le=1_000_000,
        description="Sessions of one process; above it a handshake is answered 503 with Retry-After. Protects memory"
        " and the limit of open files.",
    )
    accept_rate: float = Field(
        default=2000,
        gt=0,
        le=1_000_000,
        allow_inf_nan=False,
        description="Handshakes a second of one process, sustained; above it the answer is 503 with Retry-After. A"
        " storm of reconnects must not take all of the processor from the sessions that are there.",
    )
    accept_burst: int = Field(
        default=5000, ge=1, le=1_000_000, description="Handshakes of one process at once, above the rate."
    )
    max_opening: int = Field(
        default=8192,
        ge=1,
        le=1_000_000,
        description="Connections of one process that have not finished their hello. Protects against"
        " sockets that say nothing.",
    )
    max_requests: int = Field(
        default=512,
        ge=1,
        le=100_000,
        description="HTTP requests in work at once in one process; above it the answer is 503. Protects memory: a"
        " request may hold 1 MiB.",
    )
    backlog: int = Field(
        default=4096,
        ge=1,
        le=65535,
        description="Connections that the kernel holds for us: a storm of reconnects waits instead of being refused.",
    )
    busy_retry_s: int = Field(
        default=5,
        ge=1,
        le=3600,
        description="Retry-After of a 503 at one of these limits; devices add their own jitter.",
    )

    # One session
    window: int = Field(
        default=256,
        ge=1,
        le=10_000,
        description="Events of a feed sent beyond the last ack: bounds what is repeated after a lost connection.",
    )
    message_bytes: int = Field(
        default=16384,
        ge=1024,
        le=1_048_576,
        description="Longest message of a device, inflated; a longer one closes with 4400. Protects memory.",
    )
    head_deadline_s: Seconds = Field(
        default=10,
        gt=0,
        le=300,
        description="A connection must have sent its whole request head by then. Protects against half-open requests.",
    )
    hello_deadline_s: Seconds = Field(
        default=10,
        gt=0,
        le=300,
        description="A socket must have said hello by then, else 4508. Protects against idle sockets.",
    )
    write_deadline_s: Seconds = Field(
        default=60,
        gt=0,
        le=3600,
        description="A session whose window or socket stays full so long closes with 4508. It"
        " loses nothing; the process gets its socket buffer back.",
    )
    close_deadline_s: Seconds = Field(
        default=5, gt=0, le=60, description="How long the gateway waits for the answer to its close frame."
    )
    beat_s: Seconds = Field(
        default=25,
        gt=0,
        le=3600,
        description="Time between beats: how soon a dead connection or a lost event is noticed, against"
        " radio and battery of the phone. Below the 30 s of common NAT timeouts.",
    )
    saver_beat_s: Seconds = Field(default=60, gt=0, le=3600, description="The same in traffic saving mode.")
    saver_wait_s: Seconds = Field(
        default=30,
        gt=0,
        le=300,
        description="How long normal and bulk events may wait for company in traffic saving mode.",
    )
    feeds: int = Field(
        default=32, ge=1, le=1000, description="Agency feeds that a session may follow. Bounds what one hello costs."
    )
    rate: int = Field(
        default=120,
        ge=1,
        le=1_000_000,
        description="Messages a minute of a session, sustained; else 4529. Protects the loop.",
    )
    burst: int = Field(default=60, ge=1, le=1_000_000, description="Messages of a session at once, above the rate.")
    hellos: int = Field(
        default=30,
        ge=1,
        le=1_000_000,
        description="Hellos a minute of one device; else 4529. A client that reconnects in a"
        " loop costs signatures and store reads.",
    )
    backoff_s: Seconds = Field(
        default=60,
        ge=1,
        le=3600,
        description="Longest pause between reconnects, told to devices: spreads the storm after an outage.",
    )

    # Fan-out
    tail_bytes: int = Field(
        default=64 * 1024 * 1024,
        ge=65536,
        description="Memory of one process for recent events, ready as frames. Sessions further behind read the store.",
    )
    sweep_s: Seconds = Field(
        default=25,
        gt=0,
        le=3600,
        description="Time in which the heads of all feeds with a session here are compared with the"
        " store once: how long an event that the bus lost can stay unnoticed.",
    )
    control_s: Seconds = Field(
        default=1,
        gt=0,
        le=2,
        description="How often agencies and revocations are looked at. A new agency is taken within 2 s, a"
        " revocation within 5 s.",
    )
    lease_s: Seconds = Field(
        default=15,
        ge=1,
        le=300,
        description="How long the devices of a node that died still count as connected. A node that does not come to"
        " say that it lives for so long compares all its sessions with the store when it is back.",
    )
    save_s: Seconds = Field(
        default=1,
        gt=0,
        le=60,
        description="How often acknowledged positions are saved: what a crash makes a device get twice.",
    )
    drain_s: Seconds = Field(
        default=30,
        ge=0,
        le=3600,
        description="Time over which devices are asked to leave a stopping node: spreads their"
        " reconnects over the others.",
    )

    # Intake
    agency_rate: float = Field(
        default=10_000,
        gt=0,
        allow_inf_nan=False,
        description="Events a second that one agency may send, sustained; else 429."
        " One agency cannot take the store from the others.",
    )
    agency_burst: int = Field(
        default=50_000,
        ge=1000,
        description="Events that one agency may send at once, above the rate; at least one full batch.",
    )
    group_wait_s: Seconds = Field(
        default=0.002,
        ge=0,
        le=1,
        description="How long the first event of a commit waits for others: one fsync for all.",
    )
    group_events: int = Field(
        default=1000, ge=1, le=100_000, description="Events in one commit at most: bounds how long the writer is busy."
    )

    # Workers
    workers: bool = Field(
        default=True,
        description="Run the workers' roles inside `serve`. Their work is claimed, so however many processes run them"
        " it is done once. Turn off where `vestnik worker` runs them.",
    )
    retention_days: float = Field(
        default=90,
        gt=0,
        le=36500,
        allow_inf_nan=False,
        description="How long events, and with them the ids that recognise"
        " repeats, are kept. Bounds the store and what is kept of a person.",
    )
    retain_every_s: Seconds = Field(default=600, gt=0, le=86400, description="How often retention runs.")
    relay_after_s: Seconds = Field(
        default=2, gt=0, le=3600, description="A commit that was not published by then is published by the relay."
    )

    # Sight
    ops_s: Seconds = Field(
        default=5,
        ge=0,
        le=60,
        description="How often each process tells operators its figures, as an event of the feed `ops:figures`; 0 never"
        " does. Costs a commit and some kB of the store each time; they are kept for two hours.",
    )
    alerts: Annotated[Path, AfterValidator(_file)] | None = Field(
        default=None,
        description="TOML file with bounds of your own for the alert rules, per agency too, or with rules turned off:"
        " [deploy/ALERTS.md](deploy/ALERTS.md).",
    )
    alert_url: Annotated[str, AfterValidator(_webhook)] | None = Field(
        default=None,
        description="Where alerts are posted, as signed CloudEvents, in order and at least once. Needs"
        " `VESTNIK_ALERT_SECRET`.",
    )
    alert_secret: SecretStr | None = Field(
        default=None,
        description="The secret (`whsec_` and 24 to 64 bytes in base64) that the posts of alerts are signed with.",
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        default="info", description="`debug` shows frames; accounts, tokens and bodies stay hidden at every level."
    )
    log_format: Literal["auto", "pretty", "json"] = Field(
        default="auto", description="`auto`: pretty on a terminal, else JSON, one object a line."
    )
    access_log: bool = Field(
        default=False, description="A log line for each HTTP request: costs more than the request at speed."
    )
    metrics: bool = Field(
        default=True,
        description="Serve `/metrics`. Turn off when the address is reachable from outside and no proxy hides it.",
    )

    @model_validator(mode="after")
    def _together(self) -> "Settings":
        if self.processes > 1 and self.bus.startswith("memory:"):
            raise ValueError(
                f"VESTNIK_BUS must reach all {self.processes} processes (redis://…) or VESTNIK_PROCESSES must be 1, got"
                f" {self.bus!r}"
            )
        if self.processes > 1 and self.store.startswith("memory:"):
            raise ValueError(f"VESTNIK_STORE must be shared by all {self.processes} processes, got {self.store!r}")
        if (self.alert_url is None) != (self.alert_secret is None):
            raise ValueError("VESTNIK_ALERT_URL and VESTNIK_ALERT_SECRET must be set together")
        if self.alert_secret is not None and not _is_secret(self.alert_secret.get_secret_value()):
            raise ValueError("VESTNIK_ALERT_SECRET must be whsec_ and 24 to 64 bytes in base64")
        if self.demo and self.jwks is not None:
            raise ValueError("VESTNIK_DEMO must be unset where VESTNIK_JWKS names an identity provider")
        return self

    def allowed_origins(self, port: int | None = None) -> frozenset[str]:
        """Origins of browsers that may open a socket: the configured ones and the gateway's own address, so that its
        pages and a browser console on them work. `port` is the real one when the setting is 0. Compare with
        `normal_origin(header)`.

        The Host header decides nothing here: whoever can name a host can point it at us (DNS rebinding).
        """
        port = self.port if port is None else port
        hosts = {self.host}
        if self.host in ("0.0.0.0", "::", "127.0.0.1", "localhost", "::1"):  # noqa: S104 - compared, not bound
            hosts |= {"127.0.0.1", "localhost", "::1"}
        own = (
            f"{scheme}://{f'[{host}]' if ':' in host else host}:{port}"
            for scheme in ("http", "https")
            for host in hosts
        )
        return frozenset(self.origins) | {origin for origin in map(normal_origin, own) if origin is not None}


def load(*, env_file: str | Path | None = ".env", **flags: Any) -> Settings:
    """Settings from flags, the environment and `.env`, in this order of weight. A flag that is None was not given.

    Raises ConfigError with one sentence that names the first wrong setting; passwords in URLs are not repeated in it.
    """
    try:
        return Settings(_env_file=env_file, **{name: value for name, value in flags.items() if value is not None})  # type: ignore[call-arg]
    except ValidationError as error:
        raise ConfigError(_sentence(error)) from None
    except SettingsError as error:
        raise ConfigError(f"A VESTNIK_* setting cannot be read: {error}.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"The settings file {env_file} cannot be read: {error}.") from None


def _sentence(error: ValidationError) -> str:
    fault = error.errors(include_url=False)[0]
    if not fault["loc"]:
        return str(fault["ctx"]["error"]) + "."
    name = str(fault["loc"][0])
    field = Settings.model_fields.get(name)
    said = str(fault.get("ctx", {}).get("error", ""))
    must = said if said.startswith("must ") else f"must be {kind(field) if field else 'something else'}"
    return f"{PREFIX}{name.upper()} {must}, got {_shown(fault.get('input'))}."


def _shown(value: object) -> str:
    """The value as given, without the password of a URL and without what would make the sentence long."""
    text = ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)
    text = re.sub(r"(://[^/@\s:]*):[^/@\s]*@", r"\1:***@", text)
    return repr(text if len(text) <= 80 else text[:77] + "…")


def kind(field: FieldInfo) -> str:
    """What a value must be, in words: from the annotation and the bounds."""
    annotation = field.annotation
    if get_origin(annotation) is Literal:
        return "one of " + ", ".join(get_args(annotation))
    bounds: dict[str, Any] = {}
    for item in field.metadata:
        for word in ("ge", "gt", "le", "min_length", "max_length"):
            if getattr(item, word, None) is not None:
                bounds[word] = getattr(item, word)
    low = f"from {bounds['ge']}" if "ge" in bounds else f"above {bounds['gt']}" if "gt" in bounds else ""
    high = f"{'to' if 'ge' in bounds else 'and up to'} {bounds['le']}" if "le" in bounds else ""
    span = " ".join(part for part in (low, high) if part)
    if annotation is bool:
        return "true or false"
    if annotation is int:
        return f"a whole number {span}".strip() + (" on" if "ge" in bounds and "le" not in bounds else "")
    if annotation is float:
        return f"a number {span}".strip()
    if "max_length" in bounds:
        return f"text of {bounds['min_length']} to {bounds['max_length']} characters"
    return "a path" if annotation is Path else "text"


def unknown(environ: Mapping[str, str] | None = None, env_file: str | Path | None = ".env") -> list[str]:
    """One sentence for each `VESTNIK_*` name that is no setting: a misspelt limit protects nothing. Never raises."""
    names = set(os.environ if environ is None else environ)
    with contextlib.suppress(OSError, UnicodeDecodeError):
        names |= set(dotenv_values(env_file)) if env_file else set()
    known = {PREFIX + name.upper() for name in Settings.model_fields} | NOT_SETTINGS
    sentences = []
    for name in sorted(name.upper() for name in names if name.upper().startswith(PREFIX)):
        if name not in known:
            near = difflib.get_close_matches(name, known, 1)
            sentences.append(f"{name} is no setting and was ignored" + (f"; did you mean {near[0]}?" if near else "."))
    return sentences


def document() -> str:
    """The text of SETTINGS.md."""
    lines = [
        "# Settings",
        "",
        "Every setting is a name in the environment or in a `.env` file of the working directory; the environment",
        "outranks the file, a flag outranks both. A wrong value stops the start with one sentence and exit code 3.",
        "Durations are seconds, sizes are bytes. Made from `settings.py`:",
        "`python -m gateway.settings > gateway/SETTINGS.md`.",
    ]
    for name, field in Settings.model_fields.items():
        default = field.default if field.default_factory is None else "sqlite:///<data>/vestnik.db"
        value = _written(default)
        lines += [
            "",
            f"## {PREFIX}{name.upper()}",
            "",
            str(field.description),
            "",
            f"Default: {f'`{value}`' if value else 'none'}. Must be {_page_kind(name, field)}.",
        ]
    lines += [
        "",
        "## VESTNIK_SECRET",
        "",
        "Not a setting of the gateway: the agency's secret (`whsec_…` or `whsk_…`) that `vestnik publish` signs with.",
        "",
    ]
    return "\n".join(lines)


def _written(default: object) -> str:
    if default is None or default == ():
        return ""
    if isinstance(default, bool):
        return str(default).lower()
    if isinstance(default, float) and math.floor(default) == default:
        return str(int(default))
    return str(default)


def _page_kind(name: str, field: FieldInfo) -> str:
    special = {
        "store": "a URL that begins with " + ", ".join(f"`{scheme}`" for scheme in STORES),
        "bus": "a URL that begins with " + ", ".join(f"`{scheme}`" for scheme in BUSES),
        "host": "a host name or an IP address",
        "jwks": "a file or an http(s) URL",
        "oldest_agents": "a comma separated list of name/version like `gosapp-android/2.10`",
        "alerts": "a file",
        "alert_url": "an http(s) URL with a host",
        "alert_secret": "`whsec_…`",
        "demo": "a comma separated list of accounts",
        "proxies": "a comma separated list of addresses or networks like `10.0.0.0/8`",
        "origins": "a comma separated list of origins like `https://lk.example.ru`",
    }
    return special.get(name) or kind(field)


if __name__ == "__main__":
    print(document(), end="")

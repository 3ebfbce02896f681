"""Where the servers of a bus are and how to sign in, as VESTNIK_BUS says it."""

import re
import ssl
from dataclasses import dataclass, field, replace
from urllib.parse import parse_qsl, unquote

from gateway.errors import ConfigError

Command = tuple[bytes | str | int, ...]

TLS_OPTIONS = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_cert_reqs")  # named as in Redis clients' own URLs
SENTINEL_OPTIONS = ("sentinel_username", "sentinel_password")

_URL = re.compile(r"(rediss?)(?:\+[a-z]+)?://(?:([^/?#]*)@)?([^/?#@]*)(?:/([^?#]*))?(?:\?([^#]*))?")
_PLACE = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]\s]*))(?::([0-9]{1,5}))?")


@dataclass(frozen=True, slots=True)
class Address:
    """Where a Redis server is and how to sign in."""

    host: str
    port: int
    tls: ssl.SSLContext | None
    username: str | None = None
    password: str | None = field(default=None, repr=False)

    @property
    def sign_in(self) -> list[Command]:
        if self.password is None:
            return []
        return [("AUTH", self.username, self.password) if self.username else ("AUTH", self.password)]

    def at(self, host: str, port: int) -> "Address":
        """Another server that takes the same sign-in."""
        return replace(self, host=host, port=port)

    def __str__(self) -> str:
        return f"{self.host}:{self.port}"


def parse(url: str) -> Address:
    """Read `redis://[user][:password]@host[:port][/db][?option=…]`, or `rediss://` for TLS. The number of a database
    is allowed and means nothing: channels are one space. Raises ConfigError with one sentence."""
    addresses, _, _ = _read(url, 6379, ())
    if len(addresses) > 1:
        raise ConfigError("VESTNIK_BUS names several servers; redis+sentinel:// and redis+cluster:// can do that.")
    return addresses[0]


def parse_cluster(url: str) -> list[Address]:
    """Read `redis+cluster://[user][:password]@host[:port],host[:port][?option=…]`, or `rediss+cluster://`: nodes that
    are asked for the others. Raises ConfigError with one sentence."""
    addresses, path, _ = _read(url, 6379, ())
    if path not in ("", "0"):
        raise ConfigError("VESTNIK_BUS: nothing follows the nodes of a cluster.")
    return addresses


def parse_sentinel(url: str) -> tuple[list[Address], str, Address]:
    """Read `redis+sentinel://[user][:password]@host[:port],host[:port]/service[?option=…]`, or `rediss+sentinel://`:
    the sentinels, the name of the service, and how to sign in to its servers (host and port mean nothing yet). User
    and password are those of the servers; `sentinel_username` and `sentinel_password` those of the sentinels. Raises
    ConfigError with one sentence."""
    servers, path, options = _read(url, 26379, SENTINEL_OPTIONS)
    if not path or "/" in path:
        raise ConfigError("VESTNIK_BUS must end with the name of the service that the sentinels watch: …/service.")
    username, password = options.get("sentinel_username"), options.get("sentinel_password")
    if username and not password:
        raise ConfigError("VESTNIK_BUS has sentinel_username and no sentinel_password.")
    return [replace(one, username=username, password=password) for one in servers], unquote(path), servers[0]


def _read(url: str, port: int, known: tuple[str, ...]) -> tuple[list[Address], str, dict[str, str]]:
    """Addresses, path and options. `port` is for hosts without one, `known` are further options."""
    match = _URL.fullmatch(url)
    if match is None:
        raise ConfigError("VESTNIK_BUS is not a URL of a Redis server.")
    scheme, user, hosts, path, query = match.groups()
    options = dict(parse_qsl(query or ""))
    allowed = TLS_OPTIONS + known
    if unknown := sorted(options.keys() - set(allowed)):
        raise ConfigError(f"VESTNIK_BUS has an unknown option {unknown[0]!r}; known are {', '.join(allowed)}.")
    if options.keys() & set(TLS_OPTIONS) and scheme != "rediss":
        raise ConfigError("VESTNIK_BUS has TLS options but does not begin with rediss.")
    tls = _tls(options) if scheme == "rediss" else None
    username, _, password = (user or "").partition(":")
    addresses = [
        Address(host, given or port, tls, unquote(username) or None, unquote(password) or None)
        for host, given in map(_place, hosts.split(","))
    ]
    return addresses, path or "", options


def _place(text: str) -> tuple[str, int]:
    """Host and port; the port is 0 when none is given."""
    match = _PLACE.fullmatch(text)
    port = int(match[3] or 0) if match else 0
    if match is None or port > 65535 or (match[3] and not port):
        raise ConfigError("VESTNIK_BUS has an address that is not host:port.")
    return match[1] or match[2] or "127.0.0.1", port


def _tls(options: dict[str, str]) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
        if "ssl_certfile" in options:
            context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
    except OSError as error:
        raise ConfigError(f"VESTNIK_BUS: the TLS files cannot be loaded: {error}.") from None
    if (reqs := options.get("ssl_cert_reqs", "required")) == "none":
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
    elif reqs != "required":
        raise ConfigError("VESTNIK_BUS: ssl_cert_reqs must be required or none.")
    return context

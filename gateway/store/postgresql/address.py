"""The `postgresql://` URL of the store: what it may say, and how the server is named without its password. Pure."""

from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import parse_qsl, unquote, urlencode, urlsplit, urlunsplit

from gateway.errors import ConfigError

STANDBYS: Final = ("asynchronous", "synchronous")
# Everything else of libpq's would be sent to the server as one of its settings, and ours depend on theirs.
_KNOWN: Final = frozenset(
    {"host", "port", "user", "password", "dbname", "passfile", "service", "target_session_attrs", "application_name"}
    | {"sslmode", "sslcert", "sslkey", "sslrootcert", "sslcrl", "sslpassword", "sslnegotiation"}
    | {"ssl_min_protocol_version", "ssl_max_protocol_version", "krbsrvname", "gsslib"}
)
_FORM: Final = (
    "VESTNIK_STORE must look like postgresql://user:password@host:5432/database, with the special characters of the"
    " password percent-encoded"
)


@dataclass(frozen=True, slots=True)
class Address:
    """`dsns`, one for each server, are for the driver and hold the password; `name` is for people and does not."""

    dsns: list[str]  # whoever found a good one puts it first
    name: str
    synchronous: bool  # every server that may be promoted has all that was committed (`?standbys=synchronous`)
    settings: dict[str, str]  # what the server is told when a connection begins


def parse(url: str) -> Address:
    """Raises ConfigError, one sentence without any part of the URL that may be a password."""
    try:
        parts = urlsplit(url)
        # An "@" or "/" that was not encoded would make a part of the password look like a host.
        encoded = "@" not in parts.netloc.rpartition("@")[0] + parts.path + parts.query + parts.fragment
        query = dict(parse_qsl(parts.query, strict_parsing=True)) if parts.query else {}
        hosts = parts.netloc.rpartition("@")[2]
        ports = [host.rpartition(":")[2] for host in hosts.split(",") if ":" in host.rpartition("]")[2]]
    except ValueError:
        raise ConfigError(f"{_FORM}.") from None
    if parts.scheme not in ("postgresql", "postgres") or not encoded or parts.fragment:
        raise ConfigError(f"{_FORM}.")
    if not all(port.isascii() and port.isdigit() and 0 < int(port) < 65536 for port in ports):
        raise ConfigError(f"{_FORM}.")
    standbys = query.pop("standbys", "asynchronous")
    if standbys not in STANDBYS:
        raise ConfigError(f"VESTNIK_STORE: standbys must be one of {', '.join(STANDBYS)}, got {standbys!r}.")
    unknown = sorted(set(query) - _KNOWN)
    if unknown:
        raise ConfigError(f"VESTNIK_STORE: {unknown[0]!r} is no parameter of the store's URL.")
    settings = {"application_name": query.pop("application_name", "vestnik")}
    # A server that cannot be written is no store: with several hosts, the next one is tried.
    query.setdefault("target_session_attrs", "read-write")
    # One by one: the driver tries all servers within one timeout, and the first may be one that never answers.
    auth = parts.netloc.removesuffix(hosts)
    dsns = [urlunsplit((parts.scheme, auth + host, parts.path, urlencode(query), "")) for host in hosts.split(",")]
    return Address(dsns, _name(hosts, parts.path, query), standbys == "synchronous", settings)


def _name(hosts: str, path: str, query: dict[str, Any]) -> str:
    database = unquote(path.lstrip("/")) or query.get("dbname", "")
    place = unquote(hosts) or query.get("host") or "the local server"
    return f"database {database!r} at {place}" if database else place

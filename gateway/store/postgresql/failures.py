"""What an error of the driver or the server means to the caller.

`ours`        a statement is wrong: a bug, raised as it is
`again`       the transaction was undone because of another one: it is run again
otherwise     passing: StoreUnavailable, without anything that the server said about values
"""

import asyncio
import ssl
from typing import Final

import asyncpg

from gateway.errors import ConfigError, StoreUnavailable
from gateway.store.postgresql.address import Address

# Classes of SQLSTATE (PostgreSQL, appendix A) that say that our statement or its values are wrong: data exception,
# integrity violation, syntax or access rule violation.
_OURS: Final = ("22", "23", "42")
# Of these, what an operator did to the database while it is in use: permissions, tables or schema that are gone.
_THEIRS: Final = frozenset({"42501", "42P01", "3F000"})
_AGAIN: Final = frozenset({"40001", "40P01", "23505"})  # serialization, deadlock, a name given by another meanwhile

# What the driver raises beside the server's errors: its own (a connection that closed under it), and the network's.
PASSING: Final = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)


def state(error: BaseException) -> str:
    """The SQLSTATE, empty when the server did not give one."""
    return getattr(error, "sqlstate", None) or ""


def again(error: BaseException) -> bool:
    """Was the transaction undone because of another one, so that running it again is right?"""
    return state(error) in _AGAIN


def ours(error: BaseException) -> bool:
    return state(error).startswith(_OURS) and state(error) not in _THEIRS and not again(error)


def elsewhere(error: BaseException) -> bool:
    """May another server of the same URL be the right one? Not when this one knows us and says no."""
    return isinstance(error, PASSING) and state(error)[:2] not in ("28", "3D", "42")


def keeps_connection(error: BaseException) -> bool:
    """May the connection go on after this, once its transaction was rolled back? Only when the server said so itself
    and did not end the session (class 57 ends it, or may; 08, 25P03 and XX say that it is over or doubtful)."""
    return isinstance(error, asyncpg.PostgresError) and not (
        state(error)[:2] in ("", "08", "57", "58", "XX") or state(error) in ("25P03", "25P04")
    )


def unavailable(error: BaseException) -> StoreUnavailable:
    """The error of a running store, in words that hold no value and no password."""
    return StoreUnavailable(f"PostgreSQL {_said(error)}")


def at_start(error: BaseException, address: Address) -> ConfigError | StoreUnavailable:
    """The error of a first connection: ConfigError when it will not pass by waiting."""
    match state(error):
        case "28P01" | "28000":
            return ConfigError(f"VESTNIK_STORE: {address.name} refuses the user or its password.")
        case "3D000":
            return ConfigError(f"VESTNIK_STORE: there is no {address.name}; make it with `createdb`.")
        case "42501":
            return ConfigError(
                f"VESTNIK_STORE: the user may not make the tables in {address.name}; grant it CREATE on the database."
            )
    if isinstance(error, asyncpg.ClientConfigurationError | ValueError):
        return ConfigError("VESTNIK_STORE is no postgresql:// URL that can be used; see gateway/README.md.")
    if isinstance(error, ssl.SSLError) or ("sslmode" in address.dsns[0] and isinstance(error, FileNotFoundError)):
        return ConfigError(f"VESTNIK_STORE: TLS to {address.name} cannot be set up as the URL says ({_said(error)}).")
    return StoreUnavailable(f"{address.name}: {_said(error)}")


def _said(error: BaseException) -> str:
    code = state(error)
    if isinstance(error, asyncpg.exceptions.TargetServerAttributeNotMatched) or code == "25006":
        return "has no server that can be written (a standby, or read-only)"
    if isinstance(error, TimeoutError | asyncio.TimeoutError):
        return "does not answer in time"
    if code.startswith("08") or isinstance(error, asyncpg.InterfaceError | asyncpg.InternalClientError):
        return "cut the connection"
    if isinstance(error, asyncpg.PostgresError):
        # The name of the condition, not the message: messages quote values.
        return f"failed: {_words(type(error).__name__)} ({code})"
    if isinstance(error, OSError):
        return f"cannot be reached: {error.strerror or type(error).__name__}"
    return "failed"


def _words(name: str) -> str:
    """TooManyConnectionsError: too many connections."""
    return "".join(
        f" {letter.lower()}" if letter.isupper() else letter for letter in name.removesuffix("Error")
    ).strip()

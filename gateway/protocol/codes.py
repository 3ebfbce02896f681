"""Close codes as data: the range says whether to reconnect (contract, section 3.11). Pure."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final


@dataclass(frozen=True, slots=True)
class CloseCode:
    """`meaning` and `change` are for people: what happened, what must change before it can go well ("" for nothing)."""

    code: int
    name: str
    meaning: str
    change: str

    @property
    def reconnect(self) -> bool:
        return reconnect(self.code)


BAD_MESSAGE: Final = 4400
UNAUTHENTICATED: Final = 4401
FORBIDDEN: Final = 4403
REPLACED: Final = 4409
REVOKED: Final = 4410
TOO_OLD: Final = 4426
OVERLOADED: Final = 4503
TOO_SLOW: Final = 4508
GOING_AWAY: Final = 4512
TOO_MANY: Final = 4529

by_code: Final[Mapping[int, CloseCode]] = {
    code.code: code
    for code in (
        CloseCode(BAD_MESSAGE, "bad message", "what came is no message", "the program; try once more after 60 s"),
        CloseCode(UNAUTHENTICATED, "token missing, wrong or ended", "nobody is signed in", "a new token, then at once"),
        CloseCode(FORBIDDEN, "forbidden", "not allowed, or too many devices", "the sign-in, or fewer devices"),
        CloseCode(
            REPLACED,
            "a newer session of this device",
            "the same device connected again",
            "nothing if you opened it; else wait for the person",
        ),
        CloseCode(REVOKED, "revoked", "the sign-in was ended from outside", "a new sign-in"),
        CloseCode(TOO_OLD, "client too old", "this version is no longer served", "the version"),
        CloseCode(OVERLOADED, "overloaded, or a store was restored", "the gateway cannot go on with this session", ""),
        CloseCode(TOO_SLOW, "too slow: hello, ack, write or silence", "something did not come in time", ""),
        CloseCode(GOING_AWAY, "node going away", "this node stops", ""),
        CloseCode(TOO_MANY, "too many messages", "over the rate limit", ""),
    )
}


def reconnect(code: int | None) -> bool:
    """May the device reconnect by itself, with backoff? None is a connection that ended without a code, or never began.

    Only 44xx says stop. Whatever else a proxy or a later version may send is like the network's own trouble: a device
    that goes on trying, slower each time, loses nothing by it, and one that stops stays deaf.
    """
    return code is None or not 4400 <= code < 4500

"""The life of one connection as one table: what may happen when, and what it is then. Pure.

    OPENING   the HTTP request came; origin, subprotocol and limits are being looked at
    HELLO     the socket is open; the device has 10 s for its hello
    JOINING   hello was good; the store finds where each feed starts
    LIVE      welcome was sent; events and acks go both ways
    DRAINING  the device was told to go elsewhere; delivery goes on until it does
    CLOSING   our close frame is written; whatever comes is read and thrown away, 5 s at most
    ENDING    nothing more is read or written; the transport is being taken down
    CLOSED    the transport is gone

`python -m gateway.protocol.connection` draws it; the picture in README.md beside this file is that output.
"""

from collections.abc import Mapping
from enum import Enum
from typing import Final

from gateway.errors import VestnikError


class State(Enum):
    __hash__ = object.__hash__  # in C: the table is asked several times a connection
    OPENING = "OPENING"
    HELLO = "HELLO"
    JOINING = "JOINING"
    LIVE = "LIVE"
    DRAINING = "DRAINING"
    CLOSING = "CLOSING"
    ENDING = "ENDING"
    CLOSED = "CLOSED"


class Event(Enum):
    __hash__ = object.__hash__
    ACCEPTED = "accepted"  # 101 was sent
    REFUSED = "refused"  # another status was sent: the handshake is over
    HELLO = "hello"  # a good hello came
    JOINED = "joined"  # the start positions are stored, welcome is written
    MESSAGE = "message"  # any other message of the device
    DRAIN = "drain"  # this node goes away
    CLOSE_SENT = "close_sent"  # we wrote a close frame first
    CLOSE_RECEIVED = "close_received"  # the device's close frame came; ours, if still due, is written in answer
    DEADLINE = "deadline"  # no head of a request, no answer to our close, or no room to write, in time
    LOST = "lost"  # the transport is gone


_S, _E = State, Event
_OPEN: Final[Mapping[Event, State]] = {
    _E.CLOSE_SENT: _S.CLOSING,
    _E.CLOSE_RECEIVED: _S.ENDING,
    _E.LOST: _S.CLOSED,
}

# A deadline that the device missed (hello, ack, write, silence) is no move by itself: our answer, 4508, is CLOSE_SENT.
TABLE: Final[Mapping[State, Mapping[Event, State]]] = {
    _S.OPENING: {
        _E.ACCEPTED: _S.HELLO,
        _E.REFUSED: _S.ENDING,
        _E.DEADLINE: _S.ENDING,
        _E.LOST: _S.CLOSED,
    },
    # "anything but a good `hello` at first closes with 4400", so MESSAGE is not a move here.
    _S.HELLO: {_E.HELLO: _S.JOINING, **_OPEN},
    _S.JOINING: {_E.JOINED: _S.LIVE, _E.MESSAGE: _S.JOINING, **_OPEN},
    _S.LIVE: {_E.MESSAGE: _S.LIVE, _E.DRAIN: _S.DRAINING, **_OPEN},
    _S.DRAINING: {_E.MESSAGE: _S.DRAINING, **_OPEN},
    _S.CLOSING: {
        _E.MESSAGE: _S.CLOSING,
        _E.CLOSE_RECEIVED: _S.ENDING,
        _E.DEADLINE: _S.ENDING,
        _E.LOST: _S.CLOSED,
    },
    _S.ENDING: {_E.LOST: _S.CLOSED},
    _S.CLOSED: {},
}


class IllegalMove(VestnikError):
    """Ours: the gateway took a step that the table does not have. The state is what it was."""

    def __init__(self, state: State, event: Event):
        super().__init__(f"{event.value} is not possible in {state.value}")
        self.state, self.event = state, event


def step(state: State, event: Event) -> State:
    """The state after `event`. Raises IllegalMove when the table has no such move."""
    try:
        return TABLE[state][event]
    except KeyError:
        raise IllegalMove(state, event) from None


def diagram() -> str:
    """The table as a Mermaid state diagram, moves between the same two states on one arrow."""
    arrows: dict[tuple[str, str], list[str]] = {}
    for state, moves in TABLE.items():
        for event, after in moves.items():
            arrows.setdefault((state.value, after.value), []).append(event.value)
    lines = [f"    {state} --> {after}: {', '.join(events)}" for (state, after), events in arrows.items()]
    return "\n".join(["stateDiagram-v2", "    [*] --> OPENING", *lines, "    CLOSED --> [*]"])


if __name__ == "__main__":
    print(diagram())

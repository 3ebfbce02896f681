"""What a bus promises: nothing but speed.

It carries committed events and small control messages to the other gateways. It may lose, repeat or reorder;
correctness never rests on it (the sweep over the store finds what it lost). One promise only: after `subscribe` has
returned, what is published to the feed afterwards normally arrives, so a store read made after it leaves no hole at
the seam. `tests/contracts/test_bus.py` holds every implementation to this.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Message:
    """A committed event as it travels: everything that a hub needs to write it to a device."""

    feed: str
    epoch: str
    offset: int
    event: bytes | None  # compact JSON; None when erased
    priority: int
    recorded: float  # Unix seconds of the commit


class Listener(Protocol):
    """Who gets what arrives. Called on the event loop, must not block, must not raise."""

    def received(self, message: Message) -> None: ...

    def control(self, payload: bytes) -> None:
        """A message of `announce`, the gateway's own included."""

    def gap(self) -> None:
        """Messages may have been lost (reconnect, dead subscription): compare heads with the store now."""


class Bus(Protocol):
    async def open(self, listener: Listener) -> None:
        """Connect in the background: returns also when the server is away (then `healthy` is False and it goes on
        trying)."""

    async def close(self) -> None: ...

    @property
    def healthy(self) -> bool:
        """A probe came back through the subscription lately: what is published does arrive here."""

    async def publish(self, messages: Sequence[Message]) -> None:
        """Raises BusUnavailable; then the relay tries again later."""

    async def announce(self, payload: bytes) -> None:
        """To every gateway's `control`."""

    async def subscribe(self, feeds: Collection[str]) -> None:
        """Returns when the server confirmed it; concurrent calls travel together. Raises BusUnavailable when it
        cannot be confirmed in time (the feeds stay wanted and are subscribed once the server is back, with `gap()`
        afterwards)."""

    async def unsubscribe(self, feeds: Collection[str]) -> None: ...


BusFactory = Callable[[str], Bus]

"""The bus of one process: publishing calls the listener, in the same turn of the loop."""

from collections.abc import Collection, Sequence

from gateway.bus.base import Listener, Message
from gateway.errors import BusUnavailable


class MemoryBus:
    """Keeps every promise of `gateway.bus.base.Bus` and loses nothing: there is nothing between it and its listener."""

    def __init__(self) -> None:
        self._listener: Listener | None = None
        self._feeds: set[str] = set()

    async def open(self, listener: Listener) -> None:
        self._listener = listener

    async def close(self) -> None:
        self._listener = None

    @property
    def healthy(self) -> bool:
        return self._listener is not None

    async def publish(self, messages: Sequence[Message]) -> None:
        received, feeds = self._open().received, self._feeds
        for message in messages:
            if message.feed in feeds:
                received(message)

    async def announce(self, payload: bytes) -> None:
        self._open().control(payload)

    async def subscribe(self, feeds: Collection[str]) -> None:
        self._feeds.update(feeds)

    async def unsubscribe(self, feeds: Collection[str]) -> None:
        self._feeds.difference_update(feeds)

    def _open(self) -> Listener:
        if self._listener is None:
            raise BusUnavailable("the bus is closed")
        return self._listener

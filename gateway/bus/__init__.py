"""The bus carries committed events to the gateways that hold their readers. `base` says what it promises: only
speed."""

from gateway.bus.base import Bus, BusFactory, Listener, Message
from gateway.bus.cluster import ClusterBus
from gateway.bus.memory import MemoryBus
from gateway.bus.redis import RedisBus, SentinelBus
from gateway.errors import ConfigError

__all__ = ["Bus", "Listener", "Message", "open_bus"]

FORMS: dict[str, BusFactory] = {
    "redis": RedisBus,
    "rediss": RedisBus,
    "redis+sentinel": SentinelBus,
    "rediss+sentinel": SentinelBus,
    "redis+cluster": ClusterBus,
    "rediss+cluster": ClusterBus,
}


def open_bus(url: str) -> Bus:
    """The bus that the URL names, not yet open. Raises ConfigError with one sentence that never shows the password."""
    scheme, separator, _ = url.partition("://")
    if url == "memory://":
        return MemoryBus()
    if separator and scheme in FORMS:
        return FORMS[scheme](url)
    raise ConfigError(f"VESTNIK_BUS must be memory:// or begin with one of {', '.join(f'{one}://' for one in FORMS)}.")

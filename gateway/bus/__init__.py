"""The bus carries committed events to the gateways that hold their readers. `base` says what it promises: only
speed."""

from gateway.bus.base import Bus, Listener, Message
from gateway.bus.memory import MemoryBus
from gateway.bus.redis import RedisBus
from gateway.errors import ConfigError

__all__ = ["Bus", "Listener", "Message", "open_bus"]


def open_bus(url: str) -> Bus:
    """The bus that the URL names, not yet open. Raises ConfigError with one sentence that never shows the password."""
    scheme, separator, _ = url.partition("://")
    if url == "memory://":
        return MemoryBus()
    if separator and scheme in ("redis", "rediss"):
        return RedisBus(url)
    if scheme in ("redis+sentinel", "redis+cluster"):
        raise ConfigError(f"VESTNIK_BUS: {scheme}:// is not supported yet; use redis://host:port of one server.")
    raise ConfigError("VESTNIK_BUS must be memory://, redis://host:port or rediss://host:port.")

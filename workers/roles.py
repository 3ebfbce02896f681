"""Which roles there are. What a role is: a name, an interval and `step`."""

from collections.abc import Callable, Sequence
from typing import Protocol

from gateway.bus.base import Bus
from gateway.errors import ConfigError
from gateway.metrics import Counts
from gateway.settings import Settings
from gateway.store.base import Store
from workers import rules
from workers.alerts import EVERY_S, Alerts
from workers.claims import Claim
from workers.relay import Relay
from workers.retention import Retention
from workers.tidy import Tidy
from workers.webhook import Webhook


class Role(Protocol):
    """One job. `step` does a bounded piece of it in one go, can be cancelled at any await and be repeated without
    harm."""

    name: str
    every_s: float

    async def step(self) -> bool:
        """True when more is waiting: the next step follows at once. Raises whatever goes wrong."""


Claims = Callable[[str, float], Claim]
Make = Callable[[Settings, Store, Bus, Counts, Claims], Role]

ROLES: dict[str, Make] = {
    # A dead relay is missed at once, so its claim is short; the others work in steps of a transaction, and may wait.
    "relay": lambda settings, store, bus, counts, claim: Relay(
        store, bus, claim("relay", 5.0), counts, after_s=settings.relay_after_s
    ),
    "tidy": lambda settings, store, bus, counts, claim: Tidy(store, claim("tidy", 30.0)),
    "retention": lambda settings, store, bus, counts, claim: Retention(
        store,
        claim("retention", 30.0),
        counts,
        keep_s=settings.retention_days * 86400,
        every_s=settings.retain_every_s,
    ),
    "alerts": lambda settings, store, bus, counts, claim: Alerts(
        store,
        bus,
        claim("alerts", 15.0),
        rules.load(settings.alerts),
        counts,
        every_s=min(settings.ops_s or EVERY_S, EVERY_S),
    ),
    # Held while a receiver is away, and renewed every second.
    "webhook": lambda settings, store, bus, counts, claim: Webhook(
        store, claim("webhook", 15.0), settings.alert_url, _secret(settings), counts
    ),
}


def _secret(settings: Settings) -> str | None:
    return None if settings.alert_secret is None else settings.alert_secret.get_secret_value()


def make(
    names: Sequence[str], settings: Settings, store: Store, bus: Bus, counts: Counts, *, owner: str | None = None
) -> list[Role]:
    """The named roles; all of them when none is named. `owner` is the name of this process, for their claims. Raises
    ConfigError for a role that is none."""
    if unknown := [name for name in names if name not in ROLES]:
        raise ConfigError(f"There is no worker role {unknown[0]!r}; there are {', '.join(ROLES)}.")

    def claim(name: str, hold_s: float) -> Claim:
        return Claim(store, name, hold_s, owner=owner)

    return [ROLES[name](settings, store, bus, counts, claim) for name in dict.fromkeys(names or ROLES)]

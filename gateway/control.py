"""Control: agencies and revocations, kept current from the store, and what gateways tell each other.

Every process looks at the store's revision about once a second, so that a new agency is taken within 2 s and a
revocation closes its sessions within 5 s even when the bus is away; a message on the bus only makes it sooner
(contract, sections 5 and 6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from dataclasses import astuple
from typing import Any

import orjson

from gateway.bus.base import Message
from gateway.errors import BusUnavailable, EpochChanged, StoreUnavailable
from gateway.hub import Hub
from gateway.logs import get_logger
from gateway.session import Gate
from gateway.store.base import Presence, Store
from gateway.waiting import woken

log = get_logger("control")

RETRY_S = 0.5  # before a look that failed is tried again


class Control:
    """Listens to the bus for the hub, and keeps `gate.agencies` and the revocations current."""

    def __init__(self, gate: Gate, store: Store, hub: Hub):
        self.gate, self.store, self.hub = gate, store, hub
        self._revision = -1
        self._wanted = asyncio.Event()
        self.ended: Callable[[], None] = lambda: None
        """What the process does when the store's epoch is another one: it ends, and a new one begins with nothing of
        the old one in memory."""

    # A bus Listener

    def received(self, message: Message) -> None:
        self.hub.received(message)

    def gap(self) -> None:
        self.hub.gap()
        self._wanted.set()

    def control(self, payload: bytes) -> None:
        try:
            said = orjson.loads(payload)
            match said["k"]:
                case "seen":
                    self.hub.share_seen(said["origin"], said["account"], said["feed"], said["offsets"])
                case "newer":
                    for account, device, node, session, since in said["sessions"]:
                        self.hub.displaced(Presence(account, device, node, session, since))
                case "look":
                    self._wanted.set()
        except (orjson.JSONDecodeError, KeyError, TypeError, ValueError) as error:
            log.warning("control_message_unknown", error=str(error))

    # What changes the world

    async def tell(self, **said: Any) -> None:
        """Tell every gateway, this one included."""
        payload = orjson.dumps(said)
        try:
            await self.hub.bus.announce(payload)
        except BusUnavailable:
            self.control(payload)  # the others find it at their next look at the store

    async def sign_out(self, account: str, device: str) -> None:
        """End the device's sessions on every node: at once by the bus, within seconds without it. Raises
        StoreUnavailable."""
        roster = self.hub.roster
        if roster.shared:
            # With its place in the order: a word that comes late must not end the next session.
            await self.tell(k="newer", sessions=[astuple(await roster.sign_out(account, device))])
        else:
            self.end(account, device)

    def end(self, account: str, device: str) -> None:
        """Close the device's session here."""
        for session in (*self.hub.sessions_of(account), *self.hub.joining):
            if session.account == account and session.device == device:
                session.close(4410, "the device was signed out")

    async def look(self) -> None:
        """Load agencies and revocations if they changed, and close the sessions that a revocation refuses.

        Raises StoreUnavailable."""
        revision = await self.store.revision()
        if revision == self._revision:
            return
        agencies = {agency.code: agency for agency in await self.store.agencies()}
        rows = await self.store.revocations()
        if revision <= self._revision:
            return  # another look was quicker and saw more
        self._revision = revision
        self.gate.agencies.clear()
        self.gate.agencies.update(agencies)
        revocations = self.gate.verifier.revocations
        revocations.replace(rows)
        for session in self.hub.all_sessions():
            if session.claims is not None and revocations.refuses(session.claims, session.device):
                session.close(4410, "revoked")

    async def run(self) -> None:
        """Forever."""
        while True:
            await woken(self._wanted, self.gate.settings.control_s)
            try:
                await self.look()
            except EpochChanged as error:
                # "An epoch never changes within a session: the gateway closes with 4503 instead."
                log.error("epoch_changed", error=str(error))
                self.hub.close_all(4503, "the store was restored")
                self.ended()
                await asyncio.sleep(RETRY_S)
            except StoreUnavailable as error:
                log.warning("look_failed", error=str(error))
                await asyncio.sleep(RETRY_S)

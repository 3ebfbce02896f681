"""A session: one live connection of one device, from its hello to its close. Contract, section 3.

It is one small object without a task: bytes come in by `received`, time comes in by `check`, and what it has to
deliver is decided by the hub's loop over its `Follow`s. A message that cannot be obeyed is answered with `error`
(`Refused`); what ends the session carries a close code (`Close`).
"""

from __future__ import annotations

import asyncio
import random
import re
import sys
import time
from collections.abc import Callable, Coroutine
from dataclasses import dataclass, field
from typing import Any, Protocol

import orjson

from gateway import logs, opsfeeds
from gateway.errors import BusUnavailable, Close, Refused, StoreUnavailable
from gateway.hub import Follow, Hub
from gateway.limits import Buckets
from gateway.metrics import Counts
from gateway.protocol import frames, messages
from gateway.protocol.codec import Codec
from gateway.protocol.connection import Event, State, step
from gateway.protocol.delivery import PastTold
from gateway.rfc3339 import format_time
from gateway.settings import Settings
from gateway.store.base import Agency, Join, Joined, Start
from gateway.tokens import Claims, Verifier

log = logs.get_logger("session")

ENDED = frozenset((State.CLOSING, State.ENDING, State.CLOSED))
EXPIRING_S = 60.0  # "`expiring` 60 s before the token ends"
PING = frames.frame(frames.PING, b"")


class Out(Protocol):
    """Where whole frames go: a transport, or what stands for one."""

    def write(self, data: bytes) -> None: ...


class Link(Protocol):
    """The connection below a session."""

    def close(self, code: int, reason: str) -> None:
        """Send a close frame, throw away what still comes, end when the peer answers or the deadline passes."""

    def peer(self) -> str | None:
        """The address at the other end, while there is one."""


@dataclass(slots=True)
class Gate:
    """What all sessions of a process share."""

    hub: Hub
    settings: Settings
    counts: Counts
    verifier: Verifier
    agencies: dict[str, Agency] = field(default_factory=dict)
    hellos: Buckets = field(init=False)
    tasks: set[asyncio.Task[None]] = field(default_factory=set)
    node: str = field(init=False)  # the first part of every session's id
    numbers: int = 0

    def __post_init__(self) -> None:
        self.hellos = Buckets(self.settings.hellos / 60, self.settings.hellos)
        self.node = self.hub.roster.node

    def spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Rare work that has to wait, `subscribe` for one; the hot paths need no task."""
        task = asyncio.create_task(work)
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)
        return task

    def too_old(self, agent: str | None) -> bool:
        """Is this program older than VESTNIK_OLDEST_AGENTS allows? Programs that are not named there, or nameless, are
        not.
        """
        name, _, version = (agent or "").partition("/")
        for entry in self.settings.oldest_agents:
            wanted, _, oldest = entry.partition("/")
            if name == wanted:
                return _version(version) < _version(oldest)
        return False


def _version(text: str) -> tuple[int, ...]:
    """The leading numbers of a version: `2.10.1-beta (Android 15)` is (2, 10, 1)."""
    match = re.match(r"\d{1,9}(?:\.\d{1,9}){0,5}", text, re.ASCII)
    return tuple(map(int, match[0].split("."))) if match else ()


class Session:
    """Made when the handshake is done; the connection calls `received`, `paused`, `resumed` and `lost`."""

    __slots__ = (
        "account",
        "agent",
        "beat_at",
        "changing",
        "claims",
        "client",
        "codec",
        "credit",
        "credit_at",
        "deflate",
        "device",
        "entered",
        "flowing",
        "follows",
        "gate",
        "heard",
        "held_until",
        "hub",
        "link",
        "number",
        "open",
        "out",
        "pending",
        "ref",
        "saver",
        "since",
        "slot",
        "stalled",
        "state",
        "warned",
        "writable",
    )

    def __init__(
        self, gate: Gate, codec: Codec, link: Link, out: Out, *, deflate: bool = False, client: str | None = None
    ):
        gate.numbers += 1
        self.number = gate.numbers
        self.gate, self.hub, self.codec, self.link, self.out = gate, gate.hub, codec, link, out
        self.deflate = deflate  # the peer reads compressed messages
        self.client = client  # its address as a proxy told it, for the log
        self.account = self.device = ""
        self.agent: str | None = None  # the program, as the hello names it
        self.entered = 0.0  # its place in the roster's order, 0.0 while it has none
        self.claims: Claims | None = None
        self.follows: tuple[Follow, ...] = ()
        self.changing: asyncio.Task[None] | None = None  # the last of the changes of `follows` that were asked for
        self.pending: list[dict[str, Any]] | None = None  # messages that came between hello and welcome
        self.state = step(State.OPENING, Event.ACCEPTED)
        self.ref: str | int | None = None  # of the hello
        self.open = False  # welcomed and not closed
        self.writable = True
        self.saver = False
        self.flowing = False  # open, writable and not in saver mode: an event is written at once
        self.warned = False
        now = gate.hub.now
        self.since = self.heard = self.credit_at = now
        self.credit = float(gate.settings.burst)
        self.stalled = 0.0  # since when window or socket are full; 0.0 when they are not
        self.held_until = 0.0  # saver mode: when what waits must go
        self.beat_at = 0.0
        self.slot = 0
        gate.hub.opening += 1
        gate.hub.wake_at(self, time.monotonic() + gate.settings.hello_deadline_s)

    @property
    def id(self) -> str:
        return f"{self.gate.node}-{self.number}"

    # In

    def received(self, opcode: int, payload: bytes) -> None:
        """A whole message, or a ping or pong, of the device."""
        self.heard = self.hub.now
        counts = self.gate.counts
        counts.messages += 1
        try:
            if opcode != self.codec.opcode:
                if opcode not in (frames.PING, frames.PONG):
                    raise Close(4400, f"{self.codec.subprotocol} has no messages of this kind")
                self._charge()
                return
            data = self.codec.decode(payload)
            if not self.open:
                self._early(data)
            elif data.get("t") != "ack":
                self._charge()
                self._obey(data)
            elif not self._ack(data):
                self._charge()
        except Close as close:
            self.close(close.code, close.reason)

    def _obey(self, data: dict[str, Any]) -> None:
        """Do what a message asks; the session survives whatever is wrong with it."""
        try:
            message = messages.parse(data)
            HANDLERS[type(message)](self, message)
        except Refused as refused:
            self._refuse(refused, messages.ref_of(data))

    def _refuse(self, refused: Refused, ref: str | int | None) -> None:
        self.gate.counts.errors[refused.code] += 1
        self.send(messages.error(refused.code, refused.detail, feed=refused.feed, ref=ref))

    def _charge(self) -> None:
        """Contract: "120 messages a minute sustained, bursts of 60, pings and pongs included"."""
        settings, now = self.gate.settings, self.hub.now
        credit = min(settings.burst, self.credit + (now - self.credit_at) * settings.rate / 60) - 1
        self.credit, self.credit_at = credit, now
        if credit < 0:
            raise Close(4529, f"more than {settings.rate} messages a minute")

    # Hello

    def _early(self, data: dict[str, Any]) -> None:
        """Before the welcome: "anything but a good `hello` at first closes with 4400"."""
        self._charge()
        if self.state is State.JOINING:
            assert self.pending is not None
            self.pending.append(data)  # bounded by the rate limit
            return
        try:
            message = messages.parse(data)
        except Refused as refused:
            raise Close(4400, refused.detail) from None
        if not isinstance(message, messages.Hello):
            raise Close(4400, "the first message must be hello")
        self._hello(message)

    def _hello(self, hello: messages.Hello) -> None:
        gate, hub = self.gate, self.hub
        gate.counts.hellos += 1
        claims = gate.verifier.verify(hello.token, time.time(), hello.device)
        if gate.too_old(hello.agent):
            raise Close(4426, "this version of the program is too old")
        if gate.hellos.take((claims.account, hello.device), hub.now) > 0:
            raise Close(4529, f"more than {gate.settings.hellos} hellos a minute")
        self.claims, self.account, self.device = claims, claims.account, hello.device
        self.agent = sys.intern(hello.agent) if hello.agent else None  # many devices, few programs
        self.saver = hello.mode == "saver"
        self.state = step(self.state, Event.HELLO)
        self.pending, self.ref, self.since = [], hello.ref, time.monotonic()
        own = f"account:{claims.account}"
        wanted, faults = [own], []
        for name in dict.fromkeys(hello.feeds):
            try:
                if name != own:
                    self._allow(name, len(wanted))
                    wanted.append(name)
            except Refused as refused:
                faults.append(refused)
        # Said after the welcome; the rest of the hello is good.
        self.pending += [{"refused": fault} for fault in faults]
        hub.join(
            self,
            Join(
                account=claims.account,
                device=hello.device,
                feeds=tuple(wanted),
                resume={name: position for name, position in hello.resume.items() if name in wanted},
                fresh=hello.fresh,
                agent=hello.agent,
                now=time.time(),
            ),
        )

    def _allow(self, name: str, already: int) -> None:
        """May this session follow one more feed of this name? Raises Refused."""
        kind, _, key = name.partition(":")
        if kind == "account":
            raise Refused("forbidden", "the feed belongs to another account", name)
        if kind == "ops" and (self.claims is None or opsfeeds.SCOPE not in self.claims.scopes):
            raise Refused("forbidden", "the feed is for tokens with the scope ops", name)
        if name not in opsfeeds.TYPES and (kind != "agency" or key not in self.gate.agencies):
            raise Refused("unknown_feed", "there is no such feed", name)
        if already > self.gate.settings.feeds:  # the account's own is not counted
            raise Refused("limit", f"a session follows up to {self.gate.settings.feeds} feeds", name)

    def joined(self, result: Joined, time_text: str) -> None:
        """The store knows the device and where its feeds start: welcome it and go on from there."""
        if self.state is not State.JOINING:
            return  # it left meanwhile
        gate, hub, claims = self.gate, self.hub, self.claims
        assert claims is not None
        for other in hub.sessions_of(self.account):
            if other.device == self.device:
                other.close(4409, "a newer session of this device")
        self.state = step(self.state, Event.JOINED)
        hub.opening -= 1
        hub.sessions += 1
        gate.counts.opened += 1
        gate.counts.hello.observe(time.monotonic() - self.since)
        self.open = True
        self.flowing = self.writable and not self.saver
        self.follows = tuple(hub.add(self, start) for start in result.starts)
        settings = gate.settings
        out = [
            messages.welcome(
                session=self.id,
                account=self.account,
                new=result.new,
                time=time_text,
                expires=format_time(claims.exp),
                window=settings.window,
                limits={
                    "feeds": settings.feeds,
                    "message": settings.message_bytes,
                    "rate": settings.rate,
                    "backoff": round(settings.backoff_s),
                },
                feeds=[_beginning(start, result.epoch) for start in result.starts],
                ref=self.ref,
            )
        ]
        out += [self._resync(start, result.epoch) for start in result.starts if start.reason]
        if hub.draining:
            out.append(messages.drain(settings.drain_s))
        level = [follow for follow in self.follows if follow.sent >= follow.feed.head]
        for follow in level:
            follow.level = True
            out.append(messages.live(follow.feed.name))
        self.out.write(b"".join([self.codec.message_frame(message) for message in out]))
        if len(level) < len(self.follows):
            for follow in self.follows:
                hub.pump(follow)
        period = settings.saver_beat_s if self.saver else settings.beat_s
        # "At a random point of the first 25 s": sessions of one storm do not beat together.
        now = time.monotonic()
        self.beat_at = now + random.random() * period  # noqa: S311 - spreads load, guards nothing
        self._plan(now)
        pending, self.pending = self.pending, None
        for data in pending or ():
            if isinstance(data.get("refused"), Refused):
                self._refuse(data["refused"], None)
            elif self.open and data.get("t") == "ack":
                self._ack(data)
            elif self.open:
                self._obey(data)

    def _resync(self, start: Start, epoch: str) -> dict[str, Any]:
        assert start.reason is not None
        self.gate.counts.resyncs[start.reason] += 1
        return messages.resync(start.feed, epoch, start.offset, start.reason)

    # What a device asks

    def find(self, feed: str) -> Follow | None:
        for follow in self.follows:
            if follow.feed.name == feed:
                return follow
        return None

    def _ack(self, data: dict[str, Any]) -> bool:
        """True when it freed window space; only then it is not counted against the rate."""
        ack = messages.parse_ack(data)
        if isinstance(ack, Refused):
            self._refuse(ack, messages.ref_of(data))
            return False
        follow = self.find(ack.feed)
        try:
            # "One for a feed not followed is ignored."
            if follow is None:
                return False
            if not follow.ack(ack.offset):
                if follow.owing and ack.offset == follow.acked:
                    follow.owing = False  # the snapshot of a resync is kept, and with it all up to here
                    self.hub.acked(follow)
                return False
        except PastTold as error:
            self._refuse(Refused("invalid", str(error), ack.feed), ack.ref)
            return False
        counts, feed = self.gate.counts, follow.feed
        counts.acks += 1
        entry = feed.entries.get(ack.offset) if feed.entries else None
        if entry is not None:
            counts.to_ack[entry.priority].observe(time.time() - entry.recorded)
        self.hub.acked(follow)
        if self.stalled:
            self._unstall()
        if follow.sent < feed.head and not follow.held:
            self.hub.pump(follow)
        return True

    def _seen(self, message: messages.Seen) -> None:
        follow = self.find(message.feed)
        if follow is None:
            raise Refused("unknown_feed", "the feed is not followed", message.feed)
        if any(offset > follow.sent for offset in message.offsets):
            raise Refused("invalid", f"offsets: told up to {follow.sent}", message.feed)
        offsets = [offset for offset in message.offsets if offset > 0]
        if not offsets:
            return
        self.gate.counts.seen += len(offsets)
        if message.feed.startswith("account:"):
            self.hub.was_seen(message.feed, offsets)
        self.gate.spawn(self._share_seen(message.feed, offsets))

    async def _share_seen(self, feed: str, offsets: list[int]) -> None:
        payload = {"k": "seen", "origin": self.id, "account": self.account, "feed": feed, "offsets": offsets}
        try:
            await self.hub.bus.announce(orjson.dumps(payload))
        except BusUnavailable:
            self.hub.share_seen(self.id, self.account, feed, offsets)  # those here at least; the mark itself is stored

    def _change(self, work: Callable[[Any], Coroutine[Any, Any, None]], message: messages.Message) -> None:
        """Feeds are taken and left in the order in which the device asks for it: the last word counts."""
        self.changing = self.gate.spawn(self._in_turn(self.changing, work, message))

    async def _in_turn(
        self,
        before: asyncio.Task[None] | None,
        work: Callable[[Any], Coroutine[Any, Any, None]],
        message: messages.Message,
    ) -> None:
        if before is not None:
            await asyncio.wait((before,))
        await work(message)
        if self.changing is asyncio.current_task():
            self.changing = None
            if not self.open:
                self.follows = ()

    def _subscribe(self, message: messages.Subscribe) -> None:
        self._change(self._follow, message)

    async def _follow(self, message: messages.Subscribe) -> None:
        follow = self.find(message.feed)
        try:
            if follow is None:
                if not self.open:
                    return
                self._allow(message.feed, len(self.follows))
                start = await self.hub.follow(self, message.feed, message.resume)
                if not self.open:
                    return
                self._allow(message.feed, len(self.follows))  # another token may be in force by now
                follow = self.hub.add(self, start)
                self.follows += (follow,)
            else:
                # Asked twice: it is followed once, and goes on from where it is.
                start = Start(message.feed, follow.feed.head, follow.sent)
                follow.level = False
        except Refused as refused:
            self._refuse(refused, message.ref)
        except StoreUnavailable:
            self._refuse(Refused("unavailable", "the store does not answer, ask again", message.feed), message.ref)
        else:
            epoch = self.hub.store.epoch
            self.send(
                messages.subscribed(feed=start.feed, epoch=epoch, head=start.head, from_=start.offset, ref=message.ref)
            )
            if start.reason:
                self.send(self._resync(start, epoch))
            self.hub.pump(follow)

    def _unsubscribe(self, message: messages.Unsubscribe) -> None:
        if not message.feed.startswith(("agency:", opsfeeds.PREFIX)):
            raise Refused("forbidden", "only feeds of agencies and operators can be left", message.feed)
        self._change(self._unfollow, message)

    async def _unfollow(self, message: messages.Unsubscribe) -> None:
        follow = self.find(message.feed)
        try:
            await self.hub.unfollow(follow, self.account, self.device, message.feed)
        except StoreUnavailable:
            self._refuse(Refused("unavailable", "the store does not answer, ask again", message.feed), message.ref)
        else:
            if follow is not None:
                self.hub.remove(follow)
                self.follows = tuple(other for other in self.follows if other is not follow)
            self.send(messages.unsubscribed(message.feed, ref=message.ref))

    def _mode(self, message: messages.Mode) -> None:
        saver = message.mode == "saver"
        if saver != self.saver:
            self.saver = saver
            self.flowing = self.writable and not saver
            if not saver:
                self._release()
            settings, now = self.gate.settings, time.monotonic()
            self.beat_at = min(self.beat_at, now + (settings.saver_beat_s if saver else settings.beat_s))
            self._plan(now)
        self.send(messages.mode(message.mode, ref=message.ref))

    def _refresh(self, message: messages.Refresh) -> None:
        self.send(messages.refresh(message.source, "failed", reason="unsupported", ref=message.ref))

    def _token(self, message: messages.Token) -> None:
        """Contract: "A refused `token` is `error`, the old one stays"."""
        try:
            claims = self.gate.verifier.verify(message.token, time.time(), self.device)
        except Close as refusal:
            raise Refused("unavailable" if refusal.code == 4503 else "forbidden", refusal.reason) from None
        if claims.account != self.account:
            raise Refused("forbidden", "the token belongs to another account")
        if opsfeeds.SCOPE not in claims.scopes and any(follow.feed.name in opsfeeds.TYPES for follow in self.follows):
            raise Refused("forbidden", "feeds are followed that are for tokens with the scope ops")
        self.claims, self.warned = claims, False
        self.send(messages.renewed(format_time(claims.exp), ref=message.ref))
        self._plan(time.monotonic())

    def _ping(self, message: messages.Ping) -> None:
        self.send(messages.pong(ref=message.ref))

    def _again(self, message: messages.Hello) -> None:
        raise Refused("invalid", "hello was said already")

    # Out

    def send(self, message: dict[str, Any]) -> None:
        """Write one message of our own. Bounded: each answers a message of the device or a timer."""
        if self.open:
            self.out.write(self.codec.message_frame(message))

    def paused(self) -> None:
        """The transport's buffer is full."""
        self.writable = self.flowing = False
        if self.open:
            self.gate.counts.socket_stalls += 1
            self.stall()

    def resumed(self) -> None:
        """The transport takes more: go on where each feed stands."""
        self.writable = True
        self.flowing = self.open and not self.saver
        if self.open:
            self._unstall()
            for follow in self.follows:
                if not follow.held:
                    self.hub.pump(follow)

    def stall(self) -> None:
        """Window or socket are full. After the write deadline the session is cut; it loses nothing."""
        if not self.stalled:
            self.stalled = time.monotonic()
            if self.writable:
                self.gate.counts.window_stalls += 1
            self.hub.wake_at(self, self.stalled + self.gate.settings.write_deadline_s)

    def _full(self) -> bool:
        window = self.hub.window
        return not self.writable or any(follow.room(window) <= 0 for follow in self.follows)

    def _unstall(self) -> None:
        if self.stalled and not self._full():
            self.stalled = 0.0

    def hold(self) -> None:
        """Saver mode: something waits from now on."""
        if not self.held_until:
            self.held_until = time.monotonic() + self.gate.settings.saver_wait_s
            self.hub.wake_at(self, self.held_until)

    def _release(self) -> None:
        """Let go what waits."""
        self.held_until = 0.0
        for follow in self.follows:
            if follow.held:
                follow.held = False
                self.hub.pump(follow)

    # Time

    def check(self, now: float) -> None:
        """Do what is due at this monotonic time, and say when to be called again."""
        if not self.open:
            if self.state is State.HELLO:
                if now - self.since >= self.gate.settings.hello_deadline_s:
                    self.close(4508, "no hello in time")
                else:
                    self.hub.wake_at(self, self.since + self.gate.settings.hello_deadline_s)
            return None
        settings = self.gate.settings
        period = settings.saver_beat_s if self.saver else settings.beat_s
        assert self.claims is not None
        left = self.claims.exp - time.time()
        if left <= 0:
            return self.close(4401, "the token ended")
        if now - self.heard > 2 * period + 1:
            return self.close(4508, "nothing was heard for two beats")
        if self._full():
            self.stall()
        else:
            self.stalled = 0.0  # a full feed was left, for one
        if self.stalled and now - self.stalled >= settings.write_deadline_s:
            return self.close(4508, "the window or the socket stayed full")
        if left <= EXPIRING_S and not self.warned:
            self.warned = True
            self.send(messages.expiring(max(1, round(left))))
        if self.held_until and now >= self.held_until:
            self._release()
        if now >= self.beat_at:
            self._beat(now, period)
        self._plan(now)
        return None

    def _beat(self, now: float, period: float) -> None:
        """Contract: "`beat` … in one write with a WebSocket ping"."""
        self.beat_at = now + period
        if self.writable:
            self.gate.counts.beats += 1
            beat = messages.beat({follow.feed.name: follow.feed.checked for follow in self.follows}, period)
            self.out.write(self.codec.message_frame(beat) + PING)

    def _plan(self, now: float) -> None:
        assert self.claims is not None
        left = self.claims.exp - time.time()
        settings = self.gate.settings
        silent_at = self.heard + 2 * (settings.saver_beat_s if self.saver else settings.beat_s) + 1
        due = min(self.beat_at, silent_at, now + (left if self.warned else left - EXPIRING_S))
        if self.stalled:
            due = min(due, self.stalled + settings.write_deadline_s)
        if self.held_until:
            due = min(due, self.held_until)
        self.hub.wake_at(self, due)

    # The end

    def drain(self, after: float) -> None:
        """Contract: "reconnect at a random moment within `after` s; delivery goes on until then"."""
        if self.state is State.LIVE:
            self.state = step(self.state, Event.DRAIN)
            self.send(messages.drain(after))

    def close(self, code: int, reason: str) -> None:
        """End the session with a close code. Repeating it is harmless."""
        if self.state not in ENDED:
            self._leave(Event.CLOSE_SENT, code, reason)
            self.link.close(code, reason)

    def lost(self, code: int) -> None:
        """The peer closed with `code`, or the connection broke (1006)."""
        if self.state not in ENDED:
            if code == 1006:
                self._leave(Event.LOST, code, "connection lost")
            else:
                self._leave(Event.CLOSE_RECEIVED, code, "by the device")

    def _leave(self, event: Event, code: int, reason: str) -> None:
        was_open, self.open, self.flowing = self.open, False, False
        self.state = step(self.state, event)
        self.gate.counts.closed[code] += 1
        if was_open:
            self.hub.sessions -= 1
            for follow in self.follows:
                self.hub.remove(follow)
            if self.changing is None:
                self.follows = ()  # they hold the session: without this only the garbage collector would free it
            self.hub.left(self)
        else:
            self.hub.opening -= 1
        if 4400 <= code < 4500 or code in (4508, 4529):
            who = logs.who(self.account) if self.account else None
            client = self.client or self.link.peer()
            log.info("session_closed", who=who, session=self.id, client=client, code=code, reason=reason)


def _beginning(start: Start, epoch: str) -> dict[str, Any]:
    return {"feed": start.feed, "epoch": epoch, "head": start.head, "from": start.offset}


HANDLERS: dict[type, Callable[[Session, Any], None]] = {
    messages.Hello: Session._again,
    messages.Seen: Session._seen,
    messages.Subscribe: Session._subscribe,
    messages.Unsubscribe: Session._unsubscribe,
    messages.Mode: Session._mode,
    messages.Refresh: Session._refresh,
    messages.Token: Session._token,
    messages.Ping: Session._ping,
}

"""The client against scripted gateways over real sockets; its decisions without any."""

import asyncio
import itertools
import random
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from websockets.asyncio.server import serve

from client_sim import client as module
from client_sim.client import (
    Client,
    Feed,
    Hole,
    Message,
    NotConnected,
    Notebook,
    Numbered,
    Position,
    Stopped,
    advice,
)
from gateway.protocol.codec import by_subprotocol
from tests.client_sim.cases import ACCOUNT, CASES, PATIENCE_S, Case, Outcome, Peer, Rig, closing, event

# Decisions


def feed(start: int = 10, **more: Any) -> Feed:
    return Feed(ACCOUNT, "e1", start, received=start, kept=start, acked=start, **more)


def test_a_feed_takes_what_is_next_and_drops_repeats():
    one = feed()
    assert one.take([(11, event(11)), (12, None)]) == [(11, event(11)), (12, None)]
    assert one.take([(11, event(11)), (12, None), (13, event(13))]) == [(13, event(13))]


def test_a_feed_never_skips():
    with pytest.raises(Hole):
        feed().take([(12, event(12))])


def test_what_is_kept_already_is_acknowledged_and_not_kept_again():
    one = feed()
    one.kept = 12
    assert one.take([(11, event(11)), (12, event(12)), (13, event(13))]) == [(13, event(13))]
    assert one.due() == 12
    one.kept = 13
    assert one.due() == 13


def test_while_a_snapshot_is_due_nothing_is_kept_or_acknowledged():
    one = feed(loading=True)
    assert one.take([(11, event(11)), (12, event(12))]) == []
    assert one.due() is None
    assert one.loaded(11) == [(12, event(12))]
    one.kept = 12
    assert one.due() == 12


def test_an_ack_never_passes_what_came():
    one = feed(loading=True)
    one.acked = 9
    assert one.loaded(50) == []  # the snapshot is ahead of the socket
    assert one.due() == 10


def test_two_beats_with_a_head_above_show_a_loss():
    one = feed()
    assert [one.stuck(10), one.stuck(11), one.stuck(11)] == [False, False, True]


def test_events_or_an_owed_ack_between_beats_are_no_loss():
    one = feed()
    assert not one.stuck(12)
    one.take([(11, event(11))])
    assert not one.stuck(12)
    one.kept = 11  # an ack is owed: the gateway may be waiting for it
    assert not one.stuck(12)
    one.acked = 11
    assert [one.stuck(12), one.stuck(12)] == [False, True]


@pytest.mark.parametrize(
    ("code", "what"),
    [(4400, "once"), (4401, "token")]
    + [(code, "stop") for code in (4403, 4409, 4410, 4426, 4499)]
    + [(code, "again") for code in (None, 1000, 1001, 1006, 1011, 1012, 4503, 4508, 4512, 4529, 4599)],
)
def test_the_range_of_a_close_code_says_what_to_do(code, what):
    assert advice(code) == what


def test_a_notebook_survives_a_restart(tmp_path: Path):
    path = tmp_path / "phone.json"
    one = Notebook(path)
    one.keep("agency:mchs", Position("e1", 4), [(4, event(4, "/agencies/mchs"))])
    one.replace(ACCOUNT, Position("e1", 9), {"positions": {}})
    other = Notebook(path)
    assert other.positions() == {"agency:mchs": Position("e1", 4), ACCOUNT: Position("e1", 9)}
    assert other.knows("/agencies/mchs", "e4")
    assert not other.knows("/agencies/mchs", "e5")


# The table


class Kept(Notebook):
    """A keeper that writes down what it was given."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self._positions = {feed: Position(*position) for feed, position in case.has.items()}
        self._known = {("/agencies/mvd", f"e{offset}"): None for offset in case.knows}
        self.events: list[tuple[str, int]] = []

    def keep(self, feed: str, position: Position, events: Sequence[Numbered]) -> None:
        self.events += [(feed, offset) for offset, _ in events]
        super().keep(feed, position, events)


class Chance(random.Random):
    """Dice that always show the same."""

    def __init__(self, shown: float):
        super().__init__()
        self.shown = shown

    def random(self) -> float:
        return self.shown


class Hurried:
    """`asyncio` for a client whose seconds are shorter than others'."""

    def __init__(self, hurry: float):
        self.hurry = hurry

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds * self.hurry)

    def timeout(self, seconds: float) -> asyncio.Timeout:
        return asyncio.timeout(seconds * self.hurry)

    def get_running_loop(self) -> Any:
        return SimpleNamespace(time=lambda: asyncio.get_running_loop().time() / self.hurry)


class Ours:
    """Our own client at work against a script."""

    def __init__(self, address: str, case: Case):
        self.tokens = (f"token-{n}" for n in itertools.count())
        self.lost: list[tuple[int, float]] = []
        self.keeper = Kept(case)
        self.client = Client(
            address,
            device="d1",
            token=self.token,
            keeper=self.keeper,
            feeds=case.feeds,
            mode=case.mode,  # type: ignore[arg-type]
            subprotocol=case.subprotocol,
            observe=self.observe,
            rng=Chance(case.chance),
        )
        self.task = asyncio.create_task(self.client.run())

    async def token(self) -> str:
        return next(self.tokens)

    def observe(self, t: str, message: Message) -> None:
        if t == "lost":
            self.lost.append((message["code"] or 0, message["wait"]))

    async def subscribe(self, feed: str) -> None:
        await self.client.subscribe(feed)

    async def unsubscribe(self, feed: str) -> None:
        await self.client.unsubscribe(feed)

    async def seen(self, feed: str, offsets: list[int]) -> None:
        await self.client.ask("seen", feed=feed, offsets=offsets)

    async def leave(self) -> None:
        self.task.cancel()

    async def outcome(self, *, stops: bool) -> Outcome:
        """Ends it, if it does not end by itself."""
        if stops:
            await asyncio.wait([self.task], timeout=PATIENCE_S)
        self.task.cancel()
        (ended,) = await asyncio.gather(self.task, return_exceptions=True)
        if not isinstance(ended, Stopped | asyncio.CancelledError):
            raise ended or AssertionError("it ended")
        code = ended.code if isinstance(ended, Stopped) else None
        positions = {feed: tuple(position) for feed, position in self.keeper.positions().items()}
        return Outcome(self.keeper.events, positions, self.lost, code)  # type: ignore[arg-type]


async def play(case: Case, monkeypatch: pytest.MonkeyPatch) -> Outcome:
    """Our client, until the script is at its end."""
    monkeypatch.setattr(module, "asyncio", Hurried(case.hurry))
    rig = Rig(case)
    known: Any = list(by_subprotocol)
    async with serve(rig.serve, "127.0.0.1", 0, subprotocols=known, process_request=rig.http) as server:
        host, port = server.sockets[0].getsockname()[:2]
        rig.hand = ours = Ours(f"http://{host}:{port}", case)
        try:
            await rig.finished()
            return await ours.outcome(stops=case.stopped is not None)
        finally:
            ours.task.cancel()
            rig.check()


@pytest.mark.parametrize("name", CASES)
async def test_what_the_contract_asks_of_every_device(name: str, monkeypatch: pytest.MonkeyPatch):
    CASES[name].judge(await play(CASES[name], monkeypatch))


# What a browser cannot do, or has no need to


@pytest.mark.parametrize("code", [4403, 4410])
async def test_what_stopped_it_is_told_with_its_reason(code: int, monkeypatch: pytest.MonkeyPatch):
    rig = Rig(Case([closing(code)]))
    known: Any = list(by_subprotocol)
    async with serve(rig.serve, "127.0.0.1", 0, subprotocols=known, process_request=rig.http) as server:
        host, port = server.sockets[0].getsockname()[:2]
        ours = Ours(f"http://{host}:{port}", rig.case)
        rig.hand = ours
        with pytest.raises(Stopped) as caught:
            await asyncio.wait_for(ours.task, PATIENCE_S)
    assert (caught.value.code, caught.value.reason) == (code, "why")


async def test_retry_after_outranks_the_backoff(monkeypatch: pytest.MonkeyPatch):
    """A browser does not show it to a page."""

    async def act(peer: Peer) -> None:
        await peer.welcome()

    outcome = await play(Case([act], refusals=[(503, {"Retry-After": "3"})], chance=0.5, hurry=0.01), monkeypatch)
    assert outcome.lost == [(0, 3)]


async def test_a_gateway_that_is_away_is_tried_again(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(module, "asyncio", Hurried(0.01))
    ours = Ours("http://127.0.0.1:1", Case([], chance=0.5))
    async with asyncio.timeout(PATIENCE_S):
        while len(ours.lost) < 3:
            await asyncio.sleep(0.01)
    outcome = await ours.outcome(stops=False)
    assert outcome.lost[:3] == [(0, 0.5), (0, 1), (0, 2)]
    with pytest.raises(NotConnected):
        await ours.client.send("ping")

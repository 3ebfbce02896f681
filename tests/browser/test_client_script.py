"""`vestnik-client` on Node against a scripted gateway: the table of cases that every device is held to."""

import asyncio
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import serve

from gateway.protocol.codec import by_subprotocol
from tests.browser.conftest import Node
from tests.client_sim.cases import CASES, Case, Outcome, Peer, Rig, event


class Theirs:
    """The client in JavaScript, at work against a script."""

    def __init__(self, node: Node):
        self.node = node

    async def _do(self, name: str, what: Any = None) -> None:
        await self.node.tell(name, what)
        await self.node.until("did", lambda done: done == name)

    async def subscribe(self, feed: str) -> None:
        await self._do("subscribe", feed)

    async def unsubscribe(self, feed: str) -> None:
        await self._do("unsubscribe", feed)

    async def seen(self, feed: str, offsets: list[int]) -> None:
        await self._do("seen", [feed, offsets])

    async def leave(self) -> None:
        await self.node.tell("stop")

    async def outcome(self, *, stops: bool) -> Outcome:
        if stops:
            await self.node.until("state", lambda state: state["name"] == "stopped")
        await self.node.tell("positions")
        kept = await self.node.until("positions")
        said = self.node.said
        states = [what for kind, what in said if kind == "state"]
        return Outcome(
            kept=[(what["feed"], what["offset"]) for kind, what in said if kind == "kept"],
            positions={feed: (at["epoch"], at["offset"]) for feed, at in kept.items()},
            lost=[(state["code"], state["wait"]) for state in states if state["name"] == "waiting"],
            stopped=next((state["code"] for state in states if state["name"] == "stopped"), None),
        )


async def play(modules: Path, case: Case) -> Outcome:
    """The client, until the script is at its end."""
    rig = Rig(case)
    kept = {
        feed: [{"epoch": epoch, "offset": offset}, [[n, event(n)] for n in case.knows if feed.startswith("agency:")]]
        for feed, (epoch, offset) in case.has.items()
    }
    options = {"device": "d1", "kept": kept, "feeds": case.feeds, "mode": case.mode, "subprotocol": case.subprotocol}
    known: Any = list(by_subprotocol)
    async with serve(rig.serve, "127.0.0.1", 0, subprotocols=known, process_request=rig.http) as server:
        host, port = server.sockets[0].getsockname()[:2]
        given: dict[str, Any] = {**options, "hurry": case.hurry, "chance": case.chance}
        async with Node(modules, address=f"http://{host}:{port}", **given) as node:
            rig.hand = theirs = Theirs(node)
            await node.tell("start")
            try:
                await rig.finished()
                return await theirs.outcome(stops=case.stopped is not None)
            finally:
                rig.check()


@pytest.mark.parametrize("name", CASES)
async def test_what_the_contract_asks_of_every_device(modules: Path, name: str):
    CASES[name].judge(await play(modules, CASES[name]))


async def test_a_gateway_that_is_away_is_tried_again(modules: Path):
    given: dict[str, Any] = {"device": "d1", "hurry": 0.01, "chance": 0.5}
    async with Node(modules, address="http://127.0.0.1:1", **given) as node:
        await node.tell("start")
        waits = [await node.until("state", lambda state: state["name"] == "waiting") for _ in range(3)]
    assert [(state["code"], state["wait"]) for state in waits] == [(0, 0.5), (0, 1), (0, 2)]


async def test_a_connection_that_is_dead_is_noticed_soon_when_somebody_looks(modules: Path):
    async def dead(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("beat", heads={}, next=3600)
        await peer.hand.subscribe("agency:mchs")
        await peer.told("subscribe")  # it has read as far as here
        await node.tell("retry")
        await peer.closed()

    async def second(peer: Peer) -> None:
        await peer.welcome()

    rig = Rig(Case([dead, second]))
    known: Any = list(by_subprotocol)
    async with serve(rig.serve, "127.0.0.1", 0, subprotocols=known, process_request=rig.http) as server:
        host, port = server.sockets[0].getsockname()[:2]
        kept = {"account:anna": [{"epoch": "e1", "offset": 0}, []]}
        given: dict[str, Any] = {"device": "d1", "kept": kept, "hurry": 0.1, "chance": 0}
        async with Node(modules, address=f"http://{host}:{port}", **given) as node:
            rig.hand = Theirs(node)
            await node.tell("start")
            await rig.finished()
            ended = await node.until("state", lambda state: state["name"] == "waiting")
            assert ended["reason"] == "silence"


async def test_a_network_that_is_back_does_not_outrank_what_the_gateway_said(modules: Path):
    came: list[float] = []

    async def act(peer: Peer) -> None:
        came.append(time.monotonic())
        await peer.welcome(5, new=True)
        await (peer.closed() if len(came) == 1 else peer.acked(5))

    rig = Rig(Case([act, act], snapshots=[(503, {"Retry-After": "15"}), ("e1", 5)]))
    known: Any = list(by_subprotocol)
    async with serve(rig.serve, "127.0.0.1", 0, subprotocols=known, process_request=rig.http) as server:
        host, port = server.sockets[0].getsockname()[:2]
        given: dict[str, Any] = {"device": "d1", "kept": {}, "hurry": 0.1, "chance": 0}
        async with Node(modules, address=f"http://{host}:{port}", **given) as node:
            rig.hand = Theirs(node)
            await node.tell("start")
            waiting = await node.until("state", lambda state: state["name"] == "waiting")
            assert waiting["wait"] == 15
            await node.tell("event", "online")
            await rig.finished()
    assert came[1] - came[0] > 0.9 * 15 * 0.1


async def test_offline_and_online_are_obeyed_at_once(modules: Path):
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("live", feed="account:anna")
        await node.live()
        await node.tell("event", "offline")
        await peer.closed()
        await node.until("state", lambda state: state["name"] == "offline")
        await node.tell("event", "online")

    async def second(peer: Peer) -> None:
        await peer.welcome()

    rig = Rig(Case([first, second]))
    known: Any = list(by_subprotocol)
    async with serve(rig.serve, "127.0.0.1", 0, subprotocols=known, process_request=rig.http) as server:
        host, port = server.sockets[0].getsockname()[:2]
        kept = {"account:anna": [{"epoch": "e1", "offset": 0}, []]}
        given: dict[str, Any] = {"device": "d1", "kept": kept, "hurry": 1000, "chance": 0.5}
        async with Node(modules, address=f"http://{host}:{port}", **given) as node:
            rig.hand = Theirs(node)
            await node.tell("start")
            await rig.finished()


async def test_the_person_need_not_wait_for_the_next_try(modules: Path):
    async def stay(peer: Peer) -> None:
        await peer.welcome()

    rig = Rig(Case([stay], refusals=[(503, {})]))
    known: Any = list(by_subprotocol)
    async with serve(rig.serve, "127.0.0.1", 0, subprotocols=known, process_request=rig.http) as server:
        host, port = server.sockets[0].getsockname()[:2]
        given: dict[str, Any] = {"device": "d1", "kept": {}, "hurry": 1000, "chance": 0.5}
        async with Node(modules, address=f"http://{host}:{port}", **given) as node:
            rig.hand = Theirs(node)
            await node.tell("start")
            await node.until("state", lambda state: state["name"] == "waiting")
            await node.tell("retry")
            async with asyncio.timeout(10):
                await rig.finished()

"""`vestnik-client` on Node against a scripted gateway: the cases of `tests/client_sim/test_client.py`, one by one, for
what a real gateway does too seldom to wait for."""

import asyncio
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.server import serve

from gateway.protocol.codec import by_subprotocol
from tests.browser.conftest import Node
from tests.client_sim.test_client import ACCOUNT, Peer, Rig, event

KEPT = {ACCOUNT: [{"epoch": "e1", "offset": 0}, []]}  # a device that is not new


async def play(modules: Path, *script: Any, rig: Rig | None = None, wait: str | None = None, **options: Any) -> Node:
    """Run the client until the script is at its end, or until it is in the state `wait`; what it said."""
    rig = rig or Rig(script)
    ended = asyncio.Semaphore(0)  # a session may begin before the one before it has ended

    def counted(act: Any) -> Any:
        async def whole(peer: Peer) -> None:
            try:
                await act(peer)
            finally:
                ended.release()

        return whole

    rig.script = [counted(act) for act in script]
    given = {"token": "token-0", "device": "d1", "kept": KEPT, "chance": 0, **options}
    kinds: Any = list(by_subprotocol)
    async with serve(rig.serve, "127.0.0.1", 0, subprotocols=kinds, process_request=rig.http) as server:
        host, port = server.sockets[0].getsockname()[:2]
        async with Node(modules, address=f"http://{host}:{port}", **given) as node:
            await node.tell("start")
            if wait is not None:
                await node.until("state", lambda state: state["name"] == wait)
            else:
                async with asyncio.timeout(20):
                    for _ in script:
                        await ended.acquire()
                        assert rig.failure is None, repr(rig.failure)
            await node.tell("positions")
            await node.until("positions")
    if rig.failure is not None:
        raise rig.failure
    return node


def kept(node: Node) -> list[int]:
    return [what["offset"] for kind, what in node.said if kind == "kept"]


def positions(node: Node) -> Any:
    return next(what for kind, what in reversed(node.said) if kind == "positions")


def lost(node: Node) -> list[tuple[int, float]]:
    return [(what["code"], what["wait"]) for kind, what in node.said if kind == "state" and what["name"] == "waiting"]


@pytest.mark.parametrize("subprotocol", by_subprotocol)
async def test_it_keeps_what_comes_and_acknowledges_it(modules: Path, subprotocol: str):
    rig = Rig([])
    rig.answers["/v1/snapshot"] = [snapshot_at(0)]
    rig.answers[recent_at(0)] = [PAGE]

    async def act(peer: Peer) -> None:
        assert peer.connection.subprotocol == subprotocol
        hello = await peer.welcome(new=True)
        agent = {"mode": "full", "agent": "vestnik-client/1.0"}
        assert hello == {"t": "hello", "token": "token-0", "device": "d1", "fresh": True, **agent}
        await peer.events(1, 2)
        await peer.send("batch", feed=ACCOUNT, events=[[3, event(3)], [4, None]])
        await peer.send("something-new", x=1)
        while (await peer.receive())["offset"] != 4:
            pass

    node = await play(modules, act, rig=rig, subprotocol=subprotocol, kept={})
    assert kept(node) == [1, 2, 3, 4]
    assert positions(node) == {ACCOUNT: {"epoch": "e1", "offset": 4}}


def snapshot_at(offset: int) -> Any:
    whole: Any = {"applications": [], "records": [], "notices": [], "agencies": []}
    return {"positions": {ACCOUNT: {"epoch": "e1", "offset": offset}}, **whole}


def recent_at(offset: int) -> str:
    return f"/v1/feeds/{ACCOUNT}/events?limit=100&before={offset + 1}"


PAGE: Any = {"feed": ACCOUNT, "epoch": "e1", "oldest": 1, "head": 0, "events": [], "next": None}


async def test_it_resumes_after_what_it_keeps(modules: Path):
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.events(1, 2, 3)
        await peer.acked(3)
        await peer.connection.close(4503, "restored")

    async def second(peer: Peer) -> None:
        hello = await peer.welcome(3, 5)
        assert hello["resume"] == {ACCOUNT: {"epoch": "e1", "offset": 3}}
        assert "fresh" not in hello
        await peer.events(3, 4, 5)
        await peer.acked(5)

    node = await play(modules, first, second)
    assert kept(node) == [1, 2, 3, 4, 5]
    assert lost(node) == [(4503, 0)]


async def test_it_acknowledges_at_least_every_64_events(modules: Path):
    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.events(*range(1, 65))
        await peer.acked(64)

    await play(modules, act, hurry=100)  # its timers are too late


async def test_a_new_device_loads_a_snapshot_that_covers_its_start(modules: Path):
    rig = Rig([])
    rig.answers["/v1/snapshot"] = [snapshot_at(4), snapshot_at(7)]  # the first is too old: fetch again
    rig.answers[recent_at(7)] = [PAGE]

    async def act(peer: Peer) -> None:
        await peer.welcome(5, 8, new=True)
        await peer.events(6, 7, 8)
        await peer.acked(8)

    node = await play(modules, act, rig=rig, kept={})
    assert kept(node) == [8]


async def test_a_resync_loads_the_snapshot_and_only_then_acknowledges(modules: Path):
    rig = Rig([])
    rig.answers["/v1/snapshot"] = [snapshot_at(20)]
    rig.answers[recent_at(20)] = [PAGE]

    async def act(peer: Peer) -> None:
        hello = await peer.welcome(20, 20)
        assert hello["resume"] == {ACCOUNT: {"epoch": "e0", "offset": 3}}
        await peer.send("resync", feed=ACCOUNT, epoch="e1", offset=20, reason="epoch")
        await peer.acked(20)
        await peer.events(21)
        await peer.acked(21)

    node = await play(modules, act, rig=rig, kept={ACCOUNT: [{"epoch": "e0", "offset": 3}, []]})
    assert kept(node) == [21]
    assert positions(node) == {ACCOUNT: {"epoch": "e1", "offset": 21}}


async def test_a_resync_of_an_agency_feed_pages_through_its_history(modules: Path):
    name = "agency:mchs"
    rig = Rig([])
    head = {"feed": name, "epoch": "e1", "oldest": 1, "head": 4}
    path = f"/v1/feeds/{name}/events?limit=500&"
    rig.answers[path + "after=0"] = [head | {"events": [[1, event(1)], [2, event(2)]], "next": "p2"}]
    rig.answers[path + "page=p2"] = [head | {"events": [[3, event(3)], [4, None]], "next": None}]

    async def act(peer: Peer) -> None:
        hello = await peer.welcome(4, 4, feed=name)
        assert hello["feeds"] == [name]
        await peer.send("resync", feed=name, epoch="e1", offset=4, reason="epoch")
        await peer.events(5, feed=name)
        await peer.acked(5)

    before = {**KEPT, name: [{"epoch": "e0", "offset": 2}, [[2, event(2)]]]}
    node = await play(modules, act, rig=rig, kept=before, feeds=[name])
    assert kept(node) == [1, 3, 4, 5]


async def test_a_fresh_device_that_keeps_an_agency_feed_resumes_it_after_the_welcome(modules: Path):
    name = "agency:mchs"
    rig = Rig([])
    rig.answers["/v1/snapshot"] = [snapshot_at(5)]
    rig.answers[recent_at(5)] = [PAGE]

    async def act(peer: Peer) -> None:
        hello = await peer.welcome(5, 5, new=True)
        assert hello["fresh"]
        assert not hello.keys() & {"resume", "feeds"}
        assert await peer.receive() == {"t": "subscribe", "feed": name, "resume": {"epoch": "e1", "offset": 2}}
        await peer.send("subscribed", feed=name, epoch="e1", head=4, **{"from": 2})
        await peer.events(3, 4, feed=name)
        told: dict[str, int] = {}
        while told != {ACCOUNT: 5, name: 4}:
            ack = await peer.receive()
            told[ack["feed"]] = ack["offset"]

    before = {name: [{"epoch": "e1", "offset": 2}, [[2, event(2)]]]}
    node = await play(modules, act, rig=rig, kept=before, feeds=[name])
    assert kept(node) == [3, 4]


async def test_a_hole_makes_it_reconnect_and_resume(modules: Path):
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.events(1, 3)
        await peer.acked(1)
        await peer.closed()

    async def second(peer: Peer) -> None:
        assert (await peer.receive())["resume"] == {ACCOUNT: {"epoch": "e1", "offset": 1}}

    node = await play(modules, first, second)
    assert kept(node) == [1]


async def test_two_beats_above_what_came_make_it_reconnect(modules: Path):
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("beat", heads={ACCOUNT: 1}, next=25)
        await peer.send("beat", heads={ACCOUNT: 1}, next=25)
        await peer.closed()

    async def second(peer: Peer) -> None:
        await peer.welcome()

    await play(modules, first, second)


async def test_silence_makes_it_reconnect(modules: Path):
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("beat", heads={}, next=5)
        await peer.closed()

    async def second(peer: Peer) -> None:
        await peer.welcome()

    node = await play(modules, first, second, hurry=0.05)
    assert [what["reason"] for kind, what in node.said if kind == "state" and what["name"] == "waiting"] == ["silence"]


@pytest.mark.parametrize("code", [4403, 4409, 4410, 4426])
async def test_it_stops_where_reconnecting_would_not_help(modules: Path, code: int):
    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.connection.close(code, "why")

    node = await play(modules, act, wait="stopped")
    stopped = next(what for kind, what in node.said if kind == "state" and what["name"] == "stopped")
    assert (stopped["code"], stopped["reason"]) == (code, "why")
    assert lost(node) == []


async def test_a_bad_message_is_tried_once_more_after_a_minute(modules: Path):
    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.connection.close(4400, "what?")

    node = await play(modules, act, act, wait="stopped", hurry=0.01)
    assert lost(node) == [(4400, 60)]


async def test_a_refused_token_is_replaced_at_once(modules: Path):
    async def first(peer: Peer) -> None:
        assert (await peer.receive())["token"] == "token-0"
        await peer.connection.close(4401, "ended")

    async def second(peer: Peer) -> None:
        assert (await peer.receive())["token"] == "token-1"

    # It is asked once more before: by the account in a token the kept things are named.
    node = await play(modules, first, second, token=["token-0", "token-0", "token-1"], chance=0.5)
    assert lost(node) == [(4401, 0)]


async def test_tokens_that_stay_refused_stop_it(modules: Path):
    async def act(peer: Peer) -> None:
        await peer.receive()
        await peer.connection.close(4401, "wrong")

    node = await play(modules, act, act, act, wait="stopped", token=[f"token-{n}" for n in range(9)])
    assert lost(node) == [(4401, 0)] * 3


async def test_an_expiring_token_is_renewed(modules: Path):
    async def act(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("expiring", **{"in": 60})
        assert await peer.receive() == {"t": "token", "token": "token-1"}
        await peer.send("renewed", expires="2026-03-01T09:00:00Z")

    await play(modules, act, token=["token-0", "token-0", "token-1"])


async def test_a_drain_moves_it_on_within_the_announced_time(modules: Path):
    async def first(peer: Peer) -> None:
        await peer.welcome()
        await peer.send("drain", after=0.05)
        await peer.events(1)
        await peer.acked(1)
        await peer.closed()

    async def second(peer: Peer) -> None:
        assert (await peer.receive())["resume"] == {ACCOUNT: {"epoch": "e1", "offset": 1}}

    node = await play(modules, first, second, chance=0.5)
    assert lost(node) == [(0, 0)]


async def test_the_pauses_double_with_full_jitter(modules: Path):
    async def act(peer: Peer) -> None:
        await peer.connection.close(1012)

    node = await play(modules, *[act] * 7, chance=0.5, hurry=0.01)
    assert lost(node)[:6] == [(1012, 0.5 * 2**n) for n in range(6)]


async def test_a_refused_handshake_is_tried_again(modules: Path):
    rig = Rig([])
    rig.refusals = [(503, {}), (403, {})]

    async def act(peer: Peer) -> None:
        await peer.welcome()

    node = await play(modules, act, rig=rig)
    assert lost(node) == [(0, 0), (0, 0)]

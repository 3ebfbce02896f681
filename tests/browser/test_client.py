"""`vestnik-client` on Node against a real gateway: what the contract asks of a device, in both subprotocols."""

import asyncio
import gzip
import json
import os
import random
import re
import subprocess
import time
from dataclasses import replace
from pathlib import Path

import pytest

from client_sim.agencies import AGENCIES, Desk
from client_sim.local import command
from tests.browser.conftest import CLIENT, Node, World

pytestmark = pytest.mark.asyncio(loop_scope="module")
BUILT = CLIENT / "vestnik-client.js"
BOTH = ("vestnik.v1.json", "vestnik.v1.msgpack")


def device(world: World, modules: Path, account: str, **options: object) -> Node:
    given = {"address": world.address, "token": world.token(account), "device": f"{account}-node"}
    return Node(modules, **(given | options))


async def test_what_is_served_is_what_the_sources_make(modules: Path, tmp_path: Path):
    subprocess.run(["node", str(CLIENT / "build.mjs"), str(modules), str(tmp_path)], check=True, timeout=60)
    assert (tmp_path / "vestnik-client.js").read_text() == BUILT.read_text(), "run: make client"
    assert (tmp_path / "vestnik-client.d.ts").read_text() == (CLIENT / "vestnik-client.d.ts").read_text()


async def test_it_is_small_and_depends_on_nothing():
    assert len(gzip.compress(BUILT.read_bytes(), 9)) < 10_000
    assert not re.search(r"^import |\bimport\(|require\(", BUILT.read_text(), re.MULTILINE)
    package = json.loads((CLIENT / "package.json").read_text())
    assert "dependencies" not in package
    assert all(re.fullmatch(r"[0-9.]+", version) for version in package["devDependencies"].values())
    assert "resolved" not in (CLIENT / "package-lock.json").read_text()


async def test_the_package_runs_as_its_readme_says(world: World, modules: Path, tmp_path: Path):
    person = world.person()
    readme = (CLIENT.parent / "README.md").read_text("utf-8")
    (example,) = (block for block in re.findall(r"```js\n(.*?)```", readme, re.DOTALL) if '"vestnik-client"' in block)
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "ws").symlink_to(modules / "node_modules" / "ws")
    (tmp_path / "node_modules" / "vestnik-client").symlink_to(CLIENT)
    here = example.replace("http://127.0.0.1:8080", world.address)
    rest = (
        'client.on("events", ({ events }) => { console.log(events[0][0]); process.exit(0); });\nawait client.start();\n'
    )
    live = 'client.on("state", ({ name }) => name === "live" && console.log(name));\n'
    (tmp_path / "example.mjs").write_text(here + live + rest)
    process = await asyncio.create_subprocess_exec(
        "node",
        str(tmp_path / "example.mjs"),
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "TOKEN": world.token(person)},
    )
    assert process.stdout is not None
    try:
        async with asyncio.timeout(20):
            assert await process.stdout.readline() == b"live\n"
            await world.publish(world.notice(person))
            assert await process.stdout.readline() == b"1\n"
            assert await process.wait() == 0
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()


@pytest.mark.parametrize("subprotocol", BOTH)
async def test_a_new_device_loads_the_snapshot_and_keeps_what_comes(world: World, modules: Path, subprotocol: str):
    person = world.person()
    await world.publish(world.status(person, "processing"), world.notice(person))
    async with device(world, modules, person, subprotocol=subprotocol) as node:
        await node.tell("start")
        replaced = await node.until("replaced")
        assert replaced["position"]["offset"] == 2
        assert replaced["applications"] == 1
        await node.live()
        (hello,) = node.sent("hello")
        assert hello["fresh"] is True
        assert "resume" not in hello
        (offset,) = await world.publish(world.status(person, "approved", text="Ёж 🦔", n=-1234567890123, f=0.5))
        sent = time.monotonic()
        assert (await node.until("kept"))["offset"] == offset == 3
        event = (await _last(node, "event"))["event"]
        assert event["data"]["text"] == "Ёж 🦔"
        assert event["data"]["n"] == -1234567890123
        assert event["data"]["f"] == 0.5
        ack = await node.until(">", lambda message: message["t"] == "ack" and message["offset"] == 3)
        assert ack["feed"] == f"account:{person}"
        assert time.monotonic() - sent < 1.5
        await node.tell("snapshot")
        (state,) = (await node.until("snapshot"))["applications"]
        assert (state["status"], state["offset"], state["agency"]) == ("approved", 3, "fns")


async def _last(node: Node, t: str) -> dict[str, object]:
    return list(node.got(t))[-1]


@pytest.mark.parametrize("subprotocol", BOTH)
async def test_nothing_is_missed_or_doubled_when_the_network_drops(world: World, modules: Path, subprotocol: str):
    person = world.person()
    async with device(world, modules, person, subprotocol=subprotocol) as node:
        await node.tell("start")
        await node.live()
        await world.publish(*(world.notice(person) for _ in range(5)))
        await node.until("kept", lambda what: what["offset"] == 5)
        await world.drop()
        await node.until("state", lambda state: state["name"] == "waiting")
        await world.publish(*(world.notice(person) for _ in range(150)))
        world.back()
        await node.until("kept", lambda what: what["offset"] == 155)
        resumes = [hello["resume"][f"account:{person}"]["offset"] for hello in node.sent("hello") if "resume" in hello]
        assert resumes[-1] == 5
        assert node.kept() == list(range(1, 156))


async def test_it_acknowledges_at_least_every_64_events(world: World, modules: Path):
    person = world.person()
    async with device(world, modules, person) as node:
        await node.tell("start")
        await node.live()
        for _ in range(3):
            await world.publish(*(world.notice(person) for _ in range(100)))
        await node.until(">", lambda message: message["t"] == "ack" and message["offset"] == 300)
        assert node.kept() == list(range(1, 301))
        acks = [ack["offset"] for ack in node.sent("ack")]
        assert acks == sorted(set(acks))
        unacked = 0
        for kind, what in node.said:
            if kind == "kept":
                unacked += 1
            elif kind == ">" and what["t"] == "ack":
                unacked = 0
            assert unacked <= 64 + 100  # a batch is kept as one
        assert not list(node.got("error"))


async def test_a_position_of_another_life_of_the_store_is_resynced(world: World, modules: Path):
    person = world.person()
    await world.publish(world.status(person, "rejected"))
    kept = {f"account:{person}": [{"epoch": "another", "offset": 40}, []]}
    async with device(world, modules, person, kept=kept) as node:
        await node.tell("start")
        replaced = await node.until("replaced")
        await node.live()
        (resync,) = node.got("resync")
        assert resync["reason"] == "epoch"
        assert replaced["position"] == {"epoch": resync["epoch"], "offset": 1}
        acks = [ack["offset"] for ack in node.sent("ack")]
        assert acks in ([], [1])
        await world.publish(world.notice(person))
        await node.until("kept", lambda what: what["offset"] == 2)


async def test_a_token_that_ends_is_renewed(world: World, modules: Path):
    person = world.person()
    async with device(world, modules, person, token=world.token(person, ttl=62)) as node:
        await node.tell("start")
        await node.live()
        await node.tell("token", world.token(person, ttl=600))
        await node.until("<", lambda message: message["t"] == "expiring")
        await node.until("<", lambda message: message["t"] == "renewed")
        assert len(list(node.sent("hello"))) == 1


async def test_a_refused_token_stops_it_until_there_is_another(world: World, modules: Path):
    person = world.person()
    async with device(world, modules, person, token="a.b.c") as node:
        await node.tell("start")
        stopped = await node.until("state", lambda state: state["name"] == "stopped")
        assert stopped["code"] == 4401
        assert len(list(node.sent("hello"))) == 1
        await node.tell("token", world.token(person))
        await node.tell("retry")
        await node.live()


async def test_a_revoked_sign_in_stops_it(world: World, modules: Path):
    person = world.person()
    async with device(world, modules, person) as node:
        await node.tell("start")
        await node.live()
        await command("revoke", "--sub", person, environment=world.gateway.environment)
        stopped = await node.until("state", lambda state: state["name"] == "stopped")
        assert stopped["code"] == 4410


async def test_saver_takes_batches_and_acknowledges_at_once(world: World, modules: Path):
    person = world.person()
    async with device(world, modules, person, mode="saver") as node:
        await node.tell("start")
        await node.live()
        await world.publish(*(world.notice(person) for _ in range(3)))
        await node.until(">", lambda message: message["t"] == "ack" and message["offset"] == 3)
        assert [len(batch["events"]) for batch in node.got("batch")] == [3]
        assert next(node.sent("hello"))["mode"] == "saver"


async def test_an_agency_feed_is_followed_and_resumed(world: World, modules: Path):
    person = world.person()
    notice = {"title": "Гололедица", "text": "Увеличьте дистанцию"}
    async with device(world, modules, person) as node:
        await node.tell("start")
        await node.live()
        await node.tell("subscribe", "agency:mchs")
        await node.until("<", lambda message: message["t"] == "live" and message["feed"] == "agency:mchs")
        (offset,) = await world.publish(world.event("gov.notice.published", notice, None, "mchs"), code="mchs")
        await node.until("kept", lambda what: what["feed"] == "agency:mchs" and what["offset"] == offset)
        await world.drop()
        await node.until("state", lambda state: state["name"] == "waiting")
        (later,) = await world.publish(world.event("gov.notice.published", notice, None, "mchs"), code="mchs")
        world.back()
        await node.until("kept", lambda what: what["feed"] == "agency:mchs" and what["offset"] == later)


async def test_what_one_device_shows_the_other_knows(world: World, modules: Path):
    person = world.person()
    async with device(world, modules, person) as one, device(world, modules, person, device="other") as other:
        for node in (one, other):
            await node.tell("start")
            await node.live()
        await world.publish(world.notice(person))
        await one.until("kept")
        await other.until("kept")
        await one.tell("seen", [f"account:{person}", [1]])
        assert (await other.until("<", lambda message: message["t"] == "seen"))["offsets"] == [1]
        await other.tell("snapshot")
        assert (await other.until("snapshot"))["notices"][0]["seen"] is True


async def test_what_a_device_makes_of_the_events_is_what_the_gateway_makes_of_them(world: World, modules: Path):
    person = world.person()
    rng = random.Random(7)
    desks = [Desk(replace(agency, code="fns"), [person], rng) for agency in AGENCIES if agency.code != "mchs"]
    async with device(world, modules, person) as node:
        await node.tell("start")
        await node.live()
        for _ in range(10):
            await world.publish(*(rng.choice(desks).next(time.time()) for _ in range(20)))
        await node.until("kept", lambda what: what["offset"] == 200)
        await node.tell("snapshot")
        mine = await node.until("snapshot")
    headers = {"authorization": f"Bearer {world.token(person)}"}
    theirs = (await world.http.get(f"{world.direct}/v1/snapshot", headers=headers)).json()
    for part in ("applications", "records", "notices"):
        ours = {item["offset"]: item for item in mine[part]}
        assert [item["offset"] for item in theirs[part]] == sorted(ours)
        for item in theirs[part]:
            own = ours[item["offset"]]
            assert own == own | {name: value for name, value in item.items() if name in own}
            assert set(item) - set(own) <= {"title"}  # one that the gateway takes from the type
    assert mine["agencies"] == theirs["agencies"]


async def test_it_leaves_a_node_that_goes_away_and_comes_back(world: World, modules: Path):
    person = world.person()
    async with device(world, modules, person) as node:
        await node.tell("start")
        await node.live()
        await world.publish(world.notice(person))
        await node.until("kept")
        await world.gateway.stop()
        assert list(node.got("drain")) or await node.until("<", lambda message: message["t"] == "drain")
        await world.gateway.start()
        await world.publish(world.notice(person))
        await node.until("kept", lambda what: what["offset"] == 2)
        assert node.kept() == [1, 2]

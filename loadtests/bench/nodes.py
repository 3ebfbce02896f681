"""Cases of several nodes on one PostgreSQL and one Redis, as issue 3 bounds them. Not part of the default run."""

import asyncio
import itertools
import json
import os
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from loadtests.bench.agency import Agency
from loadtests.bench.cases import JSON, PUBLIC, Row, Say, Scale, chunks, known, phones, warm_up
from loadtests.bench.phones import Swarm
from loadtests.bench.processes import Failed, Gateway, of_tree
from loadtests.bench.roamers import Roamer, Sent, delays, level_s, missing, post_steadily, verdict
from loadtests.bench.servers import Postgresql, Redis

RATE = 300  # events a second
DRAIN_S = 5
USUAL_S = 1.0  # an event that takes longer from its 202 to the device counts as late


@dataclass(slots=True)
class Cluster:
    """Nodes that run and know the agency, one `Agency` for each of them."""

    postgresql: Postgresql
    redis: Redis
    data: Path  # where the key of the tokens is, for all of them
    settings: dict[str, str]
    nodes: list[Gateway] = field(default_factory=list)
    agencies: list[Agency] = field(default_factory=list)
    secret: str = ""
    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    async def add(self, count: int) -> None:
        """So many more nodes."""
        settings = {"store": self.postgresql.url, "bus": self.redis.url, **self.settings}
        new = [Gateway(settings, self.data) for _ in range(count)]
        self.nodes += new
        await asyncio.gather(*(node.started() for node in new))
        if not self.secret:
            self.secret = await new[0].agency("bench")
        agencies = [Agency(node.port, "bench", self.secret, numbers=self.numbers) for node in new]
        self.agencies += agencies
        await asyncio.gather(*map(known, agencies))

    async def remove(self, count: int) -> None:
        """End the last ones."""
        for node in self.nodes[-count:]:
            await node.__aexit__(None, None, None)
        for agency in self.agencies[-count:]:
            agency.close()
        del self.nodes[-count:], self.agencies[-count:]

    async def calm(self) -> None:
        await asyncio.gather(*(node.calm() for node in self.nodes))

    def cpu_s(self) -> dict[str, float]:
        """So far: of the nodes together, and of the servers."""
        return {
            "nodes": sum(node.cpu_s for node in self.nodes),
            "redis": self.redis.tree_s,
            "postgresql": self.postgresql.tree_s,
        }


@asynccontextmanager
async def cluster(count: int, **settings: str) -> AsyncIterator[Cluster]:
    async with AsyncExitStack() as stack:
        data = Path(stack.enter_context(TemporaryDirectory(prefix="vestnik-bench-data-")))
        made = Cluster(
            await stack.enter_async_context(Postgresql()), await stack.enter_async_context(Redis()), data, settings
        )
        try:
            await made.add(1)  # makes the tables and the key of the tokens
            if count > 1:
                await made.add(count - 1)
            yield made
        finally:
            await made.remove(len(made.nodes))


# Idle sessions


async def aside(*words: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "loadtests.bench.aside", *words),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=1 << 20,
        env={**os.environ, **of_tree()},
    )


async def idle(scale: Scale, say: Say) -> list[Row]:
    """Sessions with two feeds on four nodes, held by four processes."""
    count = scale.far
    async with cluster(4) as made, AsyncExitStack() as stack:
        for number, (node, agency) in enumerate(zip(made.nodes, made.agencies, strict=True)):
            await warm_up(node, agency, f"w{number}-")
        crowds = []
        for number, node in enumerate(made.nodes):
            accounts = [f"n{number}-{at:05d}" for at in range(count)]
            given = {"accounts": accounts, "tokens": await node.tokens(accounts)}
            crowd = await aside("idle", str(node.port))
            stack.callback(end, crowd)
            crowds.append((crowd, json.dumps(given).encode() + b"\n"))
        await made.calm()
        before, rss = made.cpu_s(), [node.rss_bytes for node in made.nodes]
        say(f"opening 4 x {count} sessions")
        begun = time.perf_counter()
        await asyncio.gather(*(tell(crowd, line, "ready") for crowd, line in crowds))
        seconds = time.perf_counter() - begun
        await made.calm()
        spent = {name: value - before[name] for name, value in made.cpu_s().items()}
        grown = [node.rss_bytes - was for node, was in zip(made.nodes, rss, strict=True)]
        held = sum([int(await tell(crowd, b"\n")) for crowd, _ in crowds])
    detail = {
        "kB_by_node": [round(value / count / 1000, 2) for value in grown],
        "connect_s": round(seconds, 1),
        "cpu_ms_per_connect": {name: round(1e3 * value / 4 / count, 3) for name, value in spent.items()},
    }
    return [
        Row(f"memory per idle session, {held} sessions on 4 nodes", sum(grown) / held / 1000, "kB", 6.0, detail=detail),
        Row("… still connected after the measurement", held, "sessions", 4 * count, at_least=True),
        Row("… CPU of its node per connect", 1e3 * spent["nodes"] / 4 / count, "ms"),
    ]


async def tell(process: asyncio.subprocess.Process, line: bytes, expected: str = "") -> str:
    """Its answer to a line."""
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write(line)
    answer = (await process.stdout.readline()).decode().strip()
    if not answer or (expected and answer != expected):
        raise Failed(f"a process of the generator said {answer or 'nothing'!r}")
    return answer


def end(process: asyncio.subprocess.Process) -> None:
    if process.returncode is None:
        process.kill()


# Nodes that have nobody for an event


async def cost(scale: Scale, say: Say) -> list[Row]:
    """The same steady load, posted on one node for devices on another, without and with six more nodes that have other
    devices. CPU of a quiet stretch of the same length is taken off: polls and leases are no cost of an event."""
    per_event: dict[int, list[float]] = {2: [], 8: []}
    nodes_only: dict[int, list[float]] = {2: [], 8: []}
    bystanders: list[float] = []
    parts: dict[int, list[dict[str, float]]] = {2: [], 8: []}
    async with cluster(2) as made:
        await warm_up(made.nodes[0], made.agencies[1])
        swarm = Swarm("events", made.nodes[0].port, "/v1/socket", JSON)
        swarm.acking = True
        await swarm.connect(await phones(made.nodes[0], swarm, 500), 200)
        accounts = [phone.account for phone in swarm.phones]

        async def load() -> int:
            """50 batches of 20 a second, as many as fit; how many events. All acknowledged at the end."""
            batches, begun = chunks(accounts, 20), time.perf_counter()
            target, times = swarm.count, int(50 * scale.seconds)
            for number in range(times):
                await made.agencies[1].post([made.agencies[0].personal(one) for one in batches[number % len(batches)]])
                await asyncio.sleep(max(0.0, begun + number / 50 - time.perf_counter()))
            target += 20 * times
            await swarm.until(lambda: swarm.count >= target)
            return 20 * times

        async def turn(size: int, counted: bool) -> None:
            await made.calm()
            await asyncio.sleep(1)
            idle_at, idle_others, begun = made.cpu_s(), sum(node.cpu_s for node in made.nodes[2:]), time.perf_counter()
            await asyncio.sleep(scale.seconds)
            quiet = time.perf_counter() - begun
            load_at, load_others, begun = made.cpu_s(), sum(node.cpu_s for node in made.nodes[2:]), time.perf_counter()
            events = await load()
            await asyncio.sleep(0.3)
            share = (time.perf_counter() - begun) / quiet
            now, others = made.cpu_s(), sum(node.cpu_s for node in made.nodes[2:])
            if not counted:
                return
            us = {
                name: 1e6 * (now[name] - load_at[name] - share * (load_at[name] - idle_at[name])) / events
                for name in now
            }
            parts[size].append({name: round(value, 1) for name, value in us.items()})
            per_event[size].append(sum(us.values()))
            nodes_only[size].append(us["nodes"])
            if size > 2:
                bystanders.append(1e6 * (others - load_others - share * (load_others - idle_others)) / events)

        await turn(2, False)
        for repeat in range(scale.repeats):
            say(f"2 nodes, {repeat + 1} of {scale.repeats}")
            await turn(2, True)
            say(f"8 nodes, {repeat + 1} of {scale.repeats}")
            await made.add(6)
            crowds = []
            for number, node in enumerate(made.nodes[2:]):
                crowd = Swarm("others", node.port, "/v1/socket", JSON)
                crowd.acking = True
                await crowd.connect(await phones(node, crowd, 100, f"o{repeat}{number}-"), 100)
                crowds.append(crowd)
            await turn(8, True)
            for crowd in crowds:
                crowd.check()
                await crowd.close()
            await made.remove(6)
        await swarm.close()
    two, eight = median(per_event[2]), median(per_event[8])
    detail = {"us_per_event": {"2": parts[2], "8": parts[8]}}
    return [
        Row(
            "CPU per event, 8 nodes of which 6 have nobody for it, against 2: nodes, Redis, PostgreSQL",
            eight / two,
            "x",
            1.15,
            reference=f"{two:.0f} us",
            detail=detail,
        ),
        Row(
            "… of the nodes alone",
            median(nodes_only[8]) / median(nodes_only[2]),
            "x",
            1.15,
            reference=f"{median(nodes_only[2]):.0f} us",
        ),
        Row("… of the six nodes together", median(bystanders), "us"),
    ]


# Devices that roam


@asynccontextmanager
async def roaming(made: Cluster, count: int, say: Say) -> AsyncIterator[tuple[list[Roamer], list[Swarm], Sent]]:
    """Devices on all nodes, and an agency that posts `RATE` events a second to all nodes by turns. At the end of the
    block the agency stops, and the devices get what they lack."""
    swarms = [Swarm(f"node {number}", node.port, "/v1/socket", JSON) for number, node in enumerate(made.nodes)]
    for swarm in swarms:
        swarm.acking = True
    accounts = [f"r{number:05d}" for number in range(count)]
    devices = [
        Roamer(swarms, number % len(swarms), account, token, [PUBLIC])
        for number, (account, token) in enumerate(zip(accounts, await made.nodes[0].tokens(accounts), strict=True))
    ]
    say(f"opening {count} sessions on {len(swarms)} nodes")
    for number, swarm in enumerate(swarms):
        await swarm.connect([device for device in devices if device.node == number], 250)
    sent, stop = Sent(), asyncio.Event()
    agency = asyncio.create_task(post_steadily(made.agencies, accounts, RATE, stop, sent))
    try:
        await asyncio.sleep(2)
        yield devices, swarms, sent
        await asyncio.sleep(2)
        stop.set()
        await agency
        if sent.refused:
            raise Failed(f"{len(sent.refused)} events were taken by no node: {sent.refused[0]}")
        await reach(lambda: not missing(sent, devices), 60, swarms)
        await asyncio.sleep(1)  # for what comes twice
        for swarm in swarms:
            swarm.check()
    finally:
        agency.cancel()
        for device in devices:
            device.leave()


async def reach(condition: Callable[[], bool], patience_s: float, swarms: Sequence[Swarm]) -> bool:
    """Wait for something that takes tenths of seconds; False when time is up."""
    until = time.monotonic() + patience_s
    while not condition():
        for swarm in swarms:
            swarm.check()
        if time.monotonic() > until:
            return False
        await asyncio.sleep(0.05)
    return True


async def restart(scale: Scale, say: Say) -> list[Row]:
    """Each of three nodes gets SIGTERM, ends, and starts again, one after the other."""
    backs: list[float] = []
    codes: list[int] = []
    ends: list[float] = []
    async with cluster(3, drain_s=str(DRAIN_S)) as made:
        await warm_up(made.nodes[0], made.agencies[1])
        async with roaming(made, scale.roamers, say) as (devices, swarms, sent):
            for number, node in enumerate(made.nodes):
                say(f"restart of node {number + 1} of 3")
                leavers = [device for device in devices if device.node == number]
                begun = time.monotonic()
                stopping = asyncio.create_task(node.terminate(DRAIN_S + 30))
                if not await reach(
                    lambda leavers=leavers, begun=begun: all(device.live_at > begun for device in leavers),  # type: ignore[misc]
                    60,
                    swarms,
                ):
                    away = sum(device.live_at <= begun for device in leavers)
                    raise Failed(f"{away} of {len(leavers)} devices were not back within 60 s")
                backs.append(max(device.live_at for device in leavers) - begun)
                codes.append(await stopping)
                ends.append(time.monotonic() - begun)
                await node.start_again()
                await known(made.agencies[number])
        lost, repeated, reordered = verdict(sent, devices)
        total = sum(map(len, sent.events.values()))
    detail = {
        "last_device_back_s": [round(value, 2) for value in backs],
        "process_ended_s": [round(value, 2) for value in ends],
        "exit_codes": codes,
        "events": total,
        "posts_repeated": sent.again,
        "repeats_before_dedupe": sum(swarm.repeats for swarm in swarms),
    }
    what = f"3 nodes restart, {scale.roamers} devices, {RATE} events/s: last device back (spread {DRAIN_S} s)"
    return [
        Row(what, max(backs), "s", DRAIN_S + 5, detail=detail),
        Row(f"… of {total} events lost", lost, "events", 0),
        Row("… reordered", reordered, "events", 0),
        Row("… repeated after dedupe", repeated, "events", 0),
        Row("… exit codes that are not 0", sum(code != 0 for code in codes), "", 0),
    ]


async def redis(scale: Scale, say: Say) -> list[Row]:
    """Redis is killed under load, stays away for 2 s, and comes back empty. Settings are the defaults."""
    away: list[float] = []
    levels: list[float] = []
    worst: list[float] = []
    async with cluster(3) as made:
        await warm_up(made.nodes[0], made.agencies[1])
        async with roaming(made, scale.roamers, say) as (devices, swarms, sent):
            for repeat in range(2):
                say(f"restart {repeat + 1} of 2")
                begun = time.monotonic()
                await made.redis.kill()
                await asyncio.sleep(2)
                await made.redis.start()
                back = time.monotonic()
                away.append(back - begun)
                await asyncio.sleep(15)
                late = lateness(sent, devices, begun, back + 15)
                levels.append(level_s(late, back, USUAL_S))
                worst.append(max((delay for _, delay in late), default=0.0))
        lost, repeated, reordered = verdict(sent, devices)
        everything = lateness(sent, devices, 0.0, time.monotonic())
        total = sum(map(len, sent.events.values()))
    detail = {
        "level_s": [round(value, 2) for value in levels],
        "redis_away_s": [round(value, 2) for value in away],
        "largest_delay_s": [round(value, 2) for value in worst],
        "largest_delay_of_all_s": round(max(delay for _, delay in everything), 2),
        "late_events": sum(delay > USUAL_S for _, delay in everything),
        "events": total,
        "repeats_before_dedupe": sum(swarm.repeats for swarm in swarms),
    }
    what = f"Redis restarted under {RATE} events/s, {scale.roamers} devices on 3 nodes: all level with the store after"
    return [
        Row(what, max(levels), "s", 10.0, detail=detail),
        Row("… largest delay from the 202 to the device", detail["largest_delay_of_all_s"], "s"),  # type: ignore[arg-type]
        Row(f"… of {total} events lost, reordered or repeated after dedupe", lost + reordered + repeated, "events", 0),
    ]


def lateness(sent: Sent, devices: Sequence[Roamer], begin: float, until: float) -> list[tuple[float, float]]:
    """(when received, seconds after the answer) of the events answered in that time. One that is missing counts as
    received at the end."""
    answered = {name: at for events in sent.events.values() for _, name, at in events if begin <= at < until}
    got = {name: at for device in devices for _, name, at in device.got}
    return delays(answered, {name: got.get(name, until) for name in answered})


# The store


async def append(scale: Scale, say: Say) -> list[Row]:
    """Batches of 100 from two processes at once, straight into the store; then through two gateways."""
    seconds = 2 * scale.seconds
    rates: list[float] = []
    stored = 0
    async with cluster(2) as made, AsyncExitStack() as stack:
        for repeat in range(scale.repeats):
            say(f"store, {repeat + 1} of {scale.repeats}")
            pair = []
            for name in ("a", "b"):
                words = (made.postgresql.url, "100", "4", str(seconds), f"{name}{repeat}")
                process = await aside("append", *words)
                stack.callback(end, process)
                pair.append(process)
            for process in pair:
                assert process.stdout is not None
                if (await process.stdout.readline()).strip() != b"ready":
                    raise Failed("an appender could not open the store")
            answers = [answer.split() for answer in await asyncio.gather(*(tell(process, b"\n") for process in pair))]
            stored += sum(int(done) for done, _ in answers)
            rates.append(sum(int(done) for done, _ in answers) / max(float(took) for _, took in answers))
        say("through two gateways")
        numbers = [0, 0]

        async def poster(at: int, until: float) -> None:
            while time.perf_counter() < until:
                numbers[at] += 100
                first = numbers[at]
                maker = made.agencies[0]
                events = [maker.personal(f"{(first + n) * 7919 % 100_000}") for n in range(100)]
                await made.agencies[at].post(events)

        begun = time.perf_counter()
        await asyncio.gather(*(poster(at % 2, begun + seconds) for at in range(8)))
        through = sum(numbers) / (time.perf_counter() - begun)
        stored += sum(numbers)
        found = await made.postgresql.one(
            "SELECT count(*) FROM vestnik.events AS e JOIN vestnik.feeds AS f ON f.id = e.feed"
            " WHERE f.name LIKE 'account:%'"  # not the events that gateways make for operators
        )
    detail = {"rates": [round(value) for value in rates]}
    return [
        Row(
            "PostgreSQL appends, two processes at once, 4 batches of 100 under way on each",
            median(rates),
            "1/s",
            3000,
            at_least=True,
            detail=detail,
        ),
        Row("… through two gateways, signed, with bus and relay", through, "1/s"),
        Row(f"… of {stored} events not in the table afterwards", stored - found, "events", 0),
    ]


CASES: dict[str, Callable[[Scale, Say], Awaitable[list[Row]]]] = {
    "nodes-idle": idle,
    "nodes-cost": cost,
    "nodes-restart": restart,
    "nodes-append": append,
    "nodes-redis": redis,
}

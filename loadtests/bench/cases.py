"""The cases: what is done, what is measured, and the bound that makes it pass."""

import asyncio
import math
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from statistics import median
from typing import Any

from loadtests.bench.agency import Agency, Http
from loadtests.bench.phones import Counter, Phone, Swarm
from loadtests.bench.processes import Gateway, Server, reference
from loadtests.disk import looking

JSON = "vestnik.v1.json"
PUBLIC = "agency:bench"

Say = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class Scale:
    """How much of each; `FULL` is what the bounds speak of."""

    sockets: int = 5_000
    idle: int = 10_000
    devices: int = 2_000
    blocks: int = 5  # of the fan-out, each of `events` events to all sockets
    events: int = 8
    repeats: int = 3
    seconds: float = 4.0  # of a steady load
    far: int = 10_000  # idle sessions on each of four nodes
    roamers: int = 3_000


FULL = Scale()
QUICK = Scale(
    sockets=1_500, idle=3_000, devices=1_000, blocks=3, events=6, repeats=1, seconds=1.5, far=2_000, roamers=1_000
)


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table. `bound` is None for what is only told; `at_least` turns the bound around."""

    what: str
    value: float
    unit: str
    bound: float | None = None
    at_least: bool = False
    reference: str = ""
    detail: dict[str, Any] = field(default_factory=dict)

    @property
    def ok(self) -> bool | None:
        if self.bound is None:
            return None
        return self.value >= self.bound if self.at_least else self.value <= self.bound


def p99(values: Sequence[float]) -> float:
    """The smallest value that 99% do not exceed."""
    return sorted(values)[max(0, math.ceil(len(values) * 0.99) - 1)]


def chunks(items: Sequence[Any], size: int) -> list[Sequence[Any]]:
    return [items[start : start + size] for start in range(0, len(items), size)]


# What a connect costs is measured here, not the limit of how many may come in a second.
ACCEPT = {"accept_rate": "100000"}


@asynccontextmanager
async def gateway() -> AsyncIterator[tuple[Gateway, Agency]]:
    """A gateway on a fresh directory, and an agency that it knows."""
    async with Gateway(ACCEPT) as server:
        agency = Agency(server.port, "bench", await server.agency("bench"))
        await known(agency)
        try:
            yield server, agency
        finally:
            agency.close()


async def known(agency: Agency) -> None:
    """Contract: "a running gateway takes a new agency within 2 s"."""
    for _ in range(50):
        try:
            await agency.receipts(["none"])
            return
        except Exception:
            await asyncio.sleep(0.1)


async def phones(server: Gateway, swarm: Swarm, count: int, prefix: str = "a") -> list[Phone]:
    """Devices of `count` accounts that follow the agency too. Not connected."""
    accounts = [f"{prefix}{number:05d}" for number in range(count)]
    return [
        Phone(swarm, account, token, [PUBLIC])
        for account, token in zip(accounts, await server.tokens(accounts), strict=True)
    ]


async def warm_up(server: Gateway, agency: Agency, prefix: str = "w") -> None:
    """Every path once, before memory or time is taken."""
    swarm = Swarm("warm-up", server.port, "/v1/socket", JSON)
    swarm.acking = True
    some = await phones(server, swarm, 200, prefix)
    await swarm.connect(some, 200)
    await agency.post([agency.personal(phone.account) for phone in some])
    await agency.post([agency.public("warm")])
    await swarm.until(lambda: swarm.count == 400)
    await swarm.close()


# Fan-out


async def fan_out(scale: Scale, say: Say) -> list[Row]:
    """One event to everybody: ours, the loop of `send` and stock uvicorn by turns, each over as many sockets."""
    async with gateway() as (ours, agency), reference("bare") as bare, reference("stock") as stock:
        await warm_up(ours, agency)
        swarm = Swarm("ours", ours.port, "/v1/socket", JSON)
        count = scale.sockets
        say(f"connecting 3 x {count} sockets")
        await swarm.connect(await phones(ours, swarm, count), 500)
        others: list[tuple[Server, Swarm]] = []
        for server in (bare, stock):
            crowd = Swarm(server.name, server.port, "/")
            await crowd.connect([Counter(crowd, "", "") for _ in range(count)], 500)
            others.append((server, crowd))

        async def publish(times: int) -> None:
            for number in range(times):
                target = swarm.count + count
                await agency.post([agency.public(f"Объявление {number}")])
                await swarm.until(lambda target=target: swarm.count >= target)  # type: ignore[misc]

        async def blast(crowd: Swarm, http: Http, times: int) -> None:
            for _ in range(times):
                target = crowd.count + count
                await http.request("GET", f"/blast?size={swarm.size}")
                await crowd.until(lambda target=target: crowd.count >= target)  # type: ignore[misc]

        async def cost_us(server: Server, work: Awaitable[None], times: int) -> float:
            before = server.cpu_s
            await work
            await asyncio.sleep(0.02)
            return 1e6 * (server.cpu_s - before) / (times * count)

        costs: dict[str, list[float]] = {"ours": [], "bare": [], "stock": []}
        for block in range(scale.blocks + 1):  # the first is the warm-up
            say(f"block {block} of {scale.blocks}")
            times = scale.events if block else 2
            swarm.ack()  # outside of the measurement, as the device's own second of patience allows
            await ours.calm()
            row = {"ours": await cost_us(ours, publish(times), times)}
            for server, crowd in others:
                async with Http(server.port) as http:
                    row[server.name] = await cost_us(server, blast(crowd, http, times), times)
            if block:
                for name, cost in row.items():
                    costs[name].append(cost)
        await swarm.close()
    mid = {name: median(values) for name, values in costs.items()}
    ratio = {name: median(a / b for a, b in zip(costs["ours"], costs[name], strict=True)) for name in ("bare", "stock")}
    size = f"{swarm.size} byte messages"
    us = {"us_per_delivery": {name: [round(value, 2) for value in values] for name, values in costs.items()}}
    return [
        Row(f"CPU per delivery to {count} sockets, {size}", mid["ours"], "us", detail=us),
        Row("… against a bare loop of send", ratio["bare"], "x", 1.25, reference=f"{mid['bare']:.1f} us"),
        Row("… against stock uvicorn", ratio["stock"], "x", 0.65, reference=f"{mid['stock']:.1f} us"),
    ]


# Idle sessions and connecting


async def idle(scale: Scale, say: Say) -> list[Row]:
    """Sessions that do nothing, and what it took to open them."""
    count = scale.idle
    async with gateway() as (server, agency):
        await warm_up(server, agency)
        swarm = Swarm("idle", server.port, "/v1/socket", JSON)
        all_phones = await phones(server, swarm, count)
        await server.calm()
        cpu, rss = server.cpu_s, server.rss_bytes
        say(f"opening {count} sessions of new devices")
        await swarm.connect(all_phones, 500)
        await server.calm()
        new_ms = 1e3 * (server.cpu_s - cpu) / count
        kilobytes = (server.rss_bytes - rss) / count / 1000
        await swarm.close()
        for phone, token in zip(all_phones, await server.tokens([one.account for one in all_phones]), strict=True):
            phone.again(token)
        await server.calm()
        cpu = server.cpu_s
        say(f"opening {count} sessions of known devices")
        await swarm.connect(all_phones, 500)
        await server.calm()
        known_ms = 1e3 * (server.cpu_s - cpu) / count
        await swarm.close()
    say(f"opening {count // 2} sockets of stock uvicorn, which have no token and no session")
    async with reference("stock") as stock:
        crowd = Swarm("stock", stock.port, "/")
        await stock.calm()
        cpu = stock.cpu_s
        await crowd.connect([Counter(crowd, "", "") for _ in range(count // 2)], 500)
        await stock.calm()
        stock_ms = 1e3 * (stock.cpu_s - cpu) / (count // 2)
        await crowd.close()
    return [
        Row(f"memory per idle session, {count} sessions, two feeds", kilobytes, "kB", 5.0),
        Row("CPU per connect, hello, verified token, welcome", known_ms, "ms", 0.3),
        Row("… of a device never seen before", new_ms, "ms"),
        # The bound of 0.3 ms was set on a machine where a connect to stock uvicorn took 0.42 ms; the ratio holds on
        # any.
        Row(
            "… against a bare connect to stock uvicorn", known_ms / stock_ms, "x", 0.71, reference=f"{stock_ms:.3f} ms"
        ),
    ]


# Everybody comes back


async def storm(scale: Scale, say: Say) -> list[Row]:
    """All devices at once, each with three events to catch up."""
    count, lost = scale.sockets, 0
    times, cpus, ours = list[float](), list[float](), list[float]()
    async with gateway() as (server, agency):
        await warm_up(server, agency)
        swarm = Swarm("storm", server.port, "/v1/socket", JSON)
        swarm.acking = True
        all_phones = await phones(server, swarm, count)
        say(f"opening {count} sessions")
        await swarm.connect(all_phones, 500)
        for repeat in range(scale.repeats):
            await swarm.close()
            for phone, token in zip(all_phones, await server.tokens([one.account for one in all_phones]), strict=True):
                phone.again(token)
            say(f"storm {repeat + 1} of {scale.repeats}: 3 events for each of {count} devices while they are away")
            for _ in range(3):
                for part in chunks(all_phones, 1000):
                    await agency.post([agency.personal(phone.account) for phone in part])
            await server.calm()
            before = {phone: dict(phone.feeds) for phone in all_phones}
            target, begun, cpu, own = swarm.count + 3 * count, time.perf_counter(), server.cpu_s, time.process_time()
            await swarm.connect(all_phones, count)
            await swarm.until(lambda target=target: swarm.count >= target)  # type: ignore[misc]
            times.append(time.perf_counter() - begun)
            cpus.append(server.cpu_s - cpu)
            ours.append(time.process_time() - own)
            for phone in all_phones:
                feed = f"account:{phone.account}"
                lost += 3 - (phone.feeds[feed] - before[phone][feed])
        repeats = swarm.repeats
        await swarm.close()
    detail = {
        "seconds": [round(value, 3) for value in times],
        "gateway_cpu_s": [round(value, 2) for value in cpus],
        "generator_cpu_s": [round(value, 2) for value in ours],
        "lost": lost,
        "repeated": repeats,
    }
    return [
        Row(f"{count} devices reconnect at once, each 3 events behind", median(times), "s", 2.0, detail=detail),
        Row("… lost or repeated", lost + repeats, "events", 0),
    ]


# Personal events


@asynccontextmanager
async def fleet(scale: Scale, say: Say) -> AsyncIterator[tuple[Gateway, Agency, Swarm]]:
    """Devices that are caught up and acknowledge at once."""
    async with gateway() as (server, agency):
        await warm_up(server, agency)
        swarm = Swarm("fleet", server.port, "/v1/socket", JSON)
        swarm.acking = True
        say(f"opening {scale.devices} sessions")
        await swarm.connect(await phones(server, swarm, scale.devices), 500)
        yield server, agency, swarm
        await swarm.close()


async def throughput(scale: Scale, say: Say) -> list[Row]:
    """As fast as four posters get their 202s; what counts is the time until the last event is acknowledged."""
    rates, cpus = [], []
    async with fleet(scale, say) as (server, agency, swarm):
        accounts = [phone.account for phone in swarm.phones]
        batches = chunks(accounts, 100)
        last: list[str] = []

        async def poster(first: int, end: float) -> int:
            posted = number = 0
            while time.perf_counter() < end:
                events = [agency.personal(account) for account in batches[(first + 4 * number) % len(batches)]]
                await agency.post(events)
                last[:] = [event["id"] for event in events]
                posted += len(events)
                number += 1
            return posted

        for repeat in range(scale.repeats + 1):  # the first is the warm-up
            say(f"load {repeat} of {scale.repeats}")
            await server.calm()
            target, cpu, begun = swarm.count, server.cpu_s, time.perf_counter()
            end = begun + (scale.seconds if repeat else 1.0)
            posted = sum(await asyncio.gather(*(poster(first, end) for first in range(4))))
            target += posted
            await swarm.until(lambda target=target: swarm.count >= target)  # type: ignore[misc]
            if repeat:
                rates.append(posted / (time.perf_counter() - begun))
                cpus.append(1e6 * (server.cpu_s - cpu) / posted)
        for _ in range(50):
            states = [receipt.get("status") for receipt in await agency.receipts(last)]
            if set(states) == {"delivered"}:
                break
            await asyncio.sleep(0.1)
        waiting = sum(state != "delivered" for state in states)
    detail = {"rates": [round(value) for value in rates], "gateway_us_per_event": round(median(cpus), 1)}
    return [
        Row(
            f"personal events, {scale.devices} devices, signed, batches of 100, to the ack",
            median(rates),
            "1/s",
            4000,
            at_least=True,
            detail=detail,
        ),
        Row("… of the last 100, receipts not `delivered`", waiting, "events", 0),
    ]


async def steady(
    agency: Agency, swarm: Swarm, targets: Sequence[Phone], rate: int, seconds: float, public_every: int = 0
) -> list[float]:
    """Single signed posts at a steady rate, whatever the answers take; seconds from commit to each of the devices.
    After each `public_every` personal events comes one to everybody."""
    loop = asyncio.get_running_loop()
    posts: set[asyncio.Task[Any]] = set()
    latencies: list[float] = []
    swarm.latencies = latencies
    begun, expected, number = loop.time(), swarm.count, 0
    while number < rate * seconds:
        due = int((loop.time() - begun) * rate)
        while number <= due:
            posts.add(asyncio.create_task(agency.post([agency.personal(targets[number % len(targets)].account)])))
            number += 1
            expected += 1
            if public_every and number % public_every == 0:
                posts.add(asyncio.create_task(agency.post([agency.public("x" * 500)])))
                expected += len(targets)
        await asyncio.sleep(0.002)
    await asyncio.gather(*posts)
    await swarm.until(lambda: swarm.count >= expected)
    swarm.latencies = None
    return latencies


async def latency(scale: Scale, say: Say) -> list[Row]:
    """Five hundred personal events a second, one a request."""
    found: list[float] = []
    middle: list[float] = []
    disk: list[float] = []
    async with fleet(scale, say) as (server, agency, swarm):
        with looking(server.directory / "disk", disk.append):
            await steady(agency, swarm, swarm.phones, 500, 1.0)
            for repeat in range(scale.repeats):
                say(f"load {repeat + 1} of {scale.repeats}")
                await server.calm()
                values = await steady(agency, swarm, swarm.phones, 500, scale.seconds)
                found.append(1e3 * p99(values))
                middle.append(1e3 * median(values))
    detail = {"p99_ms": [round(value, 2) for value in found], "p50_ms": round(median(middle), 2)}
    return [
        Row(
            "p99 from commit to socket, 500 personal events a second",
            median(found),
            "ms",
            10.0,
            reference=f"disk {1e3 * p99(disk):.1f} ms",
            detail=detail,
        ),
        Row("… median", median(middle), "ms"),
    ]


# Devices that never read


async def slow(scale: Scale, say: Say) -> list[Row]:
    """A fifth of the devices stop reading while events go on: the others and the memory must not notice."""
    async with fleet(scale, say) as (server, agency, swarm):
        everybody = swarm.phones
        sleepers = everybody[::5]
        readers = [phone for number, phone in enumerate(everybody) if number % 5]

        async def burst(reading: int) -> int:
            """More than a window holds, to everybody, so that who does not read is stuck afterwards. Bytes by which the
            process has grown."""
            before = server.rss_bytes
            for _ in range(12):
                target = swarm.count + 25 * reading
                await agency.post([agency.public("x" * 2000) for _ in range(25)])
                await swarm.until(lambda target=target: swarm.count >= target)  # type: ignore[misc]
            await server.calm()
            return server.rss_bytes - before

        async def load(reading: Sequence[Phone]) -> float:
            rounds = [
                1e3 * p99(await steady(agency, swarm, reading, 250, scale.seconds, public_every=50))
                for _ in range(scale.repeats)
            ]
            return median(rounds)

        say("load, everybody reads")
        await burst(len(everybody))
        before_ms = await load(everybody)
        usual = await burst(len(everybody))  # the shared tail grows by what was sent, whoever reads
        say(f"{len(sleepers)} stop reading")
        for phone in sleepers:
            phone.stop_reading()
        grown = await burst(len(readers))
        say("load, a fifth does not read")
        after_ms = await load(readers)
        say("they read again")
        for phone in sleepers:
            phone.read_again()
        head = max(phone.feeds[PUBLIC] for phone in readers)
        await swarm.until(lambda: all(phone.feeds[PUBLIC] == head for phone in sleepers))
    return [
        Row(
            f"p99 of the others while {len(sleepers)} of {len(everybody)} devices do not read",
            after_ms / before_ms,
            "x",
            1.5,
            reference=f"{before_ms:.1f} ms",
            detail={"before_ms": round(before_ms, 2), "after_ms": round(after_ms, 2)},
        ),
        Row(
            "… growth of the process by 600 kB for each of them, beyond the usual",
            (grown - usual) / 1e6,
            "MB",
            4.0,
            reference=f"{usual / 1e6:.1f} MB",
        ),
    ]


CASES: dict[str, Callable[[Scale, Say], Awaitable[list[Row]]]] = {
    "fan-out": fan_out,
    "idle": idle,
    "storm": storm,
    "throughput": throughput,
    "latency": latency,
    "slow": slow,
}

"""Work of the benchmark that needs a process of its own: `python -m loadtests.bench.aside idle | append …`.

`idle PORT` reads a line of JSON, `{"accounts": […], "tokens": […]}`, connects a phone for each, prints `ready`, and at
the next line how many are still connected. Open files are counted by process, so many phones need many of these.

`append URL BATCH UNDERWAY SECONDS NAME` opens the store, prints `ready`, and after a line of stdin appends batches as
fast as they are committed; it prints how many events, and in how many seconds.
"""

import asyncio
import hashlib
import itertools
import sys
import time

import orjson
import uvloop

from gateway.store.base import Draft, Stored
from gateway.store.postgresql import PostgresqlStore
from loadtests.bench.cases import JSON, PUBLIC
from loadtests.bench.phones import Broken, Phone, Swarm

PATIENCE_S = 150.0
EVENT = (
    b'{"specversion":"1.0","id":"%b","source":"/agencies/bench","type":"gov.status.changed","time":"2026-11-22T14:00:00Z",'
    b'"data":{"application":"%b","service":"passport","status":"processing","title":"Application accepted"}}'
)


async def _line() -> bytes:
    return await asyncio.to_thread(sys.stdin.buffer.readline)


async def idle(port: int) -> None:
    """Phones that do nothing but answer pings."""
    swarm = Swarm("idle", port, "/v1/socket", JSON)
    swarm.acking = True
    given = orjson.loads(await _line())
    phones = [
        Phone(swarm, account, token, [PUBLIC])
        for account, token in zip(given["accounts"], given["tokens"], strict=True)
    ]
    await swarm.connect(phones, 250, PATIENCE_S)
    print("ready", flush=True)
    await _line()
    swarm.check()
    print(sum(phone.connected for phone in phones), flush=True)


def draft(name: str, account: str) -> Draft:
    """About 300 bytes, as an agency sends them."""
    body = EVENT % (name.encode(), name.encode())
    digest = hashlib.sha256(body).digest()
    return Draft(f"account:{account}", digest[:16], digest, body, "gov.status.changed", "processing", 1.7e9, 2)


async def append(url: str, batch: int, underway: int, seconds: float, name: str) -> None:
    """Each event to another of 100,000 accounts, `underway` batches at any moment."""
    store = PostgresqlStore(url)
    await store.open()
    print("ready", flush=True)
    await _line()
    numbers = itertools.count()
    begun = time.perf_counter()

    async def appender() -> int:
        done = 0
        while time.perf_counter() < begun + seconds:
            part = [next(numbers) for _ in range(batch)]
            drafts = [draft(f"{name}-{at}", f"{at * 7919 % 100_000}") for at in part]
            done += sum(
                isinstance(outcome, Stored) and not outcome.duplicate
                for outcome in await store.append(drafts, time.time())
            )
        return done

    done = sum(await asyncio.gather(*(appender() for _ in range(underway))))
    print(done, time.perf_counter() - begun, flush=True)
    await store.close()


def main(words: list[str]) -> None:
    try:
        if words[0] == "idle":
            uvloop.run(idle(int(words[1])))
        else:
            url, batch, underway, seconds, name = words[1:]
            uvloop.run(append(url, int(batch), int(underway), float(seconds), name))
    except Broken as error:
        print(f"broken: {error}", flush=True)
        sys.exit(1)


if __name__ == "__main__":
    main(sys.argv[1:])

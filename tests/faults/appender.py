"""A process that appends to a store until it is killed, and prints the name of each event once it is stored.

Run: python -m tests.faults.appender PATH FIRST_NUMBER
"""

import asyncio
import sys
from pathlib import Path

from gateway.batcher import Batcher
from gateway.store.base import Draft, Outcome
from gateway.store.sqlite import SqliteStore
from tests.contracts.test_store import NOW, draft


async def main(path: Path, first: int) -> None:
    store = SqliteStore(path)
    await store.open()

    async def work(drafts: list[Draft]) -> list[Outcome]:
        return await store.append(drafts, NOW)

    append = Batcher(work, max_items=20)

    async def agency(n: int) -> None:
        for number in range(first + n, 1_000_000, 8):
            await append(draft(f"{number}", f"account:{number % 3}", text="x" * (number % 2000)))
            print(number, flush=True)

    await asyncio.gather(*(agency(n) for n in range(8)))


if __name__ == "__main__":
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))

"""The gateway is killed, frozen and restarted under load, and nothing is lost, invented, repeated or out of order."""

import asyncio
import os
import random
import signal
from pathlib import Path

from tests.faults.harness import trial

ACCOUNTS = [f"citizen-{number}" for number in range(40)]
DEVICES = 3  # of each account
KILLS = 10


async def test_ten_kills_a_freeze_and_a_restart_under_load(tmp_path: Path) -> None:
    """Invariants 1 to 5, 13 and 14, by three journals. VESTNIK_TEST_SEED repeats a run."""
    seed = int(os.environ.get("VESTNIK_TEST_SEED") or random.randrange(1 << 32))
    async with asyncio.timeout(300), trial(tmp_path, seed) as one:
        rng, gateway = one.rng, one.gateway
        await one.open_offices(["fns", "sfr", "gibdd", "mchs"], ACCOUNTS)
        await gateway.start()
        await one.hand_out(ACCOUNTS, DEVICES)
        one.publish()
        for number in range(KILLS):
            await asyncio.sleep(rng.uniform(0.2, 1.2))
            await gateway.kill()
            for phone in rng.sample(one.phones, 2):
                await phone.reinstall()
            await gateway.start()
            if number == KILLS // 3:
                await asyncio.sleep(0.5)
                gateway.signal(signal.SIGSTOP)
                await asyncio.sleep(3)
                gateway.signal(signal.SIGCONT)
            if number == KILLS // 2:
                await asyncio.sleep(0.5)
                await one.stop()
                await gateway.start()
        await asyncio.sleep(1)
        await one.quiet()
        verdict = await one.verdict()
        print(verdict)
        assert verdict.ok, f"seed {seed}: {verdict}"
        assert one.exit_codes == [0, 0]
        assert one.integrity() == "ok"
        counts = verdict.counts
        assert counts["devices"] == len(one.phones)
        assert counts["sessions"] > 2 * len(one.phones), "most of the devices came back more than once"
        assert counts["accepted"] > 500
        assert counts["posts"] > counts["events"], "something was sent again"
        assert counts["deliveries"] > counts["rows"]

"""The whole way, for real: a gateway, Locust, journals, a verdict; and plain Locust with its options."""

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from loadtests.bench.processes import Gateway
from loadtests.cli import KNOWN_AFTER_S, LOCUSTFILE

BIN = Path(sys.executable).parent
SMALL = """
says = "A few phones, one of each habit, a cut of the line and a kill."
agencies = 2
settle = 30
[phones]
curve = [[0, 20], [4, 20]]
mix = {steady = 2, flaky = 1, slow = 1, anxious = 1}
following = 1.0
[[posts]]
type = "gov.status.changed"
rate = [[1, 40], [4, 40]]
batch = 4
[[posts]]
type = "gov.notice.published"
rate = [[1, 2], [4, 2]]
[[faults]]
at = 2
name = "drop"
within = 0.3
[[faults]]
at = 3
name = "kill"
[gateway]
backoff_s = 2
[[bounds]]
what = "lost"
most = 0
[[bounds]]
what = "reordered"
most = 0
[[bounds]]
what = "accepted"
least = 90
[[bounds]]
what = "sessions"
least = 35
"""


def load(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([BIN / "vestnik-load", *words], capture_output=True, text=True, timeout=90, check=False)


def test_a_scenario_to_its_verdict_and_back(tmp_path: Path) -> None:
    file, out = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(SMALL)
    ran = load("run", str(file), "--out", str(out), "--json")
    assert ran.returncode == 0, ran.stderr + (out / "locust.log").read_text()[-3000:]
    verdict = json.loads(ran.stdout)
    assert verdict["ok"] is True
    assert verdict["priorities"]["high"]["delivered"] >= verdict["priorities"]["high"]["accepted"] >= 80
    assert verdict["looked_at"]["rows"] >= verdict["looked_at"]["accepted"]  # the operators' feed has events of its own
    for name in ("verdict.html", "verdict.csv", "verdict.json", "locust.html", "locust_stats.csv"):
        assert (out / name).stat().st_size > 0
    rows = (out / "locust_stats.csv").read_text()
    for row in ("connect", "hello to welcome", "replay to live", "deliver from the act", "deliver from the commit"):
        assert f"WS,{row}" in rows
    for row in ("WS,ack", "WS,reconnect and catch up", "GET,/v1/snapshot", 'POST,"POST high, batches"'):
        assert row in rows

    assert '"t":"disk"' in (out / "gateway.jsonl").read_text()

    again = load("verdict", str(out))
    assert again.returncode in (0, 1), again.stderr  # without the store's dump

    [journal] = out.glob("devices-*.jsonl")
    lines = journal.read_text().splitlines(keepends=True)
    kept = [line for line in lines if '"t":"keep"' in line]
    journal.write_text("".join(line for line in lines if line != kept[-1]))
    broken = load("verdict", str(out))
    assert broken.returncode == 1
    assert "lost" in broken.stderr


def test_a_gateway_that_ends_ends_the_run(tmp_path: Path) -> None:
    file, out = tmp_path / "small.toml", tmp_path / "out"
    file.write_text(SMALL.replace("[4, ", "[400, "))
    words = [BIN / "vestnik-load", "run", str(file), "--out", str(out)]
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 60
        while not (out / "gateway.jsonl").exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.05)
        children = Path(f"/proc/{run.pid}/task/{run.pid}/children").read_text().split()
        [gateway] = [pid for pid in children if b"serve" in Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")]
        os.kill(int(gateway), signal.SIGKILL)
        _, said = run.communicate(timeout=60)
    assert run.returncode == 3
    assert "The gateway ended with -9 after" in said


def test_what_cannot_be_is_a_sentence(tmp_path: Path) -> None:
    assert "There is no scenario" in load("run", "nothing").stderr
    (tmp_path / "agencies-x.jsonl").write_text("")
    used = load("run", "soak", "--out", str(tmp_path))
    assert (used.returncode, "another run" in used.stderr) == (2, True)
    missing = load("run", "soak", "--host", "http://127.0.0.1:9", "--data", str(tmp_path), "--out", str(tmp_path / "o"))
    assert missing.returncode == 3
    assert "There is no token key" in missing.stderr


@pytest.mark.parametrize("words", [["--version"], ["-f", "loadtests/locustfile.py", "--list"]])
def test_plain_locust_reads_the_file(words: list[str]) -> None:
    root = Path(__file__).parents[2]
    ran = subprocess.run([BIN / "locust", *words], cwd=root, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    if "--list" in words:
        for user in ("SteadyPhone", "FlakyPhone", "SlowPhone", "AnxiousPhone", "AgencyUser"):
            assert user in ran.stdout


async def test_plain_locust_beside_a_gateway(tmp_path: Path) -> None:
    """Two at once with the same seed: their events are told apart, and agencies need no phones."""
    async with Gateway() as gateway:
        (secrets := tmp_path / "secrets").mkdir()
        for code in ("one", "two"):
            (secrets / code).write_text(await gateway.agency(code))
        await asyncio.sleep(KNOWN_AFTER_S)
        words = ["-f", str(LOCUSTFILE), "--headless", "--only-summary", "--host", f"http://127.0.0.1:{gateway.port}"]
        words += ["--data", str(gateway.directory), "--secrets", str(secrets), "--users", "12", "-t", "4s"]
        words += ["--spawn-rate", "12", "--post-rate", "60", "--notice-rate", "10"]
        pipes = {"stdout": asyncio.subprocess.PIPE, "stderr": asyncio.subprocess.STDOUT}
        both = [
            await asyncio.create_subprocess_exec(BIN / "locust", *words, *more, **pipes)  # type: ignore[arg-type]
            for more in ((), ("--tags", "agency"))
        ]
        everything, posts = [(await one.communicate())[0].decode() for one in both]
        assert [one.returncode for one in both] == [0, 0], everything + posts
    for row in ("WS       deliver from the act", "POST     POST high", "POST     POST normal"):
        assert row in everything
    assert "POST     POST urgent" in posts
    assert "WS " not in posts

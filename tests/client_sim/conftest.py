"""One real gateway for the tests of this folder that need one: a process, on SQLite, with hurried settings."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import httpx
import pytest
from click.testing import CliRunner

from client_sim.agencies import AGENCIES, Agency
from client_sim.identity import LocalKey
from client_sim.local import free_port
from client_sim.run import Stage
from gateway.cli import cli

VESTNIK = Path(sys.executable).with_name("vestnik")
SETTINGS = {"BEAT_S": "1", "SAVER_BEAT_S": "2", "SAVER_WAIT_S": "1", "BACKOFF_S": "2", "HELLO_DEADLINE_S": "2"}
SETTINGS |= {"HEAD_DEADLINE_S": "2", "WRITE_DEADLINE_S": "3", "DRAIN_S": "0", "CLOSE_DEADLINE_S": "1"}
SETTINGS |= {"OLDEST_AGENTS": "vestnik-sim/1.0", "LOG_FORMAT": "json"}


@dataclass
class Running:
    """Where it is, and what is needed to use it."""

    data: Path
    port: int
    secrets: dict[str, str]
    environment: dict[str, str]

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def stage(self) -> Stage:
        return Stage("127.0.0.1", self.port, LocalKey(self.data / "token-key.pem"), self.secrets)


def add_agencies(data: Path, agencies: Sequence[Agency] = AGENCIES) -> dict[str, str]:
    """The secrets of agencies that are made in this process: a command of its own takes half a second for each.

    Not for a loop that runs: the commands run their own."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    secrets = {}
    for agency in agencies:
        words = ["agency", "add", agency.code, *(["--ed25519"] if agency.ed25519 else [])]
        made = CliRunner(env={"VESTNIK_DATA": str(data), "VESTNIK_STORE": None}).invoke(cli, words)
        assert made.exit_code == 0, made.output
        secrets[agency.code] = made.stdout.strip()
    return secrets


@pytest.fixture(scope="session")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    data = tmp_path_factory.mktemp("gateway")
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VESTNIK_")}
    environment |= {f"VESTNIK_{name}": value for name, value in SETTINGS.items()}
    port = free_port()
    environment |= {"VESTNIK_DATA": str(data), "VESTNIK_PORT": str(port)}
    (data / "secrets").mkdir()
    secrets = add_agencies(data)
    for code, secret in secrets.items():
        (data / "secrets" / code).write_text(secret)
    with (data / "gateway.log").open("wb") as log:
        process = subprocess.Popen([VESTNIK, "serve"], cwd=data, env=environment, stdout=log, stderr=log)
    try:
        ends = time.monotonic() + 30
        while True:
            assert process.poll() is None, (data / "gateway.log").read_text()
            assert time.monotonic() < ends, (data / "gateway.log").read_text()
            try:
                if httpx.get(f"http://127.0.0.1:{port}/health/ready", trust_env=False).status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.05)
        yield Running(data, port, secrets, environment)
    finally:
        process.terminate()
        process.wait(20)

"""`vestnik-sim` as people and programs use it: one sentence for what is wrong, a code for what came out."""

import json
import os
import pty
import re
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from client_sim.cli import cli
from client_sim.commands import common
from client_sim.local import free_port
from client_sim.scenario import names
from gateway import tokens
from tests.client_sim.conftest import Running

QUICK = ["--devices", "6", "--accounts", "3", "--pace", "20", "--network", "perfect", "--behaviour", "steady"]


def sim(*words: str, environment: dict[str, str] | None = None) -> Result:
    return CliRunner(env={"VESTNIK_HOST": None, "VESTNIK_PORT": None, **(environment or {})}).invoke(cli, words)


def started(running: Running, *words: str, **more: Any) -> "subprocess.Popen[str]":
    command = [sys.executable, "-m", "client_sim.cli", *words]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True, **more}
    return subprocess.Popen(command, env=running.environment, **pipes)


@pytest.mark.parametrize(
    ("words", "code", "said"),
    [
        (["run", "--behaviour", "flying"], 2, "There is no behaviour 'flying': choose from background, "),
        (["run", "--network", "tin-can=2"], 2, "There is no network 'tin-can'"),
        (["run", "--behaviour", "steady=x"], 2, "must be a number"),
        (["run", "--devices", "0"], 2, "`devices` must be from 1"),
        (["run", "--seconds", "0"], 2, "`seconds` must be from"),
        (["run", "--devices", "50", "--accounts", "2"], 2, "at least 5 accounts"),
        (["run", "--rate", "-1"], 2, "--rate must be from 0"),
        (["run", "--address", "ftp://x"], 2, "--address must be like"),
        (["run", "--devices", "20000", "--network", "lte", "--own"], 3, "need 60500 open files"),
        (["scenarios", "metro"], 2, "There is no scenario 'metro'"),
        (["scenarios", "family", "--set", "beat"], 2, "--set wants NAME=VALUE"),
        (["chaos", "--faults", "rain"], 2, "There is no fault 'rain'"),
        (["run", "--pace", "nan"], 2, "`pace` must be from"),
        (["agencies", "--agencies", "kgb"], 2, "There is no sample agency 'kgb'"),
        (["phone", "--account", "a b"], 2, "--account must be 1 to 64"),
    ],
)
def test_wrong_input_is_one_sentence(tmp_path, words, code, said, monkeypatch):
    monkeypatch.chdir(tmp_path)
    result = sim(*words)
    assert result.exit_code == code, result.output
    [line] = result.stderr.splitlines()
    assert said in line
    assert line.startswith("vestnik-sim: ")
    assert line.endswith(".")
    assert result.stdout == ""


@pytest.mark.parametrize("command", [["run"], ["agencies"], ["phone", "--account", "42"]])
def test_without_a_gateway_it_is_one_sentence(tmp_path, command):
    port = str(free_port())
    result = sim(*command, "--data", str(tmp_path), environment={"VESTNIK_PORT": port})
    assert result.exit_code == 3
    assert f"No gateway answers at http://127.0.0.1:{port}" in result.stderr


def test_a_wrong_token_is_one_sentence(running: Running, tmp_path: Path):
    file = tmp_path / "tokens"
    file.write_text("eyJhbGciOiJub25lIn0.e30.\n")
    result = sim("run", "--address", running.address, "--data", str(running.data), "--tokens", str(file))
    assert result.exit_code == 3
    assert "is no token with a `sub`" in result.stderr
    empty = sim("phone", "--account", "42", "--address", running.address, "--data", str(tmp_path))
    assert empty.exit_code == 3
    assert "There is no token key" in empty.stderr


def test_tokens_and_secrets_of_another_gateway_are_one_sentence(running: Running, tmp_path: Path, monkeypatch):
    monkeypatch.setattr(common, "KNOWN_AFTER_S", 0.2)
    tokens.LocalKey.open(tmp_path)
    for command in (["run"], ["phone", "--account", "42"]):
        result = sim(*command, "--address", running.address, "--data", str(tmp_path))
        assert result.exit_code == 3
        assert "refuses our tokens" in result.stderr
        assert len(result.stderr.splitlines()) == 1
    (tmp_path / "fns").write_text("whsec_" + "a" * 43 + "=")
    (tmp_path / "mvd").write_text("a secret")
    for code, words in (("fns", "does not know fns by this secret"), ("mvd", "secret of mvd cannot be used")):
        where = ["--address", running.address, "--secrets", str(tmp_path)]
        result = sim("agencies", *where, "--agencies", code, "--rate", "0")
        assert result.exit_code == 3
        assert words in result.stderr


def test_scenarios_are_listed():
    result = sim("scenarios", "--all")
    assert result.exit_code == 0
    for word in (*names(), "commuter", "edge", "monthly", "full_disk"):
        assert re.search(rf"^ +{word} ", result.stdout, re.MULTILINE), word


def test_a_run_against_a_running_gateway(running: Running, tmp_path: Path):
    out = tmp_path / "out"
    where = ["--address", running.address, "--data", str(running.data)]
    with started(
        running, "run", *where, *QUICK, "--seconds", "1.5", "--rate", "30", "--json", "--out", str(out)
    ) as run:
        shown, said = run.communicate(timeout=60)
    assert run.returncode == 0, said
    report = json.loads(shown)
    assert report["ok"] is True
    assert report["counts"]["delivered"] > 5
    assert "no fault in" in said
    assert (out / "report.html").exists()
    assert json.loads((out / "report.json").read_text())["samples"]

    judged = sim("reconcile", str(out), "--json")
    assert judged.exit_code == 0, judged.output
    assert json.loads(judged.stdout)["ok"] is True
    lines = (out / "devices.jsonl").read_text().splitlines(keepends=True)
    event = next(line for line in lines if line.startswith('{"t":"event"'))
    (out / "devices.jsonl").write_text("".join(lines).replace(event, event.replace('"id":"', '"id":"f'), 1))
    planted = sim("reconcile", str(out))
    assert planted.exit_code == 1
    assert "invariant 2, invented" in planted.stdout


def test_reconcile_wants_a_whole_store(tmp_path: Path):
    for name in ("agencies.jsonl", "devices.jsonl"):
        (tmp_path / name).touch()
    (tmp_path / "store").write_bytes(b"SQLite format 3\0" + b"and no more")
    result = sim("reconcile", str(tmp_path), "--store", str(tmp_path / "store"))
    assert result.exit_code == 3
    assert "cannot be read: " in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_reconcile_wants_journals(tmp_path: Path):
    assert "agencies.jsonl is missing" in sim("reconcile", str(tmp_path)).stderr
    for name in ("agencies.jsonl", "devices.jsonl"):
        (tmp_path / name).write_text('{"t":"answer"}\n')
    result = sim("reconcile", str(tmp_path))
    assert result.exit_code == 3
    assert "These are not journals" in result.stderr


def test_an_interrupted_run_writes_its_report(running: Running, tmp_path: Path):
    out = tmp_path / "out"
    where = ["--address", running.address, "--data", str(running.data)]
    with started(running, "run", *where, *QUICK, "--seconds", "600", "--out", str(out)) as run:
        ends = time.monotonic() + 30
        while not (out / "devices.jsonl").exists() or not (out / "devices.jsonl").stat().st_size:
            assert time.monotonic() < ends
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        _, said = run.communicate(timeout=30)
    assert run.returncode == 130, said
    assert "Interrupted." in said
    assert "no fault in" in said
    assert json.loads((out / "report.json").read_text())["ended"] == "Interrupted."


def test_a_scenario_of_ones_own_is_held_to_its_bounds(running: Running, tmp_path: Path):
    file = tmp_path / "small.toml"
    fleet = "devices = 4\naccounts = 2\nseconds = 2\npace = 20"
    file.write_text(
        f'says = "Small."\n[fleet]\n{fleet}\n[gateway]\ndrain_s = 0\n[bounds]\ndelivered = 1\nsessions = 99\n'
    )
    with started(running, "scenarios", str(file), "--out", str(tmp_path / "out")) as run:
        _, said = run.communicate(timeout=90)
    assert run.returncode == 1, said
    assert "✓ deliveries" in said
    assert "✗ sessions: 4 (at least 99)" in said
    assert (tmp_path / "out" / "gateway" / "vestnik.db").exists()


def test_agencies_publish_and_say_what_was_taken(running: Running, tmp_path: Path):
    where = ["--address", running.address, "--data", str(running.data), "--secrets", str(running.data / "secrets")]
    with started(running, "agencies", *where, "--agencies", "fns,mvd", "--rate", "50", "--seconds", "1") as run:
        _, said = run.communicate(timeout=60)
    assert run.returncode == 0, said
    found = re.search(r"(\d+) events accepted", said)
    assert found is not None
    assert int(found[1]) > 20

    file = tmp_path / "events.jsonl"
    notice = {"type": "gov.notice.sent", "account": "anna", "data": {"title": "Т", "text": "Т"}}
    file.write_text("\n".join(json.dumps(one) for one in (notice, {**notice, "data": {}}, notice)))
    with started(running, "agencies", *where, "--agencies", "fns", "--from", str(file), "--rate", "0") as run:
        _, said = run.communicate(timeout=60)
    assert "2 events accepted" in said
    assert "Refused: 1 with 422 (/data/title: " in said


def test_a_phone_in_a_terminal(running: Running, tmp_path: Path):
    """With a real terminal between: keys in, a screen out, and the terminal as it was afterwards."""
    main, terminal = pty.openpty()
    words = ["phone", "--account", "pty", "--address", running.address, "--data", str(running.data), "--lang", "en"]
    pipes = {"stdin": terminal, "stdout": terminal, "stderr": subprocess.PIPE}
    with started(running, *words, "--keep", str(tmp_path / "phone"), **pipes) as phone:
        os.close(terminal)
        shown, ends = b"", time.monotonic() + 30
        while b"online" not in shown:
            assert time.monotonic() < ends, shown
            shown += os.read(main, 65536)
        os.write(main, b"q")
        while phone.poll() is None:
            assert time.monotonic() < ends
            try:
                shown += os.read(main, 65536)
            except OSError:
                break
        assert phone.wait(10) == 0
    os.close(main)
    assert b"Applications" in shown
    assert b"come back" in shown

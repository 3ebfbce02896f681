"""The documents stay true: their commands run, their links lead somewhere, their numbers are the code's."""

import asyncio
import contextlib
import importlib
import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import httpx
import pytest

from gateway import opsfeeds
from gateway.cli import cli
from gateway.protocol import codes, schema
from gateway.settings import NOT_SETTINGS, PREFIX, Settings
from gateway.types import PRIORITIES, registry

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    path.relative_to(ROOT)
    for folder in ("", "gateway/**/", "workers/", "client_sim/", "loadtests/", "tests/")
    for path in ROOT.glob(f"{folder}*.md")
)
CONTRACT = (ROOT / "gateway" / "protocol" / "PROTOCOL.md").read_text("utf-8")
README = (ROOT / "README.md").read_text("utf-8")
INSIDE = (ROOT / "gateway" / "README.md").read_text("utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    prose = re.sub(r"```.*?```", "", (ROOT / page).read_text("utf-8"), flags=re.DOTALL)
    headings = re.findall(r"^#+ (.+)$", prose, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def rows(text: str, after: str) -> list[list[str]]:
    """The cells of the first table after these words, without its head."""
    lines = iter(text[text.index(after) :].splitlines())
    table: list[str] = []
    for line in lines:
        if line.startswith("|"):
            table.append(line)
        elif table:
            break
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in table[2:]]


def quoted(text: str) -> list[str]:
    return re.findall(r"`([^`]+)`", text)


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_links_lead_somewhere(page: Path):
    for target in re.findall(r"\]\(([^)\s]+)\)", (ROOT / page).read_text("utf-8")):
        if "://" in target:
            continue
        path, _, anchor = target.partition("#")
        leads_to = (page.parent / path) if path else page
        resolved = Path(os.path.normpath(leads_to))
        assert (ROOT / resolved).exists(), target
        if anchor:
            assert anchor in anchors(resolved), target


@pytest.mark.parametrize("page", PAGES, ids=str)
def test_settings_that_are_spoken_of_exist(page: Path):
    known = {PREFIX + name.upper() for name in Settings.model_fields} | NOT_SETTINGS
    assert set(re.findall(r"VESTNIK_[A-Z_]*[A-Z]", (ROOT / page).read_text("utf-8"))) <= known


def test_every_setting_has_a_heading():
    assert {PREFIX + name for name in Settings.model_fields} <= {
        PREFIX + name.removeprefix("vestnik_") for name in anchors(Path("gateway/SETTINGS.md"))
    }


def test_make_commands_exist():
    makefile = (ROOT / "Makefile").read_text("utf-8")
    for command in set(re.findall(r"make (\w+)", re.sub(r"[^`]*(`[^`]*`|$)", r"\1 ", README))) | {"run", "test"}:
        assert re.search(rf"^{command}:", makefile, re.MULTILINE), command


# The inside


def limits() -> list[tuple[str, str, str]]:
    found = []
    for what, value, name, protects in rows(INSIDE, "## Limits"):
        assert protects, what
        found.append((what, value, quoted(name)[0]))
    return found


@pytest.mark.parametrize(("what", "value", "name"), limits())
def test_limits_are_the_codes_own(what: str, value: str, name: str):
    if name.startswith(PREFIX):
        is_set = Settings.model_fields[name.removeprefix(PREFIX).lower()].default
    else:
        module, _, constant = name.rpartition(".")
        is_set = getattr(importlib.import_module(f"gateway.{module}"), constant)
    assert float(value.replace(",", "")) == is_set


def test_every_module_has_its_place():
    named = set(quoted(INSIDE))
    modules = {path.name for path in (ROOT / "gateway").glob("*.py")} - {"__init__.py"}
    folders = {f"{path.parent.name}/" for path in (ROOT / "gateway").glob("*/__init__.py")}
    assert (modules | folders) - named <= {"protocol/"}  # a link


# The contract


def test_the_contracts_close_codes_are_the_codes():
    told = {int(code): (meaning, change) for code, meaning, change in rows(CONTRACT, "### 3.11")}
    assert told == {code.code: (code.name, code.change) for code in codes.by_code.values()}


def test_the_contracts_event_types_are_registered():
    for name, audience, data in rows(CONTRACT, "### 2.4"):
        kind = registry()[quoted(name)[0]]
        assert audience == {"personal": "account", "public": "public"}[kind.audience]
        assert quoted(data)[0].startswith(("application", "registry", "title", "ranges"))


def test_the_contracts_operators_feeds_are_all():
    told = {quoted(feed)[0]: quoted(kind)[0] for feed, kind, _, _ in rows(CONTRACT, "### 8.1")}
    assert told == opsfeeds.TYPES
    for _, kind, priority, _ in rows(CONTRACT, "### 8.1"):
        assert PRIORITIES[registry()[quoted(kind)[0]].priority] == priority.partition(",")[0]


def test_the_contracts_figures_are_all():
    told = {name for cells in rows(CONTRACT, "### 8.2") for name in quoted(cells[0])}
    assert told == {*registry()["gov.vestnik.figures"].schema["properties"], "agencies_omitted"}


@pytest.mark.parametrize(("section", "side"), [("### 3.3", "device"), ("### 3.5", "gateway")])
def test_the_contracts_messages_are_the_documented_ones(section: str, side: schema.Direction):
    told = {t for cells in rows(CONTRACT, section) for t in quoted(cells[0])}
    assert told == set(schema.names(side))


def test_the_contracts_commands_exist():
    words = {command for command, _ in rows(CONTRACT, "### 6.1")}
    told = {name for cell in words for name in re.findall(r"`vestnik (\w+)", cell)}
    assert told == set(cli.commands)


# What the README shows runs


def blocks(kind: str) -> list[str]:
    return re.findall(rf"<!-- test: {kind} -->\n```sh\n(.*?)```", README, re.DOTALL)


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory that looks like a checkout after `make env`, and a free port in the environment."""
    (tmp_path / ".venv").symlink_to(sys.prefix)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        monkeypatch.setenv("VESTNIK_PORT", str(probe.getsockname()[1]))
    monkeypatch.delenv("VESTNIK_DATA", raising=False)
    return tmp_path


@contextlib.asynccontextmanager
async def running(checkout: Path, script: str) -> AsyncIterator[asyncio.subprocess.Process]:
    """A server's block, until its end; it must leave with exit code 0."""
    process = await asyncio.create_subprocess_shell(
        f"exec {script.strip()}",
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        process_group=0,
    )
    try:
        yield process
        process.send_signal(signal.SIGINT)
        async with asyncio.timeout(10):
            await process.communicate()
        assert process.returncode == 0
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        await process.wait()


async def run(checkout: Path, script: str) -> str:
    process = await asyncio.create_subprocess_exec(
        *("bash", "-euo", "pipefail", "-c", script),
        cwd=checkout,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    async with asyncio.timeout(60):
        out, _ = await process.communicate()
    assert process.returncode == 0, out.decode()
    return out.decode()


async def until(process: asyncio.subprocess.Process, words: str) -> None:
    assert process.stdout is not None
    printed = ""
    async with asyncio.timeout(60):
        while words not in printed:
            more = await process.stdout.read(65536)
            assert more, printed
            printed += more.decode()


async def test_an_event_is_sent_by_hand_beside_the_demo(checkout: Path):
    publish, token = blocks("run beside the demo")
    async with running(checkout, f"{sys.executable} -u -m client_sim.demo --rate 0.1") as demo:
        await until(demo, "connected as anna")
        await run(checkout, publish)
        await until(demo, "Отправлено вручную")
        await run(checkout, publish)  # "Send it again"
        with pytest.raises(AssertionError, match=r"409|conflict"):
            await run(checkout, publish.replace("вручную", "иначе"))  # "Change the text but not the `id`"
        assert (await run(checkout, token)).count(".") == 2


async def test_a_gateway_of_your_own(checkout: Path):
    (serve,) = blocks("run as a gateway")
    (beside,) = blocks("run beside the gateway")
    async with running(checkout, serve), httpx.AsyncClient(trust_env=False) as http:
        address = f"http://127.0.0.1:{os.environ['VESTNIK_PORT']}"
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(httpx.HTTPError):
                    if (await http.get(f"{address}/health/ready")).status_code == 200:
                        break
                await asyncio.sleep(0.05)
        out = await run(checkout, beside)
        assert "mvd" in out
        assert (await http.get(f"{address}/health/live")).status_code == 200  # the page of the browser console
    assert (checkout / "mvd.secret").read_text().startswith("whsec_")
    assert (checkout / "copy.db").stat().st_size > 0

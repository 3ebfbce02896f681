"""The commands of the Makefile on machines that lack something, the lock, and who may import whom."""

import ast
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
LOCK = (ROOT / "requirements.lock").read_text("utf-8")
PINS = {
    canonicalize_name(name): version
    for name, version in re.findall(r"^([A-Za-z0-9._-]+)==([^ ;\\]+)", LOCK, re.MULTILINE)
}
TOOLS = ("bash", "make", "sed", "grep", "awk", "cat", "touch", "rm", "env", "true", "sort", "tail")


class Machine:
    """A directory with the Makefile, and a PATH on which only what is named here exists."""

    def __init__(self, place: Path):
        self.place, self.bin = place / "checkout", place / "bin"
        self.place.mkdir()
        self.bin.mkdir()
        for name in ("Makefile", "requirements.lock", "pyproject.toml"):
            (self.place / name).symlink_to(ROOT / name)
        for name in TOOLS:
            real = shutil.which(name)
            assert real is not None, name
            (self.bin / name).symlink_to(real)
        self.has("id", "echo 1000")

    def has(self, command: str, script: str) -> None:
        file = self.bin / command
        file.write_text(f"#!{shutil.which('bash')}\n{script}\n")
        file.chmod(0o755)

    def make(self, target: str) -> tuple[int, str]:
        done = subprocess.run(
            ["make", "--no-print-directory", target],
            cwd=self.place,
            env={"PATH": str(self.bin), "HOME": str(self.place)},
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        return done.returncode, done.stderr

    def sentence(self, target: str) -> str:
        """The one sentence with which it fails."""
        code, errors = self.make(target)
        said = [line for line in errors.splitlines() if line.startswith("vestnik: ")]
        assert code != 0
        assert len(said) == 1, errors
        assert "Traceback" not in errors
        return said[0]


@pytest.fixture
def machine(tmp_path: Path) -> Machine:
    return Machine(tmp_path)


def real_python(but: str) -> str:
    """A python that fails at code which contains `but`."""
    return f'case "$*" in *"{but}"*) exit 1;; esac; exec {sys.executable} "$@"'


def test_help_lists_every_command():
    listed = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert re.findall(r"make (\w+)", listed)[:5] == ["help", "env", "run", "test", "check"]
    assert "make bench" in listed
    assert "make clean" in listed


def test_without_python_it_says_what_to_install(machine: Machine):
    sentence = machine.sentence("env")
    assert "Python 3.11 or newer" in sentence
    assert "sudo apt-get install python3 python3-venv" in sentence


def test_an_older_python_is_not_enough(machine: Machine):
    machine.has("python3", real_python("sys.version_info"))
    assert "Python 3.11 or newer" in machine.sentence("env")


def test_without_ensurepip_it_names_the_package(machine: Machine):
    machine.has("python3.11", real_python("import ensurepip"))
    version = "{}.{}".format(*sys.version_info)
    assert f"sudo apt-get install python{version}-venv" in machine.sentence("env")


def has_what_pages_are_tried_with(machine: Machine) -> None:
    machine.has("node", "echo v20.1.0")
    machine.has("npm", "")
    machine.has("chromium", "")


def test_without_redis_strace_or_faketime_it_names_them(machine: Machine):
    has_what_pages_are_tried_with(machine)
    assert "sudo apt-get install redis-server" in machine.sentence("packages")
    machine.has("redis-server", "echo 'Redis server v=7.0.15 sha=0 bits=64'")
    assert "sudo apt-get install strace" in machine.sentence("packages")
    machine.has("strace", "")
    assert "sudo apt-get install faketime" in machine.sentence("packages")
    machine.has("faketime", "")
    assert machine.make("packages") == (0, "")


def test_without_node_or_a_browser_it_names_them(machine: Machine):
    machine.has("redis-server", "echo 'Redis server v=7.0.15 sha=0 bits=64'")
    machine.has("strace", "")
    machine.has("faketime", "")
    assert "sudo apt-get install nodejs" in machine.sentence("packages")
    machine.has("node", "echo v16.20.2")
    assert "version 16" in machine.sentence("packages")
    machine.has("node", "echo v20.1.0")
    assert "sudo apt-get install npm" in machine.sentence("packages")
    machine.has("npm", "")
    assert "sudo apt-get install chromium" in machine.sentence("packages")
    machine.has("chromium", "")
    assert machine.make("packages") == (0, "")


def test_an_old_redis_is_not_enough(machine: Machine):
    machine.has("redis-server", "echo 'Redis server v=6.0.16 sha=0 bits=64'")
    assert "version 6" in machine.sentence("packages")


def test_a_user_without_rights_is_told_the_command(machine: Machine):
    machine.has("apt-get", "exit 99")
    machine.has("sudo", "exit 1")
    assert "sudo apt-get install redis-server" in machine.sentence("packages")


@pytest.mark.parametrize("who", ["root", "sudo"])
def test_who_may_install_gets_it_installed(machine: Machine, who: str):
    machine.has("strace", "")
    machine.has("faketime", "")
    has_what_pages_are_tried_with(machine)
    redis = machine.bin / "redis-server"
    machine.has(
        "apt-get",
        f'echo "$*" >> calls\n[ "$1" = update ] || printf \'#!{shutil.which("bash")}\\necho v=7.0.1\\n\' > {redis}\n'
        f'[ "$1" = update ] || {shutil.which("chmod")} +x {redis}',
    )
    machine.has("systemctl", "true")
    if who == "root":
        machine.has("id", "echo 0")
    else:
        machine.has("sudo", 'shift; exec "$@"')
    code, errors = machine.make("packages")
    assert code == 0, errors
    assert "== Installing redis-server with apt-get, because Redis 7 or newer is needed" in errors
    calls = (machine.place / "calls").read_text().splitlines()
    assert calls == ["update -q", "install -yq --no-install-recommends redis-server"]


def test_what_must_pass_is_the_readmes_own_commands():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    commands = [line for line in script.read_text().splitlines() if line.startswith("make ")]
    assert commands == ["make check", "make test"]
    assert "make test" in (ROOT / "README.md").read_text("utf-8")


@pytest.mark.parametrize(
    "needed",
    PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["dev"],
    ids=lambda text: text.split(">")[0],
)
def test_the_lock_holds_what_the_project_needs(needed: str):
    requirement = Requirement(needed)
    version = PINS.get(canonicalize_name(requirement.name))
    assert version is not None, "run `make lock`"
    assert requirement.specifier.contains(version), "run `make lock`"


def test_the_lock_is_pinned_by_content_and_names_no_place():
    assert "://" not in LOCK
    blocks = re.split(r"\n(?=[A-Za-z0-9])", LOCK.strip())
    assert len(blocks) == len(PINS)
    assert all("--hash=sha256:" in block for block in blocks)


def test_the_conformance_tests_import_nothing_of_ours():
    """So that one mistake of ours cannot fool both ends."""
    ours = {"gateway", "workers", "client_sim", "loadtests"}
    files = sorted((ROOT / "tests" / "conformance").glob("*.py"))
    assert files
    for file in files:
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            names: list[str] = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in names:
                top, _, rest = name.partition(".")
                assert top not in ours, f"{file.name}: {name}"
                assert top != "tests" or rest.startswith("conformance"), f"{file.name}: {name}"

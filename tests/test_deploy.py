"""What is shipped to run the gateway with is what the programs that read it accept, and agrees with the gateway."""

import configparser
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from gateway.settings import PREFIX, Settings
from tests.nginx_server import DEPLOY, Nginx, find, make_certificate

ROOT = DEPLOY.parents[1]
UNITS = sorted(path.name for path in DEPLOY.glob("*.service"))
NAMES = {PREFIX + name.upper() for name in Settings.model_fields}


def unit(name: str) -> configparser.RawConfigParser:
    parser = configparser.RawConfigParser(strict=False)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(DEPLOY / name)
    return parser


@pytest.mark.parametrize(
    "path", sorted(path for path in DEPLOY.iterdir() if path.is_file()), ids=lambda path: path.name
)
def test_every_setting_that_is_named_is_one(path: Path) -> None:
    named = set(re.findall(r"VESTNIK_[A-Z_]+[A-Z]", path.read_text("utf-8"))) - {"VESTNIK_DB_PASSWORD"}
    assert named <= NAMES


@pytest.mark.parametrize("name", UNITS)
def test_systemd_takes_the_units(name: str, tmp_path: Path) -> None:
    service = unit(name)["Service"]
    assert "RestartPreventExitStatus" not in service  # 3 may be a database that is late
    if "serve" in service["ExecStart"]:
        assert service["KillMode"] == "mixed", "the supervisor passes signals on, and a second one cuts short"
        assert int(service["TimeoutStopSec"]) >= Settings.model_fields["drain_s"].default + 15
        assert int(service["LimitNOFILE"]) >= 1.5 * Settings.model_fields["max_sessions"].default
    if shutil.which("systemd-analyze") is None:
        return  # nothing more can be said on a system without systemd
    here = (DEPLOY / name).read_text().replace("/opt/vestnik/.venv/bin/vestnik", sys.executable)
    named = tmp_path / name.replace("@", "@8081")
    named.write_text(here)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(named)], capture_output=True, text=True, timeout=30
    )
    told = [line for line in done.stderr.splitlines() if named.name in line]
    assert not told, told


def test_compose_describes_what_the_proxy_expects() -> None:
    document = yaml.safe_load((DEPLOY / "compose.yaml").read_text())
    services = document["services"]
    upstream = re.findall(r"server (gateway-\d):8080", (DEPLOY / "nginx.conf").read_text())
    assert re.findall(r"server (gateway-\d) \1:8080", (DEPLOY / "haproxy.cfg").read_text()) == upstream
    gateways = [name for name in services if name.startswith("gateway-")]
    assert gateways == upstream
    for name in gateways:
        grace = int(services[name]["stop_grace_period"].removesuffix("s"))
        assert grace >= int(services[name]["environment"]["VESTNIK_DRAIN_S"]) + 15
        assert services[name]["environment"]["VESTNIK_WORKERS"] == "false"
    assert services["worker"]["command"] == ["worker"]
    assert set(document["volumes"]) == {"data", "postgresql"}


def test_the_container_holds_what_it_copies() -> None:
    text = (DEPLOY / "Containerfile").read_text()
    for line in re.findall(r"^COPY (?!--from)(.+)$", text, re.MULTILINE):
        for source in line.split()[:-1]:
            assert (ROOT / source).exists(), source
    assert "USER vestnik" in text
    assert "STOPSIGNAL SIGTERM" in text


def test_nginx_takes_its_configuration(tmp_path: Path) -> None:
    nginx = Nginx(tmp_path, ["127.0.0.1:1", "127.0.0.1:2"])
    done = subprocess.run(
        [find("nginx"), "-t", "-p", str(tmp_path), "-e", str(tmp_path / "log"), "-c", str(tmp_path / "nginx.conf")],
        capture_output=True,
        text=True,
        timeout=30,
    )
    assert done.returncode == 0, done.stderr
    assert nginx.address.startswith("https://")
    assert "warn" not in done.stderr


def test_haproxy_takes_its_configuration(tmp_path: Path) -> None:
    make_certificate(tmp_path / "tls")
    (tmp_path / "both.pem").write_text("".join(path.read_text() for path in sorted((tmp_path / "tls").glob("*.pem"))))
    text = (DEPLOY / "haproxy.cfg").read_text().replace("/etc/haproxy/tls/", str(tmp_path / "both.pem"))
    (tmp_path / "haproxy.cfg").write_text(re.sub(r"(gateway-\d):8080", "127.0.0.1:8080", text))
    done = subprocess.run(
        [find("haproxy"), "-c", "-f", str(tmp_path / "haproxy.cfg")], capture_output=True, text=True, timeout=30
    )
    assert done.returncode == 0, done.stderr + done.stdout
    assert "WARNING" not in done.stderr, done.stderr


def test_the_kernel_settings_are_assignments() -> None:
    lines = [line for line in (DEPLOY / "sysctl.conf").read_text().splitlines() if line and not line.startswith("#")]
    assert lines
    for line in lines:
        assert re.fullmatch(r"(net|fs|vm)(\.[\w-]+)+ = [\d ]+", line), line
    backlog = next(line for line in lines if "somaxconn" in line)
    assert int(backlog.split()[-1]) >= Settings.model_fields["backlog"].default

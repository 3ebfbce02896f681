"""A real nginx with the configuration that is shipped, `gateway/deploy/nginx.conf`, in front of given gateways."""

import datetime
import ipaddress
import re
import shutil
import socket
import ssl
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType
from typing import Self

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from tests.redis_server import free_port

DEPLOY = Path(__file__).parents[1] / "gateway" / "deploy"


class ProgramMissing(AssertionError):
    """There is nothing to test with. Tests fail on it: a suite that skips its servers proves nothing."""


def find(program: str) -> str:
    path = shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")
    if path is None:
        raise ProgramMissing(f"{program} is not installed; install it (`apt-get install {program}`) and run again.")
    return path


def make_certificate(directory: Path) -> ssl.SSLContext:
    """`fullchain.pem` and `privkey.pem` for 127.0.0.1, and a context that trusts them."""
    directory.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "test")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(hours=1))
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), False)
        .sign(key, hashes.SHA256())
    )
    chain = directory / "fullchain.pem"
    chain.write_bytes(made.public_bytes(serialization.Encoding.PEM))
    secret = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    (directory / "privkey.pem").write_bytes(secret)
    return ssl.create_default_context(cafile=str(chain))


class Nginx:
    """Alive within the `with` block. `trust` is for clients of `address`; `plain` has no TLS and is for clients that
    cannot be told whom to trust."""

    def __init__(self, directory: Path, gateways: Sequence[str]):
        self.directory = directory
        directory.mkdir(parents=True, exist_ok=True)
        self.trust = make_certificate(directory / "tls")
        self.port, self.redirect_port, self.plain_port = (free_port() for _ in range(3))
        self.address = f"https://127.0.0.1:{self.port}"
        self.plain = f"http://127.0.0.1:{self.plain_port}"
        (directory / "nginx.conf").write_text(self._configuration(gateways))
        self._process: subprocess.Popen[bytes] | None = None

    def _configuration(self, gateways: Sequence[str]) -> str:
        """What is shipped, but for addresses, ports, paths, and limits that this machine may not have."""
        text = (DEPLOY / "nginx.conf").read_text()
        servers = "\n".join(f"server {name} max_fails=0;" for name in gateways)
        text, count = re.subn(r"(\s*server gateway-\d:8080 [^;]+;)+", lambda found: "\n" + servers, text)
        assert count == 1
        for old, new in (
            ("listen 443 ssl;", f"listen 127.0.0.1:{self.port} ssl; listen 127.0.0.1:{self.plain_port};"),
            ("listen 80; ", f"listen 127.0.0.1:{self.redirect_port};"),
            ("if ($scheme = http) {", f"if ($server_port = {self.redirect_port}) {{"),
            ("/etc/nginx/tls", str(self.directory / "tls")),
            ("worker_rlimit_nofile 200000;", "daemon off;"),
            ("worker_connections 100000;", "worker_connections 2000;"),
            ("worker_processes auto;", "worker_processes 2;"),
            ("pid /run/nginx.pid;", f"pid {self.directory}/pid;"),
            (
                "http {",
                f"http {{\nclient_body_temp_path {self.directory}/body;\nproxy_temp_path {self.directory}/proxy;",
            ),
        ):
            assert old in text, old
            text = text.replace(old, new)
        return text

    def start(self) -> None:
        """Returns when it accepts connections."""
        log = self.directory / "log"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [find("nginx"), "-p", str(self.directory), "-e", str(log), "-c", str(self.directory / "nginx.conf")],
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=file,
            )
        for _ in range(500):
            assert self._process.poll() is None, log.read_text()
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.01)
        raise AssertionError("nginx did not accept a connection within 5 s: " + log.read_text())

    def stop(self) -> None:
        if self._process is not None:
            self._process.terminate()
            self._process.wait(10)
            self._process = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

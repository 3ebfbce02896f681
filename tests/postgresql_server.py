"""A real PostgreSQL server for tests: its own data directory and port, frozen, killed and started again at will."""

import atexit
import ctypes
import functools
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Any, Self
from urllib.parse import quote

MINIMUM = 15
USER, PASSWORD = "vestnik", "s3cr:t/with@odd chars"
START_S = 30.0

_PR_SET_PDEATHSIG = 1


class PostgresqlMissing(AssertionError):
    """There is no PostgreSQL to test with. Tests fail on it: a suite that skips its servers proves nothing."""


@functools.cache
def find_programs() -> Path:
    """The directory with initdb and postgres of version 15 or newer; `VESTNIK_POSTGRESQL_BIN` outranks the rest."""
    given = os.environ.get("VESTNIK_POSTGRESQL_BIN")
    packaged = sorted(Path("/usr/lib/postgresql").glob("*/bin"), key=lambda path: path.parent.name, reverse=True)
    on_path = shutil.which("postgres")
    places = [Path(given)] if given else [*packaged, *([Path(on_path).resolve().parent] if on_path else [])]
    too_old = []
    for place in places:
        if not (place / "postgres").exists() or not (place / "initdb").exists():
            continue
        text = subprocess.run([place / "postgres", "--version"], capture_output=True, text=True, check=True).stdout
        version = re.search(r"(\d+)(\.|devel|beta|rc|\s|$)", text)
        if version is not None and int(version[1]) >= MINIMUM:
            return place
        too_old.append(text.strip())
    if too_old:
        raise PostgresqlMissing(f"{too_old[0]} is too old; PostgreSQL {MINIMUM} or newer is needed.")
    raise PostgresqlMissing(
        "The PostgreSQL server is not installed; install it (`apt-get install postgresql`) and run again."
    )


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _unprivileged() -> pwd.struct_passwd | None:
    """PostgreSQL refuses to run as root: the user to be instead, None when this one will do."""
    if os.getuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        try:
            return pwd.getpwnam(name)
        except KeyError:
            continue
    raise PostgresqlMissing("PostgreSQL refuses to run as root, and there is no user `postgres` or `nobody` here.")


def _lives(pid: int) -> bool:
    """Is it there, and not only waiting for its parent to look?"""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def _end_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


class PostgresqlServer:
    """One server with a data directory of its own, alive within the `with` block. `settings` are those of
    postgresql.conf. The superuser is `vestnik`, by password over TCP."""

    def __init__(self, **settings: str):
        self.port = free_port()
        self._programs = find_programs()
        self._user = _unprivileged()
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None
        self._ran = False
        self.directory = Path(tempfile.mkdtemp(prefix="vestnik-postgresql-"))
        self.give(self.directory)
        self._databases = 0
        self._used = ""

    @property
    def data(self) -> Path:
        return self.directory / "data"

    @property
    def pid(self) -> int:
        assert self._process is not None
        return self._process.pid

    def url(
        self,
        database: str = "postgres",
        user: str = USER,
        password: str = PASSWORD,
        also: "PostgresqlServer | None" = None,
    ) -> str:
        """`also` is another server to be tried, after this one."""
        hosts = ",".join(f"127.0.0.1:{server.port}" for server in (self, also) if server is not None)
        return f"postgresql://{quote(user)}:{quote(password, safe='')}@{hosts}/{database}"

    def local(self, database: str = "postgres") -> str:
        """A connection string for PostgreSQL's own programs, without a password."""
        return f"host={self.directory} port={self.port} user={USER} dbname={database}"

    def _identity(self) -> dict[str, Any]:
        if self._user is None:
            return {}
        return {"user": self._user.pw_uid, "group": self._user.pw_gid, "extra_groups": []}

    def run(self, program: str, *arguments: str, **more: Any) -> str:
        """Run one of PostgreSQL's programs as the server's user, to its end; what it printed."""
        done = subprocess.run(
            [self._programs / program if (self._programs / program).exists() else program, *arguments],
            capture_output=True,
            text=True,
            cwd=self.directory,
            env={"PATH": os.environ.get("PATH", ""), "LC_ALL": "C", "PGPASSWORD": PASSWORD},
            **self._identity(),
            **more,
        )
        if done.returncode != 0:
            raise PostgresqlMissing(f"{program} ended with {done.returncode}: {done.stderr.strip()[-500:]}")
        return done.stdout

    def make(self) -> None:
        """The data directory. Its own files are not synced while they are made; the running server syncs."""
        self.run("cp", "-a", str(_template()), str(self.data))

    def standby(self, **settings: str) -> "PostgresqlServer":
        """Another server, a copy of this running one that follows it; start it before it is used."""
        other = PostgresqlServer(**settings)
        options = ("--checkpoint=fast", "--no-sync", "--write-recovery-conf")
        self.run("pg_basebackup", *options, "--pgdata", str(other.data), "--dbname", self.local())
        return other

    def give(self, path: Path) -> None:
        """Make a file or directory the server's."""
        if self._user is not None:
            os.chown(path, self._user.pw_uid, self._user.pw_gid)

    def start(self) -> None:
        """Returns when it accepts connections."""
        if not self.data.exists():
            self.make()
        for _ in range(5):
            if self._started():
                self._ran = True
                return
            said = (self.directory / "log").read_text(errors="replace")[-1000:]
            if self._ran or "could not create any TCP/IP sockets" not in said:
                break
            self.port = free_port()  # another was quicker to take it
        raise PostgresqlMissing(f"PostgreSQL did not start within {START_S:.0f} s: {said}")

    def _started(self) -> bool:
        settings = {
            "port": str(self.port),
            "listen_addresses": "127.0.0.1",
            "unix_socket_directories": str(self.directory),
            "max_connections": "100",
            "fsync": "on",
            **self._settings,
        }
        flags = [f"--{name}={value}" for name, value in settings.items()]
        with (self.directory / "log").open("ab") as log:
            self._process = subprocess.Popen(
                [self._programs / "postgres", "-D", str(self.data), *flags],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                cwd=self.directory,
                preexec_fn=_end_with_parent,
                **self._identity(),
            )
        until = time.monotonic() + START_S
        while time.monotonic() < until and self._process.poll() is None:
            # The status file says so only when connections are taken; a port alone may still answer "starting".
            if self._status() in ("ready", "standby"):
                return True
            time.sleep(0.01)
        self.kill()
        return False

    def _status(self) -> str:
        try:
            lines = (self.data / "postmaster.pid").read_text().splitlines()
        except OSError:
            return ""
        assert self._process is not None
        return lines[7].strip() if len(lines) > 7 and lines[0] == str(self._process.pid) else ""

    def stop(self) -> None:
        """Ends it in an orderly way, connections cut (`fast`)."""
        self._end(signal.SIGINT)

    def kill(self) -> None:
        """SIGKILL to the server and all its processes, as a power cut would; `start` brings it back on the same port
        with what is on disk."""
        if self._process is None:
            return
        children = self._children()
        self._process.kill()
        for child in children:
            try:
                os.kill(child, signal.SIGKILL)
            except ProcessLookupError:
                continue
        self._process.wait()
        # Its processes are gone before the next start, or that one would find shared memory in use.
        until = time.monotonic() + 10
        while any(map(_lives, children)) and time.monotonic() < until:
            time.sleep(0.01)
        self._process = None

    def _children(self) -> list[int]:
        assert self._process is not None
        try:
            return [
                int(pid)
                for pid in Path(f"/proc/{self._process.pid}/task/{self._process.pid}/children").read_text().split()
            ]
        except OSError:
            return []

    def freeze(self) -> None:
        """SIGSTOP to all of it: connections are accepted by the kernel, and nothing answers."""
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        for pid in [self._process.pid, *self._children()]:
            try:
                os.kill(pid, number)
            except ProcessLookupError:
                continue

    def _end(self, number: signal.Signals) -> None:
        if self._process is not None:
            self._process.send_signal(number)
            try:
                self._process.wait(10)
            except subprocess.TimeoutExpired:
                self.kill()
            self._process = None

    def sql(self, statement: str, database: str = "postgres") -> str:
        """Run one statement as the superuser; its rows, a line each, fields separated by `|`."""
        return self.run(
            *("psql", "--no-psqlrc", "--quiet", "--tuples-only", "--no-align", "--set", "ON_ERROR_STOP=1"),
            *("--dbname", self.local(database), "--command", statement),
        ).strip()

    def database(self) -> str:
        """A new and empty database; its name."""
        self._databases += 1
        name = f"t{self._databases}"
        self.sql(f"CREATE DATABASE {name}")
        return name

    def empty(self) -> str:
        """A database without any events, devices or agencies; its name. Tables that a test before had are there:
        to make them takes longer than most tests."""
        if not self._used:
            self._used = self.database()
        else:
            self.sql(_EMPTY, self._used)
        return self._used

    def remove(self) -> None:
        self.kill()
        shutil.rmtree(self.directory, ignore_errors=True)

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.remove()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()


@functools.cache
def _template() -> Path:
    """A data directory that was never started: to copy it is quicker than to make it anew."""
    maker = PostgresqlServer()
    atexit.register(maker.remove)
    secret = maker.directory / "password"
    secret.write_text(PASSWORD)
    maker.give(secret)
    maker.run(
        *("initdb", "--pgdata", str(maker.data), "--username", USER, "--pwfile", str(secret), "--no-sync"),
        *("--auth-host", "scram-sha-256", "--auth-local", "trust", "--encoding", "UTF8", "--locale", "C"),
    )
    return maker.data


_EMPTY = """
DO $$
DECLARE name text;
BEGIN
    IF to_regclass('vestnik.meta') IS NULL THEN RETURN; END IF;
    FOR name IN SELECT tablename FROM pg_tables WHERE schemaname = 'vestnik' AND tablename <> 'meta' LOOP
        EXECUTE format('DELETE FROM vestnik.%I', name);
    END LOOP;
    FOR name IN SELECT sequencename FROM pg_sequences WHERE schemaname = 'vestnik' LOOP
        EXECUTE format('ALTER SEQUENCE vestnik.%I RESTART', name);
    END LOOP;
    UPDATE vestnik.meta SET epoch = md5(random()::text), revision = 0, erased = 0, probed = 0;
END $$"""


@functools.cache
def shared() -> PostgresqlServer:
    """One server for all tests of this process that do it no harm; each takes a `database()` of its own."""
    server = PostgresqlServer()
    atexit.register(server.remove)
    server.start()
    return server

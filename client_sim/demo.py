"""`make run`: a gateway with the embedded store and bus, sample agencies that keep publishing, and a phone that prints.

Everything that is kept lies in one directory, so that a second start goes on where the first one ended. The gateway is
a process of its own, started as an operator would start it; its log goes to a file: the terminal is the phone's.
Ctrl-C ends the agencies first, then the phone, then the gateway, and leaves nothing behind.
"""

import argparse
import asyncio
import contextlib
import json
import os
import random
import shlex
import signal
import socket
import sys
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
from rich.console import Console

from client_sim.agencies import AGENCIES, BY_CODE, Desk, Publisher, Unsent, rfc3339
from client_sim.client import Client, Stopped
from client_sim.local import Cannot, command, end, secrets_of
from client_sim.phone import Phone, Screen, follow

ACCOUNTS = ("anna", "boris", "vera")
WATCHED = "anna"  # whose phone prints
START_S = 30.0
CANNOT_START = 3  # as `vestnik serve` exits when it cannot


class Demo:
    def __init__(self, host: str, port: int, data: Path, rate: float, console: Console):
        self.host, self.port, self.data, self.rate, self.console = host, port, data, rate, console
        self.rng = random.Random()
        self.vestnik = Path(sys.executable).with_name("vestnik")
        self.log = data / "gateway.log"

    @property
    def address(self) -> str:
        return f"http://{f'[{self.host}]' if ':' in self.host else self.host}:{self.port}"

    @property
    def environment(self) -> dict[str, str]:
        """For every command. Other settings of ours hold there too; where the demo must agree with them, it decides."""
        return (
            {"VESTNIK_DRAIN_S": "1"}
            | os.environ
            | {
                "VESTNIK_DATA": str(self.data),
                "VESTNIK_STORE": f"sqlite:///{self.data}/vestnik.db",
                "VESTNIK_BUS": "memory://",
                "VESTNIK_PROCESSES": "1",
                "VESTNIK_HOST": self.host,
                "VESTNIK_PORT": str(self.port),
                "VESTNIK_DEMO": ",".join(ACCOUNTS),
            }
        )

    async def run(self, seconds: float | None) -> None:
        """Until SIGINT, SIGTERM or SIGHUP, or for so many seconds. Raises Cannot."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        self._check_port()
        self.data.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._say_step("starting the gateway")
        async with self._gateway() as gateway, httpx.AsyncClient(timeout=10, trust_env=False) as http:
            stopping = asyncio.create_task(stop.wait())
            ready = asyncio.create_task(self._ready(http, gateway))
            await asyncio.wait([stopping, ready], return_when=asyncio.FIRST_COMPLETED)
            if stop.is_set():
                ready.cancel()
                return
            await ready
            self._say_step("looking after the sample agencies")
            secrets = await secrets_of(AGENCIES, self.data, self.environment)
            token = await self._token("--ttl", "86400", WATCHED)
            self._say_hello(self.data / "secrets" / "gibdd", token)
            async with contextlib.AsyncExitStack() as stack:
                work = [
                    stopping,
                    asyncio.create_task(gateway.wait()),
                    await stack.enter_async_context(_background(self._phone(token))),
                    await stack.enter_async_context(_background(self._publish(http, secrets))),
                ]
                done, _ = await asyncio.wait(work, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
                if done and stopping not in done:
                    raise Cannot(self._why(done.pop()))
            self._say_step("stopping")

    def _why(self, ended: asyncio.Task[Any]) -> str:
        error = ended.exception()
        if isinstance(error, Cannot | Stopped | Unsent):
            return str(error)
        if error is not None:
            raise error
        return f"The gateway ended by itself; its log is {_near(self.log)}."

    def _check_port(self) -> None:
        # Asked before the start: else an answer of somebody else's gateway there would look like ours.
        with socket.socket(socket.AF_INET6 if ":" in self.host else socket.AF_INET) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((self.host, self.port))
            except OSError as error:
                raise Cannot(
                    f"The gateway cannot listen on {self.host} port {self.port} ({error.strerror}): stop what uses it,"
                    " or choose another with `VESTNIK_PORT=8081 make run`."
                ) from None
            self.port = probe.getsockname()[1]

    # The gateway

    @contextlib.asynccontextmanager
    async def _gateway(self) -> AsyncIterator[asyncio.subprocess.Process]:
        with self.log.open("wb") as log:
            gateway = await asyncio.create_subprocess_exec(
                self.vestnik,
                "serve",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env=self.environment,
                start_new_session=True,  # Ctrl-C is for us: the gateway goes last
            )
            try:
                yield gateway
            finally:
                await end(gateway)

    async def _ready(self, http: httpx.AsyncClient, gateway: asyncio.subprocess.Process) -> None:
        ends = time.monotonic() + START_S
        while time.monotonic() < ends:
            if gateway.returncode is not None:
                said = self.log.read_text("utf-8", "replace").strip().splitlines()
                raise Cannot(said[-1] if said else f"The gateway ended at once with exit code {gateway.returncode}.")
            with contextlib.suppress(httpx.HTTPError):
                if (await http.get(f"{self.address}/health/ready")).status_code == 200:
                    return
            await asyncio.sleep(0.05)
        raise Cannot(f"The gateway was not ready after {START_S:.0f} s; its log is {_near(self.log)}.")

    async def _token(self, *arguments: str) -> str:
        return (await command("token", *arguments, environment=self.environment)).strip()

    # Who lives here

    async def _phone(self, first: str) -> None:
        tokens = [first]
        screen = Screen(self.console)
        phone = Phone(screen, self.data / "phone.json")

        async def token() -> str:
            return tokens.pop() if tokens else await self._token("--ttl", "3600", WATCHED)

        client = Client(
            self.address,
            device="phone",
            token=token,
            keeper=phone,
            feeds=["agency:mchs"],
            observe=lambda t, message: screen.told(t, message, time.time()),
        )
        await follow(phone, client)

    async def _publish(self, http: httpx.AsyncClient, secrets: Mapping[str, str]) -> None:
        """Publish events of random agencies, `rate` a second on average, until cancelled."""
        desks = [Desk(agency, (WATCHED, *ACCOUNTS), self.rng) for agency in AGENCIES]
        weights = [1 if agency.code == "mchs" else 3 for agency in AGENCIES]
        publishers = {code: Publisher(self.address, code, secret, http, self.rng) for code, secret in secrets.items()}
        while True:
            desk = self.rng.choices(desks, weights)[0]
            publisher = publishers[desk.agency.code]
            try:
                await publisher.send([desk.next(time.time())])
            except Unsent as unsent:
                # "a running gateway takes a new agency within 2 s"
                if unsent.status != 401:
                    raise
                await asyncio.sleep(1)
            await asyncio.sleep(self.rng.expovariate(self.rate))

    # What a newcomer reads first

    def _say_step(self, text: str) -> None:
        self.console.print(f"[dim]{text} …[/]")

    def _say_hello(self, secret: Path, token: str) -> None:
        say = self.console.print
        event = {
            "specversion": "1.0",
            "id": str(uuid.uuid4()),
            "source": "/agencies/gibdd",
            "type": "gov.notice.sent",
            "time": rfc3339(time.time()),
            "account": WATCHED,
            "data": {"title": "Привет", "text": "Это событие отправлено вручную"},
        }
        settings = {"VESTNIK_HOST": self.host, "VESTNIK_PORT": str(self.port)}
        usual = {"VESTNIK_HOST": "127.0.0.1", "VESTNIK_PORT": "8080"}
        prefix = "".join(f"{name}={value} " for name, value in settings.items() if value != usual[name])
        publish = f"{prefix}{_near(self.vestnik)} publish --agency gibdd --secret-file {_near(secret)}"
        say(f"\n[bold]Vestnik[/] listens on [bold]{self.address}[/] and keeps its data in {_near(self.data)}/")
        say("Ctrl-C ends everything.\n")
        say(f"[bold]Open {self.address}/ in a browser[/] and choose anna: what is published shows there at once.")
        say(f"[bold]Open {self.address}/ops[/] to see the gateway as its operators do.\n")
        say(f"[bold]Send an event by hand[/] to {WATCHED}'s phone below, from another terminal in this directory:\n")
        _paste(self.console, f"echo {shlex.quote(json.dumps(event, ensure_ascii=False))} |\n  {publish}")
        say(f"\n[bold]Connect from a browser:[/] open {self.address}/health/live and paste this into its console:\n")
        _paste(self.console, _SNIPPET % {"address": self.address.replace("http", "ws", 1), "token": token})
        names = ", ".join(agency.name for agency in BY_CODE.values())
        say(f"\n[bold]Below:[/] the phone of {WATCHED}. {names} publish for {', '.join(ACCOUNTS)}.")
        say("At the right: the offset, then milliseconds since the agency made the event / since it was committed.\n")


_SNIPPET = """\
let ws = new WebSocket("%(address)s/v1/socket", ["vestnik.v1.json"]);
ws.onopen = () => ws.send(JSON.stringify({t: "hello", device: "console", token:
  "%(token)s"}));
ws.onmessage = ({data}) => {
  let m = JSON.parse(data), last = m.t == "event" ? m.offset : m.t == "batch" ? m.events.at(-1)[0] : 0;
  console.log(m.t, m);
  if (last) ws.send(JSON.stringify({t: "ack", feed: m.feed, offset: last}));
};
ws.onclose = ({code, reason}) => console.log("closed", code, reason);"""


def _paste(console: Console, text: str) -> None:
    """Print what is to be pasted as it is: no markup, no wrapping."""
    console.print(text, style="cyan", markup=False, highlight=False, soft_wrap=True)


def _near(path: Path) -> str:
    """The path as one types it here."""
    with contextlib.suppress(ValueError):
        return shlex.quote(str(path.absolute().relative_to(Path.cwd())))
    return shlex.quote(str(path))


@contextlib.asynccontextmanager
async def _background(work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
    """A task for the time of the block."""
    task = asyncio.create_task(work)
    try:
        yield task
    finally:
        task.cancel()
        await asyncio.wait([task])


@contextlib.contextmanager
def _own_terminal() -> Any:
    """Make Ctrl-C ours alone while we are in the foreground: `make` above us would call it an error otherwise."""
    before = os.getpgrp()
    try:
        foreground = os.tcgetpgrp(0) == before and before != os.getpid()
    except OSError:
        foreground = False
    if not foreground:
        yield
        return
    # Whoever is not in the foreground is stopped for touching the terminal, unless it ignores these signals. Ctrl-Z is
    # ignored with them: `make` would not know that we are stopped.
    for number in (signal.SIGTTOU, signal.SIGTTIN, signal.SIGTSTP):
        signal.signal(number, signal.SIG_IGN)
    os.setpgid(0, 0)
    os.tcsetpgrp(0, os.getpid())
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            os.tcsetpgrp(0, before)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="make run", description=__doc__.partition("\n")[0])
    parser.add_argument("--host", default=os.environ.get("VESTNIK_HOST", "127.0.0.1"), help="default %(default)s")
    parser.add_argument("--port", type=int, default=os.environ.get("VESTNIK_PORT", "8080"), help="0 takes a free one")
    parser.add_argument("--data", type=Path, default=Path(os.environ.get("VESTNIK_DATA", "data")))
    parser.add_argument("--rate", type=float, default=1.0, help="events a second of all agencies; default %(default)s")
    parser.add_argument("--seconds", type=float, help="end by itself after so long; else at Ctrl-C")
    options = parser.parse_args(arguments)
    demo = Demo(options.host, options.port, options.data.absolute(), options.rate, Console())
    with _own_terminal():
        try:
            asyncio.run(demo.run(options.seconds))
        except Cannot as cannot:
            print(f"vestnik: {cannot}", file=sys.stderr)
            sys.exit(CANNOT_START)


if __name__ == "__main__":
    main()

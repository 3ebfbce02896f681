"""`vestnik-sim phone`: one phone in the terminal, live, with keys for what happens to phones.

It is the client library behind a network of its own (`proxy`), so that a tunnel is a tunnel: nothing comes through and
nobody is told. `Cabinet` is what the person sees, `draw` is how; both are pure.
"""

import asyncio
import contextlib
import os
import sys
import termios
import time
import tty
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path
from random import Random
from typing import Any, Final
from urllib.parse import urlsplit

import httpx
from rich.console import Console, Group, RenderableType
from rich.layout import Layout
from rich.live import Live
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from client_sim.agencies import BY_CODE
from client_sim.client import Client, Event, Message, Notebook, Numbered, Position, Stopped
from client_sim.measure import Histogram
from client_sim.networks import NETWORKS
from client_sim.outbox import Full, Outbox
from client_sim.phone import LONG_MS, STYLES, describe, latency_ms
from client_sim.proxy import Proxy
from client_sim.words import LANGUAGES

FRAMES_S: Final = 0.25
SEEN_EVERY_S: Final = 2.0
LINES: Final = 200
AGENCY_TO_ASK: Final = "/agencies/mvd"  # until something came from another one


@dataclass
class Application:
    number: str
    service: str
    status: str
    reason: str
    updated: float


@dataclass
class Cabinet:
    """What the person sees. Takes snapshots, events and messages; asks nobody. Times are Unix seconds."""

    account: str
    language: str = "ru"
    device: str = ""
    network: str = "perfect"
    state: str = "connecting"  # a word of `words`
    reason: str = ""
    again_at: float = 0.0
    tunnel: bool = False
    lost: bool = False
    saver: bool = False
    received: int = 0
    waiting: int = 0
    applications: dict[str, Application] = field(default_factory=dict)
    agencies: dict[str, float] = field(default_factory=dict)
    lines: deque[tuple[float, str, str, str]] = field(default_factory=lambda: deque(maxlen=LINES))
    latency: Histogram = field(default_factory=Histogram)
    last_ms: float | None = None

    def say(self, word: str, **given: Any) -> str:
        """The word in the language of the person."""
        return LANGUAGES[self.language].get(word, word).format(**given)

    def note(self, now: float, text: str, style: str = "dim") -> None:
        self.lines.append((now, "", text, style))

    def load(self, snapshot: Mapping[str, Any], now: float) -> None:
        """The state as the gateway made it from the feed."""
        self.applications.clear()
        for one in snapshot.get("applications", ()):
            reason = (one.get("reason") or {}).get("text", "")
            updated = _unix(one.get("updated"), now)
            self._keep(Application(one["application"], one["service"], one["status"], reason, updated))
        for one in snapshot.get("agencies", ()):
            self.agencies[one["code"]] = _unix(one.get("updated"), now)
        self.note(now, self.say("snapshot", number=len(self.applications)))

    def add(self, event: Event | None, now: float) -> None:
        """The next event of a feed."""
        self.received += 1
        line = describe(event)
        label = line.label
        if event is not None:
            data, code = event.get("data", {}), event["source"].removeprefix("/agencies/")
            self.agencies[code] = now
            ms = latency_ms(event, now)
            if ms is not None and ms < LONG_MS:
                self.last_ms = ms
                self.latency.add(ms / 1000)
            if event["type"] == "gov.status.changed":
                label = self.say(data["status"])
                reason = data.get("reason", {}).get("text", "")
                self._keep(Application(data["application"], data["service"], data["status"], reason, now))
        self.lines.append((now, line.agency, f"{label}  {line.text}", line.style))

    def told(self, t: str, message: Message, now: float) -> None:
        """A message of the gateway, or `lost`."""
        match t:
            case "welcome":
                if self.state != "online":
                    self.note(now, self.say("back"), "green")
                self.state = "online"
            case "lost":
                self.state, self.again_at = "again", now + message["wait"]
                self.note(now, self.say("away", reason=message["reason"] or message["code"]), "yellow")
            case "mode":
                self.saver = message["mode"] == "saver"
            case "resync":
                self.note(now, self.say("resync"), "yellow")
            case "drain":
                self.note(now, self.say("draining"), "yellow")
            case "refresh":
                words = {"source": _agency(message["source"]), "reason": message.get("reason", "")}
                self.note(now, self.say(f"refresh {message['status']}", retry=message.get("retry_after", 0), **words))
            case "seen":
                self.note(now, self.say("seen"))
            case "error":
                self.note(now, self.say("error", code=message["code"], detail=message["detail"]), "red")

    def _keep(self, application: Application) -> None:
        self.applications.pop(application.number, None)
        self.applications[application.number] = application  # the latest is the last


def draw(cabinet: Cabinet, now: float, height: int = 30) -> RenderableType:
    """The whole screen."""
    rows = max(5, height - 16)
    layout = Layout()
    layout.split_column(
        Layout(_head(cabinet, now), name="head", size=3),
        Layout(name="middle", size=11),
        Layout(_feed(cabinet, rows), name="feed"),
        Layout(Text.from_markup(cabinet.say("keys"), style="dim"), name="keys", size=1),
    )
    layout["middle"].split_row(Layout(_applications(cabinet, now), ratio=3), Layout(_agencies(cabinet, now), ratio=2))
    return layout


def _head(cabinet: Cabinet, now: float) -> Panel:
    style = {"online": "bold green", "connecting": "yellow", "again": "bold yellow", "stopped": "bold red"}
    state = cabinet.say(cabinet.state, seconds=max(0.0, cabinet.again_at - now), reason=cabinet.reason)
    parts = [(f"● {state}", style.get(cabinet.state, "yellow"))]
    parts += [
        (f"  {cabinet.say(word)}", "bold magenta") for word in ("tunnel", "lost", "saver") if getattr(cabinet, word)
    ]
    grid = Table.grid(expand=True)
    grid.add_column()
    grid.add_column(justify="right")
    p50 = cabinet.latency.percentile(0.5)
    speed = (
        "" if p50 is None else f"{cabinet.say('latency')} {cabinet.last_ms or 0:.0f} ms (50 % {p50 * 1000:.0f} ms)  "
    )
    waiting = f"  {cabinet.say('waiting')}: {cabinet.waiting}" if cabinet.waiting else ""
    grid.add_row(Text.assemble(*parts), Text(f"{speed}{cabinet.say('received')}: {cabinet.received}{waiting}", "dim"))
    title = f"{cabinet.say('title')} · {cabinet.account} · {cabinet.device} · {cabinet.network}"
    return Panel(grid, title=title, title_align="left")


def _applications(cabinet: Cabinet, now: float) -> Panel:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(ratio=5, no_wrap=True)
    table.add_column(ratio=4, no_wrap=True)
    table.add_column(justify="right", style="dim", no_wrap=True)
    for one in list(cabinet.applications.values())[-9:][::-1]:
        label = Text(cabinet.say(one.status), STYLES.get(one.status, "cyan"))
        table.add_row(Text.assemble(one.service, (f" {one.number}", "dim")), label, _ago(now - one.updated))
    if not cabinet.applications:
        table.add_row(Text(cabinet.say("none"), "dim"), "", "")
    return Panel(table, title=cabinet.say("applications"), title_align="left")


def _agencies(cabinet: Cabinet, now: float) -> Panel:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", style="dim", no_wrap=True)
    for code in dict.fromkeys([*BY_CODE, *cabinet.agencies]):
        when = cabinet.agencies.get(code)
        said = cabinet.say("never") if when is None else f"{cabinet.say('updated')} {_ago(now - when)}"
        table.add_row(_agency(code), said)
    return Panel(table, title=cabinet.say("agencies"), title_align="left")


def _feed(cabinet: Cabinet, rows: int) -> Panel:
    table = Table.grid(padding=(0, 1), expand=True)
    table.add_column(style="dim", no_wrap=True)
    table.add_column(width=12, no_wrap=True)
    table.add_column(ratio=1, no_wrap=True)
    for at, agency, text, style in list(cabinet.lines)[-rows:][::-1]:
        table.add_row(time.strftime("%H:%M:%S", time.localtime(at)), agency, Text(text, style, overflow="ellipsis"))
    return Panel(Group(table), title=cabinet.say("feed"), title_align="left")


def _ago(seconds: float) -> str:
    whole = max(0, round(seconds))
    return f"{whole} s" if whole < 100 else f"{whole // 60} min" if whole < 6000 else f"{whole // 3600} h"


def _agency(source: str) -> str:
    code = source.removeprefix("/agencies/")
    return BY_CODE[code].name if code in BY_CODE else code


def _unix(text: object, otherwise: float) -> float:
    try:
        return datetime.fromisoformat(str(text)).timestamp()
    except ValueError:
        return otherwise


class _Kept(Notebook):
    """The app's storage: positions on disk, and the screen is told of everything kept."""

    def __init__(self, path: Path | None, cabinet: Cabinet):
        super().__init__(path)
        self.cabinet = cabinet
        self.unseen: list[tuple[str, int]] = []

    def keep(self, feed: str, position: Position, events: Sequence[Numbered]) -> None:
        super().keep(feed, position, events)
        for offset, event in events:
            self.cabinet.add(event, time.time())
            self.unseen.append((feed, offset))

    def replace(self, feed: str, position: Position, snapshot: Message) -> None:
        super().replace(feed, position, snapshot)
        self.cabinet.load(snapshot, time.time())


class Handset:
    """The phone of an account: the app, its storage in `directory`, its network, and the hand that holds it.

    `press` takes the keys of the screen; `run` lives until `q`, or until `Stopped`.
    """

    def __init__(
        self,
        address: str,
        account: str,
        token: Callable[[], str],
        directory: Path,
        *,
        network: str = "perfect",
        language: str = "ru",
        feeds: Sequence[str] = (),
        device: str | None = None,
    ):
        self.address, self.account, self._token, self.directory = address, account, token, directory
        self.feeds, self._network, self._wanted = list(feeds), NETWORKS[network], device
        self.cabinet = Cabinet(account, language, network=network)
        self.done = asyncio.Event()
        self.client: Client
        self.proxy: Proxy
        self._kept: _Kept
        self._app: asyncio.Task[None] | None = None
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Raises Stopped when the gateway does not want this phone any more."""
        url = urlsplit(self.address)
        async with Proxy(str(url.hostname), url.port or 80, self._network, Random()) as self.proxy:
            self.install()
            looking = asyncio.create_task(self._look())
            try:
                await self.done.wait()
            finally:
                looking.cancel()
                for task in [looking, *self._tasks, *([self._app] if self._app else [])]:
                    task.cancel()
                    await asyncio.gather(task, return_exceptions=True)

    def press(self, key: str) -> None:
        """What a key means; unknown ones mean nothing."""
        match key:
            case "t":
                self._tunnel(not self.cabinet.tunnel)
            case "n":
                self._lose(not self.cabinet.lost)
            case "b":
                self._ask("mode", mode="full" if self.cabinet.saver else "saver")
                self.cabinet.saver = not self.cabinet.saver
            case "c":
                self._tunnel(False)
                self._lose(False)
                if self.cabinet.saver:
                    self.press("b")
            case "r":
                newest = max(self.cabinet.agencies, key=lambda code: self.cabinet.agencies[code], default="mvd")
                self.cabinet.note(time.time(), f"{self.cabinet.say('refresh')}: {_agency(newest)} …")
                self._ask("refresh", source=f"/agencies/{newest}")
            case "i":
                self.reinstall()
            case "l":
                self.cabinet.language = "en" if self.cabinet.language == "ru" else "ru"
            case "q":
                self.done.set()

    def install(self) -> None:
        """Start the app on what lies in its storage."""
        self.directory.mkdir(parents=True, exist_ok=True)
        name = self.directory / "device"
        if not name.exists():
            name.write_text(self._wanted or f"phone-{Random().getrandbits(32):08x}", "ascii")
        self.cabinet.device = name.read_text("ascii")
        self._kept = _Kept(self.directory / "kept.json", self.cabinet)

        async def token() -> str:
            return self._token()

        self.client = Client(
            f"http://127.0.0.1:{self.proxy.port}",
            device=self.cabinet.device,
            token=token,
            keeper=self._kept,
            feeds=self.feeds,
            mode="saver" if self.cabinet.saver else "full",
            observe=self._told,
            outbox=Outbox(self.directory / "outbox.json"),
        )
        self._app = asyncio.create_task(self._live(self.client))

    def reinstall(self) -> None:
        """Everything that the app kept is gone, its id too: for the gateway a new device."""
        if self._app is not None:
            self._app.cancel()
        for file in ("device", "kept.json", "outbox.json"):
            (self.directory / file).unlink(missing_ok=True)
        self._wanted = None
        self.cabinet.applications.clear()
        self.cabinet.state = "connecting"
        self.cabinet.note(time.time(), self.cabinet.say("reinstalled"), "magenta")
        self.install()

    async def _live(self, client: Client) -> None:
        try:
            await client.run()
        except Stopped as stopped:
            self.cabinet.state, self.cabinet.reason = "stopped", str(stopped)
            self.cabinet.note(time.time(), self.cabinet.say("stopped", reason=stopped), "bold red")

    def _told(self, t: str, message: Message) -> None:
        self.cabinet.told(t, message, time.time())
        if t == "welcome" and not message["new"] and not self.cabinet.applications:
            self._spawn(self._fetch())

    async def _fetch(self) -> None:
        """The app was started again and shows what was there before."""
        async with httpx.AsyncClient(base_url=self.client.address, timeout=20, trust_env=False) as http:
            with contextlib.suppress(httpx.HTTPError, ValueError):
                answer = await http.get("/v1/snapshot", headers={"authorization": f"Bearer {self._token()}"})
                self.cabinet.load(answer.raise_for_status().json(), time.time())

    def _tunnel(self, inside: bool) -> None:
        if inside != self.cabinet.tunnel:
            self.cabinet.tunnel = inside
            self.proxy.stall(inside)

    def _lose(self, lost: bool) -> None:
        if lost != self.cabinet.lost:
            self.cabinet.lost = self.proxy.down = lost
            if lost:
                self.proxy.cut("close")

    def _ask(self, t: str, **fields: Any) -> None:
        async def ask() -> None:
            with contextlib.suppress(Full):
                await self.client.ask(t, **fields)

        self._spawn(ask())

    async def _look(self) -> None:
        """The person reads what is on the screen, unless the phone is in the pocket."""
        while True:
            await asyncio.sleep(SEEN_EVERY_S)
            self.cabinet.waiting = len(self.client.outbox)
            if self.cabinet.saver or not self._kept.unseen:
                continue
            unseen, self._kept.unseen = self._kept.unseen, []
            for feed in {feed for feed, _ in unseen}:
                self._ask("seen", feed=feed, offsets=[offset for name, offset in unseen if name == feed][-256:])

    def _spawn(self, work: Any) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)


async def show(handset: Handset, console: Console, stop: asyncio.Event) -> None:
    """The phone on this terminal, with its keys, until `q` or `stop`. Without a terminal its lines are printed."""
    living = asyncio.create_task(handset.run())
    try:
        with _keys(handset.press), _screen(console) as screen:
            printed = 0.0
            while not living.done() and not stop.is_set():
                now = time.time()
                if screen is not None:
                    screen.update(draw(handset.cabinet, now, console.height), refresh=True)
                else:
                    for at, agency, text, _ in [line for line in handset.cabinet.lines if line[0] > printed]:
                        printed = at
                        words = f"{time.strftime('%H:%M:%S', time.localtime(at))}  {agency:12}  {text}"
                        console.print(words, markup=False, highlight=False, soft_wrap=True)
                await asyncio.wait({living}, timeout=FRAMES_S)
    finally:
        handset.done.set()
        await living


@contextlib.contextmanager
def _screen(console: Console) -> Iterator[Live | None]:
    if not console.is_terminal:
        yield None
        return
    with Live(console=console, screen=True, auto_refresh=False) as live:
        yield live


@contextlib.contextmanager
def _keys(press: Callable[[str], None]) -> Iterator[None]:
    """Single keys of the terminal, or of a pipe, as they come."""
    loop = asyncio.get_running_loop()
    descriptor = sys.stdin.fileno()
    before = termios.tcgetattr(descriptor) if os.isatty(descriptor) else None

    def read() -> None:
        data = os.read(descriptor, 64)
        if not data:
            loop.remove_reader(descriptor)
        for key in data.decode("utf-8", "ignore"):
            press(key.lower())

    if before is not None:
        tty.setcbreak(descriptor)
    with contextlib.suppress(OSError, ValueError):  # a file or nothing at all has no keys
        loop.add_reader(descriptor, read)
    try:
        yield
    finally:
        with contextlib.suppress(OSError, ValueError):
            loop.remove_reader(descriptor)
        if before is not None:
            termios.tcsetattr(descriptor, termios.TCSADRAIN, before)

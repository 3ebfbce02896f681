"""A phone on a terminal: it prints what arrives, when, from whom, and how long it took.

python -m client_sim.phone --token "$(.venv/bin/vestnik token anna)" --follow agency:mchs
"""

import argparse
import asyncio
import contextlib
import sys
import time
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import NamedTuple

from rich.console import Console
from rich.table import Table
from rich.text import Text

from client_sim.agencies import BY_CODE, LABELS
from client_sim.client import Client, Event, Message, NotConnected, Notebook, Numbered, Position, Stopped

SEEN_EVERY_S = 2.0  # one `seen` for all that was shown meanwhile
LONG_MS = 60_000.0  # what waited longer was away: its latency says nothing
SEEN_AT_ONCE = 256  # contract: "up to 256"

_FINES = {
    "issued": "Новый штраф",
    "changed": "Штраф изменён",
    "overdue": "Штраф просрочен",
    "paid": "Штраф оплачен",
    "cancelled": "Штраф отменён",
}
_PAYOUTS = {
    "assigned": "Назначено",
    "changed": "Изменено",
    "scheduled": "Запланировано",
    "paid": "Выплачено",
    "delayed": "Задерживается",
    "stopped": "Прекращено",
}
STYLES = {
    "action_required": "bold yellow",
    "awaiting_confirmation": "yellow",
    "overdue": "bold yellow",
    "delayed": "yellow",
    "rejected": "red",
    "cancelled": "dim",
    "approved": "green",
    "done": "bold green",
    "paid": "green",
}


class Line(NamedTuple):
    """How an event reads on the screen."""

    agency: str
    label: str
    text: str
    style: str = ""


def describe(event: Event | None) -> Line:
    """An event as a person reads it, in Russian. Never fails on a type or status of a later version."""
    if event is None:
        return Line("", "Удалено", "", "dim")
    data = event.get("data", {})
    code = event["source"].removeprefix("/agencies/")
    agency = BY_CODE[code].name if code in BY_CODE else code
    title, status = data.get("title", ""), data.get("status", "")
    match event["type"]:
        case "gov.status.changed":
            reason = data.get("reason", {}).get("text")
            text = f"{data['service']}, № {data['application']}" + (f". {reason}" if reason else "")
            return Line(agency, LABELS.get(status, status), text, STYLES.get(status, "cyan"))
        case "gov.fine.changed":
            text = f"{title}, {_roubles(data['amount'])}"
            return Line(agency, _FINES.get(status, status), text, STYLES.get(status, "red"))
        case "gov.payout.changed":
            text = f"{title}, {_roubles(data['amount'])}"
            return Line(agency, _PAYOUTS.get(status, status), text, STYLES.get(status, "cyan"))
        case "gov.record.changed":
            fields = ", ".join(f"{name}: {value}" for name, value in data["fields"].items())
            return Line(agency, "Сведения обновлены", fields, "blue")
        case "gov.court.decided":
            return Line(agency, "Судебное решение", f"{data['text']} (дело № {data['case']})", "bold magenta")
        case "gov.emergency.published":
            return Line(agency, title, data["text"], "bold white on red")
        case kind:
            return Line(agency, title or kind, data.get("text", ""), "white")


def _roubles(kopecks: int) -> str:
    return f"{kopecks // 100:,}".replace(",", "\u00a0") + f",{kopecks % 100:02}\u00a0₽"


def latency_ms(event: Event, now: float, since: str = "recordedtime") -> float | None:
    """Milliseconds from the event's commit (or another time attribute of it) to `now`; None when it has none."""
    try:
        return max(0.0, (now - datetime.fromisoformat(event[since]).timestamp()) * 1000)
    except (KeyError, ValueError):
        return None


class Screen:
    """Prints one line for each thing that happened. Latencies are from the agency's `time` and from the commit."""

    def __init__(self, console: Console):
        self.console = console

    def event(self, offset: int, event: Event | None, now: float) -> None:
        line = describe(event)
        took = [latency_ms(event, now, since) for since in ("time", "recordedtime")] if event else []
        took_text = "/".join(f"{ms:.0f}" for ms in took if ms is not None and ms < LONG_MS)
        row = Table.grid(padding=(0, 2), expand=True)
        row.add_column(width=12, style="dim")
        row.add_column(width=11, no_wrap=True)
        row.add_column(ratio=1)
        row.add_column(justify="right", style="dim", no_wrap=True)
        body = Text.assemble((line.label, line.style), "  ", line.text)
        row.add_row(_clock(now, 3), line.agency, body, f"#{offset} {took_text:>6} ms" if took_text else f"#{offset}")
        self.console.print(row)

    def note(self, now: float, text: str, style: str = "dim") -> None:
        self.console.print(Text.assemble((_clock(now, 3), "dim"), "  ", (text, style)))

    def told(self, t: str, message: Message, now: float) -> None:
        """Print what a message of the gateway means to the person with the phone; most mean nothing."""
        match t:
            case "welcome":
                feeds = ", ".join(f"{item['feed']} after {item['from']}" for item in message["feeds"])
                self.note(now, f"connected as {message['account']}: {feeds}", "green")
            case "lost":
                self.note(
                    now, f"lost ({message['code'] or 'no code'}: {message['reason']}), again in {message['wait']:.1f} s"
                )
            case "resync":
                self.note(
                    now,
                    f"{message['feed']}: continuity is broken ({message['reason']}), loading the snapshot",
                    "yellow",
                )
            case "drain":
                self.note(now, f"this node goes away, moving on within {message['after']} s", "yellow")
            case "error":
                self.note(now, f"error {message['code']}: {message['detail']}", "red")


def _clock(unix: float, digits: int = 0) -> str:
    text = datetime.fromtimestamp(unix).astimezone().strftime("%H:%M:%S.%f")
    return text[: 8 + (digits + 1 if digits else 0)]


class Phone(Notebook):
    """A device whose screen is the terminal: prints what it keeps, and reports it as seen."""

    def __init__(self, screen: Screen, path: Path | None = None):
        super().__init__(path)
        self.screen = screen
        self._shown: list[tuple[str, int]] = []

    def keep(self, feed: str, position: Position, events: Sequence[Numbered]) -> None:
        super().keep(feed, position, events)
        now = time.time()
        for offset, event in events:
            self.screen.event(offset, event, now)
            self._shown.append((feed, offset))

    def replace(self, feed: str, position: Position, snapshot: Message) -> None:
        super().replace(feed, position, snapshot)
        what = {name: len(snapshot.get(name, ())) for name in ("applications", "records", "notices")}
        counts = ", ".join(f"{count} {name}" for name, count in what.items())
        self.screen.note(time.time(), f"snapshot of {feed} at offset {position.offset}: {counts}")

    async def report(self, client: Client) -> None:
        """Tell the gateway what was shown, until cancelled. What could not be told is told after the next welcome."""
        while True:
            await asyncio.sleep(SEEN_EVERY_S)
            feeds = {feed for feed, _ in self._shown}
            for feed in feeds:
                offsets = [offset for name, offset in self._shown if name == feed][:SEEN_AT_ONCE]
                try:
                    await client.send("seen", feed=feed, offsets=offsets)
                except NotConnected:
                    break
                told = {(feed, offset) for offset in offsets}
                self._shown = [shown for shown in self._shown if shown not in told]


async def follow(phone: Phone, client: Client) -> None:
    """Run the phone until cancelled. Raises Stopped."""
    reporting = asyncio.create_task(phone.report(client))
    try:
        await client.run()
    finally:
        reporting.cancel()
        await asyncio.gather(reporting, return_exceptions=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m client_sim.phone", description=__doc__.partition("\n")[0])
    parser.add_argument("--token", required=True, help="as `vestnik token ACCOUNT` prints it")
    parser.add_argument("--address", default="http://127.0.0.1:8080", help="default %(default)s")
    parser.add_argument("--device", default="terminal", help="default %(default)s")
    parser.add_argument(
        "--follow", action="append", default=[], metavar="FEED", help="an agency feed, like agency:mchs"
    )
    parser.add_argument(
        "--keep", type=Path, metavar="FILE", help="where the positions are kept; else each start is fresh"
    )
    parser.add_argument("--saver", action="store_true", help="traffic saving mode")
    parser.add_argument("--msgpack", action="store_true", help="MessagePack instead of JSON")
    options = parser.parse_args()
    screen = Screen(Console())
    phone = Phone(screen, options.keep)

    async def token() -> str:
        return str(options.token)

    client = Client(
        options.address,
        device=options.device,
        token=token,
        keeper=phone,
        feeds=options.follow,
        mode="saver" if options.saver else "full",
        subprotocol="vestnik.v1.msgpack" if options.msgpack else "vestnik.v1.json",
        observe=lambda t, message: screen.told(t, message, time.time()),
    )
    try:
        with contextlib.suppress(KeyboardInterrupt):
            asyncio.run(follow(phone, client))
    except Stopped as stopped:
        sys.exit(f"stopped: {stopped}")


if __name__ == "__main__":
    main()

"""What a device wants of the gateway and has no answer to yet: kept over lost connections and restarts of the app.

Each command has a `ref` of its own and is sent again with the same one after every reconnect, until its answer comes:
the gateway does it once, however often it hears it (contract, 3.3). Pure but for the file.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import Any, Final

Message = dict[str, Any]

MOST: Final = 64  # commands that wait; the oldest `seen` makes room, anything else refuses
SEEN_AT_ONCE: Final = 256  # contract: "`offsets` (up to 256)"
_FINAL_REFRESH: Final = frozenset({"done", "failed", "cooldown"})
_ANSWERS: Final[Mapping[str, str]] = {"subscribed": "subscribe", "unsubscribed": "unsubscribe", "mode": "mode"}


class Full(Exception):
    """Too much waits for an answer already."""


@dataclass
class Command:
    ref: str
    t: str
    fields: Message
    sent: bool = False  # in the session that there is now

    def messages(self) -> list[Message]:
        """What goes over the socket. `seen` has no answer of its own: a `ping` behind it has, because the gateway
        takes messages in their order."""
        own: Message = {"t": self.t, "ref": self.ref, **self.fields}
        return [own, {"t": "ping", "ref": self.ref}] if self.t == "seen" else [own]


class Outbox:
    """In `path`, if given: one file, replaced as a whole."""

    def __init__(self, path: Path | None = None, rng: Random | None = None):
        self.path = path
        self._rng = rng or Random()
        self._waiting: dict[str, Command] = {}
        if path is not None and path.exists():
            kept = json.loads(path.read_text("utf-8"))
            self._waiting = {one["ref"]: Command(one["ref"], one["t"], one["fields"]) for one in kept}

    def __len__(self) -> int:
        return len(self._waiting)

    def put(self, t: str, **fields: Any) -> Command:
        """A command to be sent: `seen`, `subscribe`, `unsubscribe`, `mode`, `refresh`. What is seen in one feed is
        gathered until it goes; a later mode takes the place of an earlier one. Raises Full."""
        if t == "seen":
            for other in self._waiting.values():
                if other.t == "seen" and not other.sent and other.fields["feed"] == fields["feed"]:
                    offsets = sorted({*other.fields["offsets"], *fields["offsets"]})
                    if len(offsets) <= SEEN_AT_ONCE:
                        other.fields["offsets"] = offsets
                        self._write()
                        return other
        if t == "mode":
            self._drop(lambda command: command.t == "mode")
        if len(self._waiting) >= MOST:
            seen = next((command for command in self._waiting.values() if command.t == "seen"), None)
            if seen is None:
                raise Full(f"{MOST} commands wait for an answer")
            del self._waiting[seen.ref]
        command = Command(f"c{self._rng.getrandbits(64):016x}", t, fields)
        self._waiting[command.ref] = command
        self._write()
        return command

    def due(self) -> list[Command]:
        """What has not been sent in this session, in the order in which it was asked for; from now on it has."""
        due = [command for command in self._waiting.values() if not command.sent]
        for command in due:
            command.sent = True
        return due

    def session_ended(self) -> None:
        """Nothing of it is known to have arrived: all of it is due again."""
        for command in self._waiting.values():
            command.sent = False

    def answered(self, message: Message) -> Command | None:
        """The command that this message of the gateway settles, if any; it waits no longer."""
        command = self._waiting.get(str(message.get("ref", "")))
        if command is None or not _settles(command, message):
            return None
        del self._waiting[command.ref]
        self._write()
        return command

    def _drop(self, which: Callable[[Command], bool]) -> None:
        self._waiting = {ref: command for ref, command in self._waiting.items() if not which(command)}

    def _write(self) -> None:
        if self.path is not None:
            kept = [
                {name: value for name, value in asdict(one).items() if name != "sent"} for one in self._waiting.values()
            ]
            whole = self.path.with_suffix(".part")
            whole.write_text(json.dumps(kept), "utf-8")
            whole.replace(self.path)


def _settles(command: Command, message: Message) -> bool:
    match message["t"]:
        case "error":
            return bool(message["code"] != "unavailable")  # that one may go well at the next try
        case "refresh":
            return message["status"] in _FINAL_REFRESH
        case "pong":
            return command.t == "seen"
        case t:
            return _ANSWERS.get(t) == command.t

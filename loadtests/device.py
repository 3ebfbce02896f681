"""A phone under load, without a socket: bytes in, bytes out, and every fact into the journal.

The phone does what the contract asks: hello with what it keeps, the snapshot when it is new, acks at once for what one
read brought, pongs. It keeps nothing but its positions. What it notes are the lines of `client_sim.journal`; a line of
an event also says `type`, `act` and `commit` (seconds since the agency's clock and since `recordedtime`) and `how` it
came: `live`, `behind` (it was committed before this session was live) or `slow` (the phone does not always read).

No socket, no clock: `now` (Unix seconds) is an argument.
"""

import hashlib
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final

import orjson

from client_sim.framing import CLOSE, PING, PONG, TEXT, masked

Note = Callable[[Mapping[str, Any]], None]
Told = Callable[[str, float, int], None]
"""(row, seconds, bytes or events): a measurement for Locust's table."""

EVENT: Final = b'{"t":"event","feed":"'
REMEMBERED: Final = 256  # decoded events: a public one comes to every phone with the same bytes


class Ended(Exception):
    """The session is over. `code`: the close code; 0: the connection was cut."""

    def __init__(self, code: int, why: str = ""):
        super().__init__(f"{code} {why}".strip())
        self.code = code


def digest(event: Mapping[str, Any]) -> str:
    """`client_sim.journal.digest`, ten times as fast, for events of strings and integers."""
    sent = {name: value for name, value in event.items() if name != "recordedtime"}
    return hashlib.sha256(orjson.dumps(sent, option=orjson.OPT_SORT_KEYS)).hexdigest()


class Facts:
    """What is to be known of an event: `(source, id, digest, type, act, commit)`, the last two in Unix seconds."""

    def __init__(self) -> None:
        self._known: dict[bytes, tuple[Any, ...]] = {}

    def of(self, text: bytes) -> tuple[Any, ...]:
        found = self._known.get(text)
        if found is None:
            found = facts(orjson.loads(text))
            if len(self._known) >= REMEMBERED:
                self._known.clear()
            self._known[text] = found
        return found


def facts(event: Mapping[str, Any] | None) -> tuple[Any, ...]:
    if event is None:  # erased
        return (None, None, None, None, None, None)
    act, commit = (datetime.fromisoformat(event[name]).timestamp() for name in ("time", "recordedtime"))
    return event["source"], event["id"], digest(event), event["type"], act, commit


class Device:
    """One device of an account, over all its sessions.

    For each connection call `hello`, send what it returns, and give every frame to `frame`, in order; what that
    returns must be sent. `snapshot()` must return `positions` of the account's snapshot; it may block.
    """

    def __init__(
        self,
        account: str,
        following: Sequence[str],
        note: Note,
        told: Told,
        snapshot: Callable[[], Mapping[str, Any]],
        facts: Facts,
        slow: bool = False,
    ):
        self.account, self.following, self.name = account, list(following), f"{account}/phone"
        self.feed = f"account:{account}"
        self.positions: dict[str, tuple[str, int]] = {}  # what it keeps: (epoch, offset)
        self.sessions = 0
        self.live = False  # in every feed
        self.backoff_s = 60.0  # longest pause between reconnects, as the last welcome said
        self.next_s = 60.0  # the next beat is due within
        self._note, self._told, self._snapshot, self._facts, self._slow = note, told, snapshot, facts, slow
        self._epochs: dict[str, str] = {}
        self._live_at: dict[str, float] = {}
        self._begun = self._hailed = 0.0
        self._received: dict[str, int] = {}
        self._dirty: set[str] = set()  # feeds of which this read brought events
        self._replayed = 0
        self._asked: dict[str, float] = {}

    # What it says

    def hello(self, token: str, begun: float, now: float) -> bytes:
        """The first frame of a session whose connection was begun at `begun`."""
        self._begun, self._hailed, self.live, self._replayed = begun, now, False, 0
        self._live_at, self._received = {}, {}
        self._dirty.clear()
        self._asked.clear()
        said: dict[str, Any] = {"t": "hello", "token": token, "device": "phone"}
        if self.following:
            said["feeds"] = self.following
        if self.sessions and self.feed not in self.positions:
            self.positions.clear()  # cut off before its snapshot came: it keeps nothing
            said["fresh"] = True
        if self.positions:
            said["resume"] = {
                feed: {"epoch": epoch, "offset": offset} for feed, (epoch, offset) in self.positions.items()
            }
        self.note("hello", **{name: said[name] for name in ("feeds", "fresh", "resume") if name in said})
        return _frame(said)

    def refresh(self, source: str, now: float) -> bytes:
        """«Обновить данные». Its answer is told as a row."""
        ref = f"r{len(self._asked)}"
        self._asked[ref] = now
        return _frame({"t": "refresh", "source": source, "ref": ref})

    def lost(self, code: int) -> None:
        self.live = False
        self.note("lost", code=code)

    def away(self, why: str) -> None:
        self.note("away", why=why)

    def note(self, t: str, **fields: Any) -> None:
        self._note({"t": t, "device": self.name, **fields})

    # What it hears

    def frames(self, frames: Sequence[tuple[int, bytes]], now: float) -> bytes:
        """All whole frames of one read; what to send. Raises Ended."""
        out = []
        for opcode, payload in frames:
            if payload.startswith(EVENT):
                self._event(payload, now)
            elif opcode == PING:
                out.append(masked(PONG, payload))
            elif opcode == CLOSE:
                raise Ended(int.from_bytes(payload[:2], "big") or 1005, payload[2:].decode("utf-8", "replace"))
            else:
                self._message(orjson.loads(payload), now)
        for feed in self._dirty:
            out.append(self._ack(feed, self._received[feed]))
        self._dirty.clear()
        return b"".join(out)

    def _event(self, payload: bytes, now: float) -> None:
        # {"t":"event","feed":"…","offset":12,"event":{…}}
        end = payload.index(b'"', len(EVENT))
        comma = payload.index(b",", end + 11)
        feed, offset = payload[len(EVENT) : end].decode(), int(payload[end + 11 : comma])
        self._came(feed, offset, self._facts.of(payload[comma + 9 : -1]), len(payload), now)

    def _came(self, feed: str, offset: int, known: tuple[Any, ...], size: int, now: float) -> None:
        source, id, content, kind, act, commit = known
        live_at = self._live_at.get(feed)
        how = "slow" if self._slow else "live" if live_at is not None and commit and commit >= live_at else "behind"
        line = {
            "t": "event",
            "device": self.name,
            "feed": feed,
            "epoch": self._epochs.get(feed),
            "offset": offset,
            "source": source,
            "id": id,
            "digest": content,
            "type": kind,
            "how": how,
        }
        if act is not None:
            line["act"], line["commit"] = round(now - act, 4), round(now - commit, 4)
        self._note(line)
        self._received[feed] = offset
        self._dirty.add(feed)
        if how == "live":
            self._told("deliver from the act", now - act, size)
            self._told("deliver from the commit", now - commit, size)
        elif how == "behind":
            self._replayed += 1

    def _ack(self, feed: str, offset: int) -> bytes:
        """Keep what is new up to `offset`, then acknowledge it."""
        epoch, kept = self._epochs[feed], self.positions[feed][1]
        if offset > kept:
            run = {"feed": feed, "epoch": epoch, "first": kept + 1, "offset": offset, "events": offset - kept}
            self._note({"t": "keep", "device": self.name, **run})
            self.positions[feed] = epoch, offset
        self._note({"t": "ack", "device": self.name, "feed": feed, "offset": offset})
        return masked(TEXT, b'{"t":"ack","feed":"%b","offset":%d}' % (feed.encode(), offset))

    def _message(self, message: dict[str, Any], now: float) -> None:
        match message["t"]:
            case "welcome":
                self._welcome(message, now)
            case "live":
                self._level(message["feed"], now)
            case "batch":
                for offset, event in message["events"]:
                    self._came(message["feed"], offset, facts(event), 0, now)
            case "beat":
                self.next_s = float(message["next"])
                self.note("beat", heads=message["heads"])
            case "resync":
                self.note("resync", **{name: message[name] for name in ("feed", "epoch", "offset", "reason")})
                self._load(message["feed"], message["epoch"], message["offset"])
            case "refresh":
                self._refreshed(message, now)
            case "error":
                raise Ended(0, f"error {message.get('code')}: {message.get('detail')}")

    def _welcome(self, message: dict[str, Any], now: float) -> None:
        self._told("hello to welcome", now - self._hailed, 0)
        self.sessions += 1
        self.backoff_s = float(message.get("limits", {}).get("backoff", self.backoff_s))
        self.note("welcome", **{name: message[name] for name in ("window", "new", "feeds")})
        for item in message["feeds"]:
            feed, epoch, start = item["feed"], item["epoch"], item["from"]
            self._epochs[feed], self._received[feed] = epoch, start
            if message["new"] and feed == self.feed:
                self._load(feed, epoch, start)
            elif feed not in self.positions:
                self.positions[feed] = epoch, start

    def _load(self, feed: str, epoch: str, offset: int) -> None:
        """The account's state in place of its events; of an agency's feed the head, for nobody reads its history."""
        self._epochs[feed], self._received[feed] = epoch, offset
        if feed == self.feed:
            for _ in range(5):
                position = self._snapshot()["positions"][feed]
                if position["epoch"] == epoch and position["offset"] >= offset:
                    offset = position["offset"]
                    break
            else:
                raise Ended(0, "no snapshot covers the start")
        self.positions[feed] = epoch, offset
        self.note("snapshot", feed=feed, epoch=epoch, offset=offset)

    def _level(self, feed: str, now: float) -> None:
        self._live_at[feed] = now
        if len(self._live_at) < 1 + len(self.following):
            return
        self.live = True
        again = self.sessions > 1
        self._told("reconnect and catch up" if again else "replay to live", now - self._begun, self._replayed)
        self.note("live", seconds=round(now - self._begun, 4), again=again, replayed=self._replayed)

    def _refreshed(self, message: dict[str, Any], now: float) -> None:
        asked = self._asked.pop(str(message.get("ref")), None)
        if asked is not None:
            self._told("refresh", now - asked, 0)


def _frame(message: Mapping[str, Any]) -> bytes:
    return masked(TEXT, orjson.dumps(message))

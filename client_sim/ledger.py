"""The ledger: what was accepted against what each device saw. The independent oracle of every trial.

    verdict = reconcile(agency_lines, device_lines, dump_lines, restores)
    print(verdict)

`journal` says what stands in a line. Everything here is judged from these lines alone: no code of the gateway, no
clock, no file. Memory grows with the events that were posted (about half a kilobyte each) and with devices times their
feeds, not with the lines: deliveries are checked as they pass by.

The journals must tell the whole life of the store's logs, each agency's and each device's lines in the order in which
they were noted. A device is owed everything until the end unless its last word is `away`. What it checks, by the
numbers of the invariants, stands in `KINDS`.
"""

from collections import Counter, defaultdict, deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]

KINDS: Mapping[str, tuple[int, str]] = {
    "lost": (1, "was accepted or stored, and a device of the account went on or ended without it"),
    "invented": (2, "was never posted, or every post of it was refused, or was posted for another feed"),
    "doubled": (3, "stands at two places of one epoch"),
    "repeated": (4, "passed a device's deduplication twice"),
    "replayed": (4, "came again although it had been acknowledged long enough before"),
    "order": (5, "offsets did not rise by one"),
    "changed": (5, "one place, (epoch, offset), held two events, or another content than was posted"),
    "thing": (6, "two events of one source and subject changed places, or a lower sequence came over a higher"),
    "cursor": (7, "a position went back, or was acknowledged before it was kept"),
    "unnoticed": (8, "three beats in a row showed more than came, and the session went on"),
    "partial": (9, "a recovery left something out without a resync, or did not wait for the snapshot"),
    "epoch": (10, "the log began a new life, or lost its end, and the device was not told"),
    "resync": (10, "a resync that nothing called for"),
    "window": (11, "more events came than the window allows beyond the last ack"),
    "conflict": (13, "one id was accepted with two contents"),
    "leaked": (17, "something of another account, or of a feed that is not followed"),
}

GATEWAY = "/gateway"  # source of the events that no agency sends, such as `gov.erased`
WINDOW = 256  # until a welcome says it


@dataclass(slots=True)
class Fault:
    """`count` faults of one kind; `first` is the first of them in words."""

    count: int
    first: str


@dataclass
class Verdict:
    """No faults: `ok`. `counts` says how much was looked at, for whoever asks whether that was enough."""

    faults: dict[str, Fault] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    @property
    def ok(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        looked = ", ".join(f"{count} {name}" for name, count in self.counts.items() if count)
        lines = [f"{'no fault' if self.ok else 'FAULTS'} in {looked or 'nothing'}"]
        for kind, fault in sorted(self.faults.items(), key=lambda item: KINDS[item[0]][0]):
            number, meaning = KINDS[kind]
            lines.append(f"invariant {number}, {kind}: {fault.count} × {meaning}; the first: {fault.first}")
        return "\n".join(lines)


def reconcile(
    agencies: Iterable[Record],
    devices: Iterable[Record],
    dump: Iterable[Record] | None = None,
    restores: Iterable[Record] = (),
    *,
    saved_after_s: float = 2.0,
) -> Verdict:
    """Judge the journals. Each is read once, in this order: restores, agencies, dump, devices. Pure.

    `restores` are the `restored` lines of the faults' journal: what was accepted since a backup was begun may be gone
    with the store that it was brought back for; what was accepted before it, or afterwards, may not.
    `saved_after_s`: an ack older than this when its connection ended is in the stored cursor (the contract saves within
    1 s; the rest is for the way and the disk). Raises ValueError for a line that is none.

    An id that was accepted with one content before a restore and with another after it counts as a conflict: agencies
    under trial do not do that.
    """
    ledger = _Ledger(saved_after_s, [(line["since"], line["at"]) for line in restores])
    for lines, take in ((agencies, ledger.agency), (dump or (), ledger.stored), (devices, ledger.device)):
        for number, line in enumerate(lines, 1):
            try:
                take(line)
            except (KeyError, TypeError, AttributeError) as error:
                raise ValueError(f"line {number} is not one of a journal, {error!r}: {line}") from error
        if take == ledger.stored and dump is not None:
            ledger.store_ends()
    return ledger.finish()


@dataclass(slots=True)
class _Event:
    name: str
    feed: str
    digest: int
    thing: int = 0  # 0: no subject
    sequence: int | None = None
    after: tuple[str, int] | None = None  # place of an event of the same thing that was answered before this was posted
    open: int = 0  # posts without a definite answer
    stored: int | None = None  # digest of the content that was answered 202, or that somebody saw
    epoch: str = ""  # where it stands
    offset: int = 0
    accepted: float = 0.0  # when its agency was told that it is stored


@dataclass(slots=True)
class _Log:
    """One life of a feed."""

    feed: str
    epoch: str
    places: dict[int, _Event] = field(default_factory=dict)
    accepted: int = 0  # the highest offset that an agency was told
    acked: int = 0  # the highest offset that any device acknowledged
    oldest: int = 0  # the last four are of the dump; 0: not known
    head: int = 0
    row: int = 0
    erased: set[int] = field(default_factory=set)


@dataclass(slots=True)
class _Track:
    """One feed of one device. What the device keeps, then what its session was told."""

    log: _Log  # of the epoch of `position`
    position: int | None = None  # all up to here is kept
    acks: deque[tuple[float, int]] = field(default_factory=deque)
    saved: int = 0  # the stored cursor is at least here
    followed: bool = False
    live: _Log | None = None  # of the session
    start: int = 0
    received: int = 0
    acked: int = 0
    safe: int = 0  # what lies at or below it must not come in this session
    loading: bool = False
    owed: str = ""  # the kind of resync that must come before anything else
    resume: int | None = None  # where this session asked to begin, in the same epoch
    known: bool = False  # it is known where this session asked to begin
    moved: bool = False
    behind: int = 0


@dataclass(slots=True)
class _Device:
    name: str
    account: str
    tracks: dict[str, _Track] = field(default_factory=dict)
    resume: Mapping[str, Record | None] = field(default_factory=dict)
    window: int = WINDOW
    hailed: bool = False
    connected: bool = False
    away: bool = False
    at: float = 0.0


class _Ledger:
    def __init__(self, saved_after_s: float, restores: Sequence[tuple[float, float]]):
        self.verdict = Verdict()
        self.saved_after_s = saved_after_s
        self.restores = restores  # (the backup was begun, it was brought back)
        self.events: dict[str, _Event] = {}
        self.contents: dict[str, set[int]] = {}  # of the few ids that were posted with several
        self.elsewhere: dict[tuple[str, str], int] = {}  # (event, epoch) → offset, of the few that stood in two epochs
        self.doubles: list[tuple[_Event, str, int, int]] = []
        self.answered: dict[int, tuple[str, int]] = {}  # thing → place of its last answered event
        self.logs: dict[tuple[str, str], _Log] = {}
        self.epochs: set[str] = set()  # of the dump
        self.devices: dict[str, _Device] = {}
        self.begun: list[tuple[_Log, int, str]] = []  # first starts on an account's feed

    def fault(self, kind: str, words: str, count: int = 1) -> None:
        found = self.verdict.faults.get(kind)
        if found is None:
            self.verdict.faults[kind] = Fault(count, words)
        else:
            found.count += count

    def log(self, feed: str, epoch: str) -> _Log:
        found = self.logs.get((feed, epoch))
        if found is None:
            found = self.logs[feed, epoch] = _Log(feed, epoch)
        return found

    # Agencies

    def agency(self, line: Record) -> None:
        if line["t"] == "post":
            self._post(line)
        elif line["t"] == "answer":
            self._answer(line)

    def _post(self, line: Record) -> None:
        self.verdict.counts["posts"] += 1
        name, content = _name(line), _short(line["digest"])
        event = self.events.get(name)
        if event is None:
            event = self.events[name] = _Event(name, line["feed"], content)
            self.verdict.counts["events"] += 1
            if line.get("sequence") is not None:
                event.sequence = int(line["sequence"])
            if line.get("subject") is not None:
                event.thing = hash((line["feed"], line["source"], line["subject"])) or 1
                event.after = self.answered.get(event.thing)
        elif content != event.digest:
            self.contents.setdefault(name, {event.digest}).add(content)
        event.open += 1

    def _answer(self, line: Record) -> None:
        status, name = line["status"], _name(line)
        event = self.events.get(name)
        if event is None:
            raise ValueError(f"an answer without a post: {line}")
        if status >= 500:
            return
        event.open -= 1
        if status != 202:
            self.verdict.counts["refused"] += 1
            return
        self.verdict.counts["accepted"] += 1
        content = _short(line["digest"])
        if event.stored not in (None, content):
            self.fault("conflict", f"{name}, answered 202 for both")
        event.stored = content
        if not line["duplicate"] or event.epoch != line["epoch"]:
            event.accepted = line["at"]
        log = self.log(line["feed"], line["epoch"])
        log.accepted = max(log.accepted, line["offset"])
        self._stand(event, log, line["offset"], "the agency was told")
        if event.thing:
            self.answered[event.thing] = line["epoch"], line["offset"]

    # Places

    def _stand(self, event: _Event, log: _Log, offset: int, whose: str) -> None:
        """Somebody saw this event at this place."""
        if event.epoch != log.epoch:
            if event.epoch:
                self.elsewhere[event.name, event.epoch] = event.offset
            event.epoch, event.offset = log.epoch, self.elsewhere.get((event.name, log.epoch), offset)
        if event.offset != offset:
            self.doubles.append((event, log.epoch, event.offset, offset))
        if event.feed != log.feed:
            self.fault("invented", f"{event.name} was posted for {event.feed}; {whose} {_place(log, offset)}")
        there = log.places.setdefault(offset, event)
        if there is not event:
            self.fault("changed", f"{_place(log, offset)} is {there.name}; {whose} {event.name} there")

    def _seen(self, line: Record, log: _Log, whose: str) -> None:
        """A device received this, or the store has it."""
        if line["id"] is None:
            return  # erased: its place stays, nothing more can be said of it
        name, content = _name(line), _short(line["digest"])
        event = self.events.get(name)
        if event is None:
            if line["source"] != GATEWAY:
                self.fault("invented", f"{name}, which no agency posted; {whose} it at {_place(log, line['offset'])}")
            event = self.events[name] = _Event(name, log.feed, content)
        elif event.stored is None and not event.open:
            self.fault("invented", f"{name}, whose every post was refused; {whose} it")
        if event.stored is None:
            event.stored = content if content in self.contents.get(name, ()) else event.digest
        if content != event.stored:
            self.fault("changed", f"{name} has another content; {whose} it at {_place(log, line['offset'])}")
        self._stand(event, log, line["offset"], whose)

    # The store

    def stored(self, line: Record) -> None:
        log = self.log(line["feed"], line["epoch"])
        self.epochs.add(log.epoch)
        if line["t"] == "feed":
            log.oldest, log.head, log.row = line["oldest"], line["head"], line["oldest"] - 1
        elif line["t"] == "row":
            self.verdict.counts["rows"] += 1
            offset = line["offset"]
            if offset != log.row + 1:
                self.fault("order", f"the store has {_place(log, offset)} after {log.row}")
            log.row = offset
            if line["id"] is None:
                log.erased.add(offset)
            told = log.places.get(offset)
            if told is not None and line["id"] is not None and told.name != _name(line):
                self.fault(
                    "lost", f"{told.name} was accepted at {_place(log, offset)}; the store has {_name(line)} there"
                )
                del log.places[offset]
            self._seen(line, log, "the store has")

    def store_ends(self) -> None:
        for log in self.logs.values():
            if log.epoch in self.epochs and log.accepted > log.row:
                missing = [offset for offset in log.places if offset > log.row]
                first = log.places[min(missing)]
                self.fault("lost", f"{first.name} was accepted; the store ends at {_place(log, log.row)}", len(missing))
            if log.row < log.head:
                self.fault("lost", f"the store says {log.head} is the head of {log.feed}, and has {log.row} at most")
        for event in self.events.values():
            if event.accepted and event.epoch not in self.epochs and not self._excused(event):
                words = f"{event.name} was accepted at {event.feed} {event.offset} of {event.epoch}"
                self.fault("lost", f"{words}; the store, of another epoch, does not have it")

    def _excused(self, event: _Event) -> bool:
        """May the store be without this event of an earlier epoch? Restored away, retained no more, or erased."""
        if any(since <= event.accepted <= until for since, until in self.restores):
            return True
        now = next((log for epoch in self.epochs if (log := self.logs.get((event.feed, epoch)))), None)
        return now is not None and (event.offset < now.oldest or event.offset in now.erased)

    # Devices

    def device(self, line: Record) -> None:
        name, t = line["device"], line["t"]
        device = self.devices.get(name)
        if device is None:
            device = self.devices[name] = _Device(name, name.partition("/")[0])
        if t == "event":
            self._event(device, line)
        elif t == "keep":
            self._keep(device, line)
        elif t == "ack":
            self._ack(device, line)
        elif t == "hello":
            self._hello(device, line)
        elif t == "welcome":
            self._welcome(device, line)
        elif t == "subscribe":
            device.resume = {**device.resume, line["feed"]: line.get("resume")}
        elif t == "subscribed":
            self._begin(device, line, new=False)
        elif t == "unsubscribed":
            device.tracks.pop(line["feed"], None)  # "stop and forget its cursor"
        elif t == "resync":
            self._resync(device, line)
        elif t == "snapshot":
            self._snapshot(device, line)
        elif t == "beat":
            self._beat(device, line)
        elif t == "lost":
            self._lost(device, line["at"])
        elif t == "away":
            self._lost(device, line["at"])
            device.away = True
        device.at = line["at"]

    def _hello(self, device: _Device, line: Record) -> None:
        self._lost(device, device.at)  # a device that was cut off may not have noted it
        device.hailed, device.away, device.resume = True, False, line.get("resume") or {}
        if line.get("fresh"):
            device.tracks.clear()

    def _lost(self, device: _Device, at: float) -> None:
        if not device.connected:
            return
        device.connected = False
        for track in device.tracks.values():
            self._age(track, at)
            if track.acks and track.acks[0][0] <= at - self.saved_after_s:
                track.saved = max(track.saved, track.acks[0][1])
            track.acks.clear()  # the younger ones may be lost with a process that was killed
            track.live, track.owed = None, ""

    def _age(self, track: _Track, at: float) -> None:
        """Of the acks that are old enough to be saved, only the last one matters."""
        while len(track.acks) > 1 and track.acks[1][0] <= at - self.saved_after_s:
            track.acks.popleft()

    def _welcome(self, device: _Device, line: Record) -> None:
        self.verdict.counts["sessions"] += 1
        device.connected, device.window = True, line.get("window", WINDOW)
        for track in device.tracks.values():
            track.followed = False
        for item in line["feeds"]:
            self._begin(device, item, new=line["new"])

    def _begin(self, device: _Device, item: Record, *, new: bool) -> None:
        feed, start, who = item["feed"], item["from"], device.name
        log, personal = self.log(feed, item["epoch"]), feed.startswith("account:")
        if personal and feed != f"account:{device.account}":
            self.fault("leaked", f"{who} was welcomed to {feed}")
        track = device.tracks.get(feed)
        first = track is None
        if track is None:
            track = device.tracks[feed] = _Track(log)
        resume = device.resume.get(feed)
        track.owed, track.resume, track.known, track.safe = "", None, False, 0
        if resume is not None:
            track.known = True
            self._resumed(device, track, feed, resume)
            if resume["epoch"] != log.epoch:
                track.owed = "epoch"
            elif resume["offset"] > item["head"]:
                words = f"{who} resumed after {_place(log, resume['offset'])}, and the head was {item['head']}"
                self.fault("epoch", f"{words}: the log lost its end within an epoch")
                track.owed = "epoch"
            else:
                track.resume = track.safe = resume["offset"]
                log.acked = max(log.acked, track.resume)
                if start > track.resume:
                    track.owed = "retention"
                elif start < track.resume:
                    words = f"{who} resumed after {_place(log, track.resume)} and was told {start}"
                    self.fault("cursor", words)
        elif new or first:
            if personal:
                self.begun.append((log, start, who))
        elif track.log is not log and self.restores and not personal:
            # It may have begun to follow after the backup: then it does now, at the head.
            self._continue(track, log, start)
        elif track.log is not log:
            track.owed, track.known = "epoch", True
        else:
            track.safe = track.saved
            if start < track.saved:
                self.fault("cursor", f"{who} had acknowledged {_place(log, track.saved)} and began after {start}")
            elif track.position is not None and start > track.position:
                track.owed = "retention"
        track.live, track.followed = log, True
        track.start = track.received = track.acked = start
        track.loading = new and personal
        track.moved, track.behind = False, 0
        if track.position is None and not track.loading:
            track.log, track.position = log, start

    def _resumed(self, device: _Device, track: _Track, feed: str, resume: Record) -> None:
        """A device resumes after what it keeps, neither before nor beyond."""
        if track.position is None or track.loading or track.log.epoch != resume["epoch"]:
            return
        if resume["offset"] != track.position:
            kind = "cursor" if resume["offset"] < track.position else "lost"
            self.fault(kind, f"{device.name} kept {feed} {track.position} and resumed after {resume['offset']}")

    def _resync(self, device: _Device, line: Record) -> None:
        self.verdict.counts["resyncs"] += 1
        track = device.tracks.get(line["feed"])
        if track is None:
            return self.fault("leaked", f"{device.name} was resynced on {line['feed']}, which it does not follow")
        log, offset, reason, who = self.log(line["feed"], line["epoch"]), line["offset"], line["reason"], device.name
        if track.live is not log or offset != track.start:
            self.fault("partial", f"{who} was welcomed to {_place(log, track.start)} and resynced to {offset}")
        kept = track.resume is not None and log.oldest and track.resume + 1 >= log.oldest
        if track.known and (not track.owed or (track.owed == "retention" and kept) or reason != track.owed):
            words = "its position was good" if not track.owed or kept else f"the reason is {track.owed}"
            self.fault("resync", f"{who}, {log.feed}, reason {reason}: {words}")
        track.live, track.owed, track.loading = log, "", True
        track.start = track.received = track.acked = offset
        return None

    def _event(self, device: _Device, line: Record) -> None:
        counts = self.verdict.counts
        counts["deliveries"] += 1
        offset, track = line["offset"], device.tracks.get(line["feed"])
        if track is None or track.live is None:
            return self.fault("leaked", f"{device.name} got {line['feed']} {offset}, which its session does not follow")
        log = track.live
        if line["epoch"] != log.epoch:
            self.fault("epoch", f"{device.name} got epoch {line['epoch']} in a session of {_place(log, track.start)}")
        self._began(device, track)
        if offset != track.received + 1:
            below = track.loading and offset <= track.start
            words = f"{device.name} got {_place(log, offset)} after {track.received}"
            self.fault("partial" if below else "order", words)
        track.received, track.moved = max(offset, track.received), True
        if offset - track.acked > device.window:
            words = f"{device.name} got {_place(log, offset)}, acknowledged {track.acked}, window {device.window}"
            self.fault("window", words)
        if track.log is log and track.position is not None and offset <= track.position:
            counts["repeats"] += 1
            if offset <= track.safe:
                self.fault("replayed", f"{device.name} got {_place(log, offset)}, and {track.safe} was acknowledged")
        self._seen(line, log, f"{device.name} got")
        return None

    def _began(self, device: _Device, track: _Track) -> None:
        """Something of the feed came: if a resync had to come before it, it did not."""
        owed, track.owed = track.owed, ""
        if owed:
            assert track.live is not None
            came = _place(track.live, track.start)
            kept = f"{_place(track.log, track.position or 0)} in {track.log.epoch}"
            kind = "epoch" if owed == "epoch" else "partial"
            self.fault(kind, f"{device.name} kept {kept} and was sent on after {came} without a resync")

    def _keep(self, device: _Device, line: Record) -> None:
        track, offset, who = device.tracks.get(line["feed"]), line["offset"], device.name
        log = self.log(line["feed"], line["epoch"])
        if track is None or track.live is not log:
            self.fault("partial", f"{who} kept {_place(log, offset)}, which is not of its session")
            return
        if track.loading:
            if log.feed.startswith("account:"):
                self.fault("partial", f"{who} kept {_place(log, offset)} before the snapshot of its resync")
            # The snapshot of an agency's feed is its history, kept page by page.
            self._continue(track, log, offset)
            track.loading = offset < track.start
            return
        position = track.position if track.log is log else None
        if position is None:
            self.fault("partial", f"{who} kept {_place(log, offset)} of a new epoch without a snapshot")
        elif not line["events"]:
            if offset > position:
                self.fault("lost", f"{who} moved from {_place(log, position)} to {offset} without the events between")
        elif line["first"] <= position:
            again = min(offset, position) - line["first"] + 1
            self.fault("repeated", f"{who} kept {_place(log, line['first'])} again after {position}", again)
        elif line["first"] > position + 1:
            missing = line["first"] - position - 1
            self.fault("lost", f"{who} kept {_place(log, line['first'])} right after {position}", missing)
        if line["events"] and offset > track.received:
            self.fault("invented", f"{who} kept {_place(log, offset)}, and no more than {track.received} had come")
        track.log, track.position = log, max(offset, position or 0)

    def _snapshot(self, device: _Device, line: Record) -> None:
        self.verdict.counts["snapshots"] += 1
        track, log, offset = device.tracks.get(line["feed"]), self.log(line["feed"], line["epoch"]), line["offset"]
        if track is None or track.live is not log:
            self.fault("partial", f"{device.name} took a snapshot at {_place(log, offset)}, not of its session")
        elif track.loading and offset < track.start:
            words = f"{device.name} took a snapshot at {_place(log, offset)} for a start after {track.start}"
            self.fault("partial", words)
        else:
            self._continue(track, log, offset)
            track.loading = False

    def _continue(self, track: _Track, log: _Log, offset: int) -> None:
        """A snapshot is kept: everything up to this place counts as kept."""
        if track.log is not log:
            track.acks.clear()
            track.log, track.position, track.saved = log, None, 0
        track.position = max(offset, track.position or 0)

    def _ack(self, device: _Device, line: Record) -> None:
        track, offset, at = device.tracks.get(line["feed"]), line["offset"], line["at"]
        if track is None or track.live is None or offset > track.received:
            return  # refused, or of no feed of this session: moves nothing
        self._began(device, track)
        log = track.live
        if track.loading or track.log is not log or offset > (track.position or 0):
            words = "it waits for a snapshot" if track.loading else f"it keeps {track.position}"
            self.fault("cursor", f"{device.name} acknowledged {_place(log, offset)}; {words}")
        track.acked = max(track.acked, offset)
        log.acked = max(log.acked, offset)
        track.acks.append((at, track.acked))
        self._age(track, at)

    def _beat(self, device: _Device, line: Record) -> None:
        for feed, head in line["heads"].items():
            track = device.tracks.get(feed)
            if track is None or track.live is None:
                continue
            late = head > track.received and not track.moved and track.acked >= track.received
            track.behind, track.moved = track.behind + 1 if late else 0, False
            if track.behind >= 3:
                words = f"{device.name} has {_place(track.live, track.received)}, and the head is {head}"
                self.fault("unnoticed", words)

    # The end

    def finish(self) -> Verdict:
        for device in self.devices.values():
            self._owed(device)
        acked: Counter[str] = Counter()  # over all epochs: a restored store knows what was acknowledged before
        for log in self.logs.values():
            acked[log.feed] = max(acked[log.feed], log.acked)
        for log, start, who in self.begun:
            known = max(acked[log.feed], log.oldest - 1)
            if log.oldest and start > known:
                words = f"{who} began after {_place(log, start)}, and no device had acknowledged more than {known}"
                self.fault("lost", words, start - known)
        for event, epoch, old, new in self.doubles:
            # What retention removed is not remembered, and may be stored anew.
            if old >= self.log(event.feed, epoch).oldest:
                self.fault("doubled", f"{event.name} at {old} and {new} of {event.feed}")
        for log in self.logs.values():
            self._things(log)
        return self.verdict

    def _owed(self, device: _Device) -> None:
        counts = self.verdict.counts
        counts["away" if device.away else "devices"] += 1
        if device.away:
            return
        if device.hailed and not device.tracks:
            self.fault("lost", f"{device.name} said hello and was never welcomed")
        for feed, track in device.tracks.items():
            if not track.followed:
                continue
            log = track.log
            if track.loading or track.position is None:
                self.fault("lost", f"{device.name} never got its snapshot of {feed}")
                continue
            if self.epochs and log.epoch not in self.epochs:
                words = f"{device.name} ended with {_place(log, track.position)} of an epoch that the store has left"
                self.fault("epoch", words)
            end = max(log.accepted, log.row)
            if track.position < end:
                missing = [offset for offset in log.places if track.position < offset <= end] or [end]
                name = log.places[min(missing)].name if min(missing) in log.places else "an erased event"
                words = f"{device.name} ended at {_place(log, track.position)}, and {name} is at {min(missing)}"
                self.fault("lost", words, len(missing))

    def _things(self, log: _Log) -> None:
        highest: dict[int, tuple[int, str]] = defaultdict(lambda: (-(1 << 63), ""))
        for offset in sorted(log.places):
            event = log.places[offset]
            if not event.thing:
                continue
            if event.after is not None and event.after[0] == log.epoch and event.after[1] > offset:
                words = f"{event.name} was posted after {event.after[1]} was answered, and came to {offset}"
                self.fault("thing", f"{log.feed}: {words}")
            if event.sequence is None:
                continue
            sequence, name = highest[event.thing]
            if event.sequence < sequence:
                words = f"{event.name} with sequence {event.sequence} at {_place(log, offset)}"
                self.fault("thing", f"{words}, and {name} with {sequence} before it")
            else:
                highest[event.thing] = event.sequence, event.name


def _name(line: Record) -> str:
    return f"{line['id']} of {line['source']}"


def _short(digest: str) -> int:
    """Half of the digest is enough to tell contents apart, and small."""
    return int(digest[:32], 16)


def _place(log: _Log, offset: int) -> str:
    return f"{log.feed} {offset}"

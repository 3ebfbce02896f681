"""One run: a fleet, agencies and faults on one time line, then quiet, then the verdict.

    outcome = await play(plan, stage, Path("run"), progress)

Whatever happens (Ctrl-C, a gateway that does not come back) the journals are closed and an outcome comes out: what was
seen until then is what the report shows.
"""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import httpx
import orjson

from client_sim.arrivals import PATTERNS
from client_sim.faults import FAULTS, IN_TURN, RESTORED, Disk, Fault, NotHere
from client_sim.fleet import Fleet, Roster
from client_sim.identity import Identity
from client_sim.journal import Note, Record, Unreadable, dump, dump_postgresql, read
from client_sim.ledger import Verdict, reconcile
from client_sim.local import Cannot, Gateway
from client_sim.measure import Tally
from client_sim.offices import Offices
from client_sim.servers import Server

_log = logging.getLogger(__name__)

SAMPLE_S = 1.0
LINGER_S = 1.0  # at the end: a last repeat or an invented event has time to come; acks go out
SAVED_AFTER_S = (
    4.0  # an ack older than this when its connection ended must be in the stored cursor, on a busy machine too
)
AGENCIES, DEVICES, FAULTS_FILE = "agencies.jsonl", "devices.jsonl", "faults.jsonl"
STORE = "store.jsonl"  # what a PostgreSQL store held in the end


@dataclass(frozen=True, slots=True)
class Plan:
    """What a run is made of."""

    roster: Roster
    pattern: str = "steady"
    rate: float = 20.0  # events a second of all agencies
    faults: Sequence[Fault] = ()
    settle_s: float = 60.0  # how long the quiet after it may take

    @property
    def seconds(self) -> float:
        return self.roster.seconds


@dataclass(slots=True)
class Stage:
    """Where a run takes place. `gateway` and `disk` only when they are our own; `store`, an SQLite file or the URL of a
    PostgreSQL store, is judged too."""

    host: str
    port: int
    identity: Identity
    secrets: Mapping[str, str]
    gateway: Gateway | None = None
    disk: Disk | None = None
    store: Path | str | None = None
    accounts: Sequence[str] | None = None
    servers: Mapping[str, Server] = field(default_factory=dict)

    @property
    def address(self) -> str:
        return f"http://{self.host}:{self.port}"


@dataclass
class Outcome:
    """What came out of a run. `ended` says in one sentence why it ended early, if it did."""

    plan: Plan
    tally: Tally
    fingerprint: str = ""
    began: float = 0.0  # Unix seconds
    seconds: float = 0.0  # of the schedule that were lived
    settled_s: float | None = None  # from the end of the schedule until everybody had everything
    behind: int = 0  # devices that had not
    waiting: int = 0  # events whose outcome was not known at the end
    faults: list[dict[str, Any]] = field(default_factory=list)
    ended: str = ""
    verdict: Verdict | None = None

    @property
    def complete(self) -> bool:
        return not self.ended


Progress = Callable[[str, Mapping[str, Any], Outcome], None]
"""Told every second: the phase, the sample of that second, and everything so far. Must not block."""


class Lines:
    """A journal file. Lines are whole on disk about every second, and at the end."""

    def __init__(self, path: Path):
        self._file: BinaryIO = path.open("wb", buffering=1 << 20)

    def note(self, record: Record) -> None:
        if "at" not in record:
            record = {"t": record["t"], "at": round(time.time(), 3), **record}
        self._file.write(orjson.dumps(record, option=orjson.OPT_APPEND_NEWLINE))

    def flush(self) -> None:
        self._file.flush()

    def close(self) -> None:
        self._file.close()


@dataclass
class _Scene:
    gateway: Gateway | None
    fleet: Fleet
    offices: Offices
    disk: Disk | None
    servers: Mapping[str, Server]
    note: Note


async def play(
    plan: Plan, stage: Stage, directory: Path, progress: Progress, stop: asyncio.Event | None = None
) -> Outcome:
    """Play the plan and judge it. Journals go to `directory`, which is made. `stop` ends it early.

    Raises Cannot before anything began; nothing afterwards.
    """
    directory.mkdir(parents=True, exist_ok=True)  # noqa: ASYNC240 - once, before anything runs
    tally = Tally()
    outcome = Outcome(plan, tally)
    stopping = stop or asyncio.Event()
    with contextlib.ExitStack() as files:
        agencies, devices, faults = (
            files.enter_context(contextlib.closing(Lines(directory / name)))
            for name in (AGENCIES, DEVICES, FAULTS_FILE)
        )
        async with httpx.AsyncClient(timeout=10, trust_env=False, limits=httpx.Limits(max_connections=64)) as http:
            fleet = Fleet(stage.host, stage.port, plan.roster, stage.identity, devices.note, tally, stage.accounts)
            offices = Offices(
                stage.address, stage.secrets, fleet.accounts, http, agencies.note, tally, plan.roster.seed
            )
            outcome.fingerprint, outcome.began = fleet.fingerprint, time.time()
            clock = asyncio.get_running_loop().time
            began = clock()
            meter = _Meter(outcome, stage.gateway, progress, began, (agencies, devices, faults))
            scene = _Scene(stage.gateway, fleet, offices, stage.disk, stage.servers, faults.note)
            measuring = asyncio.create_task(meter.run())
            try:
                async with fleet:
                    work = [
                        asyncio.create_task(fleet.live()),
                        asyncio.create_task(offices.run(PATTERNS[plan.pattern], plan.rate, plan.seconds)),
                        asyncio.create_task(_happen(scene, plan.faults, outcome, faults, began)),
                    ]
                    outcome.ended = await _until(work, stopping)
                    outcome.seconds = clock() - began
                    if not outcome.ended:
                        meter.phase = "quiet"
                        quiet = asyncio.create_task(_settle(scene, plan, outcome))
                        outcome.ended = await _until([quiet], stopping)
            finally:
                measuring.cancel()
                await asyncio.gather(measuring, return_exceptions=True)
                outcome.waiting = offices.waiting
                tally.sample(clock() - began)
    try:
        outcome.verdict = await _judge(directory, stage.store)
    except Unreadable as error:  # a run that was interrupted may have left its server dead
        outcome.ended = outcome.ended or str(error)
        outcome.verdict = await _judge(directory, None)
    return outcome


async def _judge(directory: Path, store: Path | str | None) -> Verdict:
    if isinstance(store, str):
        await dump_postgresql(store, directory / STORE)
        store = directory / STORE
    return await asyncio.to_thread(judge, directory, store)


def judge(directory: Path, store: Path | None = None) -> Verdict:
    """Reconcile the journals of a run, and the store if there is one: an SQLite file, or a dump as JSON lines.

    Raises ValueError for what is no journal, Unreadable for a store that is none.
    """
    rows = None if store is None else dump(store) if _is_sqlite(store) else read(store)
    faults = directory / FAULTS_FILE
    restores = [line for line in read(faults) if line["t"] == RESTORED] if faults.exists() else []
    return reconcile(read(directory / AGENCIES), read(directory / DEVICES), rows, restores, saved_after_s=SAVED_AFTER_S)


def _is_sqlite(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(15) == b"SQLite format 3"


async def _until(work: Sequence[asyncio.Task[None]], stopping: asyncio.Event) -> str:
    """Wait for all of it; "" when it came to its end, else why not. What fails ends the rest."""
    stopped = asyncio.create_task(stopping.wait())
    left = set(work)
    try:
        while left:
            done, _ = await asyncio.wait({*left, stopped}, return_when=asyncio.FIRST_COMPLETED)
            if stopped in done:
                return "Interrupted."
            for task in done & left:
                error = task.exception()
                while isinstance(error, BaseExceptionGroup):
                    error = error.exceptions[0]
                if isinstance(error, Cannot):
                    return str(error)
                if error is not None:
                    # A mistake of ours: what was seen until now is worth its report all the same.
                    _log.debug("the run failed", exc_info=error)
                    return f"The simulator failed ({type(error).__name__}: {error})."
            left -= done
    finally:
        for task in (*left, stopped):
            task.cancel()
        await asyncio.gather(*left, stopped, return_exceptions=True)
    return ""


async def _settle(scene: _Scene, plan: Plan, outcome: Outcome) -> None:
    """Quiet: everything is answered, everybody is there, everything arrives."""
    ends = asyncio.get_running_loop().time() + plan.settle_s
    began = asyncio.get_running_loop().time()
    await scene.offices.finish(plan.settle_s)
    left = max(0.5, ends - asyncio.get_running_loop().time())
    if await scene.fleet.settle(lambda: scene.offices.heads, left) is not None:
        outcome.settled_s = asyncio.get_running_loop().time() - began
    outcome.behind = len(scene.fleet.behind(scene.offices.heads))
    await asyncio.sleep(LINGER_S)


async def _happen(scene: _Scene, faults: Sequence[Fault], outcome: Outcome, lines: Lines, began: float) -> None:
    """Make the faults of the plan, each beside the others as far as it can be; return when all are over."""
    clock, turn = asyncio.get_running_loop().time, asyncio.Lock()

    async def when_due(fault: Fault) -> None:
        await asyncio.sleep(max(0.0, began + fault.at - clock()))
        async with turn if fault.name in IN_TURN else contextlib.nullcontext():
            await make(fault)

    async def make(fault: Fault) -> None:
        told: dict[str, Any] = {"name": fault.name, "arg": fault.arg, "from": round(clock() - began, 2)}
        outcome.faults.append(told)
        lines.note({"t": "fault", **told, "for": fault.for_s})
        try:
            await FAULTS[fault.name][1](scene, fault)
        except NotHere as not_here:
            told["not"] = str(not_here)
        told["to"] = round(clock() - began, 2)
        lines.note({"t": "over", **told})

    async with asyncio.TaskGroup() as group:
        for fault in sorted(faults, key=lambda fault: fault.at):
            group.create_task(when_due(fault))


class _Meter:
    """Takes a sample every second: what was counted, and what it costs us and the gateway."""

    def __init__(
        self, outcome: Outcome, gateway: Gateway | None, progress: Progress, began: float, files: Sequence[Lines]
    ):
        self.outcome, self.gateway, self.progress, self.began, self.files = outcome, gateway, progress, began, files
        self.phase = "running"
        self._cpu, self._gateway_cpu = time.process_time(), (0, 0.0)

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time()
        while True:
            due += SAMPLE_S
            await asyncio.sleep(max(0.0, due - loop.time()))
            late, due = loop.time() - due, max(due, loop.time() - SAMPLE_S)
            for file in self.files:
                file.flush()
            sample = self.outcome.tally.sample(loop.time() - self.began)
            sample |= {"lag": round(max(0.0, late), 3), **self._costs()}
            self.progress(self.phase, sample, self.outcome)

    def _costs(self) -> dict[str, float]:
        cpu, self._cpu = time.process_time() - self._cpu, time.process_time()
        costs = {"cpu": round(cpu / SAMPLE_S, 2)}
        pid = self.gateway.pid if self.gateway is not None else None
        if pid is None:
            return costs
        with contextlib.suppress(OSError, ValueError, IndexError):
            fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
            used = (int(fields[11]) + int(fields[12])) / 100
            before = self._gateway_cpu[1] if self._gateway_cpu[0] == pid else used
            self._gateway_cpu = pid, used
            costs |= {"gateway_cpu": round(used - before, 2), "gateway_mb": round(int(fields[21]) * 4096 / 1e6, 1)}
        return costs

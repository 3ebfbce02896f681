"""Several gateway processes on one port: starts them, passes signals on, starts again what died.

Each process listens on a socket of its own (SO_REUSEPORT), and the kernel spreads connections over them by address.
One socket for all was tried (4 processes, uvloop): a burst of 60 gave 0, 0, 5 and 55 connections against 11, 15, 16 and
18, because whoever wakes first takes all that wait; a process would be full and refuse while its siblings have room.
The price is that a process that hangs holds its share of the new connections: one that says nothing for `HANGS_S` is
killed.

The first process starts alone: what is wrong with the settings is said once, and the store's tables are made once.
What cannot start at all ends the whole with exit code 3. A process that dies later is started again, after a pause that
doubles up to `LONGEST_S` while it keeps dying, whatever its exit code was: the others still serve.

SIGTERM or SIGINT is passed on and ends the whole when all have drained; a second one cuts them short. A process whose
supervisor died drains by itself.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from gateway import logs

FIRST_S, LONGEST_S = 0.5, 30.0  # pauses before a process is started again
HEALTHY_S = 60.0  # a life so long resets the pause
TURN_S = 0.05  # between looks while a process is starting
PULSE_S = 1.0  # between two signs of life of a process, and between looks for them
HANGS_S = 10.0  # without one it is killed: its loop serves nobody, and its devices find another process
CANNOT = 3

log = logs.get_logger("supervisor")


@dataclass(frozen=True, slots=True)
class Member:
    """One process of several, as it sees itself."""

    number: int  # from 0
    of: int
    room: Path  # a directory that all of them share and nobody else can enter
    pulse_fd: int
    life_fd: int  # reads end of file when the supervisor is gone

    async def pulse(self) -> None:
        """For ever, from when it takes connections: say that the loop runs."""
        while True:
            with contextlib.suppress(OSError):  # the supervisor died, and we are on our way out
                os.write(self.pulse_fd, b".")
            await asyncio.sleep(PULSE_S)


@dataclass(slots=True)
class _Process:
    number: int
    pid: int = 0  # 0: does not run
    pulse_fd: int = -1
    heard: float = 0.0  # its last sign of life; 0.0: not ready yet
    born: float = 0.0
    pause_s: float = FIRST_S
    due: float = field(default=0.0)  # when it is started next


class Supervisor:
    """`serve` is what a process does; its result is the exit code. `sock` is bound to the port and does not listen: the
    port is ours while all processes are down."""

    SIGNALS = frozenset((signal.SIGTERM, signal.SIGINT, signal.SIGCHLD))

    def __init__(self, count: int, sock: socket.socket, serve: Callable[[Member], int]):
        self.sock, self.serve = sock, serve
        self.processes = [_Process(number) for number in range(count)]
        self.started = self.stopping = False
        self.code = 0

    def run(self) -> int:
        """Until all processes ended after a signal; the exit code."""
        self.room = Path(tempfile.mkdtemp(prefix="vestnik-"))
        self.life = os.pipe()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, self.SIGNALS)
        try:
            while not (self.stopping and not self._running()):
                self._turn()
        finally:
            for process in self._running():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(process.pid, signal.SIGKILL)
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
            shutil.rmtree(self.room, ignore_errors=True)
        return self.code

    def _turn(self) -> None:
        now = time.monotonic()
        if not self.stopping:
            self._start(now)
        found = signal.sigtimedwait(self.SIGNALS, self._patience(now))
        if found is not None and found.si_signo != signal.SIGCHLD:
            self._stop(found.si_signo)
        self._look(time.monotonic())
        self._reap(time.monotonic())

    def _running(self) -> list[_Process]:
        return [process for process in self.processes if process.pid]

    def _patience(self, now: float) -> float:
        if any(not process.heard for process in self._running()):
            return TURN_S
        dues = [process.due for process in self.processes if not process.pid] if not self.stopping else []
        return max(0.0, min([PULSE_S, *(due - now for due in dues)]))

    def _start(self, now: float) -> None:
        first = self.processes[0]
        alone = not self.started and not first.heard
        for process in [first] if alone else self.processes:
            if not process.pid and process.due <= now:
                self._fork(process, now)

    def _fork(self, process: _Process, now: float) -> None:
        pulse, its = os.pipe()
        os.set_blocking(pulse, False)
        os.set_blocking(its, False)
        sys.stderr.flush()
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            self._child(process, its)
        os.close(its)
        process.pid, process.pulse_fd, process.born, process.heard = pid, pulse, now, 0.0

    def _child(self, process: _Process, pulse_fd: int) -> None:
        """Never returns."""
        code = 1
        try:
            # Ctrl-C on the terminal is for the supervisor, which passes it on once.
            os.setpgid(0, 0)
            os.close(self.life[1])
            self.sock.close()
            for other in self._running():
                os.close(other.pulse_fd)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)
            code = self.serve(Member(process.number, len(self.processes), self.room, pulse_fd, self.life[0]))
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            log.exception("process_failed", process=process.number)
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
                sys.stdout.flush()
            os._exit(code)

    def _look(self, now: float) -> None:
        """Who became ready, who lives, who hangs?"""
        for process in self._running():
            with contextlib.suppress(BlockingIOError):
                if os.read(process.pulse_fd, 4096):
                    process.heard = now
            if process.heard and now - process.heard > HANGS_S:
                log.error("process_hangs", process=process.number, silent_s=round(now - process.heard, 1))
                os.kill(process.pid, signal.SIGKILL)
                process.heard = now  # once
        if not self.started and all(process.pid and process.heard for process in self.processes):
            self.started = True
            log.info("processes_started", processes=len(self.processes))

    def _reap(self, now: float) -> None:
        for process in self._running():
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                os.close(process.pulse_fd)
                process.pid, process.heard = 0, 0.0
                self._ended(process, os.waitstatus_to_exitcode(status), now)

    def _ended(self, process: _Process, code: int, now: float) -> None:
        if self.stopping:
            if code != 0:
                log.warning("process_ended", process=process.number, code=code)
                self.code = self.code or 1
        elif not self.started:
            if code != CANNOT:  # then it said why
                log.error("process_ended", process=process.number, code=code)
            self._stop(signal.SIGTERM)
            self.code = CANNOT
        else:
            if now - process.born >= HEALTHY_S:
                process.pause_s = FIRST_S
            process.due = now + process.pause_s
            log.warning("process_ended", process=process.number, code=code, again_in_s=process.pause_s)
            process.pause_s = min(2 * process.pause_s, LONGEST_S)

    def _stop(self, number: int) -> None:
        if not self.stopping:
            self.stopping = True
            self.sock.close()
        for process in self._running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

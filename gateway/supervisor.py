"""Several gateway processes on one port: starts them, passes signals on, starts again what died.

The supervisor opens the listening socket and every process takes connections from it: whoever is free takes the next.
Against a socket for each (SO_REUSEPORT) this spreads connections about as evenly (2,000 over 4 processes: 457 to 557
each, against 488 to 526), and a process that hangs or goes away takes none of those that wait with it.

The first process starts alone: what is wrong with the settings is said once, and the store's tables are made once. What
cannot start at all ends the whole with exit code 3. A process that dies later is started again, after a pause that
doubles up to `LONGEST_S` while it keeps dying, whatever its exit code was: the others still serve.

SIGTERM or SIGINT is passed on and ends the whole when all have drained; a second one cuts them short. A process whose
supervisor died drains by itself.
"""

from __future__ import annotations

import contextlib
import os
import select
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
CANNOT = 3

log = logs.get_logger("supervisor")


@dataclass(frozen=True, slots=True)
class Member:
    """One process of several, as it sees itself."""

    number: int  # from 0
    of: int
    room: Path  # a directory that all of them share and nobody else can enter
    ready_fd: int
    life_fd: int  # reads end of file when the supervisor is gone

    def ready(self) -> None:
        """It takes connections."""
        os.write(self.ready_fd, b"+")
        os.close(self.ready_fd)


@dataclass(slots=True)
class _Process:
    number: int
    pid: int = 0  # 0: does not run
    ready_fd: int = -1  # -1: it is ready, or does not run
    born: float = 0.0
    pause_s: float = FIRST_S
    due: float = field(default=0.0)  # when it is started next


class Supervisor:
    """`serve` is what a process does; its result is the exit code."""

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
        self._look()
        self._reap(time.monotonic())

    def _running(self) -> list[_Process]:
        return [process for process in self.processes if process.pid]

    def _patience(self, now: float) -> float:
        if any(process.ready_fd >= 0 for process in self.processes):
            return TURN_S
        dues = [process.due for process in self.processes if not process.pid] if not self.stopping else []
        return max(0.0, min([60.0, *(due - now for due in dues)]))

    def _start(self, now: float) -> None:
        first = self.processes[0]
        alone = not self.started and (not first.pid or first.ready_fd >= 0)
        for process in [first] if alone else self.processes:
            if not process.pid and process.due <= now:
                self._fork(process, now)

    def _fork(self, process: _Process, now: float) -> None:
        ready, its = os.pipe()
        sys.stderr.flush()
        sys.stdout.flush()
        pid = os.fork()
        if not pid:
            self._child(process, its)
        os.close(its)
        os.set_blocking(ready, False)
        process.pid, process.ready_fd, process.born = pid, ready, now

    def _child(self, process: _Process, ready_fd: int) -> None:
        """Never returns."""
        code = 1
        try:
            # Ctrl-C on the terminal is for the supervisor, which passes it on once.
            os.setpgid(0, 0)
            os.close(self.life[1])
            for other in self.processes:
                if other.ready_fd >= 0:
                    os.close(other.ready_fd)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, self.SIGNALS)
            code = self.serve(Member(process.number, len(self.processes), self.room, ready_fd, self.life[0]))
        except KeyboardInterrupt:
            code = 130
        except BaseException:
            log.exception("process_failed", process=process.number)
        finally:
            with contextlib.suppress(Exception):
                sys.stderr.flush()
                sys.stdout.flush()
            os._exit(code)

    def _look(self) -> None:
        """Who became ready?"""
        waiting = [process for process in self.processes if process.ready_fd >= 0]
        readable, _, _ = select.select([process.ready_fd for process in waiting], [], [], 0)
        for process in waiting:
            if process.ready_fd in readable and os.read(process.ready_fd, 1):
                self._close(process)
        if not self.started and all(process.pid and process.ready_fd < 0 for process in self.processes):
            self.started = True
            log.info("processes_started", processes=len(self.processes))

    def _close(self, process: _Process) -> None:
        if process.ready_fd >= 0:
            os.close(process.ready_fd)
            process.ready_fd = -1

    def _reap(self, now: float) -> None:
        for process in self._running():
            pid, status = os.waitpid(process.pid, os.WNOHANG)
            if pid:
                process.pid = 0
                self._close(process)
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
            self.sock.close()  # the last of the processes that closes it too stops the listening
        for process in self._running():
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

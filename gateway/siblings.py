"""The metrics of all processes on one port, in one answer: Prometheus asks the port and cannot choose a process.

Each process tells its own numbers on a UNIX socket in the directory that they share; whoever is asked asks the others
and puts `process="…"` on every sample. One that does not answer in time is `vestnik_process_up 0`: it hangs, or is
being started again.
"""

from __future__ import annotations

import asyncio
from pathlib import Path

from gateway.metrics import Metrics, merge
from gateway.supervisor import Member

PATIENCE_S = 2.0
MOST_BYTES = 4 << 20


class Siblings:
    def __init__(self, member: Member, metrics: Metrics):
        self.member, self._metrics = member, metrics
        self._server: asyncio.Server | None = None

    async def open(self) -> None:
        path = self._path(self.member.number)
        path.unlink(missing_ok=True)  # of a process of this number that died
        self._server = await asyncio.start_unix_server(self._tell, path)

    async def close(self) -> None:
        if self._server is not None:
            self._server.close()

    async def metrics(self) -> bytes:
        """The text of all, as Prometheus reads it."""
        texts = await asyncio.gather(*(self._ask(number) for number in range(self.member.of)))
        return merge({str(number): text for number, text in enumerate(texts)})

    async def _ask(self, number: int) -> bytes | None:
        if number == self.member.number:
            return self._metrics.render()
        try:
            async with asyncio.timeout(PATIENCE_S):
                reader, writer = await asyncio.open_unix_connection(self._path(number), limit=MOST_BYTES)
                try:
                    return await reader.read(-1)
                finally:
                    writer.close()
        except (OSError, TimeoutError):
            return None

    async def _tell(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(self._metrics.render())
        try:
            async with asyncio.timeout(PATIENCE_S):
                await writer.drain()
        except (OSError, TimeoutError):
            writer.transport.abort()
        writer.close()

    def _path(self, number: int) -> Path:
        return self.member.room / f"metrics-{number}"

"""Runs roles until they are told to stop. A role never dies silently: what goes wrong is logged and tried again,
later each time.

    vestnik worker [ROLE …]      roles as a process of their own
    serve                        the same roles as tasks beside the gateway, through `run`
"""

import asyncio
import random
import signal
from collections.abc import Sequence

from gateway.bus import Message, open_bus
from gateway.errors import ConfigError, EpochChanged, VestnikError
from gateway.logs import get_logger, setup
from gateway.metrics import Counts
from gateway.protocol.backoff import full_jitter
from gateway.settings import Settings
from gateway.store import open_store
from workers.roles import ROLES, Role, make

log = get_logger("worker")

FIRST_RETRY_S = 0.5
LONGEST_RETRY_S = 60.0

JITTER = 0.25  # of the interval, both ways: many processes do not work in step

_random = random.SystemRandom()


async def run(roles: Sequence[Role], stop: asyncio.Event) -> None:
    """Run all roles side by side until `stop` is set; the step that is under way is finished first. Cancelling is
    safe. Raises EpochChanged when the store is another one: whoever watches this process starts the next."""
    try:
        async with asyncio.TaskGroup() as group:
            for role in roles:
                group.create_task(keep(role, stop), name=f"worker {role.name}")
    except ExceptionGroup as errors:
        raise errors.exceptions[0] from None


async def keep(role: Role, stop: asyncio.Event, rng: random.Random = _random) -> None:
    """Step after step of one role until `stop` is set."""
    failures, delays = 0, full_jitter(rng, FIRST_RETRY_S, LONGEST_RETRY_S)
    while not stop.is_set():
        try:
            more = await role.step()
            pause_s = 0.0 if more else role.every_s * rng.uniform(1 - JITTER, 1 + JITTER)
            if failures:
                log.info("role_recovered", role=role.name, failures=failures)
                failures, delays = 0, full_jitter(rng, FIRST_RETRY_S, LONGEST_RETRY_S)
        except EpochChanged:
            raise
        except Exception as error:
            failures += 1
            pause_s = next(delays)
            told = isinstance(error, VestnikError)  # ours and passing: its sentence says everything
            log.warning("role_failed", role=role.name, failures=failures, error=str(error), exc_info=not told)
        await _rest(stop, pause_s)


async def _rest(stop: asyncio.Event, seconds: float) -> None:
    if seconds <= 0:
        await asyncio.sleep(0)
        return
    try:
        async with asyncio.timeout(seconds):
            await stop.wait()
    except TimeoutError:
        pass


def stop_on_signals(stop: asyncio.Event) -> None:
    """SIGTERM and SIGINT set `stop`."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stop.set)


class _Deaf:
    """The listener of a process that only publishes."""

    def received(self, message: Message) -> None: ...

    def control(self, payload: bytes) -> None: ...

    def gap(self) -> None: ...


def main(settings: Settings, names: Sequence[str] = ()) -> int:
    """Run roles as this process until SIGTERM or SIGINT; the exit code. Raises ConfigError when they cannot work as
    set up."""
    names = list(names) or list(ROLES)
    if settings.bus.startswith("memory:") and (publishing := [name for name in ("relay", "alerts") if name in names]):
        # It would publish to nobody and note that as published.
        raise ConfigError(
            f"The role {publishing[0]} needs a VESTNIK_BUS that reaches the gateways; on memory:// it runs inside"
            " `serve`."
        )
    if settings.store.startswith("memory:"):
        raise ConfigError("A worker needs a VESTNIK_STORE that it shares with the gateways; memory:// is one process.")
    asyncio.run(_main(settings, names))
    return 0


async def _main(settings: Settings, names: Sequence[str]) -> None:
    stop = asyncio.Event()
    stop_on_signals(stop)
    store, bus, counts = open_store(settings.store, settings.data), open_bus(settings.bus), Counts()
    roles = make(names, settings, store, bus, counts)
    setup(settings.log_level, settings.log_format, data=settings.data)
    await store.open()
    try:
        await bus.open(_Deaf())
        try:
            log.info("workers_started", roles=[role.name for role in roles])
            await run(roles, stop)
        finally:
            await bus.close()
    finally:
        await store.close()
    log.info("workers_stopped", relayed=counts.relayed, retained=counts.retained)

"""The composition root: makes the parts, starts and stops them in order, and serves them.

run(settings)          what `vestnik serve` does: one process, until it is told to stop
create_app(settings)   the same as an ASGI application for any server (without the hand-off)
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import resource
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import orjson
import structlog
import uvicorn
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route, WebSocketRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from gateway import logs, problems, spec, web, wire
from gateway.accounts import Accounts
from gateway.bus import open_bus
from gateway.control import Control
from gateway.errors import ConfigError, Problem, StoreUnavailable, VestnikError
from gateway.figures import Figures
from gateway.hub import Hub
from gateway.intake import Intake
from gateway.metrics import CONTENT_TYPE, Counts, Metrics
from gateway.operators import Operators
from gateway.proxies import Proxies
from gateway.publisher import Publisher
from gateway.rejects import Rejects
from gateway.session import Gate
from gateway.settings import Settings
from gateway.siblings import Siblings
from gateway.store import hold_alone, open_store
from gateway.supervisor import CANNOT, Member, Supervisor
from gateway.tokens import KeyWatch, Verifier
from gateway.waiting import always, woken
from workers import loop as workers
from workers import roles

log = logs.get_logger("app")

SOCKET = "/v1/socket"
SWITCH_S = 0.0005


class Gateway:
    """All parts of one process. `start`, then serve `asgi`, then `stop`."""

    def __init__(self, settings: Settings):
        self.settings = settings
        self.metrics = Metrics()
        self.counts: Counts = self.metrics.counts
        self.store = open_store(settings.store, settings.data)
        self.bus = open_bus(settings.bus)
        self.verifier = Verifier(audience=settings.audience, counts=self.counts)
        self.keys = KeyWatch(self.verifier, settings, self.counts)
        self.hub = Hub(settings, self.store, self.bus, self.counts)
        self.gate = Gate(self.hub, settings, self.counts, self.verifier)
        self.control = Control(self.gate, self.store, self.hub)
        self.publisher = Publisher(self.store, self.bus, self.counts)
        agencies = self.gate.agencies
        self.rejects = Rejects(self.hub.roster.node, self.publisher, agencies)
        self.intake = Intake(settings, self.store, self.publisher, self.counts, agencies, self.rejects)
        self.accounts = Accounts(self.gate, self.store, self.hub, self.control)
        self.operators = Operators(self.gate, self.store, self.hub, self.publisher)
        self.figures = Figures(
            settings, self.store, self.publisher, self.hub, self.counts, self.intake.senders, agencies
        )
        self.door = wire.Door(self.gate, settings.allowed_origins())
        self.deadlines = wire.Deadlines(settings.head_deadline_s)
        self.metrics.refresh.append(self.hub.gauges)
        self.siblings: Siblings | None = None  # with several processes on this port
        self._tasks: list[asyncio.Task[None]] = []
        self._workers = asyncio.Event()
        self._alone: Callable[[], Awaitable[None]] | None = None  # ends that no other gateway runs on this store
        self.asgi = self._application()

    def _application(self) -> Starlette:
        post, get, delete = ["POST"], ["GET"], ["DELETE"]
        accounts, intake, operators = self.accounts, self.intake, self.operators
        routes = [
            WebSocketRoute(SOCKET, self.door),
            Route("/v1/agencies/{code}/events", intake.post_events, methods=post),
            Route("/v1/agencies/{code}/receipts", intake.post_receipts, methods=post),
            Route("/v1/snapshot", accounts.snapshot, methods=get),
            Route("/v1/feeds/{feed}/events", accounts.history, methods=get),
            Route("/v1/agencies", accounts.agencies, methods=get),
            Route("/v1/devices", accounts.devices, methods=get),
            Route("/v1/devices/{device}", accounts.forget_device, methods=delete),
            Route("/v1/sessions", accounts.end_sessions, methods=delete),
            Route("/v1/ops/accounts/{account}", operators.account, methods=get),
            Route("/v1/ops/accounts/{account}/events/{offset}", operators.event, methods=get),
            Route("/health/live", self.live, methods=get),
            Route("/health/ready", self.ready, methods=get),
            *spec.routes(),
            *web.routes(self.settings),
        ]
        if self.settings.metrics:
            routes.append(Route("/metrics", self.show_metrics, methods=get))
        handlers: dict[Any, Any] = {
            Problem: problems.on_problem,
            StoreUnavailable: problems.on_unavailable,
            HTTPException: problems.on_http,
            Exception: problems.on_fault,
        }
        app = Application(
            routes=routes, exception_handlers=handlers, middleware=_around(self.settings), lifespan=self._lifespan
        )
        # A redirect to the same address without its slash would be made of the Host header, which anybody can choose.
        app.router.redirect_slashes = False
        app.door = self.door
        return app

    @contextlib.asynccontextmanager
    async def _lifespan(self, app: Starlette) -> AsyncIterator[None]:
        await self.start()
        try:
            yield
        finally:
            await self.drain(0)
            await self.stop()

    # Life

    async def start(self) -> None:
        """Raises ConfigError when it never can; then nothing is left running."""
        try:
            await self._start()
        except BaseException:
            await self.stop()
            raise

    async def _start(self) -> None:
        if not self.hub.roster.shared:
            self._alone = await hold_alone(self.settings.store, self.settings.data)
        await self.store.open()
        await self.keys.load()
        await self.bus.open(self.control)
        await self.hub.roster.open()
        await self.control.look()
        self.hub.start()
        self._spawn(always("control", self.control.run), "control")
        self._spawn(always("keys", self.keys.run), "keys")
        self._spawn(always("deadlines", lambda: wire.expire_heads(self.deadlines, self.hub)), "deadlines")
        self._spawn(always("loop lag", self._loop_lag), "loop lag")
        self.rejects.start()
        self.figures.start()
        if self.settings.workers:
            # However many processes run them: what they do is claimed. So nobody has to remember to start them.
            owner = self.hub.roster.node
            made = roles.make([], self.settings, self.store, self.bus, self.counts, owner=owner)
            self._spawn(workers.run(made, self._workers), "workers")

    def _spawn(self, work: Any, name: str) -> None:
        self._tasks.append(asyncio.create_task(work, name=name))

    async def drain(self, after_s: float, cut: asyncio.Event | None = None) -> None:
        """Ask every device to go elsewhere within `after_s`, deliver until then, then close who is left. Setting `cut`
        cuts it short.
        """
        hub = self.hub
        hub.draining = True
        for session in hub.all_sessions():
            session.drain(after_s)
        until = time.monotonic() + after_s
        while hub.sessions and time.monotonic() < until:
            if cut is not None and await woken(cut, 0.05):
                break
            await asyncio.sleep(0.05)
        hub.close_all(4512, "node going away")

    async def stop(self) -> None:
        """Sessions are gone: finish the commits under way, save what is not saved, close everything."""
        await self.intake.close()
        await self.rejects.close()
        await self.figures.close()
        await self.publisher.close()
        self._workers.set()
        for task in self._tasks:
            if task.get_name() != "workers":
                task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self.hub.stop()
        await self.bus.close()
        await self.store.close()
        if self._alone is not None:
            await self._alone()
            self._alone = None

    async def _loop_lag(self) -> None:
        """How late the loop runs a timer: the first thing to look at when everything is slow."""
        while True:
            due = time.perf_counter() + 0.1
            await asyncio.sleep(0.1)
            self.counts.loop_lag.observe(max(0.0, time.perf_counter() - due))

    # Operations

    async def live(self, request: Request) -> Response:
        return Response(b'{"status":"ok"}', media_type="application/json")

    async def ready(self, request: Request) -> Response:
        """Should a balancer send somebody here? Every part says for itself; 503 when one cannot."""
        parts = {
            "store": await self.store.ready(),
            "bus": self.bus.healthy,
            "keys": self.verifier.ready,
            "accepting": not self.hub.draining,
        }
        self.counts.store_ready = int(parts["store"])
        good = all(parts.values())
        document = orjson.dumps({"status": "ok" if good else "unavailable", "parts": parts})
        return Response(document, 200 if good else 503, media_type="application/json")

    async def show_metrics(self, request: Request) -> Response:
        text = self.metrics.render() if self.siblings is None else await self.siblings.metrics()
        return Response(text, headers={"Content-Type": CONTENT_TYPE})


def _around(settings: Settings) -> list[Middleware]:
    bound = Middleware(Bound, limit=settings.max_requests, retry_s=settings.busy_retry_s)
    if not settings.origins:
        return [bound]
    # Contract, 7.3. Outermost, so that a page elsewhere is shown what it is refused with, too.
    elsewhere = Middleware(
        CORSMiddleware,
        allow_origins=settings.origins,
        allow_methods=("GET", "DELETE"),
        allow_headers=("Authorization",),
        expose_headers=("Retry-After",),
    )
    return [elsewhere, bound]


class Application(Starlette):
    """Handshakes go straight to the door: the middlewares are HTTP's, and a storm of reconnects pays for each layer."""

    door: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await (self.door if scope["path"] == SOCKET else self.router)(scope, receive, send)
        else:
            await super().__call__(scope, receive, send)


class Bound:
    """ASGI middleware: at most `limit` HTTP requests in work at once; the next is answered 503 without being read.

    Not so for the operators' addresses: a node that is busy must not be taken for dead, nor hide how busy it is."""

    FREE = frozenset(("/health/live", "/health/ready", "/metrics"))

    def __init__(self, app: ASGIApp, limit: int, retry_s: int):
        self.app, self.limit, self.retry_s = app, limit, retry_s
        self.working = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in self.FREE:
            return await self.app(scope, receive, send)
        if self.working >= self.limit:
            busy = wire.busy("This node has as many requests in work as it takes.", self.retry_s)
            return await problems.problem_response(busy)(scope, receive, send)
        self.working += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self.working -= 1
        return None


def create_app(settings: Settings) -> Starlette:
    """For any ASGI server: starts and stops with its lifespan."""
    return Gateway(settings).asgi


# The process


class Server(uvicorn.Server):
    """uvicorn, except for how it ends: devices are drained first, and a signal that was obeyed is not raised again."""

    def __init__(self, config: uvicorn.Config, gateway: Gateway, member: Member | None = None):
        super().__init__(config)
        self.gateway, self.member = gateway, member
        self.cut = asyncio.Event()
        self.code = 0
        gateway.control.ended = self._ended

    def _ended(self) -> None:
        """The store is another one: whoever watches this process starts the next."""
        self.code = 1
        self.should_exit = True
        self.cut.set()

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._told, number)
        if self.member is not None:
            loop.add_reader(self.member.life_fd, self._orphaned)
        yield

    def _orphaned(self) -> None:
        """The supervisor died: what stays would keep the port from the next one."""
        assert self.member is not None
        asyncio.get_running_loop().remove_reader(self.member.life_fd)
        self._told(signal.SIGTERM)

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        if self.member is not None:
            self.pulse = asyncio.create_task(self.member.pulse())

    def _told(self, number: int) -> None:
        """The first signal drains, the second cuts short."""
        if self.should_exit:
            log.info("cut_short", signal=signal.Signals(number).name)
            self.cut.set()
            self.force_exit = True
        self.should_exit = True

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        for server in self.servers:
            server.close()
        gateway, settings = self.gateway, self.gateway.settings
        if gateway.hub.sessions:
            log.info("draining", sessions=gateway.hub.sessions, within_s=settings.drain_s)
        await gateway.drain(settings.drain_s, self.cut)
        await super().shutdown(sockets)


def listen(settings: Settings, port: int | None = None, *, shared: bool = False) -> socket.socket:
    """The socket to listen on, `shared` with others of this user that share it too. Raises ConfigError with one
    sentence when it cannot be had."""
    port = settings.port if port is None else port
    try:
        found = socket.getaddrinfo(settings.host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        sock = socket.socket(family, kind, protocol)
    except OSError as error:
        raise ConfigError(f"VESTNIK_HOST {settings.host!r} is no address to listen on: {error.strerror}.") from None
    try:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if shared:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        sock.bind(address)
        sock.setblocking(False)
    except OSError as error:
        sock.close()
        raise _cannot_listen(settings, port, error) from None
    return sock


def _cannot_listen(settings: Settings, port: int, error: OSError) -> ConfigError:
    reason, where = (error.strerror or str(error)).lower(), f"{settings.host}:{port}"
    return ConfigError(f"VESTNIK_PORT: cannot listen on {where} ({reason}); choose another with --port.")


def run(settings: Settings) -> int:
    """Serve until SIGTERM or SIGINT; the exit code. Raises ConfigError when it cannot start."""
    logs.setup(settings.log_level, settings.log_format, data=settings.data, access=settings.access_log)
    _more_files()
    sock = listen(settings)  # alone, so that another gateway on this port is noticed
    if settings.processes == 1:
        return _process(settings, sock)
    port = sock.getsockname()[1]
    sock.close()
    held = listen(settings, port, shared=True)
    return Supervisor(settings.processes, held, lambda member: _member(settings, port, member)).run()


def _member(settings: Settings, port: int, member: Member) -> int:
    """One process of several."""
    structlog.contextvars.bind_contextvars(process=member.number)
    try:
        return _process(settings, listen(settings, port, shared=True), member)
    except ConfigError as error:
        print(error, file=sys.stderr)
        return CANNOT
    except VestnikError as error:
        log.error("start_failed", error=str(error))
        return 1


def _process(settings: Settings, sock: socket.socket, member: Member | None = None) -> int:
    with asyncio.Runner(loop_factory=_loop_factory()) as runner:
        return runner.run(_serve(settings, sock, member))


async def _serve(settings: Settings, sock: socket.socket, member: Member | None) -> int:
    gateway = Gateway(settings)
    try:
        await gateway.start()
    except StoreUnavailable as error:
        # Contract, section 6: "exits 3 when it cannot start". Who starts it again after a while finds the store back.
        raise ConfigError(f"VESTNIK_STORE does not answer: {error}.") from error
    port = sock.getsockname()[1]
    try:
        # Two that start at once can both bind. Only one can listen, and uvloop would leave the other running and deaf.
        sock.listen(settings.backlog)
    except OSError as error:
        await gateway.stop()
        raise _cannot_listen(settings, port, error) from None
    if member is not None:
        gateway.siblings = Siblings(member, gateway.metrics)
        await gateway.siblings.open()
    gateway.door.origins = settings.allowed_origins(port)
    proxies = Proxies(settings.proxies) if settings.proxies else None
    config = uvicorn.Config(
        gateway.asgi,
        http=wire.Entrance(gateway.deadlines, sock.getsockname()[:2], proxies),  # type: ignore[arg-type]
        ws="none",
        loop="none",
        lifespan="off",
        log_config=None,
        access_log=settings.access_log,
        backlog=settings.backlog,
        limit_concurrency=None,
        server_header=False,
        timeout_keep_alive=75,
        timeout_graceful_shutdown=5,
        proxy_headers=False,
    )
    server = Server(config, gateway, member)
    # A thread that wants the interpreter waits so long for the one that has it: the store's thread and the loop take
    # turns all the time. A tenth of the usual 5 ms costs nothing measurable and a storm of reconnects is over sooner.
    sys.setswitchinterval(SWITCH_S)
    # What lives from here on lives long: collecting it again and again would stop the loop for tens of milliseconds.
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 50, 100)
    host = f"[{settings.host}]" if ":" in settings.host else settings.host
    log.info(
        "listening",
        url=f"http://{host}:{port}",
        store=settings.store.partition(":")[0],
        bus=settings.bus.partition(":")[0],
    )
    try:
        await server.serve([sock])
    finally:
        if gateway.siblings is not None:
            await gateway.siblings.close()
        await gateway.stop()
    log.info("stopped")
    return server.code


def _loop_factory() -> Any:
    if sys.platform == "win32":
        return None
    import uvloop

    return uvloop.new_event_loop


def _more_files() -> None:
    """A session is an open file: take as many as the system grants."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))

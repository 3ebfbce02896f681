"""A real browser, driven over the Chrome DevTools Protocol, with the little of it that the tests need.

async with Chromium(folder) as browser:
    page = await browser.open("http://127.0.0.1:8080/")
    await page.until("document.title === 'Вестник'")
"""

import asyncio
import base64
import contextlib
import itertools
import json
import os
import re
import shutil
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from websockets.asyncio.client import ClientConnection, connect

FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--no-proxy-server",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-extensions",
    "--disable-dev-shm-usage",
    "--remote-debugging-port=0",
)
SERIOUS = """axe.run({resultTypes: ['violations']}).then(({violations}) =>
  violations.filter(({impact}) => ['serious', 'critical'].includes(impact))
    .map(({id, nodes}) => `${id} ${nodes.map(({html}) => html.slice(0, 120)).join(' | ')}`))"""
START_S = 30.0
DISPOSE_S = 5.0
PATIENCE_S = 20.0  # the machine may be busy with other tests


class Refused(Exception):
    """The browser did not do it, or a script threw."""


class Chromium:
    """One browser with a profile of its own, gone at the end of the block."""

    def __init__(self, folder: Path):
        self.folder = folder
        self.faults: list[str] = []  # what no page should cause: exceptions, refused loads, broken policies
        self._numbers = itertools.count(1)
        self._answers: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._socket: ClientConnection
        self._process: asyncio.subprocess.Process
        self._reader: asyncio.Task[None]
        self.sockets: dict[str, str] = {}  # requestId: URL, of every WebSocket that is open
        self.opened = 0  # WebSockets in all
        self.sent: list[str] = []  # what pages sent over them
        self.profile: str | None = None
        self._targets: list[str] = []
        self._stack = contextlib.AsyncExitStack()

    async def __aenter__(self) -> Self:
        async with contextlib.AsyncExitStack() as stack:
            await stack.enter_async_context(self._running())
            self._socket = await stack.enter_async_context(connect(await self._address(), max_size=None, proxy=None))
            self._reader = asyncio.create_task(self._read())
            stack.callback(self._reader.cancel)
            self._stack = stack.pop_all()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._stack.aclose()

    @contextlib.asynccontextmanager
    async def _running(self) -> AsyncIterator[None]:
        program = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
        assert program is not None, "chromium is needed: `make packages` installs it"
        (self.folder / "home").mkdir(parents=True, exist_ok=True)
        with (self.folder / "chromium.log").open("wb") as log:
            self._process = await asyncio.create_subprocess_exec(
                program,
                *FLAGS,
                f"--user-data-dir={self.folder / 'profile'}",
                "about:blank",
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, "HOME": str(self.folder / "home")},
                start_new_session=True,
            )
        try:
            yield
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self._process.pid, signal.SIGKILL)
            await self._process.wait()

    async def _address(self) -> str:
        async with asyncio.timeout(START_S):
            while True:
                said = (self.folder / "chromium.log").read_text("utf-8", "replace")
                if match := re.search(r"DevTools listening on (ws://\S+)", said):
                    return match[1]
                assert self._process.returncode is None, said
                await asyncio.sleep(0.05)

    async def _read(self) -> None:
        async for text in self._socket:
            message = json.loads(text)
            answer = self._answers.pop(message.get("id"), None)
            if answer is not None and not answer.done():
                answer.set_result(message)
            match message.get("method"), message.get("params"):
                case "Runtime.exceptionThrown", params:
                    details = params["exceptionDetails"]
                    self.faults.append(details.get("exception", {}).get("description") or details["text"])
                # A network that is gone is the browser's own fault to tell.
                case "Log.entryAdded", params if params["entry"]["level"] == "error" and "net::" not in str(params):
                    self.faults.append(params["entry"]["text"])
                case "Network.webSocketCreated", params:
                    self.sockets[params["requestId"]] = params["url"]
                    self.opened += 1
                case "Network.webSocketFrameSent", params:
                    self.sent.append(params["response"]["payloadData"])
                case "Network.webSocketClosed", params:
                    self.sockets.pop(params["requestId"], None)

    async def call(self, method: str, session: str | None = None, **params: Any) -> Any:
        """One command of the protocol. Raises Refused."""
        number = next(self._numbers)
        self._answers[number] = future = asyncio.get_running_loop().create_future()
        await self._socket.send(
            json.dumps({"id": number, "method": method, "params": params} | ({"sessionId": session} if session else {}))
        )
        async with asyncio.timeout(START_S):
            message = await future
        if "error" in message:
            raise Refused(f"{method}: {message['error']['message']}")
        return message["result"]

    async def fresh(self) -> None:
        """Close all tabs; the next ones are those of a profile that was never used."""
        for target in self._targets:
            with contextlib.suppress(Refused):  # closed already
                await self.call("Target.closeTarget", targetId=target)
        self._targets.clear()
        if self.profile is not None:
            # Seldom, after a page was loaded once more, Chromium never answers: then an empty profile stays behind.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(DISPOSE_S):
                    await self.call("Target.disposeBrowserContext", browserContextId=self.profile)
        self.profile = (await self.call("Target.createBrowserContext"))["browserContextId"]
        self.faults, self.sent = [], []

    async def open(self, url: str, *, width: int = 1280, height: int = 860, **features: str) -> "Page":
        """A new tab in front. `features` are media features, like `prefers_color_scheme="dark"`."""
        given: dict[str, Any] = {"browserContextId": self.profile} if self.profile is not None else {}
        target = (await self.call("Target.createTarget", url="about:blank", **given))["targetId"]
        self._targets.append(target)
        session = (await self.call("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        page = Page(self, target, session)
        for domain in ("Runtime", "Log", "Network", "Page"):
            await page.call(f"{domain}.enable")
        await page.size(width, height)
        if features:
            await page.media(**features)
        await page.go(url)
        return page


class Page:
    """One tab."""

    def __init__(self, browser: Chromium, target: str, session: str):
        self.browser, self.target, self.session = browser, target, session

    async def call(self, method: str, **params: Any) -> Any:
        return await self.browser.call(method, self.session, **params)

    async def go(self, url: str) -> None:
        await self.call("Page.navigate", url=url)

    async def size(self, width: int, height: int) -> None:
        await self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )

    async def run(self, script: str) -> Any:
        """The value of an expression, awaited. Raises Refused when it throws."""
        answer = await self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in answer:
            details = answer["exceptionDetails"]
            raise Refused(details.get("exception", {}).get("description") or details["text"])
        return answer["result"].get("value")

    async def until(self, script: str, seconds: float = PATIENCE_S) -> Any:
        """The first true value of an expression; what the page shows is told when there is none in time."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                while True:
                    with contextlib.suppress(Refused):  # the page may be on its way to another
                        value = await self.run(script)
                        if value not in (None, False, 0, ""):  # an element is an empty map here
                            return value
                    await asyncio.sleep(0.02)
        shown = await self.run("document.body.innerText")
        raise AssertionError(f"never true in {seconds} s: {script}\nfaults: {self.browser.faults}\npage:\n{shown}")

    async def media(self, **features: str) -> None:
        """As for `Chromium.open`."""
        given = [{"name": name.replace("_", "-"), "value": value} for name, value in features.items()]
        await self.call("Emulation.setEmulatedMedia", features=given)

    async def serious(self) -> list[str]:
        """What axe, which must run in the page already, finds hard or impossible to use for somebody."""
        found: list[str] = await self.run(SERIOUS)
        return found

    async def text(self, selector: str = "body") -> str:
        return str(await self.run(f"document.querySelector({json.dumps(selector)})?.innerText ?? ''"))

    async def click(self, text: str, selector: str = "button, a") -> None:
        """Click what is called so, or contains it, as soon as it is there."""
        named = f"e => e.textContent.includes({json.dumps(text)})"
        find = f"[...document.querySelectorAll({json.dumps(selector)})].find({named})"
        await self.until(f"({find})?.checkVisibility() && !({find}).disabled")
        await self.run(f"({find}).click()")

    async def key(self, name: str, code: int, text: str | None = None) -> None:
        given = {"key": name, "windowsVirtualKeyCode": code} | ({"text": text} if text else {})
        await self.call("Input.dispatchKeyEvent", type="keyDown", **given)
        await self.call("Input.dispatchKeyEvent", type="keyUp", key=name, windowsVirtualKeyCode=code)

    async def front(self) -> None:
        await self.call("Page.bringToFront")

    async def close(self) -> None:
        await self.browser.call("Target.closeTarget", targetId=self.target)

    async def picture(self, file: Path, *, whole: bool = False) -> None:
        answer = await self.call("Page.captureScreenshot", captureBeyondViewport=whole)
        file.write_bytes(base64.b64decode(answer["data"]))

"""What the commands share: options, how they speak, how they run, and the gateway that is there already."""

import asyncio
import gc
import os
import signal
import time
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import click
import httpx
import uvloop
from rich.console import Console

from client_sim import behaviours, networks
from client_sim.agencies import BY_CODE, sign
from client_sim.arrivals import PATTERNS
from client_sim.local import Cannot, secrets_of
from client_sim.scenario import WrongScenario

T = TypeVar("T")
INTERRUPTED, CANNOT_START, WRONG_USE, BROKEN = 130, 3, 2, 1
KNOWN_AFTER_S = 2.2  # contract, section 6: "a running gateway takes a new agency within 2 s"
console = Console(stderr=True)


# Options


def _options(*options: Callable[[Callable[..., Any]], Callable[..., Any]]) -> Callable[[Callable[..., Any]], Any]:
    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            function = option(function)
        return function

    return decorate


def _default_address() -> str:
    host, port = os.environ.get("VESTNIK_HOST", "127.0.0.1"), os.environ.get("VESTNIK_PORT", "8080")
    return f"http://{f'[{host}]' if ':' in host else host}:{port}"


where = _options(
    click.option(
        "--address", default=_default_address, metavar="URL", help="The gateway (VESTNIK_HOST, VESTNIK_PORT)."
    ),
    click.option(
        "--data",
        type=click.Path(path_type=Path),
        default=lambda: os.environ.get("VESTNIK_DATA", "data"),
        metavar="DIR",
        help="The gateway's data directory (VESTNIK_DATA): its token key, its agencies.",
    ),
    click.option(
        "--tokens",
        type=click.Path(path_type=Path),
        metavar="FILE",
        help="Tokens, one a line, instead of the key in --data.",
    ),
)
shape = _options(
    click.option("--devices", default=200, show_default=True, help="How many phones."),
    click.option("--accounts", type=int, help="How many people have them.  [default: half as many]"),
    click.option(
        "--behaviour",
        default=behaviours.EVERYDAY,
        metavar="MIX",
        help="Like steady=3,commuter=1; `scenarios --all` shows all.",
    ),
    click.option("--network", default=networks.EVERYDAY, metavar="MIX", help="Like lte=3,edge=1."),
    click.option(
        "--agencies",
        "pattern",
        type=click.Choice(list(PATTERNS)),
        default="steady",
        show_default=True,
        help="How they publish.",
    ),
    click.option("--rate", default=20.0, show_default=True, help="Events a second of all agencies."),
    click.option("--following", default=0.2, show_default=True, help="Share of the phones that follow public notices."),
    click.option("--pace", default=1.0, show_default=True, help="How fast people live: 10 is ten times as fast."),
    click.option("--seed", default=1, show_default=True, help="The same seed, the same day."),
)
results = _options(
    click.option(
        "--out", type=click.Path(path_type=Path), metavar="DIR", help="Journals and report.  [default: sim-results/…]"
    ),
    click.option("--json", "as_json", is_flag=True, help="Print the report as JSON on standard output."),
)


# The gateway that is there already


async def answers(address: str) -> None:
    url = urlsplit(address)
    if url.scheme != "http" or not url.hostname:
        raise WrongScenario(f"--address must be like http://127.0.0.1:8080, not {address!r}.")
    try:
        async with httpx.AsyncClient(timeout=5, trust_env=False) as http:
            answer = await http.get(f"{address}/health/live")
    except (httpx.HTTPError, OSError):
        raise Cannot(
            f"No gateway answers at {address}: start one with `vestnik serve`, or see --own and --address."
        ) from None
    if answer.status_code != 200:
        raise Cannot(f"What answers at {address} is no gateway that lives: {answer.status_code}.")


async def made_secrets(codes: Sequence[str], data: Path) -> dict[str, str]:
    if not data.is_dir():  # noqa: ASYNC240 - once, before anything runs
        raise Cannot(f"There is no data directory {data}: give the gateway's --data, or --secrets.")
    environment = {**os.environ, "VESTNIK_DATA": os.path.abspath(data)}  # noqa: ASYNC240 - asks no disk
    return await secrets_of([BY_CODE[code] for code in codes], data, environment)


def read_secrets(directory: Path, codes: Sequence[str]) -> dict[str, str]:
    try:
        return {code: (directory / code).read_text("ascii").strip() for code in codes}
    except (OSError, ValueError) as error:
        raise Cannot(f"The secrets in {directory} cannot be read: {error}.") from None


async def check_token(address: str, token: str) -> None:
    """Does the gateway take our tokens? Raises Cannot."""
    async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
        answer = await http.get(f"{address}/v1/snapshot", headers={"authorization": f"Bearer {token}"})
    if answer.status_code == 401:
        raise Cannot(f"The gateway at {address} refuses our tokens{_why(answer)}: are --data and --tokens those of it?")


async def check_secrets(address: str, secrets: Mapping[str, str]) -> None:
    """Does the gateway know these agencies by these secrets? One that was added just now is given its time.

    Raises Cannot.
    """
    body = b'{"ids":["none"]}'
    async with httpx.AsyncClient(timeout=10, trust_env=False) as http:
        for code, secret in secrets.items():
            ends = time.monotonic() + KNOWN_AFTER_S
            while True:
                try:
                    signature = sign(secret, "check", now := int(time.time()), body)
                except ValueError as error:
                    raise Cannot(f"The secret of {code} cannot be used: {error}.") from None
                headers = {"webhook-id": "check", "webhook-timestamp": str(now), "webhook-signature": signature}
                url = f"{address}/v1/agencies/{code}/receipts"
                answer = await http.post(url, content=body, headers={**headers, "content-type": "application/json"})
                if answer.status_code != 401:
                    break
                if time.monotonic() > ends:
                    raise Cannot(f"The gateway at {address} does not know {code} by this secret{_why(answer)}.")
                await asyncio.sleep(0.2)


def _why(answer: httpx.Response) -> str:
    """What a problem document says, as a part of a sentence."""
    try:
        detail = str(answer.json().get("detail") or answer.json().get("title")).rstrip(".")
    except (ValueError, AttributeError):
        return ""
    return f" ({detail})"


# Small things


def in_loop(work: Callable[[asyncio.Event], Coroutine[Any, Any, T]]) -> T:
    """Run it; the first Ctrl-C, SIGTERM or hangup asks it to end, and what it noted is written."""

    async def guarded() -> T:
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            loop.add_signal_handler(number, stop.set)
        return await work(stop)

    gc.freeze()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(guarded())


def settings_of(pairs: Sequence[str]) -> dict[str, str]:
    for pair in pairs:
        if "=" not in pair:
            raise WrongScenario(f"--set wants NAME=VALUE, like beat_s=2, not {pair!r}.")
    return {name.strip().lower(): value.strip() for name, _, value in (pair.partition("=") for pair in pairs)}


def rate_of(rate: float) -> float:
    if not 0 <= rate <= 100_000:
        raise WrongScenario(f"--rate must be from 0 to 100000 events a second, not {rate:g}.")
    return rate


def say(text: object) -> None:
    console.print(f"vestnik-sim: {text}", markup=False, highlight=False, soft_wrap=True)

"""What all users of one Locust process share: the scenario, its clock, its journals, tokens and secrets, its faults."""

import contextlib
import os
import secrets
import time
from collections.abc import Mapping
from pathlib import Path
from random import Random
from typing import Any, BinaryIO, Protocol

import orjson

from client_sim.identity import Identity, LocalKey, NoTokens, TokenFile
from loadtests.device import Device, Facts
from loadtests.scenario import Curve, Fault, Posts, Scenario, load

AGENCIES, DEVICES, GENERATOR, ABOUT = "agencies", "devices", "generator", "run.json"
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


class Cut(Protocol):
    """A phone that can be cut off."""

    device: Device

    def cut(self, within_s: float) -> None: ...


def plain(rate: float, notices: float, following: float, agencies: int) -> Scenario:
    """What `locust` does without a scenario: steady phones, some events, until it is stopped."""
    posts = [
        Posts("gov.status.changed", Curve([(0, rate * 0.9)])),
        Posts("gov.code.sent", Curve([(0, rate * 0.1)])),
        Posts("gov.notice.published", Curve([(0, notices)])),
    ]
    mix = {"steady": 8.0, "flaky": 1.0, "anxious": 1.0}
    return Scenario("plain", "", Curve([(0, 1)]), mix, following, agencies, posts)


class Notes:
    """A journal: one JSON object a line, through a buffer of 64 KiB. The next test of the process begins it anew."""

    def __init__(self, path: Path | None):
        self._file: BinaryIO | None = path.open("wb", 65536) if path else None

    def note(self, record: Mapping[str, Any]) -> None:
        if self._file is not None:
            self._file.write(orjson.dumps({"at": round(time.time(), 3), **record}) + b"\n")

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            file.close()


class Run:
    """Made once a process; `begin` at the start of each test. Times of the scenario are `now()`."""

    def __init__(self, options: Any, worker: int = 0, workers: int = 1):
        self.scenario = (
            load(options.scenario)
            if options.scenario
            else plain(options.post_rate, options.notice_rate, options.following, options.agencies)
        ).scaled(phones=options.phones_scale, rate=options.rate_scale, time=options.time_scale)
        self.busy = self.scenario.busy if options.scenario else float("inf")
        self._worker, self._workers = worker, max(1, workers)
        self.data = Path(options.data)
        self.identity = _identity(options.tokens, self.data)
        directory = Path(options.secrets) if options.secrets else self.data / "secrets"
        self.secrets = {path.name: path.read_text("ascii").strip() for path in sorted(directory.glob("*"))}
        self.out = Path(options.out) if options.out else None
        self.rng = Random(f"{options.seed}/{worker}")
        self.facts = Facts()
        self.phones: dict[str, Cut] = {}  # connected or about to be, by account
        self.accounts: list[str] = []
        self.heads: dict[str, int] = {}  # by feed, as the agencies of this process were told
        self.streams = 0  # of agencies that still post
        self._prefix = f"l{secrets.token_hex(3)}-{worker}-"
        self._made = 0
        self._given = iter(self.identity.accounts()) if isinstance(self.identity, TokenFile) else None
        self.started = time.time()
        self.agencies, self.devices, self.generator = Notes(None), Notes(None), Notes(None)

    def begin(self) -> None:
        self.started = time.time()
        if self.out is not None:
            self.out.mkdir(parents=True, exist_ok=True)
            name = f"{os.uname().nodename}-{os.getpid()}.jsonl"
            self.agencies, self.devices, self.generator = (
                Notes(self.out / f"{part}-{name}") for part in (AGENCIES, DEVICES, GENERATOR)
            )

    def end(self) -> None:
        for notes in (self.agencies, self.devices, self.generator):
            notes.close()

    def now(self) -> float:
        return time.time() - self.started

    def account(self) -> str:
        """A new person's. Raises NoTokens when a file has no more."""
        self._made += 1
        if self._given is None:
            name = f"{self._prefix}{self._made}"
        else:
            name = next(self._given, "")
            if not name:
                raise NoTokens(f"There are tokens for {self._made - 1} accounts, and more phones came.")
        self.accounts.append(name)
        return name

    def strangers(self, count: int) -> None:
        """People without a phone here, up to so many as there are tokens for."""
        with contextlib.suppress(NoTokens):
            for _ in range(count):
                self.account()

    def following(self) -> list[str]:
        """The agency feeds of the phone that was made last."""
        if not self.secrets or self.rng.random() >= self.scenario.following:
            return []
        codes = list(self.secrets)[: self.scenario.agencies]
        return [f"agency:{codes[self._made % len(codes)]}"]

    def number(self, made: int) -> int:
        """Of the agency that this process makes after `made` others, so that no two processes have the same."""
        return self._worker + made * self._workers

    def secret(self, number: int) -> tuple[str, str]:
        """(code, secret) of the agency with this number. Raises NoTokens."""
        if not self.secrets:
            raise NoTokens(f"No agency's secret lies in {self.data / 'secrets'}: give --data or --secrets.")
        code = list(self.secrets)[number % len(self.secrets)]
        return code, self.secrets[code]

    def quiet(self) -> bool:
        """Everything is posted, and every phone of this process has everything that its agencies were told of."""
        return (
            self.now() > self.busy
            and not self.streams
            and all(
                phone.device.live
                and all(at >= self.heads.get(feed, 0) for feed, (_, at) in phone.device.positions.items())
                for phone in self.phones.values()
            )
        )

    def drop(self, fault: Fault) -> None:
        for phone in list(self.phones.values()):
            if self.rng.random() < fault.share:
                phone.cut(fault.within)


def _identity(tokens: str, data: Path) -> Identity:
    return TokenFile(Path(tokens)) if tokens else LocalKey(data / "token-key.pem", ttl_s=86_400)

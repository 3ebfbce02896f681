"""`vestnik publish`: an agency on the command line. Signs, posts, and sends again until it knows the answer.

Standard Webhooks with a few lines of its own, so that it needs nothing of the gateway but its address. Events go in
batches and in order; a batch whose answer was lost is sent again with the same events, which the gateway recognises
by their ids.
"""

import base64
import hmac
import json
import os
import random
import sys
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import IO, TYPE_CHECKING, Any
from urllib.parse import urlsplit

import click
from dotenv import dotenv_values

from gateway.commands.common import Refusal, json_flag, on_terminal, put, put_json, say, settings_of
from gateway.settings import Settings

if TYPE_CHECKING:
    import httpx

MAX_BODY_BYTES = 1_048_576  # contract, section 2
MAX_WAIT_S = 30.0
ANSWER_S = 60.0
PROGRESS_BYTES = 65536  # shorter files are done before a bar is drawn

Signer = Callable[[bytes], str]


@dataclass(frozen=True, slots=True)
class Line:
    """An event as it stands in the file. `problem` is set when it is not worth sending."""

    number: int
    content: bytes
    size: int  # bytes of the file that it takes, its end included
    id: str | None = None
    problem: str | None = None


def signer(secret: str) -> Signer:
    """What makes the `webhook-signature` of a content. Several secrets (rotation) are separated by spaces.

    Raises Refusal with a sentence that does not repeat the secret.
    """
    made = [_signer(one) for one in secret.split()]
    if not 1 <= len(made) <= 5:
        raise Refusal("The secret must be 1 to 5 of whsec_… and whsk_…, with spaces between.")
    return lambda content: " ".join(sign(content) for sign in made)


def _signer(secret: str) -> Signer:
    kind, _, text = secret.partition("_")
    try:
        raw = base64.b64decode(text, validate=True)
    except ValueError:
        raw = b""
    if kind == "whsec" and raw:
        return lambda content: "v1," + base64.b64encode(hmac.digest(raw, content, "sha256")).decode()
    if kind == "whsk" and len(raw) == 32:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        private = Ed25519PrivateKey.from_private_bytes(raw)
        return lambda content: "v1a," + base64.b64encode(private.sign(content)).decode()
    raise Refusal("The secret must be whsec_… or whsk_… as `vestnik agency add` printed it.")


def headers(sign: Signer, webhook_id: str, body: bytes, now: float) -> dict[str, str]:
    timestamp = str(int(now))
    content = b".".join((webhook_id.encode(), timestamp.encode(), body))
    return {
        "Content-Type": "application/cloudevents-batch+json",
        "webhook-id": webhook_id,
        "webhook-timestamp": timestamp,
        "webhook-signature": sign(content),
    }


def read_lines(source: Iterable[bytes]) -> Iterator[Line]:
    """Each line that is not blank. What is no JSON object, or too long for any request, is not sent."""
    for number, raw in enumerate(source, 1):
        content = raw.strip()
        if not content:
            continue
        try:
            event = json.loads(content)
        except (ValueError, RecursionError):
            yield Line(number, content, len(raw), problem="not JSON")
            continue
        id = event.get("id") if isinstance(event, dict) else None
        shown = id if isinstance(id, str) else None
        if not isinstance(event, dict):
            yield Line(number, content, len(raw), problem="not a JSON object")
        elif len(content) + 2 > MAX_BODY_BYTES:
            yield Line(number, content, len(raw), shown, "longer than 1 MiB")
        else:
            yield Line(number, content, len(raw), shown)


def batches(lines: Iterable[Line], most: int) -> Iterator[list[Line]]:
    """In order, each at most `most` events and 1 MiB. A line that is not sent is a batch of its own."""
    batch: list[Line] = []
    size = 2
    for line in lines:
        cut = len(batch) == most or size + len(line.content) + 1 > MAX_BODY_BYTES or line.problem is not None
        if batch and cut:
            yield batch
            batch, size = [], 2
        if line.problem is not None:
            yield [line]
            continue
        batch.append(line)
        size += len(line.content) + 1
    if batch:
        yield batch


class Unknown(Exception):
    """No answer within the time: the events may be stored or not."""


class Stop(Exception):
    """The whole request was refused, and so would be every other. `status` is 0 when the answer makes no sense."""

    def __init__(self, status: int, why: str):
        super().__init__(why)
        self.status = status


@dataclass
class Publisher:
    """Posts batches to one agency's address."""

    client: "httpx.Client"
    url: str
    sign: Signer
    patience_s: float
    clock: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    uniform: Callable[[float, float], float] = random.uniform
    failures: int = field(default=0, init=False)

    def post(self, batch: list[Line]) -> list[dict[str, Any]]:
        """One result or problem for each line. Sends again what was not answered, or answered 429 or 5xx, with growing
        pauses (full jitter) and not before Retry-After. Raises Unknown, Stop."""
        body = b"[" + b",".join(line.content for line in batch) + b"]"
        webhook_id = f"msg_{uuid.uuid4().hex}"
        until = self.clock() + self.patience_s
        attempt = 0
        while True:
            answer, why = self._try(body, webhook_id)
            if answer is not None and answer.status_code not in (429, 500, 502, 503, 504):
                return self._read(answer, len(batch))
            pause = self.uniform(0, min(MAX_WAIT_S, 0.5 * 2.0 ** min(attempt, 16)))
            if answer is not None:
                pause = max(pause, _retry_after(answer))
            if self.clock() + pause > until:
                raise Unknown(why)
            if attempt == 0:
                say(f"{why}; trying again.")
            attempt += 1
            self.sleep(pause)

    def _try(self, body: bytes, webhook_id: str) -> "tuple[httpx.Response | None, str]":
        import httpx

        try:
            # Signed anew each time: the timestamp must be fresh, the id says that it is the same message.
            answer = self.client.post(self.url, content=body, headers=headers(self.sign, webhook_id, body, time.time()))
        except httpx.TransportError as error:
            return None, f"No answer from {self.url} ({str(error) or type(error).__name__})"
        return answer, f"{self.url} answered {answer.status_code}"

    def _read(self, answer: "httpx.Response", count: int) -> list[dict[str, Any]]:
        try:
            document = answer.json()
        except ValueError:
            document = None
        if not isinstance(document, dict):
            raise Stop(0, f"{self.url} answered {answer.status_code} and no JSON; is this a gateway?")
        results = document.get("results")
        if answer.status_code in (202, 207) and isinstance(results, list) and len(results) == count:
            return [one if isinstance(one, dict) else {"status": 0, "detail": "no result"} for one in results]
        if answer.status_code < 400:
            raise Stop(0, f"{self.url} answered {answer.status_code} without {count} results; is this a gateway?")
        said = document.get("detail") or document.get("title") or "without a reason"
        more = f" (its clock says {document['time']})" if "time" in document else ""
        raise Stop(answer.status_code, f"{self.url} refused the request with {answer.status_code}: {said}{more}.")


def _retry_after(answer: "httpx.Response") -> float:
    try:
        return min(300.0, max(0.0, float(answer.headers.get("Retry-After", "0"))))
    except ValueError:
        return 0.0


@click.command(short_help="Sign and post events of an agency.")
@click.option("--agency", "code", required=True, metavar="CODE", help="The agency that signs.")
@click.option("--url", metavar="URL", help="Gateway; by default the one of VESTNIK_HOST and VESTNIK_PORT.")
@click.option("--secret-file", type=click.Path(dir_okay=False), help="File with the secret, instead of VESTNIK_SECRET.")
@click.option("--batch", "most", type=click.IntRange(1, 1000), default=100, show_default=True, help="Events a request.")
@click.option(
    "--retry-for",
    type=click.FloatRange(0, 86400),
    default=120,
    show_default=True,
    metavar="SECONDS",
    help="How long to try again when there is no answer, or a 429 or 503.",
)
@json_flag
@click.argument("file", type=click.Path(dir_okay=False, allow_dash=True), default="-")
@click.pass_context
def publish(
    ctx: click.Context, /, code: str, url: str | None, secret_file: str | None, most: int, retry_for: float,
    as_json: bool, file: str,
) -> None:  # fmt: skip
    """Sign and post events: FILE (or - for standard input), one JSON object a line.

    Prints one line for each event. Exit code 1 when something was refused, or its fate is unknown.
    """
    from gateway.events import is_agency

    if not is_agency(code):
        raise click.BadParameter(f"must be 1 to 32 of a-z, 0-9 and -, got {code!r}.", param_hint="--agency")
    sign = signer(_secret(secret_file))
    base = url if url is not None else _own_url(settings_of())
    address = f"{base.rstrip('/')}/v1/agencies/{code}/events"
    with ExitStack() as stack:
        source = stack.enter_context(_input(file))
        client = stack.enter_context(_client(address))
        advance = stack.enter_context(_progress(source))
        tally = Tally(as_json)
        publisher = Publisher(client, address, sign, retry_for)
        try:
            for batch in batches(read_lines(source), most):
                if batch[0].problem is not None:
                    tally.refused_here(batch[0])
                else:
                    tally.answered(batch, publisher.post(batch))
                advance(sum(line.size for line in batch))
        except Unknown as error:
            tally.unknown(batch, str(error))
        except Stop as error:
            tally.stopped(batch, error)
        except KeyboardInterrupt:
            say("Stopped. What was under way may be stored or not; sending it again is safe.")
            tally.summary()
            ctx.exit(130)
    tally.summary()
    ctx.exit(1 if tally.refused else 0)


@dataclass
class Tally:
    """What became of the events."""

    as_json: bool
    stored: int = 0
    repeated: int = 0
    refused: int = 0

    def answered(self, batch: list[Line], results: list[dict[str, Any]]) -> None:
        for line, result in zip(batch, results, strict=True):
            good = result.get("status") == 202
            self.stored += good
            self.repeated += bool(good and result.get("duplicate"))
            self.refused += not good
            self._line(line, result)

    def refused_here(self, line: Line) -> None:
        self.refused += 1
        self._line(line, {"status": 400, "detail": f"{line.problem}; not sent"})

    def unknown(self, batch: list[Line], why: str) -> None:
        self.refused += len(batch)
        for line in batch:
            self._line(line, {"status": 0, "detail": "unknown: no answer; send it again"})
        say(f"{why}; gave up. Events not listed were not sent.")

    def stopped(self, batch: list[Line], error: Stop) -> None:
        self.refused += len(batch)
        for line in batch:
            self._line(line, {"status": error.status, "detail": "the whole request was refused"})
        say(f"{error} Events not listed were not sent.")

    def _line(self, line: Line, result: dict[str, Any]) -> None:
        if self.as_json:
            put_json({"line": line.number, "id": line.id} | result)
            return
        where = f"line {line.number} {line.id or ''}".rstrip()
        if result["status"] == 202:
            again = "  (repeat)" if result.get("duplicate") else ""
            put(f"202  {where}  {result.get('feed')} {result.get('offset')}{again}")
            return
        faults = "; ".join(f"{fault.get('pointer')} {fault.get('detail')}" for fault in result.get("errors") or ())
        reason = faults or result.get("detail") or result.get("title") or ""
        put(f"{result['status'] or '???'}  {where}  {reason}")

    def summary(self) -> None:
        repeats = f" ({self.repeated} of them before)" if self.repeated else ""
        say(f"{self.stored} stored{repeats}, {self.refused} not.")


def _secret(file: str | None) -> str:
    if file is not None:
        try:
            with open(file, encoding="ascii") as opened:
                secret = opened.read(65536)
        except (OSError, UnicodeDecodeError) as error:
            raise Refusal(
                f"--secret-file {file} cannot be read: {getattr(error, 'strerror', None) or error}."
            ) from None
    else:
        try:
            secret = os.environ.get("VESTNIK_SECRET") or dotenv_values(".env").get("VESTNIK_SECRET") or ""
        except (OSError, UnicodeDecodeError):
            secret = ""
    if not secret.strip():
        raise Refusal("The agency's secret is missing: set VESTNIK_SECRET, or name a file with --secret-file.")
    return secret


def _own_url(settings: Settings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - not bound
    return f"http://{f'[{host}]' if ':' in host else host}:{settings.port}"


def _client(address: str) -> "httpx.Client":
    import httpx

    try:
        parts = urlsplit(address)
        good = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    if not good:
        raise Refusal(f"--url must be http://… or https://… with a host, got {address!r}.")
    local = parts.hostname in ("127.0.0.1", "localhost", "::1")
    return httpx.Client(timeout=ANSWER_S, trust_env=not local)


@contextmanager
def _input(file: str) -> Iterator[IO[bytes]]:
    if file == "-":
        yield sys.stdin.buffer
        return
    try:
        opened = open(file, "rb")  # noqa: SIM115 - closed below; an error here is the user's, one later is not
    except OSError as error:
        raise Refusal(f"{file} cannot be read: {error.strerror}.") from None
    with opened:
        yield opened


@contextmanager
def _progress(source: IO[bytes]) -> Iterator[Callable[[int], None]]:
    """A bar on a terminal for a long file; what is printed meanwhile goes above it."""
    try:
        size = os.fstat(source.fileno()).st_size
    except OSError:
        size = 0
    if not on_terminal() or size < PROGRESS_BYTES:
        yield lambda count: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn

    bar = Progress(
        "publishing", BarColumn(), DownloadColumn(), TimeRemainingColumn(),
        console=Console(stderr=True), transient=True, redirect_stdout=sys.stdout.isatty(),
    )  # fmt: skip
    with bar:
        task = bar.add_task("publishing", total=size)
        yield lambda count: bar.update(task, advance=count)

"""Every error of the gateway, in one tree. Internals never reach a client: only `Problem`, `Close` and `Refused` do.

VestnikError
├── ConfigError       ours, at start: a setting or the environment is wrong; one sentence, exit code 3
├── StoreUnavailable  ours, passing: the store cannot commit or read now; 503 outside, nothing is half-written
│   └── EpochChanged  ours: the store was restored under us; it must be closed and opened again, sessions end with 4503
├── BusUnavailable    ours, passing: the bus does not answer; speed is lost, events are not
├── Problem           theirs (or 5xx ours): the answer to an HTTP request, RFC 9457
├── Close             theirs (or 45xx ours): ends a socket with a close code of the contract, section 3
└── Refused           theirs: one message of a device is wrong; the answer is `error`, the session lives
"""

from collections.abc import Mapping, Sequence
from typing import Any


class VestnikError(Exception):
    """The root: whatever the gateway raises on purpose."""


class ConfigError(VestnikError):
    """The gateway cannot start as it was set up. The text is one sentence that names the setting and what to do."""


class StoreUnavailable(VestnikError):
    """The store cannot do this now. Nothing of the call is known to be stored; the caller may try again."""

    def __init__(self, detail: str, retry_after_s: int = 2):
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class EpochChanged(StoreUnavailable):
    """The store has another epoch than when it was opened: no position of before holds, and nothing more is done here
    until it is closed and opened again. Sessions must end with 4503 (contract, section 3)."""


class BusUnavailable(VestnikError):
    """The bus did not take a message. Delivery goes on by the sweep over the store."""


class Problem(VestnikError):
    """An RFC 9457 problem document.

    `word` ends the `type` URI (contract, section 2). `errors` are `{"pointer", "detail"}` with RFC 6901 pointers, all
    faults at once. `extra` are further members of the document, `headers` further headers of the answer. `about` are id
    and type of the event that it is about, as far as they are known: for the operators' journal, not for the answer.
    """

    def __init__(
        self,
        status: int,
        word: str,
        title: str,
        detail: str = "",
        *,
        errors: Sequence[Mapping[str, str]] = (),
        extra: Mapping[str, Any] | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(f"{status} {word}: {detail or title}")
        self.status, self.word, self.title, self.detail = status, word, title, detail
        self.errors, self.extra, self.headers = list(errors), dict(extra or {}), dict(headers or {})
        self.about: tuple[str | None, str | None] = (None, None)

    def document(self) -> dict[str, Any]:
        """The members of the problem document, in reading order."""
        doc: dict[str, Any] = {
            "type": f"https://vestnik.example/problems/{self.word}",
            "title": self.title,
            "status": self.status,
        }
        if self.detail:
            doc["detail"] = self.detail
        if self.errors:
            doc["errors"] = self.errors
        return doc | self.extra


class Close(VestnikError):
    """Ends the connection with this close code (contract, section 3, close codes) and a reason of at most 123 bytes."""

    def __init__(self, code: int, reason: str):
        super().__init__(f"{code} {reason}")
        self.code, self.reason = code, reason


class Refused(VestnikError):
    """One message of a device cannot be obeyed: the answer is `error` with this `code`; the session lives."""

    def __init__(self, code: str, detail: str, feed: str | None = None):
        super().__init__(f"{code}: {detail}")
        self.code, self.detail, self.feed = code, detail, feed

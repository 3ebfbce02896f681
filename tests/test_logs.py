"""Logs never show a token, a secret, a body or an account in clear: tried by looking for them in what was written."""

import io
import json
import logging
import subprocess
import sys

import pytest
import structlog

from gateway import logs
from gateway.logs import get_logger, scrub, setup, who
from gateway.tokens import LocalKey

ACCOUNT = "acc-77-secret-person"
BODY = b'{"title":"court hearing"}'


@pytest.fixture
def written(tmp_path):
    """Logging as a gateway's, into memory; the tests' own logging afterwards."""
    root = logging.getLogger()
    handlers, level, key = root.handlers[:], root.level, logs._key
    stream = io.StringIO()
    setup("debug", "json", data=tmp_path, stream=stream)
    yield stream
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.getLogger("uvicorn.access").disabled = False
    logs._key = key
    structlog.reset_defaults()


@pytest.fixture
def token(tmp_path):
    return LocalKey.open(tmp_path).issue(ACCOUNT, device="phone")


def lines(stream):
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def test_json_is_one_object_a_line(written):
    get_logger("hub").info("session closed", code=4409, seconds=1.5, who=who(ACCOUNT), ok=True, none=None)
    (line,) = lines(written)
    assert line.pop("timestamp").endswith("Z")
    assert line == {
        "message": "session closed",
        "level": "info",
        "logger": "hub",
        "code": 4409,
        "seconds": 1.5,
        "who": who(ACCOUNT),
        "ok": True,
        "none": None,
    }


def test_nothing_that_must_not_be_logged_is(written, token):
    log = get_logger("test")
    revocation = f"{ACCOUNT}/phone"
    feed = f"account:{ACCOUNT}"
    log.info("one", token=token, account=ACCOUNT, body=BODY, secret="whsec_c2VjcmV0", sub=ACCOUNT)
    log.warning(f"two {token} {feed}", nested={"account": ACCOUNT, "list": [token, {"data": BODY.decode()}]})
    log.error("three %s %s", feed, token, raw=BODY, headers={"Authorization": "x"}, value=revocation)
    log.info("four", feed=feed, feeds=(feed,), url=f"/v1/feeds/account%3A{ACCOUNT}/events", any=BODY, s={feed})
    log.info(
        "five", text="Authorization: Bearer hush-hush", store="postgresql://me:hush-hush@db/x", key="whsk_c2VjcmV0"
    )
    log.info("six", deep=[[[[[[token, ACCOUNT]]]]]], thing=type("T", (), {"__str__": lambda self: token})())
    logging.getLogger("uvicorn.error").error("seven %s %s", feed, token)
    logging.getLogger("elsewhere").warning("eight", extra={"account": ACCOUNT})
    try:
        raise RuntimeError(f"broken {feed} {token}")
    except RuntimeError:
        log.exception("nine")
        logging.getLogger("uvicorn.error").exception("ten")
    text = written.getvalue()
    assert len(lines(written)) == 10
    for hidden in (ACCOUNT, token, token.split(".")[2], "court", "hush", "c2VjcmV0"):
        assert hidden not in text, hidden
    assert f"account:{who(ACCOUNT)}" in text
    assert f"{who(ACCOUNT)}/phone" in text
    assert "RuntimeError: broken" in text


def test_an_account_has_one_name_for_one_data_directory(tmp_path, written):
    name = who(ACCOUNT)
    assert len(name) == 12
    assert int(name, 16) >= 0
    setup("info", "json", data=tmp_path, stream=written)
    assert who(ACCOUNT) == name
    setup("info", "json", data=tmp_path / "other", stream=written)
    assert who(ACCOUNT) != name
    assert (tmp_path / "log.key").stat().st_mode & 0o777 == 0o600


def test_a_data_directory_that_cannot_be_written_does_not_stop_logging(tmp_path, written):
    (tmp_path / "file").write_text("")
    setup("info", "json", data=tmp_path / "file" / "data", stream=written)
    get_logger("x").info("still here", account=ACCOUNT)
    assert lines(written)[-1]["account"] == who(ACCOUNT)


def test_levels(written):
    setup("warning", "json", stream=written)
    get_logger("hub").info("not this")
    get_logger("hub").warning("this")
    logging.getLogger("asyncio").info("nor this")
    logging.getLogger("uvicorn.error").info("nor that")
    assert [line["message"] for line in lines(written)] == ["this"]


def test_the_access_log_is_off_unless_asked_for(written):
    access = logging.getLogger("uvicorn.access")
    access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", f"/v1/feeds/account:{ACCOUNT}/events", "1.1", 200)
    assert lines(written) == []
    setup("info", "json", access=True, stream=written)
    access.info('%s - "%s %s HTTP/%s" %d', "127.0.0.1:1", "GET", f"/v1/feeds/account:{ACCOUNT}/events", "1.1", 200)
    (line,) = lines(written)
    assert line["logger"] == "uvicorn.access"
    assert ACCOUNT not in line["message"]


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_pretty_with_colour_on_a_terminal_only(written, monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    terminal = Terminal()
    setup("info", "auto", stream=terminal)
    get_logger("hub").info("hello", account=ACCOUNT)
    assert "\x1b[" in terminal.getvalue()
    assert ACCOUNT not in terminal.getvalue()
    plain = io.StringIO()
    setup("info", "pretty", stream=plain)
    get_logger("hub").info("hello", feed=f"account:{ACCOUNT}")
    assert "\x1b[" not in plain.getvalue()
    assert "hello" in plain.getvalue()
    assert ACCOUNT not in plain.getvalue()
    assert not plain.getvalue().startswith("{")


def test_pretty_tracebacks_are_scrubbed_and_show_no_locals(written, token):
    stream = io.StringIO()
    setup("info", "pretty", stream=stream)
    secret_of_the_frame = BODY.decode()
    try:
        raise ValueError(f"bad {token}")
    except ValueError:
        get_logger("hub").exception("failed")
    assert token not in stream.getvalue()
    assert secret_of_the_frame not in stream.getvalue()
    assert "ValueError: bad [token]" in stream.getvalue()


@pytest.mark.parametrize(
    "harmless",
    [
        "1.2.3",
        "gateway.store.sqlite",
        "127.0.0.1:8080",
        "http://127.0.0.1:8080/v1/socket",
        "agency:fns",
        "4409 bye",
        "",
    ],
)
def test_what_is_harmless_stays(harmless):
    assert scrub(harmless) == harmless


def test_a_logger_made_before_setup_obeys_it():
    """Modules make theirs at import; a process of its own, because it changes all logging."""
    program = (
        "from gateway.logs import get_logger, setup\n"
        "log = get_logger('early')\n"
        "setup('info', 'json')\n"
        "log.debug('no'); log.info('yes', account='x1')\n"
        "print('out')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout == "out\n"
    (line,) = done.stderr.splitlines()
    assert (json.loads(line)["message"], json.loads(line)["logger"]) == ("yes", "early")

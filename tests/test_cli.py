"""The commands, as a person or a program uses them: what is printed where, and with which exit code."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import sqlite3
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from gateway import events, verify
from gateway.cli import cli
from gateway.commands import publish as publishing
from gateway.errors import Problem
from gateway.settings import load
from gateway.store import open_store
from gateway.store.base import Agency, Original, Revocation
from gateway.tokens import LocalKey, Verifier

VESTNIK = [sys.executable, "-m", "gateway.cli"]


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    """No setting of the machine that runs the tests; data under the test's own directory."""
    for name in [name for name in os.environ if name.upper().startswith("VESTNIK_")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)


def vestnik(*args, stdin=None, **environ):
    result = CliRunner().invoke(cli, [str(arg) for arg in args], input=stdin, env=environ, prog_name="vestnik")
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    return result


def sentences(result):
    """What was said, and that nothing went to standard output."""
    assert result.stdout == ""
    return result.stderr.strip()


async def _with_store(work):
    settings = load()
    store = open_store(settings.store, settings.data)
    await store.open()
    try:
        return await work(store)
    finally:
        await store.close()


def with_store(work):
    """Run `await work(store)` on the data directory of the test."""
    return asyncio.run(_with_store(work))


def event(number, **more):
    return {
        "specversion": "1.0",
        "id": f"e-{number}",
        "source": "/agencies/fns",
        "type": "gov.notice.sent",
        "time": "2026-01-01T00:00:00Z",
        "account": "acc-1",
        "data": {"title": "Письмо", "text": f"number {number}"},
    } | more


# Everywhere


def test_help_names_every_command_of_the_contract():
    listed = vestnik("--help").stdout
    for command in ("serve", "worker", "agency", "token", "publish", "revoke", "erase", "verify", "backup", "restore"):
        assert f"\n  {command} " in listed
        assert vestnik(command, "--help").exit_code == 0
    assert vestnik("--version").stdout.startswith("vestnik ")


@pytest.mark.parametrize(
    "args",
    [
        ["serve"],
        ["worker"],
        ["agency", "add", "fns"],
        ["agency", "list"],
        ["agency", "retire", "fns", "k"],
        ["token", "acc"],
        ["revoke", "--sub", "acc"],
        ["erase", "--account", "acc"],
        ["verify", "--agency", "fns", "e"],
        ["backup", "copy"],
        ["publish", "--agency", "fns"],
    ],
)
def test_a_wrong_setting_is_one_sentence_and_exit_3(args):
    result = vestnik(*args, VESTNIK_PORT="abc", VESTNIK_SECRET="whsec_c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0")
    assert (result.exit_code, sentences(result)) == (
        3,
        "VESTNIK_PORT must be a whole number from 0 to 65535, got 'abc'.",
    )


def test_a_misspelt_setting_is_told():
    result = vestnik("token", "acc", VESTNIK_PROT="1")
    assert result.stderr == "VESTNIK_PROT is no setting and was ignored; did you mean VESTNIK_PORT?\n"
    assert result.exit_code == 0


@pytest.mark.parametrize(
    "args",
    [
        ["nonsense"],
        ["agency", "add"],
        ["agency", "add", "ФНС"],
        ["agency", "add", "a" * 33],
        ["agency", "add", "fns", "--type", "gov.nothing"],
        ["agency", "add", "fns", "--type", "gov.erased"],
        ["agency", "add", "fns", "--key", "whsec_c2VjcmV0"],
        ["token"],
        ["token", "a b"],
        ["token", "a", "--ttl", "0"],
        ["token", "a", "--ttl", "soon"],
        ["token", "a", "--device", "a/b"],
        ["revoke"],
        ["revoke", "--sub", "a", "--sid", "b"],
        ["revoke", "--sub", "a b"],
        ["revoke", "--sid", ""],
        ["revoke", "--device", "a/b/c"],
        ["revoke", "--device", "a/"],
        ["erase"],
        ["erase", "--account", "a b"],
        ["erase", "--account", "a", "--offset", "0"],
        ["verify", "x"],
        ["backup"],
        ["restore"],
        ["publish"],
        ["publish", "--agency", "A", "-"],
        ["publish", "--agency", "fns", "--batch", "0"],
        ["serve", "--nonsense"],
    ],
)
def test_wrong_usage_is_exit_2(args, tmp_path):
    result = vestnik(*args)
    assert result.exit_code == 2
    assert "Error: " in sentences(result)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize("args", [["agency", "list"], ["revoke", "--sub", "a"], ["erase", "--account", "a"]])
def test_a_store_that_forgets_is_refused(args):
    result = vestnik(*args, VESTNIK_STORE="memory://")
    assert (result.exit_code, "VESTNIK_STORE must be" in sentences(result)) == (3, True)


def test_a_data_directory_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    for args in (["token", "a"], ["agency", "list"]):
        result = vestnik(*args, "--data", tmp_path / "file" / "x")
        assert result.exit_code == 3
        assert sentences(result).count("\n") == 0
        assert "VESTNIK_" in result.stderr


@pytest.mark.parametrize("args", [["erase", "--account", "a"], ["verify", "--agency", "fns", "e"], ["backup", "copy"]])
def test_a_store_that_is_not_there_is_not_made(args, tmp_path):
    result = vestnik(*args)
    assert result.exit_code == 1
    assert sentences(result).startswith(f"There is no store at {tmp_path}/data/vestnik.db;")
    assert not (tmp_path / "data" / "vestnik.db").exists()


def test_what_nobody_expected_is_still_one_sentence(monkeypatch):
    @cli.command("broken")
    def broken():
        raise RuntimeError("who knows")

    try:
        result = vestnik("broken")
        assert result.exit_code == 1
        assert sentences(result) == (
            "It failed unexpectedly (RuntimeError: who knows); VESTNIK_LOG_LEVEL=debug shows where."
        )
        shown = CliRunner().invoke(cli, ["broken"], env={"VESTNIK_LOG_LEVEL": "debug"})
        assert isinstance(shown.exception, RuntimeError)
    finally:
        del cli.commands["broken"]


def test_ctrl_c_is_130():
    @cli.command("wait")
    def wait():
        raise KeyboardInterrupt

    try:
        result = vestnik("wait")
        assert (result.exit_code, sentences(result)) == (130, "Stopped.")
    finally:
        del cli.commands["wait"]


# Agencies


@pytest.mark.parametrize(("flag", "prefix", "kind"), [([], "whsec_", "hmac"), (["--ed25519"], "whsk_", "ed25519")])
def test_agency_add_prints_the_secret_alone_and_keeps_what_verifies_it(flag, prefix, kind):
    result = vestnik("agency", "add", "fns", *flag)
    assert result.exit_code == 0
    secret = result.stdout.removesuffix("\n")
    assert secret.startswith(prefix)
    assert "\n" not in secret
    assert secret not in result.stderr
    (agency,) = with_store(lambda store: store.agencies())
    assert (agency.code, agency.types) == ("fns", ())
    (key,) = agency.keys
    assert key.kind == kind
    assert key == verify.parse_key(secret, key.created)


def test_agency_add_again_is_one_more_key_and_retire_ends_one():
    for flag in ([], ["--ed25519"], ["--type", "gov.notice.sent", "--type", "gov.status.changed"]):
        assert vestnik("agency", "add", "fns", *flag).exit_code == 0
    vestnik("agency", "add", "mvd")
    listed = [json.loads(line) for line in vestnik("agency", "list", "--json").stdout.splitlines()]
    assert [(one["code"], one["types"], len(one["keys"])) for one in listed] == [
        ("fns", ["gov.notice.sent", "gov.status.changed"], 3),
        ("mvd", [], 1),
    ]
    first = listed[0]["keys"][0]["id"]
    ended = vestnik("agency", "retire", "fns", first)
    assert (ended.exit_code, "2 valid keys left" in sentences(ended)) == (0, True)
    again = vestnik("agency", "retire", "fns", first)
    assert (again.exit_code, sentences(again)) == (1, f"Agency fns has no valid key {first}; see: vestnik agency list")
    listed = [json.loads(line) for line in vestnik("agency", "list", "--json").stdout.splitlines()]
    assert [key["retired"] is None for key in listed[0]["keys"]] == [False, True, True]


def test_agency_list_for_people():
    empty = vestnik("agency", "list")
    assert (empty.exit_code, sentences(empty)) == (0, "No agencies yet; add one: vestnik agency add CODE")
    secret = vestnik("agency", "add", "fns").stdout.strip()
    shown = vestnik("agency", "list").stdout
    assert shown.splitlines()[0].split() == ["CODE", "KEY", "KIND", "SINCE", "STATE", "TYPES"]
    assert shown.splitlines()[1].split()[0] == "fns"
    assert shown.splitlines()[1].split()[2:] == ["hmac", shown.split()[9], "valid", "all"]
    assert secret.removeprefix("whsec_") not in shown


def test_an_agency_can_bring_its_own_public_key():
    public = "whpk_" + "A" * 43 + "="
    added = vestnik("agency", "add", "fns", "--key", public)
    assert (added.exit_code, "1 valid key; the new one is" in sentences(added)) == (0, True)
    again = vestnik("agency", "add", "fns", "--key", public)
    assert (again.exit_code, "already" in sentences(again)) == (1, True)
    wrong = vestnik("agency", "add", "fns", "--key", "whpk_AAAA")
    assert wrong.exit_code != 0
    assert sentences(wrong)


# Tokens and revocations


def test_tokens_one_a_line_good_for_the_gateway(tmp_path):
    result = vestnik("token", "acc-1", "acc-2", "--device", "phone", "--ttl", "60", "--scope", "read", "--sid", "s1")
    assert (result.exit_code, result.stderr) == (0, "")
    verifier = Verifier(LocalKey.open(tmp_path / "data").keys())
    claims = [verifier.verify(token, time.time(), "phone") for token in result.stdout.splitlines()]
    assert [(one.account, one.device, one.sid, one.scopes) for one in claims] == [
        ("acc-1", "phone", "s1", {"read"}),
        ("acc-2", "phone", "s1", {"read"}),
    ]
    assert 58 < claims[0].exp - time.time() <= 60
    assert [entry.name for entry in (tmp_path / "data").iterdir()] == ["token-key.pem"]


def test_no_local_tokens_beside_an_identity_provider():
    result = vestnik("token", "acc", VESTNIK_JWKS="https://id.example.ru/keys")
    assert result.exit_code == 1
    assert sentences(result).startswith("VESTNIK_JWKS names an identity provider")


@pytest.mark.parametrize(
    ("kind", "value"), [("sub", "acc-1"), ("sid", "any text"), ("device", "phone"), ("device", "acc-1/phone")]
)
def test_revoke(kind, value):
    before = time.time()
    result = vestnik("revoke", f"--{kind}", value, "--json")
    assert result.exit_code == 0
    said = json.loads(result.stdout)
    assert before <= said["before"] <= time.time()
    assert with_store(lambda store: store.revocations()) == [Revocation(kind, value, pytest.approx(said["before"]))]


# What is in the log


def append(*items, body=None, secret="whsec_" + "c2VjcmV0" * 4, code="fns"):
    """Events in the store as the intake puts them there: signed, parsed, committed."""
    key = verify.parse_key(secret, 1.0)
    body = json.dumps(list(items)).encode() if body is None else body
    signature = publishing.signer(secret)(b"msg_1.1767225600." + body)
    original = Original(code, key.id, "msg_1", 1767225600, signature, body, 1767225601.0)

    async def work(store):
        with contextlib.suppress(ValueError):
            await store.add_agency_key(code, key, None, 1.0)
        parsed = events.parse(body, "batch", Agency(code, (key,)), original=original)
        assert not any(isinstance(item, Problem) for item in parsed), parsed
        await store.append([item.draft for item in parsed], 1767225602.0)

    with_store(work)


def test_verify_says_what_is_proven():
    append(event(1), event(2))
    good = vestnik("verify", "--agency", "fns", "e-2")
    assert good.exit_code == 0
    assert good.stdout.startswith("Good: account:acc-1 2 is what agency fns signed with key ")
    told = json.loads(vestnik("verify", "--agency", "fns", "e-2", "--json").stdout)
    assert (told["verdict"], told["feed"], told["offset"]) == ("good", "account:acc-1", 2)
    assert (told["verified"], len(told["sha256"])) == ("2026-01-01T00:00:01Z", 64)
    unknown = vestnik("verify", "--agency", "fns", "e-3")
    assert (unknown.exit_code, unknown.stdout.startswith("Nothing is kept of event e-3 of agency fns")) == (1, True)
    assert vestnik("verify", "--agency", "mvd", "e-2").exit_code == 1


def test_verify_with_a_retired_key_is_still_good():
    append(event(1))
    (agency,) = with_store(lambda store: store.agencies())
    vestnik("agency", "retire", "fns", agency.keys[0].id)
    result = vestnik("verify", "--agency", "fns", "e-1")
    assert (result.exit_code, "(retired " in result.stdout) == (0, True)


def test_erasing_one_event_leaves_the_others_their_digest():
    append(event(1), event(2), event(3))
    erased = vestnik("erase", "--account", "acc-1", "--offset", "2", "--json")
    assert erased.exit_code == 0
    told = json.loads(erased.stdout)
    assert (told["feed"], told["offset"], told["erased"], told["ranges"]) == ("account:acc-1", 4, 1, [[2, 2]])
    assert "Erased 1 event; devices are told by event 4 of account:acc-1." in erased.stderr
    for id, words in (("e-2", "The event was erased"), ("e-1", "Another event of its request was erased")):
        result = vestnik("verify", "--agency", "fns", id)
        assert result.exit_code == 0
        assert result.stdout.startswith(words)
        assert "SHA-256" in result.stdout
    again = vestnik("erase", "--account", "acc-1", "--offset", "2")
    assert (again.exit_code, sentences(again)) == (1, "Account acc-1 has no event 2 to erase.")


def test_erasing_an_account():
    append(event(1), event(2), event(3, account="acc-2"))
    result = vestnik("erase", "--account", "acc-1")
    assert (result.exit_code, sentences(result)) == (
        0,
        "Erased 2 events; devices are told by event 3 of account:acc-1.",
    )
    nobody = vestnik("erase", "--account", "acc-9")
    assert (nobody.exit_code, sentences(nobody)) == (1, "Account acc-9 has no events to erase.")


_NUMBER_7 = "CAST(replace({0}, 'number 1', 'number 7') AS {1})"


@pytest.mark.parametrize(
    ("tampering", "verdict", "words"),
    [
        (f"UPDATE originals SET body = {_NUMBER_7.format('body', 'BLOB')}", "bad", "does NOT match"),
        ("UPDATE originals SET signature = 'v1,AAAA'", "bad", "does NOT match"),
        ("UPDATE originals SET signature = 'garbage'", "bad", "does NOT match"),
        ("UPDATE originals SET timestamp = timestamp + 1", "bad", "does NOT match"),
        (f"UPDATE events SET event = {_NUMBER_7.format('event', 'TEXT')}", "bad", "is NOT what was signed"),
        ("UPDATE events SET event = '[]'", "bad", "is NOT what was signed"),
        ("UPDATE events SET item = 5", "bad", "is NOT what was signed"),
        ("DELETE FROM agency_keys", "key-unknown", "is unknown here"),
    ],
)
def test_verify_sees_what_was_changed_in_the_store(tmp_path, tampering, verdict, words):
    append(event(1))
    with contextlib.closing(sqlite3.connect(tmp_path / "data" / "vestnik.db")) as conn, conn:
        assert conn.execute(tampering).rowcount == 1
    result = vestnik("verify", "--agency", "fns", "e-1", "--json")
    told = json.loads(result.stdout)
    assert (result.exit_code, told["verdict"]) == (1, verdict)
    assert words in told["text"]


# Backup and restore


def test_backup_and_restore_with_a_new_epoch(tmp_path):
    append(event(1))
    epoch = with_store(_epoch)
    saved = vestnik("backup", "copy.db")
    assert saved.exit_code == 0
    assert sentences(saved).startswith(f"The store is copied to {tmp_path}/copy.db (")
    append(event(2))
    back = vestnik("restore", "copy.db", "--yes", "--json")
    assert back.exit_code == 0, back.stderr
    new = json.loads(back.stdout)["epoch"]
    assert new != epoch
    assert f"new epoch {new}" in back.stderr
    assert with_store(_epoch) == new
    heads = with_store(lambda store: store.heads(["account:acc-1"]))
    assert heads["account:acc-1"].head == 1


async def _epoch(store):
    return store.epoch


def test_backup_replaces_nothing(tmp_path):
    append(event(1))
    (tmp_path / "copy.db").write_text("mine")
    result = vestnik("backup", "copy.db")
    assert (result.exit_code, sentences(result)) == (1, f"{tmp_path}/copy.db exists; name a new file.")
    assert (tmp_path / "copy.db").read_text() == "mine"
    result = vestnik("backup", "nowhere/copy.db")
    assert (result.exit_code, sentences(result)) == (1, f"{tmp_path}/nowhere is no directory.")


def test_restore_refuses_what_is_no_backup(tmp_path):
    append(event(1))
    vestnik("backup", "copy.db")
    (tmp_path / "garbage").write_text("garbage" * 1000)
    epoch = with_store(_epoch)
    wrong = vestnik("restore", "garbage", "--yes")
    assert wrong.exit_code in (1, 3)
    assert sentences(wrong)
    missing = vestnik("restore", "nothing", "--yes")
    assert (missing.exit_code, sentences(missing)) == (1, f"{tmp_path}/nothing is no file.")
    assert with_store(_epoch) == epoch


def test_restore_asks_on_a_terminal_only():
    """A script that restores at night must not wait for an answer."""
    append(event(1))
    vestnik("backup", "copy.db")
    assert vestnik("restore", "copy.db", stdin="").exit_code == 0


def test_restore_refuses_while_the_store_is_in_use():
    append(event(1))
    vestnik("backup", "copy.db")

    async def work(store):
        return await asyncio.to_thread(vestnik, "restore", "copy.db", "--yes")

    result = with_store(work)
    assert result.exit_code in (1, 3)
    assert sentences(result).count("\n") == 0


# Publishing


class Gateway(ThreadingHTTPServer):
    """The other end of a post: checks the signature with the gateway's own code, answers what the test wants."""

    def __init__(self, key):
        super().__init__(("127.0.0.1", 0), _Intake)
        self.key, self.posts, self.answers = key, [], []

    @property
    def url(self):
        return f"http://127.0.0.1:{self.server_address[1]}"


class _Intake(BaseHTTPRequestHandler):
    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        raw = [(name.lower().encode(), value.encode()) for name, value in self.headers.items()]
        status, document, headers = 202, None, {}
        try:
            verify.verify(raw, body, [self.server.key], time.time())
        except Problem as problem:
            status, document = problem.status, problem.document()
        items = json.loads(body)
        self.server.posts.append((self.path, self.headers["webhook-id"], self.headers["Content-Type"], items))
        if document is None and self.server.answers:
            answer = self.server.answers.pop(0)
            if answer is None:
                self.close_connection = True
                return
            status, document, headers = answer(items) if callable(answer) else answer
        if document is None:
            document = {"results": [accepted(item, number) for number, item in enumerate(items, 1)]}
        content = json.dumps(document).encode()
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *args):
        pass


def accepted(item, offset, duplicate=False):
    return {
        "status": 202,
        "id": item["id"],
        "feed": "account:acc-1",
        "epoch": "x",
        "offset": offset,
        "duplicate": duplicate,
    }


@pytest.fixture(params=["hmac", "ed25519"])
def agency(request):
    secret, key = verify.new_secret(request.param, 0.0)
    with Gateway(key) as server:
        server.secret = secret
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def publish(agency, *args, lines=(), secret=None):
    stdin = b"".join(line if isinstance(line, bytes) else json.dumps(line).encode() + b"\n" for line in lines)
    return vestnik(
        "publish", "--agency", "fns", "--url", agency.url, *args, stdin=stdin,
        VESTNIK_SECRET=agency.secret if secret is None else secret,
    )  # fmt: skip


def test_publish_signs_and_posts_in_order_and_in_batches(agency):
    result = publish(agency, "--batch", "2", lines=[event(1), b"\n", event(2), event(3)])
    assert (result.exit_code, result.stderr) == (0, "3 stored, 0 not.\n")
    assert result.stdout.splitlines() == [
        "202  line 1 e-1  account:acc-1 1",
        "202  line 3 e-2  account:acc-1 2",
        "202  line 4 e-3  account:acc-1 1",
    ]
    assert [[item["id"] for item in items] for *_, items in agency.posts] == [["e-1", "e-2"], ["e-3"]]
    path, webhook_id, media, _ = agency.posts[0]
    assert (path, media) == ("/v1/agencies/fns/events", "application/cloudevents-batch+json")
    assert webhook_id != agency.posts[1][1]


def test_publish_for_programs_and_with_refusals(agency):
    problem = {
        "type": "https://vestnik.example/problems/invalid", "title": "Not valid", "status": 422,
        "errors": [{"pointer": "/data/title", "detail": "is required"}],
    }  # fmt: skip
    agency.answers = [lambda items: (207, {"results": [accepted(items[0], 5, True), problem]}, {})]
    lines = [event(1), event(2), b"{\n", b"[]\n", b"\xff\n", b"[" * 5000 + b"\n"]
    result = publish(agency, "--json", lines=lines)
    assert (result.exit_code, result.stderr) == (1, "1 stored (1 of them before), 5 not.\n")
    told = [json.loads(line) for line in result.stdout.splitlines()]
    assert [(one["line"], one["id"], one["status"]) for one in told] == [
        (1, "e-1", 202), (2, "e-2", 422), (3, None, 400), (4, None, 400), (5, None, 400), (6, None, 400),
    ]  # fmt: skip
    assert told[0]["duplicate"]
    assert told[1]["errors"] == problem["errors"]
    agency.answers = [lambda items: (207, {"results": [problem]}, {})]
    assert publish(agency, lines=[event(1)]).stdout == "422  line 1 e-1  /data/title is required\n"


def test_publish_sends_again_with_the_same_ids_until_it_knows(agency, monkeypatch):
    slept = []
    monkeypatch.setattr(publishing.Publisher, "post", _with_sleep(publishing.Publisher.post, slept))
    agency.answers = [(503, {"status": 503}, {"Retry-After": "2"}), None, (429, {"status": 429}, {"Retry-After": "x"})]
    result = publish(agency, lines=[event(1)])
    assert result.exit_code == 0
    assert "answered 503; trying again." in result.stderr
    assert len(agency.posts) == 4
    assert len({(webhook_id, json.dumps(items)) for _, webhook_id, _, items in agency.posts}) == 1
    assert slept[0] >= 2
    assert all(pause <= 30 for pause in slept)


def _with_sleep(post, slept):
    def wrapped(self, batch):
        self.sleep = slept.append
        return post(self, batch)

    return wrapped


def test_publish_gives_up_and_says_that_it_does_not_know(agency):
    agency.answers = [(503, {"status": 503}, {})] * 50
    result = publish(agency, "--retry-for", "0", "--json", lines=[event(1), event(2)])
    assert result.exit_code == 1
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == [0, 0]
    assert "gave up" in result.stderr


def test_publish_to_nobody(agency):
    free = agency.url.rpartition(":")[0] + ":1"
    result = vestnik("publish", "--agency", "fns", "--url", free, "--retry-for", "0", stdin=json.dumps(event(1)),
                     VESTNIK_SECRET=agency.secret)  # fmt: skip
    assert result.exit_code == 1
    assert "No answer from http://127.0.0.1:1/v1/agencies/fns/events" in result.stderr


def test_publish_with_the_wrong_secret_stops(agency):
    wrong, _ = verify.new_secret("hmac", 0.0)
    result = publish(agency, "--batch", "1", lines=[event(1), event(2)], secret=wrong)
    assert result.exit_code == 1
    assert len(agency.posts) == 1
    assert "refused the request with 401: no signature is by a key of this agency." in result.stderr
    assert result.stdout == "401  line 1 e-1  the whole request was refused\n"
    assert wrong not in result.output


def test_publish_with_two_secrets_during_a_rotation(agency):
    other, _ = verify.new_secret("hmac", 0.0)
    assert publish(agency, lines=[event(1)], secret=f"{other} {agency.secret}").exit_code == 0


def test_publish_to_what_is_no_gateway(agency):
    for answer in ((200, {"hello": 1}, {}), (202, [], {}), (202, {"results": []}, {}), (302, {}, {})):
        agency.answers = [answer]
        result = publish(agency, lines=[event(1)])
        assert result.exit_code == 1
        assert "is this a gateway?" in result.stderr


def test_publish_secret_from_a_file_and_events_from_one(agency, tmp_path):
    (tmp_path / "secret").write_text(agency.secret + "\n")
    (tmp_path / "events").write_text(json.dumps(event(1)))
    args = ["publish", "--agency", "fns", "--url", agency.url + "/", "--secret-file", tmp_path / "secret"]
    assert vestnik(*args, tmp_path / "events").exit_code == 0
    (tmp_path / ".env").write_text(f"VESTNIK_SECRET={agency.secret}\n")
    assert vestnik(*args[:-2], tmp_path / "events").exit_code == 0
    nothing = vestnik(*args, tmp_path / "nothing")
    assert (nothing.exit_code, "cannot be read" in sentences(nothing)) == (1, True)
    nothing = vestnik(*args[:-1], tmp_path / "no-secret")
    assert (nothing.exit_code, "cannot be read" in sentences(nothing)) == (1, True)


@pytest.mark.parametrize(
    "secret", ["", "  ", "hush", "whsec_", "whsec_!!", "whsk_AAAA", "whpk_" + "A" * 43 + "=", "whsec_YQ== " * 6]
)
def test_publish_with_what_is_no_secret(secret):
    result = vestnik("publish", "--agency", "fns", stdin="{}", VESTNIK_SECRET=secret)
    assert result.exit_code == 1
    assert "secret" in sentences(result)
    assert len(secret.strip()) < 7 or secret.strip() not in result.stderr


@pytest.mark.parametrize("url", ["ftp://x", "nonsense", "http://", "http://[", "http://x:99999999"])
def test_publish_to_what_is_no_address(url):
    result = vestnik("publish", "--agency", "fns", "--url", url, stdin="{}", VESTNIK_SECRET="whsec_" + "YWFh" * 8)
    assert result.exit_code == 1
    assert sentences(result).startswith("--url must be http://… or https://… with a host, got ")


def test_batches_are_cut_at_1_mib_and_at_lines_not_sent():
    def line(number, size=10, problem=None):
        return publishing.Line(number, b"x" * size, size, problem=problem)

    lines = [line(1), line(2, problem="bad"), line(3, 600_000), line(4, 600_000), line(5), line(6), line(7)]
    cut = [[one.number for one in batch] for batch in publishing.batches(lines, 2)]
    assert cut == [[1], [2], [3], [4, 5], [6, 7]]


def test_the_default_address_is_the_gateways_own():
    assert publishing._own_url(load()) == "http://127.0.0.1:8080"
    assert publishing._own_url(load(host="0.0.0.0", port=9)) == "http://127.0.0.1:9"
    assert publishing._own_url(load(host="::", port=9)) == "http://[::1]:9"


def test_ctrl_c_while_publishing_is_clean(agency):
    """A real process in the middle of its retries."""
    agency.answers = [(503, {"status": 503}, {"Retry-After": "60"})] * 10
    environ = os.environ | {"VESTNIK_SECRET": agency.secret, "PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [*VESTNIK, "publish", "--agency", "fns", "--url", agency.url],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ,
    )  # fmt: skip
    process.stdin.write(json.dumps(event(1)).encode())
    process.stdin.close()
    assert b"trying again" in process.stderr.readline()
    process.send_signal(signal.SIGINT)
    said = process.stderr.read().decode()
    assert process.wait(timeout=20) == 130
    assert "sending it again is safe" in said
    assert "Traceback" not in said
    process.stdout.close()
    process.stderr.close()


def test_a_reader_that_goes_away_is_no_traceback(tmp_path):
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    accounts = [f"a{number}" for number in range(2000)]
    process = subprocess.Popen(
        [*VESTNIK, "token", *accounts], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ
    )
    process.stdout.readline()
    process.stdout.close()
    said = process.stderr.read().decode()
    process.wait(timeout=30)
    process.stderr.close()
    assert said == ""


# The processes that stay


@contextlib.contextmanager
def started(*args):
    """A real process; its log lines can be read from `process.stderr`."""
    environ = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen([*VESTNIK, *args], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environ)
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def listening(process):
    """The address that a gateway said it listens on."""
    for line in process.stderr:
        said = json.loads(line)
        if said["message"] == "listening":
            return said["url"]
    raise AssertionError("it never listened")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_serve_takes_a_new_agency_while_it_runs_and_ends_cleanly(number, tmp_path):
    with started("serve", "--port", "0") as process:
        url = listening(process)
        secret = vestnik("agency", "add", "fns").stdout.strip()
        until = time.monotonic() + 5
        (tmp_path / "events").write_text(json.dumps(event(1)))
        args = ["publish", "--agency", "fns", "--url", url, "--json", "events"]
        while (posted := vestnik(*args, VESTNIK_SECRET=secret)).exit_code and time.monotonic() < until:
            time.sleep(0.1)
        assert json.loads(posted.stdout)["status"] == 202
        assert vestnik("verify", "--agency", "fns", "e-1").exit_code == 0
        assert vestnik("backup", "copy.db").exit_code == 0
        in_use = vestnik("restore", "copy.db", "--yes")
        assert (in_use.exit_code, "stop the gateway" in sentences(in_use)) == (3, True)
        process.send_signal(number)
        out, said = process.communicate(timeout=20)
        assert (process.returncode, out) == (0, b"")
        assert b"Traceback" not in said
        assert b"acc-1" not in said


def test_serve_on_a_port_that_is_taken_is_exit_3():
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        with started("serve", "--port", str(port)) as process:
            out, said = process.communicate(timeout=20)
    assert (process.returncode, out) == (3, b"")
    assert f"cannot listen on 127.0.0.1:{port}" in said.decode().splitlines()[-1]
    assert b"Traceback" not in said


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["serve", "--store", "postgres://x"], "VESTNIK_STORE must begin with"),
        (["serve", "--bus", "amqp://x"], "VESTNIK_BUS must begin with"),
        (["serve", "--processes", "0"], "VESTNIK_PROCESSES must be"),
        (["serve", "--host", "a b"], "VESTNIK_HOST must be"),
        (["worker", "relay"], "VESTNIK_BUS"),
        (["worker", "--store", "memory://", "retention"], "VESTNIK_STORE"),
        (["worker", "nonsense", "--bus", "redis://127.0.0.1:1"], "nonsense"),
    ],
)
def test_what_cannot_start_is_one_sentence_and_exit_3(args, words):
    result = vestnik(*args)
    assert result.exit_code == 3
    assert words in sentences(result)
    assert sentences(result).count("\n") == 0


def test_commands_have_help_for_every_option():
    def options(command):
        for name in getattr(command, "commands", {}):
            yield from options(command.commands[name])
        yield from ((command.name, param) for param in command.params if isinstance(param, click.Option))

    for name, option in options(cli):
        assert option.help, f"{name} {option.opts}"

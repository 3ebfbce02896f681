"""Section 6 of the contract: the commands, on gateways of their own with the local key."""

import asyncio
import json
import re
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar
from urllib.parse import quote

import pytest

from .agent import Agency, Signer, call, get
from .conftest import Done, Gateway, free_port
from .device import Device


@pytest.fixture(scope="module")
def own(make_gateway: Callable[..., Gateway]) -> Iterator[Gateway]:
    """A gateway without identity provider: it makes a local key."""
    gateway = make_gateway(identity=None, drain_s=0)
    gateway.add_agency("tax")
    gateway.start()
    yield gateway
    gateway.stop()


def token(gateway: Gateway, account: str, *flags: str) -> str:
    return gateway.command("token", account, *flags).stdout.decode().strip()


def device(gateway: Gateway, account: str, bearer: str, name: str | None = None) -> Device:
    return Device(gateway.port, account, bearer, device=name)


Item = TypeVar("Item")


def at_once(items: list[Item], run: Callable[[Item], Done]) -> list[Done]:
    """The same command with many arguments: starting one takes most of its time."""
    with ThreadPoolExecutor(3) as pool:
        return list(pool.map(run, items))


class TestAgency:
    def test_add_prints_the_secret_alone(self, own: Gateway) -> None:
        done = own.command("agency", "add", "first")
        assert re.fullmatch(rb"whsec_[A-Za-z0-9+/]+={0,2}\r?\n", done.stdout)
        done = own.command("agency", "add", "second", "--ed25519")
        assert re.fullmatch(rb"whsk_[A-Za-z0-9+/]+={0,2}\r?\n", done.stdout)
        Signer(done.stdout.decode().strip())
        listed = own.command("agency", "list")
        for code in (b"first", b"second", b"tax"):
            assert code in listed.stdout
        # "once": no list shows a secret again.
        assert b"whsec_" not in listed.stdout + listed.stderr
        assert b"whsk_" not in listed.stdout + listed.stderr

    def test_running_gateway_takes_it_within_2_s(self, own: Gateway, account: str) -> None:
        agency = own.add_agency("newcomer")
        began = time.monotonic()
        while agency.post(agency.notice(account)).status != 202:
            assert time.monotonic() - began < 2.2
            time.sleep(0.05)

    def test_one_more_key(self, own: Gateway, account: str) -> None:
        """Rotation in a running gateway: the old key and the new one are both good."""
        old = own.add_agency("rotating")
        new = own.add_agency("rotating", "ed25519")
        both = [Agency(own.port, "rotating"), Agency(own.port, "rotating")]
        both[0].signers, both[1].signers = old.signers, new.signers
        deadline = time.monotonic() + 2.2
        while [agency.post(agency.notice(account)).status for agency in both] != [202, 202]:
            assert time.monotonic() < deadline
            time.sleep(0.05)

    def test_wrong_code(self, own: Gateway) -> None:
        codes = ["UPPER", "a b", "x" * 33, "под", "", "a/b"]
        for done in at_once(codes, lambda code: own.command("agency", "add", code, expect=None)):
            assert done.returncode != 0, done
            assert done.stdout == b""
            assert done.stderr.strip()
            assert b"Traceback" not in done.stderr


class TestToken:
    async def test_one_a_line(self, own: Gateway, account: str) -> None:
        done = own.command("token", account, f"{account}-2", f"{account}-3")
        tokens = done.stdout.decode().split("\n")
        assert tokens.pop() == ""
        assert len(tokens) == 3
        for name, bearer in zip((account, f"{account}-2", f"{account}-3"), tokens, strict=True):
            async with device(own, name, bearer) as one:
                await one.start()

    async def test_device_and_ttl(self, own: Gateway, account: str) -> None:
        bearer = token(own, account, "--device", "phone", "--ttl", "100")
        async with device(own, account, bearer, "phone") as phone, device(own, account, bearer, "other") as other:
            welcome = await phone.start()
            left = time.mktime(time.strptime(welcome["expires"][:19], "%Y-%m-%dT%H:%M:%S")) - time.mktime(time.gmtime())
            assert 80 < left <= 101
            await other.open()
            await other.send("hello", token=bearer, device="other")
            assert (await other.closed()).code == 4403

    def test_wrong_account(self, own: Gateway) -> None:
        accounts = ["a b", "x" * 65, "", "ю"]
        for done in at_once(accounts, lambda account: own.command("token", account, expect=None)):
            assert done.returncode != 0, done
            assert done.stdout == b""
            assert b"Traceback" not in done.stderr


class TestPublish:
    """`vestnik publish --agency CODE [FILE or -]`: one JSON object a line; the secret from `VESTNIK_SECRET` or
    `--secret-file`."""

    def secret(self, gateway: Gateway, code: str) -> tuple[Agency, str]:
        printed = gateway.command("agency", "add", code).stdout.decode().strip()
        return Agency(gateway.port, code, printed), printed

    def test_file_and_standard_input(self, own: Gateway, account: str) -> None:
        agency, secret = self.secret(own, "publisher")
        events = [agency.notice(account, f"№ {number}") for number in range(1203)]  # more than one batch holds
        lines = "".join(json.dumps(event, ensure_ascii=False) + "\n" for event in events).encode()
        path = own.home / "events.jsonl"
        path.write_bytes(lines)
        secret_path = own.home / "secret"
        secret_path.write_text(secret + "\n")
        deadline = time.monotonic() + 3
        while (
            own.command("publish", "--agency", "publisher", str(path), expect=None, VESTNIK_SECRET=secret).returncode
            != 0
        ):
            assert time.monotonic() < deadline, own.command(
                "publish", "--agency", "publisher", str(path), expect=None
            ).stderr
        own.command("publish", "--agency", "publisher", "-", "--secret-file", str(secret_path), stdin=lines)
        bearer = token(own, account)
        stored = []
        for after in (0, 500, 1000):
            query = f"after={after}&limit=500"
            stored += get(own.port, f"/v1/feeds/account:{account}/events?{query}", bearer).json["events"]
        # The second time they were duplicates.
        assert [event["id"] for _, event in stored] == [event["id"] for event in events]

    def test_refused(self, own: Gateway, account: str) -> None:
        """What the gateway refuses ends with a code of its own and words; nothing that programs would take for a
        result of success."""
        other = own.command("agency", "add", "other").stdout.decode().strip()
        tax = own.agencies["tax"]
        line = json.dumps(tax.notice(account)).encode() + b"\n"
        done = own.command("publish", "--agency", "tax", "-", stdin=line, expect=None, VESTNIK_SECRET=other)
        assert done.returncode != 0
        assert b"Traceback" not in done.stderr
        done = own.command("publish", "--agency", "tax", "-", stdin=line, expect=None)
        assert done.returncode != 0
        assert done.stderr.strip(), "no secret: it says so"


class TestRevoke:
    """ "refuses the tokens issued so far and closes the sessions", within 5 s, with 4410."""

    async def test_sub_sid_and_device(self, make_gateway: Callable[..., Gateway]) -> None:
        gateway = make_gateway(drain_s=0)
        await asyncio.to_thread(gateway.start)
        old = int(time.time()) - 5
        try:
            victims = {
                "--sub": gateway.device("by-sub", iat=old),
                "--sid": gateway.device("by-sid", iat=old, sid="session-1"),
                "--device": gateway.device("by-device", device="stolen-phone", iat=old),
            }
            values = {"--sub": "by-sub", "--sid": "session-1", "--device": "stolen-phone"}
            spared = [
                gateway.device("by-sid", iat=old, sid="session-2"),
                gateway.device("by-device", device="other", iat=old),
            ]
            for one in [*victims.values(), *spared]:
                await one.start()
                await one.caught_up()

            async def revoked(flag: str) -> float:
                await asyncio.to_thread(gateway.command, "revoke", flag, values[flag])
                began = time.monotonic()
                assert (await victims[flag].closed(7)).code == 4410
                return time.monotonic() - began

            for flag in victims:
                assert await revoked(flag) < 5
            for one in spared:
                await one.settle()
            # The old tokens stay refused, for sockets and for HTTP.
            for flag, one in victims.items():
                await one.open()
                await one.send("hello", token=one.token, device=one.device)
                assert (await one.closed()).code in {4401, 4410}, flag
            for flag in ("--sub", "--sid"):
                assert get(gateway.port, "/v1/snapshot", victims[flag].token).status == 401
            # New ones are good; `iat` has whole seconds.
            await asyncio.sleep(1.1)
            for one in victims.values():
                one.token = gateway.token(one.account, sid="session-1-new")
                await one.start()
            for one in [*victims.values(), *spared]:
                await one.close()
        finally:
            await asyncio.to_thread(gateway.stop)


class TestErase:
    """ "an account's events, or one": "an erased event keeps its offset and is sent as `null`"; `gov.erased` tells
    the devices."""

    async def test_one_then_all(self, own: Gateway, account: str) -> None:
        tax = own.agencies["tax"]
        bearer = token(own, account)
        secret = tax.notice(account, "стереть")
        tax.send(tax.notice(account, "первое"), secret, tax.notice(account, "третье"))
        async with device(own, account, bearer) as one:
            await one.start()
            await one.reach(3)
            await asyncio.to_thread(own.command, "erase", "--account", account, "--offset", "2")
            await one.reach(4)
            erased = one.kept[one.feed][4]
            assert erased["type"] == "gov.erased"
            assert erased["data"]["ranges"] == [[2, 2]]
            assert erased["account"] == account
        async with device(own, account, bearer) as two:
            await two.start()
            await two.reach(4)
            assert [two.kept[two.feed][at] is None for at in range(1, 5)] == [False, True, False, False]
        answer = get(own.port, f"/v1/feeds/account:{account}/events?after=0", bearer)
        assert "стереть" not in answer.body.decode()
        assert dict(answer.json["events"])[2] is None
        assert "стереть" not in get(own.port, "/v1/snapshot", bearer).body.decode()
        # The id is remembered: not stored again under a new offset.
        assert tax.post(secret).status in {202, 409}
        head = get(own.port, f"/v1/feeds/account:{account}/events?limit=1", bearer).json["head"]
        assert head == 4

        await asyncio.to_thread(own.command, "erase", "--account", account)
        async with device(own, account, bearer) as three:
            await three.start()
            await three.reach(5)
            kept = three.kept[three.feed]
            assert [at for at in (1, 2, 3) if kept[at] is not None] == []
            assert kept[5]["type"] == "gov.erased"
            covered = {at for low, high in kept[5]["data"]["ranges"] for at in range(low, high + 1)}
            assert {1, 3} <= covered
        # The bytes are gone from the disk as well, as far as the store's files show them.
        for path in (own.home / "data").rglob("*.db*"):
            assert "стереть".encode() not in path.read_bytes(), f"still in {path.name}"

    def test_nothing_to_erase(self, own: Gateway, account: str) -> None:
        done = own.command("erase", "--account", account, expect=None)
        assert b"Traceback" not in done.stderr


class TestVerify:
    """`vestnik verify --agency CODE ID` checks the kept signature of an event."""

    def test_kept_and_unknown(self, own: Gateway, account: str) -> None:
        tax = own.agencies["tax"]
        single, first, second = tax.notice(account), tax.notice(account), tax.notice(account)
        tax.post(single)
        tax.batch([first, second])
        for event in (single, second):
            own.command("verify", "--agency", "tax", event["id"])
        done = own.command("verify", "--agency", "tax", "never-sent", expect=None)
        assert done.returncode != 0
        assert (done.stdout + done.stderr).strip()
        assert b"Traceback" not in done.stderr


class TestBackup:
    """ "copies a running store; brings one back with a new epoch"; invariant 10: each device resyncs exactly once."""

    async def test_round(self, make_gateway: Callable[..., Gateway], account: str) -> None:
        gateway = make_gateway(drain_s=0)
        tax = gateway.add_agency("tax")
        await asyncio.to_thread(gateway.start)
        backup = gateway.home / "backup.db"
        try:
            tax.send(*(tax.notice(account, str(number)) for number in range(4)))
            async with gateway.device(account) as one:
                await one.start()
                await one.reach(4)
                await one.ack()
                await one.settle()
                await asyncio.to_thread(gateway.command, "backup", str(backup))
                assert backup.stat().st_size > 0
                # What comes after the backup will be lost, and must be told.
                tax.send(*(tax.notice(account, f"later {number}") for number in range(3)))
                await one.reach(7)
                await one.ack()
                epoch = one.positions[one.feed][0]
                page = gateway.get(f"/v1/feeds/account:{account}/events?limit=2", account).json["next"]
            await asyncio.to_thread(gateway.stop)
            await asyncio.to_thread(gateway.command, "restore", str(backup), stdin=b"y\n")  # should it ask
            await asyncio.to_thread(gateway.start)

            welcome = await one.start(resume=True)
            assert welcome["feeds"][0]["epoch"] != epoch
            resync = await one.until("resync")
            assert (resync["reason"], resync["offset"]) == ("epoch", 4)
            assert tax.send(tax.notice(account, "after")) == [5]
            await one.reach(5)
            await one.ack()
            await one.settle()
            await one.close()
            await one.start(resume=True)
            await one.caught_up()
            assert not one.answers("resync"), "exactly once"
            await one.close()
            # "`next` of another epoch is 410".
            answer = gateway.get(f"/v1/feeds/account:{account}/events?page={quote(page, safe='')}", account)
            assert answer.status == 410
            # A device that keeps no position of its own learns it by its stored cursor.
            async with gateway.device(account, device="second") as second:
                await second.start()
        finally:
            await asyncio.to_thread(gateway.stop)


class TestSettings:
    """ "a wrong value stops the start with one sentence that names it"; "`serve` exits 3 when it cannot start"."""

    def test_wrong_value(self, make_gateway: Callable[..., Gateway]) -> None:
        gateway = make_gateway(identity=None)
        wrong = [
            ("VESTNIK_PORT", "http"),
            ("VESTNIK_PORT", "70000"),
            ("VESTNIK_PROCESSES", "0"),
            ("VESTNIK_STORE", "mysql://x"),
            ("VESTNIK_BUS", "kafka://x"),
            ("VESTNIK_ORIGINS", "not an origin"),
            ("VESTNIK_BEAT_S", "soon"),
        ]

        def serve(setting: tuple[str, str]) -> Done:
            return gateway.command("serve", expect=3, **{setting[0]: setting[1]})  # type: ignore[arg-type]

        for (name, _), done in zip(wrong, at_once(wrong, serve), strict=True):
            assert name in done.stderr.decode()
            self.one_sentence(done.stderr)
            assert done.stdout == b""

    def test_keys_that_are_not_there(self, make_gateway: Callable[..., Gateway]) -> None:
        """Known wrong only after much has been started: it still ends, and at once."""
        gateway = make_gateway(identity=None)
        gateway.environment["VESTNIK_JWKS"] = "/nowhere/jwks.json"
        done = gateway.command("serve", expect=3, timeout=20)
        assert "VESTNIK_JWKS" in done.stderr.decode()
        self.one_sentence(done.stderr)

    @staticmethod
    def one_sentence(stderr: bytes) -> None:
        lines = [line for line in stderr.decode().splitlines() if line.strip()]
        assert len(lines) == 1, lines
        assert b"Traceback" not in stderr

    def test_port_taken(self, own: Gateway, make_gateway: Callable[..., Gateway]) -> None:
        other = make_gateway(identity=None)
        done = other.command("serve", "--port", str(own.port), expect=3)
        assert b"Traceback" not in done.stderr
        assert str(own.port) in done.stderr.decode()

    def test_data_that_cannot_be(self, make_gateway: Callable[..., Gateway]) -> None:
        gateway = make_gateway(identity=None)
        path = gateway.home / "file"
        path.write_text("not a directory")
        done = gateway.command("serve", expect=3, VESTNIK_DATA=str(path))
        self.one_sentence(done.stderr)

    def test_flag_outranks_the_environment_and_env_file(
        self, make_gateway: Callable[..., Gateway], identity: object
    ) -> None:
        """`.env` gives the port, the environment outranks it, a flag outranks both."""
        gateway = make_gateway(identity=None, drain_s=0)
        (gateway.home / ".env").write_text("VESTNIK_PORT=nonsense\n")
        gateway.port = free_port()
        gateway.start("--port", str(gateway.port))
        assert call(gateway.port, "GET", "/health/live").status == 200
        assert gateway.stop() == 0
        del gateway.environment["VESTNIK_PORT"]
        done = gateway.command("serve", expect=3)
        assert "VESTNIK_PORT" in done.stderr.decode()

    def test_unknown_command(self, own: Gateway) -> None:
        done = own.command("dance", expect=None)
        assert done.returncode != 0
        assert done.stdout == b""
        assert b"Traceback" not in done.stderr

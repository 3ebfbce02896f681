"""What gateways tell each other, and what they look up by themselves when nobody tells them."""

import asyncio
from collections.abc import AsyncIterator

import orjson
import pytest

from gateway.errors import EpochChanged, StoreUnavailable
from gateway.store.base import AgencyKey, Revocation
from tests.kit import Bench, Clock, offsets, token, use_clock

A, FNS = "account:a", "agency:new"


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return use_clock(monkeypatch)


@pytest.fixture
async def bench(clock: Clock) -> AsyncIterator[Bench]:
    made = Bench(clock, control_s=0.01)
    made.gate.agencies.clear()
    yield made
    await made.stop()


def key(name: str, at: float) -> AgencyKey:
    return AgencyKey(name, "hmac", b"secret", at)


async def test_a_new_agency_is_found(bench: Bench, clock: Clock) -> None:
    known = bench.gate.agencies
    phone = await bench.connect("a", feeds=[FNS])
    assert [message["t"] for message in phone.read()] == ["welcome", "live", "error"]
    await bench.store.add_agency_key("new", key("k1", clock.time()), None, clock.time())
    await bench.control.look()
    assert set(known) == {"new"}, "in the same map that everybody holds"
    phone.say("subscribe", feed=FNS)
    await bench.settle()
    assert phone.kinds() == ["subscribed", "live"]


async def test_nothing_is_read_while_the_revision_stands(bench: Bench) -> None:
    await bench.control.look()
    bench.gate.agencies["here"] = None  # type: ignore[assignment]
    await bench.control.look()
    assert set(bench.gate.agencies) == {"here"}


@pytest.mark.parametrize(
    ("kind", "value", "closed"),
    [
        ("sub", "a", {("a", "d1"), ("a", "d2")}),
        ("sid", "s1", {("a", "d1"), ("b", "d1")}),
        ("device", "a/d1", {("a", "d1")}),
        ("device", "d1", {("a", "d1"), ("b", "d1")}),
        ("sub", "nobody", set()),
    ],
)
async def test_a_revocation_ends_the_sessions_that_it_refuses(
    bench: Bench, clock: Clock, kind: str, value: str, closed: set[tuple[str, str]]
) -> None:
    phones = {}
    for account, device, sid in (("a", "d1", "s1"), ("a", "d2", "s2"), ("b", "d1", "s1"), ("c", "d3", "s3")):
        phones[account, device] = await bench.connect(account, device, token=token(account, clock, sid=sid))
    clock.now += 1
    await bench.store.revoke(Revocation(kind, value, clock.time()))  # type: ignore[arg-type]
    await bench.control.look()
    assert {who for who, phone in phones.items() if phone.closed} == closed
    assert all(phone.closed in (None, (4410, "revoked")) for phone in phones.values())
    clock.now += 1
    again = await bench.connect("a", token=token("a", clock, sid="s1"))
    assert again.session.open, "tokens issued afterwards are good"


async def test_nothing_is_sent_after_a_revocation(bench: Bench, clock: Clock) -> None:
    phone = await bench.connect("a")
    clock.now += 1
    await bench.store.revoke(Revocation("sub", "a", clock.time()))
    await bench.control.look()
    phone.read()
    await bench.publish(A)
    assert offsets(phone.read()) == []


async def test_a_revocation_is_seen_without_being_told(bench: Bench, clock: Clock) -> None:
    phone = await bench.connect("a")
    task = asyncio.create_task(bench.control.run())
    clock.now += 1
    await bench.store.revoke(Revocation("sub", "a", clock.time()))
    async with asyncio.timeout(5):
        while not phone.closed:
            await asyncio.sleep(0.005)
    assert phone.closed == (4410, "revoked")
    task.cancel()


async def test_the_look_goes_on_after_the_store_was_away(
    bench: Bench, clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gateway.control.RETRY_S", 0)
    bench.store.away = True
    with pytest.raises(StoreUnavailable):
        await bench.control.look()
    task = asyncio.create_task(bench.control.run())
    await asyncio.sleep(0.03)
    assert not task.done()
    bench.store.away = False
    await bench.store.add_agency_key("new", key("k1", clock.time()), None, clock.time())
    async with asyncio.timeout(5):
        while "new" not in bench.gate.agencies:
            await asyncio.sleep(0.005)
    task.cancel()


async def test_told_to_look(bench: Bench) -> None:
    await bench.control.tell(k="look")
    assert bench.control._wanted.is_set()


async def test_a_device_that_was_signed_out(bench: Bench) -> None:
    one, two = await bench.connect("a", "d1"), await bench.connect("a", "d2")
    await bench.control.sign_out("a", "d1")
    assert (one.closed, two.closed) == ((4410, "the device was signed out"), None)


async def test_a_device_that_was_signed_out_while_it_joined(bench: Bench) -> None:
    bench.store.slow = True
    phone, other = bench.hello("a", "d1"), bench.hello("b", "d1")
    await bench.settle()
    bench.control.end("a", "d1")
    bench.store.answer()
    await bench.settle()
    assert phone.closed == (4410, "the device was signed out")
    assert not phone.inbox
    assert other.session.open


async def test_without_a_bus_this_gateway_is_told_at_least(bench: Bench) -> None:
    bench.air.down = True
    await bench.control.tell(k="look")
    assert bench.control._wanted.is_set()


async def test_messages_and_gaps_go_to_the_hub(bench: Bench) -> None:
    phone = await bench.connect("a")
    phone.read()
    (stored,) = await bench.commit(A)
    from gateway.publisher import as_message

    bench.control.received(as_message(stored))
    assert offsets(phone.read()) == [1]
    bench.control.gap()
    assert bench.hub._sweep_wanted.is_set()
    assert bench.control._wanted.is_set(), "what was told meanwhile is looked up"


@pytest.mark.parametrize(
    "payload",
    [
        b"",
        b"not json",
        b"[]",
        b"7",
        b'"text"',
        b"null",
        b"{}",
        b'{"k":"unknown"}',
        b'{"k":"newer"}',
        b'{"k":"newer","sessions":[["a"]]}',
        b'{"k":"newer","sessions":[["a","d1",[],{},"late"]]}',
        b'{"k":"seen","account":"a"}',
        b'{"k":"seen","origin":1,"account":"a","feed":"account:a","offsets":"x"}',
        b'{"k":"seen","origin":"x","account":["a"],"feed":7,"offsets":[1]}',
        b'{"k":"newer","sessions":{"a":1}}',
    ],
)
async def test_a_message_that_nobody_understands_is_harmless(bench: Bench, payload: bytes) -> None:
    phone = await bench.connect("a")
    bench.control.control(payload)
    assert phone.session.open


async def test_seen_of_another_gateway(bench: Bench) -> None:
    phone = await bench.connect("a")
    phone.read()
    said = {"k": "seen", "origin": "elsewhere-7", "account": "a", "feed": A, "offsets": [3]}
    bench.control.control(orjson.dumps(said))
    assert phone.read() == [{"t": "seen", "feed": A, "offsets": [3]}]


async def test_a_slow_look_does_not_undo_a_later_one(bench: Bench, clock: Clock) -> None:
    await bench.store.add_agency_key("new", key("k1", clock.time()), None, clock.time())
    reads, go = bench.store.revocations, asyncio.Event()

    async def slow() -> list[Revocation]:
        found = await reads()
        await go.wait()
        return found

    bench.store.revocations = slow  # type: ignore[method-assign]
    first = asyncio.create_task(bench.control.look())
    await asyncio.sleep(0)
    bench.store.revocations = reads  # type: ignore[method-assign]
    clock.now += 1
    await bench.store.revoke(Revocation("sub", "a", clock.time()))
    await bench.control.look()
    go.set()
    await first
    clock.now -= 1
    refused = await bench.connect("a")
    assert refused.closed == (4410, "revoked")


async def test_another_epoch_closes_every_session_and_ends_the_process(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    phones = [await bench.connect("a"), await bench.connect("b")]
    ended = asyncio.Event()
    bench.control.ended = ended.set

    async def changed() -> int:
        raise EpochChanged("another one")

    monkeypatch.setattr(bench.store, "revision", changed)
    bench.tasks.append(asyncio.create_task(bench.control.run()))
    async with asyncio.timeout(5):
        await ended.wait()
    assert [phone.closed and phone.closed[0] for phone in phones] == [4503, 4503]

"""Section 2 of the contract, sentence by sentence: what an agency sees."""

import base64
import gzip
import json
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from typing import Any
from urllib.parse import quote

import pytest

from .agent import BATCH, PROBLEM, SINGLE, Agency, Answer, Signer, check_problem, encode, request, rfc3339
from .conftest import Gateway
from .device import Device, moment, parse_time

KIB64 = 65536
MIB = 1_048_576
SAFE = 2**53 - 1


def nested(depth: int) -> Any:
    """Lists inside each other, `depth` of them."""
    value: Any = []
    for _ in range(depth - 1):
        value = [value]
    return value


def pad(event: dict[str, Any], size: int) -> bytes:
    """The event with its `data.text` filled so that it is exactly so many bytes of compact JSON."""
    event["data"]["text"] = ""
    event["data"]["text"] = "x" * (size - len(encode(event)))
    body = encode(event)
    assert len(body) == size
    return body


def without(event: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in event.items() if key != name}


def named(answer: Answer, member: str, base: str = "") -> None:
    """A fault of this member is told: by its own pointer, or, where it is missing, by its parent's with its name in
    words."""
    path, _, leaf = f"{base}/{member}".rpartition("/")
    errors = answer.json["errors"]
    assert any(
        error["pointer"] == f"{base}/{member}" or (error["pointer"] == path and leaf in error["detail"])
        for error in errors
    ), errors


class TestAccepted:
    """`202` with `{"results":[{"status":202,"id","feed","epoch","offset","duplicate"}]}`."""

    def test_single(self, gateway: Gateway, tax: Agency, account: str) -> None:
        event = tax.status(account)
        answer = tax.post(event)
        assert answer.status == 202
        assert answer.media_type == "application/json"
        assert set(answer.json) >= {"results"}
        assert answer.result == {
            "status": 202, "id": event["id"], "feed": f"account:{account}", "epoch": answer.result["epoch"],
            "offset": 1, "duplicate": False,
        }  # fmt: skip
        assert isinstance(answer.result["epoch"], str)

    def test_offsets_rise_by_one(self, tax: Agency, account: str) -> None:
        assert [tax.post(tax.status(account)).result["offset"] for _ in range(3)] == [1, 2, 3]

    def test_batch_in_order(self, tax: Agency, account: str) -> None:
        events = [tax.status(account) for _ in range(20)]
        answer = tax.batch(events)
        assert answer.status == 202
        assert [item["id"] for item in answer.results] == [event["id"] for event in events]
        assert [item["offset"] for item in answer.results] == list(range(1, 21))

    def test_batch_over_many_feeds(self, city: Agency, account: str) -> None:
        events = [city.notice(f"{account}-{number % 3}") for number in range(9)] + [city.public()]
        answer = city.batch(events)
        assert answer.status == 202
        assert [item["offset"] for item in answer.results[:9]] == [1, 1, 1, 2, 2, 2, 3, 3, 3]
        assert answer.results[9]["feed"] == "agency:city"

    def test_nothing_is_invented(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """The stored event is the sender's, attribute for attribute, and `recordedtime`."""
        event = tax.status(
            account, "rejected", subject="application/2026-000123", sequence="7", expirytime=rfc3339(time.time() - 60),
            dataschema="https://schemas.example.ru/status/1",
            data={"previous": "checking", "reason": {"code": "E12", "text": "Скан нечитаем"}, "title": "Паспорт 😀"},
        )  # fmt: skip
        before = time.time()
        assert tax.post(event).status == 202
        answer = gateway.get(f"/v1/feeds/account:{account}/events?after=0", account)
        [[offset, stored]] = answer.json["events"]
        assert offset == 1
        recorded = parse_time(stored.pop("recordedtime")).timestamp()
        assert stored == event
        assert before - 1 <= recorded <= time.time() + 1

    @pytest.mark.parametrize("account_id", ["a", "A-z.0_9", "x" * 64, "..", "-"])
    def test_account_ids(self, tax: Agency, account_id: str) -> None:
        assert tax.post(tax.notice(account_id)).result["feed"] == f"account:{account_id}"

    def test_every_type_of_the_table(self, tax: Agency, account: str) -> None:
        events = [
            tax.status(account, "approved", data={"deadline": "2026-12-31"}),
            tax.record(
                account, "77-0042", {"owner": "И. И.", "power": 110.5, "stolen": False, "note": None}, "created"
            ),
            tax.record(account, "77-0042", {}, "removed"),
            tax.event("gov.notice.sent", {"title": "Т", "text": "т", "url": "https://example.ru/x"}, account=account),
            tax.event(
                "gov.notice.published", {"title": "Т", "text": "т", "url": "https://example.ru/x", "until": rfc3339()}
            ),
        ]
        assert [tax.post(event).status for event in events] == [202] * 5

    @pytest.mark.parametrize(
        "word",
        [
            "processing",
            "checking",
            "awaiting_confirmation",
            "action_required",
            "approved",
            "rejected",
            "done",
            "cancelled",
        ],
    )
    def test_every_status(self, tax: Agency, account: str, word: str) -> None:
        assert tax.post(tax.status(account, word)).status == 202

    @pytest.mark.parametrize(
        "media_type",
        [
            "application/cloudevents+json; charset=utf-8",
            "application/cloudevents+json;charset=UTF-8",
            'application/cloudevents+json; charset="utf-8"',
            "Application/CloudEvents+JSON",
        ],
    )
    def test_media_type_parameters(self, tax: Agency, account: str, media_type: str) -> None:
        assert tax.post(tax.status(account), media_type=media_type).status == 202

    def test_body_in_chunks(self, tax: Agency, account: str) -> None:
        """RFC 9112, 7.1: a body may come without its length."""
        assert tax.post(tax.status(account), chunk=100).status == 202

    def test_white_space_and_order_do_not_matter(self, tax: Agency, account: str) -> None:
        event = dict(reversed(tax.status(account).items()))
        assert tax.raw(json.dumps(event, indent=4).encode()).status == 202

    def test_datacontenttype(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """CloudEvents 1.0, 2.3.1: SDKs write it. The contract does not name it; it is kept like the rest."""
        event = tax.status(account, datacontenttype="application/json")
        assert tax.post(event).status == 202

    def test_expired_is_stored_all_the_same(self, gateway: Gateway, tax: Agency, account: str) -> None:
        assert tax.post(tax.notice(account, expirytime="2001-01-01T00:00:00Z")).status == 202
        assert gateway.offsets(account) == [1]

    @pytest.mark.parametrize("text", ["\u0000", "\u2028", "\ufeff", "\uffff", "\U0010ffff", "</script>", "\x7f\x1b[0m"])
    def test_any_unicode_text(self, gateway: Gateway, tax: Agency, account: str, text: str) -> None:
        """All that UTF-8 can write is text; U+0000 may be refused (a store may be unable), but not break anything."""
        answer = tax.post(tax.notice(account, text=f"a{text}b"))
        assert answer.status == 202 or (text == "\0" and answer.status == 422), answer.body
        if answer.status == 202:
            [[_, stored]] = gateway.get(f"/v1/feeds/account:{account}/events?after=0", account).json["events"]
            assert stored["data"]["text"] == f"a{text}b"

    @pytest.mark.parametrize(
        "when", ["2026-11-22T12:00:00Z", "2026-11-22T15:00:00.123456789+03:00", "1937-01-01T12:00:27.87+00:20"]
    )
    def test_times(self, tax: Agency, account: str, when: str) -> None:
        """RFC 3339, 5.8."""
        assert tax.post(tax.status(account, time=when)).status == 202

    @pytest.mark.parametrize(
        "when", ["2016-12-31T23:59:60Z", "0000-01-01T00:00:00Z", "9999-12-31T23:59:59-23:59", "2026-02-28t01:02:03z"]
    )
    def test_times_at_the_edge(self, tax: Agency, account: str, when: str) -> None:
        """Grammatical, and unusual: taken or refused, but answered."""
        assert tax.post(tax.status(account, time=when)).status in {202, 422}

    def test_integers_within_range(self, gateway: Gateway, tax: Agency, account: str) -> None:
        fields = {"high": SAFE, "low": -SAFE, "float": 1.5e300, "tiny": 5e-324, "zero": -0.0}
        assert tax.post(tax.record(account, "n", fields)).status == 202
        [[_, stored]] = gateway.get(f"/v1/feeds/account:{account}/events?after=0", account).json["events"]
        assert stored["data"]["fields"] == fields


class TestMediaType:
    @pytest.mark.parametrize(
        "media_type",
        [
            None, "", "application/json", "text/plain", "application/cloudevents+xml", "application/cloudevents",
            "application/cloudevents+json; charset=utf-16", "application/octet-stream", "nonsense",
        ],
    )  # fmt: skip
    def test_other(self, tax: Agency, account: str, media_type: str | None) -> None:
        tax.post(tax.status(account), media_type=media_type).problem(415, "media-type")

    def test_binary_mode(self, tax: Agency, account: str) -> None:
        """ "Binary mode is 415 with a sentence why: its attributes travel in headers, which the signature does not
        cover"."""
        event = tax.status(account)
        attributes = [(f"ce-{name}", str(value)) for name, value in event.items() if name != "data"]
        problem = tax.post(event["data"], media_type="application/json", extra=attributes).problem(415, "media-type")
        assert "header" in problem["detail"].lower() or "заголов" in problem["detail"].lower()

    def test_single_as_batch(self, tax: Agency, account: str) -> None:
        """A map where a list must be, and the other way round: JSON all the same, so 422; 400 is as good a word."""
        assert tax.post(tax.status(account), media_type=BATCH).status in {400, 422}
        assert tax.raw(encode([tax.status(account)]), media_type=SINGLE).status in {400, 422}

    def test_compressed(self, tax: Agency, account: str) -> None:
        """Nothing is inflated: the signature covers the bytes as they are. RFC 9110, 15.5.16, has 415 for it; "not
        JSON" is true as well."""
        body = gzip.compress(encode(tax.status(account)))
        assert tax.raw(body, replace={"content-encoding": "gzip"}).status in {400, 415}


class TestSignature:
    """Standard Webhooks; everything wrong about it is 401 `unsigned`."""

    def test_own_vectors(self) -> None:
        """The helper itself: the vector of the Standard Webhooks specification's reference libraries, and RFC 8032's
        first."""
        signer = Signer("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
        body = b'{"test": 2432232314}'
        signed = signer.sign("msg_p5jXN8AQM9LWM0D4loKWxJek", "1614265330", body)
        assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="
        seed = bytes.fromhex("9d61b19deffd5a60ba844af492ec2cc44449c5697b326919703bac031cae7f60")
        key = Signer("whsk_" + base64.b64encode(seed).decode())
        assert key.ed.sign(b"").hex().startswith("e5564300c360ac729086e2cc806e828a")

    def test_ed25519(self, gateway: Gateway, account: str) -> None:
        court = gateway.agencies["court"]
        assert court.headers(b"")["webhook-signature"].startswith("v1a,")
        assert court.post(court.notice(account)).status == 202

    def test_every_key_of_a_rotation(self, gateway: Gateway, account: str) -> None:
        vehicle = gateway.agencies["vehicle"]
        assert len(vehicle.signers) == 3
        for signer in vehicle.signers:
            assert vehicle.post(vehicle.notice(account), signer=signer).status == 202

    def several(self, agency: Agency, body: bytes, *signatures: str) -> Answer:
        return agency.raw(body, replace={"webhook-signature": " ".join(signatures)}, id_="msg_1", at=self.now)

    @pytest.fixture(autouse=True)
    def _now(self) -> None:
        self.now = str(int(time.time()))

    @pytest.mark.parametrize("place", range(5))
    def test_up_to_five_signatures(self, tax: Agency, account: str, place: int) -> None:
        """One right one among them is enough, wherever it stands; unknown versions are passed over."""
        body = encode(tax.status(account))
        other = Signer("whsec_" + base64.b64encode(b"k" * 24).decode())
        wrong = other.sign("msg_1", self.now, body)
        signatures = [wrong, "v1a," + base64.b64encode(bytes(64)).decode(), "v2,bm90aGluZw==", wrong]
        signatures.insert(place, tax.signers[0].sign("msg_1", self.now, body))
        assert self.several(tax, body, *signatures).status == 202

    def test_six_signatures(self, tax: Agency, account: str) -> None:
        body = encode(tax.status(account))
        right = tax.signers[0].sign("msg_1", self.now, body)
        self.several(tax, body, *[right] * 6).problem(401, "unsigned")

    def test_old_and_new_key_in_one_header(self, gateway: Gateway, account: str) -> None:
        vehicle = gateway.agencies["vehicle"]
        body = encode(vehicle.notice(account))
        assert (
            self.several(vehicle, body, *(key.sign("msg_1", self.now, body) for key in vehicle.signers)).status == 202
        )

    def test_wrong_key(self, tax: Agency, city: Agency, account: str) -> None:
        """`<code>` alone selects the keys."""
        tax.post(tax.status(account), signer=city.signers[0]).problem(401, "unsigned")

    def test_wrong_kind_of_key(self, gateway: Gateway, account: str) -> None:
        court = gateway.agencies["court"]
        body = encode(court.notice(account))
        signature = court.signers[0].sign("msg_1", self.now, body).replace("v1a,", "v1,")
        self.several(court, body, signature).problem(401, "unsigned")

    def test_public_key_is_no_hmac_secret(self, gateway: Gateway, account: str) -> None:
        court = gateway.agencies["court"]
        public = court.signers[0].ed.public_key().public_bytes_raw()
        forged = Signer("whsec_" + base64.b64encode(public).decode())
        court.post(court.notice(account), signer=forged).problem(401, "unsigned")

    def test_changed_body(self, tax: Agency, account: str) -> None:
        event = tax.status(account)
        headers = tax.headers(encode(event))
        event["data"]["status"] = "done"
        tax.post(event, replace=dict(headers)).problem(401, "unsigned")

    def test_white_space_is_signed_too(self, tax: Agency, account: str) -> None:
        body = encode(tax.status(account))
        tax.raw(body + b" ", replace=dict(tax.headers(body))).problem(401, "unsigned")

    def test_other_id_or_timestamp(self, tax: Agency, account: str) -> None:
        tax.post(tax.status(account), replace={"webhook-id": "msg_other"}).problem(401, "unsigned")
        tax.post(tax.status(account), replace={"webhook-timestamp": str(int(time.time()) - 5)}).problem(401, "unsigned")

    @pytest.mark.parametrize("name", ["webhook-id", "webhook-timestamp", "webhook-signature"])
    @pytest.mark.parametrize("value", [None, "", " "])
    def test_header_missing(self, tax: Agency, account: str, name: str, value: str | None) -> None:
        tax.post(tax.status(account), replace={name: value}).problem(401, "unsigned")

    @pytest.mark.parametrize(
        "stamp",
        ["now", "1e9", "0x10", "1_700_000_000", "-1", "+1", "1.5", "９", "9" * 400, "NaN", "2026-11-22T12:00:00Z", "0"],
    )
    def test_timestamp_malformed(self, tax: Agency, account: str, stamp: str) -> None:
        tax.post(tax.status(account), at=stamp).problem(401, "unsigned")

    @pytest.mark.parametrize(
        "signature",
        [
            "v1",
            "v1,",
            ",",
            "v1,*not base64*",
            "v1,AAAA",
            "v1a,AAAA",
            "v1,ж",
            "v2,AAAA",
            "garbage",
            "v1:abc",
            "v1,=",
            "v1a,====",
        ],
    )
    def test_signature_malformed(self, tax: Agency, account: str, signature: str) -> None:
        tax.post(tax.status(account), replace={"webhook-signature": signature}).problem(401, "unsigned")

    @pytest.mark.parametrize("skew", [-290, 290])
    def test_within_300_seconds(self, tax: Agency, account: str, skew: int) -> None:
        assert tax.post(tax.status(account), at=time.time() + skew).status == 202

    @pytest.mark.parametrize("skew", [-310, 310, -86400, 10**9])
    def test_more_than_300_seconds(self, tax: Agency, account: str, skew: int) -> None:
        """ "timestamp more than 300 s off (the problem carries `time`)"."""
        problem = tax.post(tax.status(account), at=time.time() + skew).problem(401, "unsigned")
        assert moment(problem["time"])
        assert abs(parse_time(problem["time"]).timestamp() - time.time()) < 5

    def test_unknown_agency(self, gateway: Gateway, tax: Agency, account: str) -> None:
        stranger = Agency(gateway.port, "nobody")
        stranger.signers = tax.signers
        stranger.post(stranger.status(account)).problem(401, "unsigned")

    @pytest.mark.parametrize("code", ["TAX", "tax%20", "t" * 33, "налог", "tax%00"])
    def test_no_code_at_all(self, gateway: Gateway, tax: Agency, account: str, code: str) -> None:
        """Not even a code: an unknown agency as well; 404 for the path is taken too."""
        event = tax.status(account)
        answer = tax.post(event, path=f"/v1/agencies/{quote(code, safe='%')}/events")
        assert answer.status in {401, 404}

    def test_before_the_body_is_parsed(self, tax: Agency) -> None:
        """ "… it is checked before the body is parsed"."""
        for body in (b"{", b"\xff", b"{" * 30_000, b""):
            tax.raw(body, replace={"webhook-signature": "v1,AAAA"}).problem(401, "unsigned")

    def test_get(self, gateway: Gateway) -> None:
        assert gateway.get("/v1/agencies/tax/events").status in {404, 405}


MALFORMED = {
    "empty": b"",
    "white space": b" \n",
    "no json": b"hello",
    "cut": b'{"specversion":"1.0"',
    "two values": b"{} {}",
    "trailing comma": b'{"a":1,}',
    "comment": b'{/**/"a":1}',
    "single quotes": b"{'a':1}",
    "not utf-8": b'{"a":"\xff"}',
    "surrogate as utf-8": b'{"a":"\xed\xa0\x80"}',
    "utf-16": '{"a":1}'.encode("utf-16"),
    "control character": b'{"a":"\x01"}',
    "bad escape": b'{"a":"\\x"}',
    "leading zero": b'{"a":01}',
    "bare decimal": b'{"a":.5}',
    "nan": b'{"a":NaN}',
    "infinity": b'{"a":Infinity}',
    "minus infinity": b'{"a":-Infinity}',
    "too large to be finite": b'{"a":1e400}',
    "too large to be finite, below": b'{"a":[-1.5E+999]}',
    "lone high surrogate": b'{"a":"\\ud800"}',
    "lone low surrogate": b'{"a":"x\\udc00y"}',
    "surrogates swapped": b'{"a":"\\udc00\\ud800"}',
    "lone surrogate in a name": b'{"\\ud83d":1}',
    "duplicate keys": b'{"a":1,"a":1}',
    "duplicate keys, escaped": b'{"a":1,"\\u0061":2}',
    "duplicate keys below": b'{"b":[{"a":1,"a":2}]}',
    "depth 33": encode({"a": nested(32)}),
    "depth 34": encode({"a": nested(33)}),
    "depth 30,000": b"[" * 30_000 + b"]" * 30_000,
    "depth 10,000 of maps": b'{"a":' * 10_000 + b"1" + b"}" * 10_000,
}


class TestMalformed:
    """400: "not JSON, duplicate keys in an object, nesting deeper than 32, NaN, infinities, lone surrogates"."""

    @pytest.mark.parametrize("name", MALFORMED)
    def test_single(self, tax: Agency, name: str) -> None:
        # The fault is told whatever else the event lacks: 400 comes before 422.
        tax.raw(MALFORMED[name]).problem(400, "malformed")

    @pytest.mark.parametrize("name", ["cut", "trailing comma", "not utf-8", "no json"])
    def test_batch_as_a_whole(self, gateway: Gateway, tax: Agency, account: str, name: str) -> None:
        """A body that is not JSON has no items: nothing of it is stored."""
        body = b"[" + encode(tax.status(account)) + b"," + MALFORMED[name] + b"]"
        tax.raw(body, media_type=BATCH).problem(400, "malformed")
        assert gateway.offsets(account) == []

    @pytest.mark.parametrize("name", ["duplicate keys below", "nan", "lone high surrogate", "depth 33"])
    def test_item_of_a_batch(self, gateway: Gateway, tax: Agency, account: str, name: str) -> None:
        """Whether these spoil the whole body or the item alone is not said: 400, or 207 with a 400 in it."""
        body = b"[" + encode(tax.status(account)) + b"," + MALFORMED[name] + b"]"
        answer = tax.raw(body, media_type=BATCH)
        if answer.status == 207:
            assert [item["status"] for item in answer.results] == [202, 400]
            check_problem(answer.results[1], 400, "malformed")
            assert gateway.offsets(account) == [1]
        else:
            answer.problem(400, "malformed")
            assert gateway.offsets(account) == []

    def test_depth_32(self, tax: Agency, account: str) -> None:
        """The event is 1, `data` 2, `fields` 3."""
        assert tax.post(tax.record(account, "deep", {"deep": nested(29)})).status == 202
        tax.post(tax.record(account, "deep", {"deep": nested(30)})).problem(400, "malformed")

    def test_brackets_in_text_are_no_depth(self, tax: Agency, account: str) -> None:
        assert tax.post(tax.notice(account, text='[[{"' * 100 + "\\" * 3)).status == 202

    def test_surrogate_pair(self, tax: Agency, account: str) -> None:
        body = encode(tax.notice(account, text="SMILE")).replace(b"SMILE", b"\\ud83d\\ude00")
        assert tax.raw(body).status == 202


WRONG_ATTRIBUTES: dict[str, list[Any]] = {
    "specversion": [..., "0.3", "1", 1.0, None],
    "id": [..., "", 5, None, ["x"]],
    "source": [..., "", 5, None],
    "type": [..., "", 5, None],
    "time": [..., "", "today", "2026-11-22", "2026-11-22T12:00:00", "2026-11-22 12:00:00+03", "2026-02-30T00:00:00Z",
             "2026-11-22T25:00:00Z", 1700000000, None],
    "account": [..., "", "a b", "x" * 65, "я", "a/b", "a\0", 5, ["a"]],
    "sequence": [5, "", "abc", "1.5", "1e3", str(2**53), str(-(2**53)), "9" * 5000],
    "expirytime": ["", "tomorrow", 5, "2026-13-01T00:00:00Z"],
}  # fmt: skip


class TestInvalid:
    """422: "an attribute or the data breaks its schema, an integer is out of range, `data_base64`", with pointers."""

    @pytest.mark.parametrize(
        ("name", "value"),
        [(name, value) for name, values in WRONG_ATTRIBUTES.items() for value in values],
        ids=lambda value: repr(value)[:24],
    )
    def test_attribute(self, gateway: Gateway, tax: Agency, account: str, name: str, value: Any) -> None:
        answer = tax.post({key: item for key, item in (tax.status(account) | {name: value}).items() if item is not ...})
        # A `source` that is there and is no string or empty is not the agency's: 403 is right as well; an empty type
        # may not be sent.
        if name in ("source", "type") and answer.status == 403:
            answer.problem(403, "forbidden")
        else:
            answer.problem(422, "invalid")
            named(answer, name)
        assert gateway.offsets(account) == []

    def test_empty_subject(self, tax: Agency, account: str) -> None:
        """CloudEvents 1.0: if present, MUST be a non-empty string."""
        for value in ("", 5):
            answer = tax.post(tax.status(account, subject=value))
            answer.problem(422, "invalid")
            named(answer, "subject")

    @pytest.mark.parametrize(
        ("data", "pointer"),
        [
            ({"application": ...}, "data/application"),
            ({"service": ...}, "data/service"),
            ({"status": ...}, "data/status"),
            ({"status": "lost"}, "data/status"),
            ({"status": "В обработке"}, "data/status"),
            ({"status": 5}, "data/status"),
            ({"previous": "lost"}, "data/previous"),
            ({"application": 5}, "data/application"),
            ({"title": ["x"]}, "data/title"),
            ({"reason": "why"}, "data/reason"),
            ({"reason": {"text": "why"}}, "data/reason/code"),
            ({"reason": {"code": 5, "text": "why"}}, "data/reason/code"),
            ({"deadline": 5}, "data/deadline"),
        ],
    )
    def test_status_data(self, tax: Agency, account: str, data: dict[str, Any], pointer: str) -> None:
        event = tax.status(account)
        event["data"] = {name: value for name, value in (event["data"] | data).items() if value is not ...}
        answer = tax.post(event)
        answer.problem(422, "invalid")
        named(answer, pointer)

    @pytest.mark.parametrize("name", ["registry", "key", "change", "fields", "as_of"])
    def test_record_data(self, tax: Agency, account: str, name: str) -> None:
        event = tax.record(account, "k", {})
        del event["data"][name]
        answer = tax.post(event)
        answer.problem(422, "invalid")
        named(answer, f"data/{name}")

    def test_record_change(self, tax: Agency, account: str) -> None:
        named(tax.post(tax.record(account, "k", {}, "destroyed")), "data/change")

    @pytest.mark.parametrize("data", [..., None, [], "text", 5])
    def test_no_data(self, tax: Agency, account: str, data: Any) -> None:
        event = tax.event("gov.notice.sent", data, account=account)
        answer = tax.post({name: value for name, value in event.items() if value is not ...})
        answer.problem(422, "invalid")

    def test_data_base64(self, tax: Agency, account: str) -> None:
        event = tax.notice(account)
        answer = tax.post(event | {"data_base64": "eyJ9"})
        answer.problem(422, "invalid")
        named(answer, "data_base64")
        del event["data"]
        named(tax.post(event | {"data_base64": "eyJ9"}), "data_base64")

    @pytest.mark.parametrize("number", [2**53, -(2**53), 2**64, 10**30])
    def test_integer_out_of_range(self, tax: Agency, account: str, number: int) -> None:
        answer = tax.post(tax.record(account, "k", {"list": [1, {"n": number}]}))
        answer.problem(422, "invalid")
        assert "/data/fields/list/1/n" in answer.pointers

    def test_integer_of_10000_digits(self, tax: Agency, account: str) -> None:
        body = encode(tax.record(account, "k", {"n": "N"})).replace(b'"N"', b"9" * 10_000)
        assert tax.raw(body).problem(422, "invalid")

    def test_integer_out_of_range_in_an_extension(self, tax: Agency, account: str) -> None:
        assert tax.post(tax.notice(account, counter=2**53)).status == 422

    def test_pointers_are_escaped(self, tax: Agency, account: str) -> None:
        """RFC 6901, 3."""
        answer = tax.post(tax.record(account, "k", {"a/b~c": 2**53}))
        assert "/data/fields/a~1b~0c" in answer.pointers

    def test_all_faults_at_once(self, tax: Agency, account: str) -> None:
        event = tax.status("not an account", "lost", time="yesterday", sequence="many")
        del event["id"], event["data"]["application"]
        answer = tax.post(event)
        answer.problem(422, "invalid")
        for name in ("id", "time", "account", "sequence", "data/application", "data/status"):
            path, _, leaf = f"/{name}".rpartition("/")
            assert any(
                e["pointer"] == f"/{name}" or (e["pointer"] == path and leaf in e["detail"])
                for e in answer.json["errors"]
            ), name

    def test_audience(self, city: Agency, account: str) -> None:
        """ "a personal one without `account`, or a public one with it, is 422"."""
        answer = city.post(without(city.notice(account), "account"))
        answer.problem(422, "invalid")
        named(answer, "account")
        answer = city.post(city.public(account=account))
        answer.problem(422, "invalid")
        named(answer, "account")

    def test_unknown_type(self, tax: Agency, account: str) -> None:
        """No schema, so the attribute is wrong (422); "it may not send this `type`" (403) is true as well."""
        answer = tax.post(tax.event("gov.unheard.of", {}, account=account))
        assert answer.status in {403, 422}
        answer.problem(answer.status, "invalid", "forbidden")

    @pytest.mark.parametrize("body", [b"5", b'"x"', b"null", b"true", b"[]"])
    def test_json_but_no_event(self, tax: Agency, body: bytes) -> None:
        assert tax.raw(body).status in {400, 422}


class TestForbidden:
    """403: "`source` is not the agency's, or it may not send this `type`"."""

    @pytest.mark.parametrize(
        "source",
        ["/agencies/city", "/agencies/TAX", "/agencies/tax/", "tax", "https://x.ru/agencies/tax", "/agencies/tax?a"],
    )
    def test_source(self, gateway: Gateway, tax: Agency, account: str, source: str) -> None:
        tax.post(tax.status(account, source=source)).problem(403, "forbidden")
        assert gateway.offsets(account) == []

    def test_type_of_the_gateway(self, tax: Agency, account: str) -> None:
        """`gov.erased` is made by the gateway."""
        tax.post(tax.event("gov.erased", {"ranges": [[1, 1]]}, account=account)).problem(403, "forbidden")


class TestDuplicates:
    """ "The same (`source`, `id`) with the same content (equal as JSON values) is 202, `"duplicate": true`, with the
    first offset"."""

    def test_same_bytes(self, gateway: Gateway, tax: Agency, account: str) -> None:
        event = tax.status(account)
        first = tax.post(event).result
        tax.post(tax.status(account))
        again = tax.post(event).result
        assert again == first | {"duplicate": True}
        assert gateway.offsets(account) == [1, 2]

    def test_equal_as_json_values(self, gateway: Gateway, tax: Agency, account: str) -> None:
        event = tax.record(account, "k", {"a": "é", "b": [1, 2.5], "c": {"x": 1, "y": 2}})
        assert tax.post(event).result["duplicate"] is False
        shuffled = {name: event[name] for name in reversed(event)}
        shuffled["data"] = {name: event["data"][name] for name in reversed(event["data"])}
        shuffled["data"]["fields"] = {"c": {"y": 2, "x": 1}, "b": [1, 2.5], "a": "é"}
        assert tax.raw(json.dumps(shuffled, indent=2, ensure_ascii=True).encode()).result["duplicate"] is True
        assert gateway.offsets(account) == [1]

    @pytest.mark.parametrize(
        ("one", "two"),
        [(1, 2), (1, "1"), (True, 1), (0, False), (None, 0), ([1, 2], [2, 1]), ({}, []), ("é", "e\u0301")],
    )
    def test_not_equal_as_json_values(self, gateway: Gateway, tax: Agency, account: str, one: Any, two: Any) -> None:
        event = tax.record(account, "k", {"a": one})
        tax.post(event)
        event["data"]["fields"]["a"] = two
        tax.post(event).problem(409, "conflict")
        assert gateway.offsets(account) == [1]

    def test_conflict_in_an_attribute(self, tax: Agency, account: str) -> None:
        event = tax.status(account)
        tax.post(event)
        tax.post(event | {"time": rfc3339(time.time() - 100)}).problem(409, "conflict")
        tax.post(event | {"subject": "application/1"}).problem(409, "conflict")
        tax.post(event | {"account": f"{account}-2"}).problem(409, "conflict")

    def test_same_id_of_another_source(self, tax: Agency, city: Agency, account: str) -> None:
        event = tax.notice(account)
        assert tax.post(event).result["duplicate"] is False
        answer = city.post(event | {"source": city.source}).result
        assert answer["duplicate"] is False
        assert answer["offset"] == 2

    def test_public(self, city: Agency) -> None:
        event = city.public()
        first = city.post(event).result
        assert city.post(event).result == first | {"duplicate": True}

    def test_inside_a_batch(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """ "The valid items of a batch commit together and in order, repeats inside it included"."""
        one, two = tax.status(account), tax.status(account)
        results = tax.batch([one, two, one, two, one]).results
        assert [(item["offset"], item["duplicate"]) for item in results] == [
            (1, False),
            (2, False),
            (1, True),
            (2, True),
            (1, True),
        ]
        assert gateway.offsets(account) == [1, 2]

    def test_conflict_inside_a_batch(self, gateway: Gateway, tax: Agency, account: str) -> None:
        event = tax.notice(account, text="a")
        other = json.loads(encode(event))
        other["data"]["text"] = "b"
        answer = tax.batch([event, other, tax.status(account)])
        assert answer.status == 207
        assert [item["status"] for item in answer.results] == [202, 409, 202]
        check_problem(answer.results[1], 409, "conflict")
        assert gateway.offsets(account) == [1, 2]

    @pytest.mark.parametrize("single", [True, False])
    def test_many_at_once_are_one(self, gateway: Gateway, tax: Agency, account: str, single: bool) -> None:
        """Invariant 13: N identical posts at once are one event and N equal answers."""
        event = tax.status(account)
        with ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: tax.post(event) if single else tax.batch([event]), range(24)))
        results = [answer.result for answer in answers]
        assert {(item["offset"], item["epoch"], item["feed"], item["id"]) for item in results} == {
            (1, results[0]["epoch"], f"account:{account}", event["id"])
        }
        assert sorted(item["duplicate"] for item in results) == [False] + [True] * 23
        assert gateway.offsets(account) == [1]


class TestStale:
    """ "a `sequence` lower than the highest stored for this account, source and subject is stale; equal is
    accepted"."""

    def say(self, agency: Agency, account: str, sequence: int | None, subject: str = "record/1") -> Answer:
        return agency.post(agency.status(account, subject=subject, sequence=... if sequence is None else str(sequence)))

    def test_lower(self, gateway: Gateway, tax: Agency, account: str) -> None:
        assert self.say(tax, account, 9).status == 202
        assert self.say(tax, account, 10).status == 202  # numbers, not letters
        self.say(tax, account, 9).problem(409, "stale")
        self.say(tax, account, -1).problem(409, "stale")
        assert gateway.offsets(account) == [1, 2]

    def test_equal(self, tax: Agency, account: str) -> None:
        assert [self.say(tax, account, 5).status for _ in range(2)] == [202, 202]

    def test_duplicate_comes_first(self, tax: Agency, account: str) -> None:
        """ "Duplicates are recognised before staleness"; and conflicts, which are the same id, too."""
        old = tax.status(account, subject="s", sequence="1")
        first = tax.post(old).result
        assert self.say(tax, account, 2, "s").status == 202
        assert tax.post(old).result == first | {"duplicate": True}
        tax.post(old | {"time": rfc3339(0)}).problem(409, "conflict")

    def test_other_things_are_apart(self, tax: Agency, city: Agency, account: str) -> None:
        assert self.say(tax, account, 5).status == 202
        assert self.say(tax, account, 4, "record/2").status == 202
        assert self.say(tax, f"{account}-2", 4).status == 202
        assert self.say(city, account, 4).status == 202
        assert self.say(tax, account, None).status == 202
        assert self.say(tax, account, 4).status == 409

    def test_inside_a_batch(self, gateway: Gateway, tax: Agency, account: str) -> None:
        events = [tax.status(account, subject="s", sequence=str(number)) for number in (2, 1, 3, 2, 3)]
        answer = tax.batch(events)
        assert answer.status == 207
        assert [item["status"] for item in answer.results] == [202, 409, 202, 409, 202]
        check_problem(answer.results[1], 409, "stale")
        assert gateway.offsets(account) == [1, 2, 3]

    def test_refused_moves_nothing(self, tax: Agency, account: str) -> None:
        """A sequence that was never stored is not the highest stored."""
        assert tax.post(tax.status(account, "lost", subject="s", sequence="100")).status == 422
        assert self.say(tax, account, 1, "s").status == 202

    def test_large_sequences(self, tax: Agency, account: str) -> None:
        assert self.say(tax, account, SAFE).status == 202
        self.say(tax, account, SAFE - 1).problem(409, "stale")


class TestPartial:
    """ "When some items failed, `207` with `results` in order, each a result or a problem, each with its `status`"."""

    def test_in_order(self, gateway: Gateway, tax: Agency, account: str) -> None:
        good = [tax.status(account) for _ in range(3)]
        conflicting = good[0] | {"time": rfc3339(0)}
        items = [
            good[0], tax.status(account, "lost"), good[1], tax.status(account, source="/agencies/city"), conflicting, 5,
            without(tax.status(account), "account"), good[2],
        ]  # fmt: skip
        answer = tax.batch(items)
        assert answer.status == 207
        assert answer.media_type == "application/json"
        statuses = [item["status"] for item in answer.results]
        assert statuses[:5] == [202, 422, 202, 403, 409]
        assert statuses[5] in {400, 422}  # JSON, and no event
        assert statuses[6:] == [422, 202]
        for item in answer.results:
            if item["status"] != 202:
                check_problem(
                    item,
                    item["status"],
                    {422: "invalid", 403: "forbidden", 409: "conflict", 400: "malformed"}[item["status"]],
                )
        # Whether a pointer of an item begins at the item or at the batch is not said: both are taken.
        pointers = [error["pointer"] for error in answer.results[1]["errors"]]
        assert pointers in (["/data/status"], ["/1/data/status"])
        assert [item["offset"] for item in answer.results if item["status"] == 202] == [1, 2, 3]
        assert gateway.offsets(account) == [1, 2, 3]

    def test_all_failed(self, gateway: Gateway, tax: Agency, account: str) -> None:
        answer = tax.batch([tax.status(account, "lost"), tax.status(account, "gone")])
        assert answer.status == 207
        assert [item["status"] for item in answer.results] == [422, 422]
        assert gateway.offsets(account) == []

    def test_one_too_large(self, tax: Agency, account: str) -> None:
        large = tax.notice(account)
        pad(large, KIB64 + 1)
        answer = tax.batch([tax.notice(account), large, tax.notice(account)])
        assert answer.status == 207
        assert [item["status"] for item in answer.results] == [202, 413, 202]
        check_problem(answer.results[1], 413, "too-large")

    def test_empty_batch(self, tax: Agency) -> None:
        """CloudEvents allows it; the contract is silent: no results, or a problem."""
        answer = tax.batch([])
        assert answer.status in {202, 400, 422}
        if answer.status == 202:
            assert answer.results == []


class TestLimits:
    """ "An event is at most 64 KiB"; "up to 1,000 events or 1 MiB"."""

    def test_event_of_64_kib(self, gateway: Gateway, tax: Agency, account: str) -> None:
        """As compact JSON; what the gateway adds at commit is not the sender's."""
        assert tax.raw(pad(tax.notice(account), KIB64)).status == 202
        tax.raw(pad(tax.notice(account), KIB64 + 1)).problem(413, "too-large")
        assert gateway.offsets(account) == [1]

    def test_1000_events(self, gateway: Gateway, tax: Agency, account: str) -> None:
        events = [tax.notice(account, text="x") for _ in range(1001)]
        tax.batch(events).problem(413, "too-large")
        assert gateway.offsets(account) == []
        answer = tax.batch(events[:1000])
        assert answer.status == 202
        assert [item["offset"] for item in answer.results] == list(range(1, 1001))

    @pytest.mark.parametrize("chunk", [0, 65536])
    def test_body_of_1_mib(self, tax: Agency, account: str, chunk: int) -> None:
        events = [tax.notice(account) for _ in range(17)]
        for event in events:
            pad(event, 61_000)
        body = encode(events)
        body += b" " * (MIB - len(body))
        answer = tax.raw(body, media_type=BATCH, chunk=chunk)
        assert answer.status == 202
        tax.raw(body + b" ", media_type=BATCH, chunk=chunk).problem(413, "too-large")

    def test_much_too_large(self, gateway: Gateway, tax: Agency) -> None:
        """Refused without being taken in whole; unsigned bodies as well (then 401 is right too)."""
        answer = request(
            gateway.port, "POST", "/v1/agencies/tax/events", body=b" " * (8 * MIB), headers=[("content-type", SINGLE)]
        )
        assert answer.status in {401, 413}
        assert answer.media_type == PROBLEM
        tax.raw(b" " * (8 * MIB)).problem(413, "too-large")

    def test_quota(self, quick: Gateway, account: str) -> None:
        """429 "for the whole request, with `Retry-After`"; here 1,000 events at once by the settings."""
        city = quick.agencies["city"]
        assert city.batch([city.notice(account, text="x") for _ in range(990)]).status == 202
        answer = city.batch([city.notice(account, text="x") for _ in range(500)])
        answer.problem(429, "quota")
        assert int(answer.headers["retry-after"]) > 0
        head = quick.get(f"/v1/feeds/account:{account}/events?limit=1", account).json["head"]
        assert head == 990, "nothing of it was stored"
        # Another agency is not touched.
        assert quick.agencies["tax"].post(quick.agencies["tax"].notice(account)).status == 202


class TestReceipts:
    """ "for each personal event `pending`, `delivered` or `seen`, with the first time of each, for the account as a
    whole; nothing about devices, nothing for public notices". The shape of the answer is not given: any map or list
    that names the ids is taken.
    """

    @staticmethod
    def entries(answer: Answer, ids: list[str]) -> dict[str, dict[str, Any]]:
        """What is said about each id, wherever it stands."""
        found: dict[str, dict[str, Any]] = {}

        def walk(value: Any) -> None:
            if isinstance(value, dict):
                if value.get("id") in ids:
                    found[value["id"]] = value
                for name, item in value.items():
                    if name in ids and isinstance(item, dict):
                        found[name] = item
                    walk(item)
            elif isinstance(value, list):
                for item in value:
                    walk(item)

        walk(answer.json)
        return found

    @staticmethod
    def times(entry: dict[str, Any]) -> list[str]:
        return [
            value
            for name, value in entry.items()
            if name not in ("id", "account") and isinstance(value, str) and "T" in value
        ]

    async def test_life_of_an_event(self, gateway: Gateway, tax: Agency, account: str) -> None:
        events = [tax.notice(account) for _ in range(3)]
        ids = [event["id"] for event in events]
        tax.send(*events)
        answer = tax.receipts(ids)
        assert answer.status == 200
        assert {entry["status"] for entry in self.entries(answer, ids).values()} == {"pending"}
        assert len(self.entries(answer, ids)) == 3

        async with gateway.device(account) as device:
            await device.start()
            await device.reach(3)
            await device.ack(at=2)
            await device.send("seen", feed=device.feed, offsets=[1])
            await device.settle()
            deadline = time.monotonic() + 5
            wanted = ["seen", "delivered", "pending"]
            while time.monotonic() < deadline:  # acks are saved every second
                answer = tax.receipts(ids)
                entries = self.entries(answer, ids)
                if [entries[id_]["status"] for id_ in ids] == wanted:
                    break
                time.sleep(0.1)
            assert [entries[id_]["status"] for id_ in ids] == wanted
            assert device.device.encode() not in answer.body, "nothing about devices"
        assert len(self.times(entries[ids[0]])) == 2, entries[ids[0]]  # delivered and seen
        assert len(self.times(entries[ids[1]])) == 1, entries[ids[1]]
        assert self.times(entries[ids[2]]) == []
        for entry in entries.values():
            assert all(moment(value) for value in self.times(entry))

        # The first times stay.
        async with gateway.device(account) as other:
            await other.start(fresh=True)
            await other.send("ack", feed=other.feed, offset=other.told[other.feed])
            await other.send("seen", feed=other.feed, offsets=[1])
            await other.settle()
        again = self.entries(tax.receipts(ids), ids)
        assert self.times(again[ids[0]]) == self.times(entries[ids[0]])

    def test_public_and_foreign_and_unknown(self, tax: Agency, city: Agency, account: str) -> None:
        public, foreign, mine = city.public(), tax.notice(account), city.notice(account)
        city.send(public, mine)
        tax.send(foreign)
        unknown = uuid.uuid4().hex
        answer = city.receipts([public["id"], foreign["id"], unknown, mine["id"]])
        assert answer.status == 200
        words = {"pending", "delivered", "seen"}
        said = self.entries(answer, [public["id"], foreign["id"], unknown, mine["id"]])
        assert said[mine["id"]]["status"] == "pending"
        for id_ in (public["id"], foreign["id"], unknown):
            assert said.get(id_, {}).get("status") not in words

    def test_signed_the_same_way(self, tax: Agency, city: Agency) -> None:
        tax.receipts(["x"], signer=city.signers[0]).problem(401, "unsigned")
        tax.receipts(["x"], replace={"webhook-signature": None}).problem(401, "unsigned")

    def test_up_to_100(self, tax: Agency) -> None:
        assert tax.receipts([uuid.uuid4().hex for _ in range(100)]).status == 200
        assert tax.receipts([uuid.uuid4().hex for _ in range(101)]).status in {413, 422}

    @pytest.mark.parametrize("ids", [None, "x", 5, [5], [None], [["x"]], {}])
    def test_invalid(self, tax: Agency, ids: Any) -> None:
        tax.receipts(ids).problem(422, "invalid")

    @pytest.mark.parametrize("body", [b"", b"{", b'{"ids":[],"ids":[]}', b'{"ids":[NaN]}'])
    def test_malformed(self, tax: Agency, body: bytes) -> None:
        tax.raw(body, media_type="application/json", path="/v1/agencies/tax/receipts").problem(400, "malformed")


async def test_accepted_is_delivered(gateway: Gateway, tax: Agency, account: str) -> None:
    """The promise of section 1 in its shortest form, and what was sent is what arrives."""
    events = [
        tax.status(account),
        tax.record(account, "k", {"a": [1, {"b": None}]}),
        tax.notice(account, expirytime=rfc3339(0)),
    ]
    tax.send(*events)
    device: Device = gateway.device(account)
    async with device:
        await device.start()
        await device.reach(3)
        for offset, event in enumerate(events, 1):
            kept = dict(device.kept[device.feed][offset])
            del kept["recordedtime"]
            assert kept == event

"""Sample agencies: they make events as ведомства would, sign them by themselves, and send each until it is answered.

What an agency does is written here from the contract (section 2) and from Standard Webhooks alone, without a line of
the gateway's own verification, so that a mistake there cannot hide behind the same mistake here.

A `Desk` is pure: `now` and the random source are arguments, the same seed makes the same events. A `Publisher`
promises that an event whose `send` returned is stored, exactly once: it repeats with the same ids until it is answered.
"""

import asyncio
import base64
import hashlib
import hmac
import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

Event = dict[str, Any]

# Statuses

LABELS: Mapping[str, str] = {
    "processing": "В обработке",
    "checking": "На проверке",
    "awaiting_confirmation": "Ожидание подтверждения",
    "action_required": "Требуется действие",
    "approved": "Одобрено",
    "rejected": "Отклонено",
    "done": "Готово",
    "cancelled": "Отменено",
}

Path = Mapping[str | None, tuple[str, ...]]
"""Where a thing may go from each status; a status named twice is twice as likely. Nothing follows a last one."""

APPLICATION: Path = {
    None: ("processing",),
    "processing": ("checking", "checking", "action_required"),
    "checking": ("awaiting_confirmation", "action_required", "approved", "approved", "rejected"),
    "awaiting_confirmation": ("approved", "cancelled"),
    "action_required": ("checking", "checking", "cancelled"),
    "approved": ("done",),
    "rejected": (),
    "done": (),
    "cancelled": (),
}
FINE: Path = {
    None: ("issued",),
    "issued": ("paid", "paid", "overdue", "cancelled"),
    "overdue": ("paid",),
    "paid": (),
    "cancelled": (),
}
PAYOUT: Path = {
    None: ("assigned",),
    "assigned": ("scheduled",),
    "scheduled": ("paid", "paid", "paid", "delayed"),
    "delayed": ("paid",),
    "paid": (),
}

REASONS: Mapping[str, tuple[tuple[str, str], ...]] = {
    "action_required": (
        ("signature-missing", "Нет электронной подписи: подпишите заявление и отправьте его ещё раз"),
        ("details-wrong", "Реквизиты введены неверно: проверьте серию и номер документа"),
        ("scan-quality", "Скан не соответствует требованиям качества: загрузите его повторно"),
    ),
    "rejected": (
        ("documents-incomplete", "Представлен неполный комплект документов"),
        ("no-grounds", "Нет оснований для предоставления услуги"),
    ),
    "cancelled": (("by-applicant", "Заявление отозвано заявителем"),),
}

# What happens: each act makes one event of a desk


@dataclass
class Thing:
    """What moves along a path: an application, a fine, a payout."""

    number: str
    name: str
    account: str
    status: str | None = None
    amount: int = 0  # kopecks


Act = Callable[["Desk", float, str], Event]


def applications(*services: str) -> Act:
    def act(desk: "Desk", now: float, account: str) -> Event:
        thing, previous = desk.move("application", APPLICATION, services, now, account)
        assert thing.status is not None
        data: dict[str, Any] = {"application": thing.number, "service": thing.name, "status": thing.status}
        if previous is not None:
            data["previous"] = previous
        if thing.status in REASONS:
            code, text = desk.rng.choice(REASONS[thing.status])
            data["reason"] = {"code": code, "text": text}
        if thing.status == "action_required":
            data["deadline"] = rfc3339(now + 10 * DAY)
        return desk.event(now, "gov.status.changed", data, account, f"application/{thing.number}")

    return act


def fines(*titles: str) -> Act:
    def act(desk: "Desk", now: float, account: str) -> Event:
        thing, _ = desk.move("fine", FINE, titles, now, account)
        thing.amount = thing.amount or desk.rng.choice((50_000, 80_000, 150_000, 300_000))
        data = {"number": thing.number, "status": thing.status, "amount": thing.amount, "title": thing.name}
        if thing.status == "issued":
            data |= {"discount_until": rfc3339(now + 30 * DAY), "deadline": rfc3339(now + 60 * DAY)}
        return desk.event(now, "gov.fine.changed", data, account, f"fine/{thing.number}")

    return act


def payouts(*kinds: tuple[str, str]) -> Act:
    """`kinds`: (kind of the contract, title)."""
    by_title = {title: kind for kind, title in kinds}

    def act(desk: "Desk", now: float, account: str) -> Event:
        thing, _ = desk.move("payout", PAYOUT, tuple(by_title), now, account)
        thing.amount = thing.amount or desk.rng.randrange(1_800_000, 3_200_000, 100)
        kind = by_title[thing.name]
        data = {"kind": kind, "status": thing.status, "amount": thing.amount, "title": thing.name}
        data["date"] = rfc3339(now + 2 * DAY)[:10]
        return desk.event(now, "gov.payout.changed", data, account, f"payout/{thing.number}")

    return act


def records(registry: str, *entries: tuple[str, Mapping[str, Sequence[str]]]) -> Act:
    """`entries`: (key, the values that each field may have)."""

    def act(desk: "Desk", now: float, account: str) -> Event:
        key, choices = desk.rng.choice(entries)
        data = {
            "registry": registry,
            "key": key,
            "change": "updated",
            "fields": {name: desk.rng.choice(values) for name, values in choices.items()},
            "as_of": rfc3339(now),
        }
        return desk.event(now, "gov.record.changed", data, account, f"record/{registry}/{key}")

    return act


def decisions(court: str, *texts: str) -> Act:
    def act(desk: "Desk", now: float, account: str) -> Event:
        data = {
            "court": court,
            "case": f"2-{desk.rng.randrange(100, 9999)}/{year(now)}",
            "title": "Вынесено решение",
            "text": desk.rng.choice(texts),
            "decided": rfc3339(now)[:10],
        }
        return desk.event(now, "gov.court.decided", data, account)

    return act


def notices(*texts: tuple[str, str]) -> Act:
    """`texts`: (title, text)."""

    def act(desk: "Desk", now: float, account: str) -> Event:
        title, text = desk.rng.choice(texts)
        return desk.event(now, "gov.notice.sent", {"title": title, "text": text}, account)

    return act


def published(kind: str, *texts: tuple[str, str]) -> Act:
    def act(desk: "Desk", now: float, account: str) -> Event:
        title, text = desk.rng.choice(texts)
        return desk.event(now, kind, {"title": title, "text": text, "until": rfc3339(now + DAY / 2)})

    return act


# Agencies


@dataclass(frozen=True, slots=True)
class Agency:
    code: str
    name: str
    acts: tuple[Act, ...]  # each as likely as the others; one named twice is twice as likely
    ed25519: bool = False  # signs `v1a`; otherwise HMAC-SHA256, `v1`


_TAX_STATES = {"Начисление": ("5120.00", "870.00", "14300.00"), "Состояние": ("к оплате", "оплачено")}

AGENCIES: Sequence[Agency] = (
    Agency(
        "fns",
        "ФНС",
        (
            applications("Налоговый вычет", "Регистрация ИП", "Справка об отсутствии задолженности"),
            records("taxes", ("transport", _TAX_STATES), ("land", _TAX_STATES), ("property", _TAX_STATES)),
            payouts(("refund", "Возврат налога")),
            notices(("Подтверждение уплаты", "Платёж поступил, начисление закрыто")),
        ),
        ed25519=True,
    ),
    Agency(
        "sfr",
        "СФР",
        (
            applications("Назначение страховой пенсии", "Единое пособие", "Справка о стаже"),
            payouts(("pension", "Страховая пенсия"), ("benefit", "Единое пособие")),
            payouts(("pension", "Страховая пенсия"), ("benefit", "Единое пособие")),
        ),
    ),
    Agency(
        "gibdd",
        "ГИБДД",
        (
            applications("Замена водительского удостоверения", "Постановка автомобиля на учёт"),
            fines("Превышение скорости", "Проезд на запрещающий сигнал", "Остановка в запрещённом месте"),
            fines("Превышение скорости", "Проезд на запрещающий сигнал", "Остановка в запрещённом месте"),
            records("vehicle", ("77-0042", {"Ограничения": ("нет", "запрет на регистрацию", "сняты")})),
        ),
    ),
    Agency(
        "mvd",
        "МВД",
        (
            applications("Замена паспорта", "Регистрация по месту жительства", "Справка о несудимости"),
            records("documents", ("passport", {"Состояние": ("изготавливается", "готов к выдаче", "действителен")})),
            notices(("Паспорт готов", "Получите документ в подразделении, записавшись на удобное время")),
        ),
    ),
    Agency(
        "court",
        "Мировой суд",
        (
            applications("Подача искового заявления", "Ознакомление с материалами дела"),
            decisions("Мировой судья участка № 100", "Иск удовлетворён полностью", "В иске отказано"),
        ),
        ed25519=True,
    ),
    Agency(
        "mchs",
        "МЧС",
        (
            published(
                "gov.notice.published",
                ("Гололедица", "На дорогах гололёд. Увеличьте дистанцию"),
                ("Плановые работы", "Ночью возможны перерывы в показе сведений: плановые технические работы"),
            ),
            published(
                "gov.emergency.published",
                ("Штормовое предупреждение", "Ожидается ветер до 23 м/с. Не паркуйтесь под деревьями"),
            ),
        ),
    ),
)
BY_CODE: Mapping[str, Agency] = {agency.code: agency for agency in AGENCIES}

DAY = 86400.0  # seconds


def rfc3339(unix: float) -> str:
    """Milliseconds and Z, as the contract's own examples: `2026-03-01T09:00:00.250Z`."""
    return datetime.fromtimestamp(unix, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def year(unix: float) -> int:
    return datetime.fromtimestamp(unix, UTC).year


@dataclass
class Desk:
    """Makes the events of one agency for some accounts, each a legal next thing to happen. Pure but for its memory."""

    agency: Agency
    accounts: Sequence[str]
    rng: random.Random
    most_open: int = 2  # things of one kind and account on their way at once
    _open: dict[tuple[str, str], list[Thing]] = field(default_factory=dict)  # by kind and account
    _sequence: int = 0

    def next(self, now: float, account: str | None = None) -> Event:
        """What happens at `now` (Unix seconds), to `account` or to one of the desk's."""
        return self.rng.choice(self.agency.acts)(self, now, account or self.rng.choice(self.accounts))

    def move(self, kind: str, path: Path, names: Sequence[str], now: float, account: str) -> tuple[Thing, str | None]:
        """Open a thing or take one a step further along `path`; the thing, and the status that it had."""
        rng = self.rng
        things = self._open.setdefault((kind, account), [])
        if len(things) < self.most_open and (not things or rng.random() < 0.3):
            thing = Thing(f"{year(now)}-{rng.randrange(1_000_000):06}", rng.choice(names), account)
            things.append(thing)
        else:
            thing = rng.choice(things)
        previous, thing.status = thing.status, rng.choice(path[thing.status])
        if not path[thing.status]:
            things.remove(thing)
        return thing, previous

    def event(
        self, now: float, kind: str, data: Mapping[str, Any], account: str | None = None, subject: str | None = None
    ) -> Event:
        """A CloudEvents object. One with a `subject` gets a `sequence`: an older state must not hide a newer one."""
        made: Event = {
            "specversion": "1.0",
            "id": f"{self.rng.getrandbits(128):032x}",
            "source": f"/agencies/{self.agency.code}",
            "type": kind,
            "time": rfc3339(now),
        }
        if account is not None:
            made["account"] = account
        if subject is not None:
            # Milliseconds of the change: rises over a restart of the agency's program too, without a counter on disk.
            self._sequence = max(self._sequence + 1, int(now * 1000))
            made |= {"subject": subject, "sequence": str(self._sequence)}
        return made | {"data": dict(data)}


# Signing: Standard Webhooks


def sign(secret: str, webhook_id: str, timestamp: int, body: bytes) -> str:
    """The `webhook-signature` of a body: `v1,…` with a `whsec_…` secret, `v1a,…` with a `whsk_…` seed, both base64."""
    kind, _, encoded = secret.partition("_")
    material = base64.b64decode(encoded, validate=True)
    signed = b"%s.%d.%s" % (webhook_id.encode(), timestamp, body)
    match kind:
        case "whsec":
            return "v1," + base64.b64encode(hmac.digest(material, signed, hashlib.sha256)).decode()
        case "whsk":
            return "v1a," + base64.b64encode(Ed25519PrivateKey.from_private_bytes(material).sign(signed)).decode()
        case _:
            raise ValueError("a secret begins with whsec_ or whsk_")


# Sending


class Unsent(Exception):
    """The gateway refused the request (4xx), or gave no answer as often as was tried; then the outcome is unknown.

    `problem` is the document with which it was refused, {} if there was none."""

    def __init__(self, detail: str, status: int | None = None, problem: Mapping[str, Any] | None = None):
        super().__init__(detail)
        self.status, self.problem = status, problem or {}


@dataclass
class Publisher:
    """Sends events of one agency and repeats what was not answered, always with the same ids.

    `http` is shared and belongs to the caller. `tries` bounds how often one request is sent: pauses grow from
    `pause_s`, doubled, with full jitter, to a minute. Cancelling `send` leaves the outcome unknown; sending the same
    events again settles it.
    """

    address: str  # http://host:port
    code: str
    secret: str
    http: httpx.AsyncClient
    rng: random.Random = field(default_factory=random.Random)
    tries: int = 8
    pause_s: float = 0.5
    skew_s: float = 0.0  # what the gateway's clock is ahead of ours, as a refusal told

    async def send(self, events: Sequence[Event]) -> list[dict[str, Any]]:
        """One result of the gateway for each event, in order: `{"status": 202, "feed", "epoch", "offset", …}`, or a
        problem with its `status` where one item of a batch was refused. Raises Unsent."""
        single = len(events) == 1
        body = json.dumps(events[0] if single else events, ensure_ascii=False, separators=(",", ":")).encode()
        media = "application/cloudevents+json" if single else "application/cloudevents-batch+json"
        webhook_id = f"msg_{self.rng.getrandbits(96):024x}"
        trouble, status = "never tried", None
        for attempt in range(self.tries):
            try:
                answer = await self.http.post(
                    f"{self.address}/v1/agencies/{self.code}/events",
                    content=body,
                    headers={"content-type": media, **self._signature(webhook_id, body)},
                )
            except httpx.HTTPError as error:
                trouble, retry_after = f"no answer: {error!r}", None
            else:
                if answer.status_code in (202, 207):
                    results: list[dict[str, Any]] = answer.json()["results"]
                    return results
                trouble, status = f"{answer.status_code} {answer.text[:300]}", answer.status_code
                if status == 401 and self._learnt_time(answer):
                    continue
                # "4xx means not stored; 5xx or no answer means unknown: send it again with the same `id`."
                if status < 500 and status != 429:
                    raise Unsent(trouble, status, _problem(answer))
                retry_after = answer.headers.get("retry-after")
            if attempt + 1 < self.tries:
                await asyncio.sleep(self._pause(attempt, retry_after))
        raise Unsent(f"given up after {self.tries} tries, the outcome is unknown; last {trouble}", status)

    def _signature(self, webhook_id: str, body: bytes) -> dict[str, str]:
        # A new timestamp for every try: the old one ends after 300 s.
        now = int(time.time() + self.skew_s)
        return {
            "webhook-id": webhook_id,
            "webhook-timestamp": str(now),
            "webhook-signature": sign(self.secret, webhook_id, now, body),
        }

    def _learnt_time(self, answer: httpx.Response) -> bool:
        """Contract, section 2: a refused timestamp's "problem carries `time`". True when ours is the wrong one."""
        try:
            skew_s = datetime.fromisoformat(answer.json()["time"]).timestamp() - time.time()
        except (ValueError, KeyError, TypeError):
            return False
        wrong = abs(skew_s - self.skew_s) > 300
        self.skew_s = skew_s if wrong else self.skew_s
        return wrong

    def _pause(self, attempt: int, retry_after: str | None) -> float:
        jitter = self.rng.uniform(0, min(60.0, self.pause_s * 2**attempt))
        return int(retry_after) + jitter if retry_after and retry_after.isdecimal() else jitter


def _problem(answer: httpx.Response) -> dict[str, Any]:
    try:
        document = answer.json()
    except ValueError:
        return {}
    return document if isinstance(document, dict) else {}

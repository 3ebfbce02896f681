"""The operators' page in a real browser: live figures, rejects, alerts, the way of an event, page states; and a large
installation, whose figures are committed for real."""

import asyncio
import contextlib
import itertools
import json
import time
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import pytest_asyncio
from websockets.asyncio.client import connect

from client_sim.agencies import Unsent
from client_sim.local import Gateway, command
from gateway.tokens import LocalKey
from tests.browser import history
from tests.browser.chromium import Chromium, Page
from tests.browser.conftest import QUICK, World

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIVE = "document.documentElement.dataset.state === 'live'"
VIEWS = ("overview", "agencies", "nodes", "rejected", "alerts", "account")
NODES, AGENCIES, MINUTES = 8, 50, 15


class Large:
    """A gateway that tells no figures of its own, on a store with those of a large installation."""

    def __init__(self, gateway: Gateway):
        self.gateway, self.address = gateway, gateway.address
        self.url = f"sqlite:///{gateway.store}"
        self.token = LocalKey.open(gateway.data).issue("operator", scope="ops")

    async def commit(self, *drafts: Any) -> None:
        await history.commit(self.url, self.gateway.data, drafts, time.time())


@contextlib.asynccontextmanager
async def running(data: Path, **settings: str) -> AsyncIterator[Large]:
    async with Gateway(data, QUICK | settings) as gateway:
        await gateway.start()
        yield Large(gateway)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def large(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Large]:
    # The rules would judge the figures, too: the alerts here are only those that the tests tell.
    async with running(tmp_path_factory.mktemp("large"), ops_s="0", workers="false") as made:
        now = time.time()
        await made.commit(*history.all_figures(NODES, AGENCIES, MINUTES, now), *history.rejects(240, now))
        yield made


@contextlib.contextmanager
def refused(browser: Chromium, *statuses: int) -> Iterator[None]:
    """What the browser's console says of these answers is no fault."""
    yield
    expected = tuple(f"the server responded with a status of {status}" for status in statuses)
    browser.faults = [fault for fault in browser.faults if not any(words in fault for words in expected)]


async def visit(browser: Chromium, address: str, token: str, view: str = "", language: str = "en", **how: Any) -> Page:
    """The page of an operator who is signed in, in any state."""
    page = await browser.open(f"{address}/static/icon.svg", **how)
    await page.until("location.pathname.endsWith('.svg')")
    kept = json.dumps({"token": token, "sample": False})
    await page.run(
        f"sessionStorage.setItem('operator', {json.dumps(kept)}); localStorage.setItem('language', '{language}')"
    )
    await page.go(f"{address}/ops#{view}")
    return page


async def watch(browser: Chromium, world: World, view: str = "", **how: Any) -> Page:
    page = await visit(browser, world.address, world.token("operator", scope="ops"), view, **how)
    await page.until(LIVE)
    return page


def says(text: str, selector: str = "main") -> str:
    return f"document.querySelector({json.dumps(selector)})?.innerText.includes({json.dumps(text)})"


def row(text: str) -> str:
    return f"[...document.querySelectorAll('tbody tr')].find(e => e.innerText.includes({json.dumps(text)}))"


def tile(key: str) -> str:
    return f"document.querySelector('.tile[data-key={key}] .value')?.textContent"


async def axe(page: Page, modules: Path) -> None:
    await page.run((modules / "node_modules" / "axe-core" / "axe.min.js").read_text())


async def device(world: World, person: str, name: str, *, acks: bool) -> Any:
    """A connected device, until it is cancelled."""
    up = asyncio.Event()

    async def live() -> None:
        async with connect(f"{world.direct.replace('http', 'ws')}/v1/socket", proxy=None) as socket:
            hello = {"t": "hello", "token": world.token(person), "device": name, "agent": "tests/1.0"}
            await socket.send(json.dumps(hello))
            async for text in socket:
                message = json.loads(text)
                if message["t"] == "live":
                    up.set()
                if message["t"] == "event" and acks:
                    await socket.send(json.dumps({"t": "ack", "feed": message["feed"], "offset": message["offset"]}))

    task = asyncio.create_task(live())
    async with asyncio.timeout(10):
        await up.wait()
    return task


# Signing in, and page states


async def test_signing_in_as_the_sample_operator(browser: Chromium, world: World):
    page = await browser.open(f"{world.address}/ops")
    await page.click("Sample operator")
    await page.until(LIVE)
    assert "operator" in await page.text("#who")
    await page.until(f"{tile('sessions')} >= '1'")
    await page.click("Sign out")
    await page.until("document.querySelector('#token')")
    assert await page.run("sessionStorage.length") == 0


async def test_signing_in_with_a_token_by_keyboard_alone(browser: Chromium, world: World):
    page = await browser.open(f"{world.address}/ops")
    await page.until("document.querySelector('#token')")
    for _ in range(10):
        await page.key("Tab", 9)
        if await page.run("document.activeElement.id") == "token":
            break
    await page.call("Input.insertText", text="nonsense")
    await page.key("Tab", 9)
    await page.key("Enter", 13, "\r")
    assert await page.until("document.querySelector('#fault').textContent.length > 10")
    assert await page.run("document.activeElement.id") == "token"
    await page.run("document.activeElement.select()")
    await page.call("Input.insertText", text=world.token("operator", scope="ops"))
    await page.key("Tab", 9)
    await page.key("Enter", 13, "\r")
    await page.until(LIVE)


async def test_a_broken_token_has_a_sentence_and_a_way_on(browser: Chromium, world: World):
    with refused(browser, 401):
        page = await visit(browser, world.address, "aaaa.bbbb.cccc")
        await page.until(says("The token was refused"))
        await page.click("Sign in again")
        await page.until("document.querySelector('#token')")


async def test_a_token_without_the_scope_has_a_sentence_and_a_way_on(browser: Chromium, world: World):
    with refused(browser, 404):
        page = await visit(browser, world.address, world.token(world.person()))
        await page.until(says("does not have the scope ops"))
        assert await page.run("document.querySelector('nav').hidden")
        await page.click("Sign in again")
        await page.until("document.querySelector('#token')")


async def test_a_gateway_that_is_away_has_a_sentence_and_a_way_on(browser: Chromium, world: World):
    page = await browser.open(f"{world.address}/ops")
    await page.until("document.querySelector('#token')")
    await world.drop()
    await page.run(f"document.querySelector('#token').value = '{world.token('operator', scope='ops')}'")
    await page.click("Sign in", "button[type=submit]")
    await page.until(says("The gateway does not answer"))
    await page.click("Connect now")
    await page.until(says("The gateway does not answer"))
    world.back()
    await page.until(LIVE)


async def test_without_figures_there_is_a_sentence_and_all_the_rest(browser: Chromium, tmp_path: Path):
    async with running(tmp_path, ops_s="0") as quiet:
        page = await visit(browser, quiet.address, quiet.token)
        await page.until(f"{LIVE} && {says('VESTNIK_OPS_S=0')}")
        for view, text in (
            ("rejected", "No rejects"),
            ("alerts", "No alerts yet"),
            ("account", "Each look is recorded"),
        ):
            await page.run(f"location.hash = '{view}'")
            await page.until(says(text))
        # The first ones show by themselves.
        await page.run("location.hash = 'nodes'")
        await page.until(says("No figures yet"))
        await quiet.commit(*history.all_figures(1, 1, 0.5, time.time()))
        await page.run("location.reload()")
        await page.until(row("1f2e3d40"))


async def test_an_operator_who_is_revoked_sees_nothing_more(browser: Chromium, world: World):
    page = await visit(browser, world.address, world.token("ousted", scope="ops"))
    await page.until(LIVE)
    with refused(browser, 401):
        await command("revoke", "--sub", "ousted", environment=world.gateway.environment)
        await page.until(says("The token was refused"))
    assert await page.run("document.querySelector('.tiles')") is None


# What is live


async def test_sessions_and_deliveries_as_they_come(browser: Chromium, world: World):
    page = await watch(browser, world)
    before = int(await page.until(f"Number({tile('sessions')}) >= 1 && {tile('sessions')}"))  # this page itself
    person = world.person()
    phone = await device(world, person, "phone", acks=True)
    await page.until(f"Number({tile('sessions')}) >= {before + 1}")
    await world.publish(world.status(person, "approved"))
    await page.until(f"{row('High')}.innerText.includes('ms')")
    phone.cancel()
    await page.until(f"Number({tile('sessions')}) === {before}")


async def test_what_was_missed_is_counted_once_when_the_network_is_back(browser: Chromium, world: World):
    page = await watch(browser, world, "agencies")
    count = "Number(document.querySelector('[data-key=mchs] [data-key=accepted]').textContent)"
    before = await page.until(f"String({count})")

    async def notice() -> None:
        data = {"title": "Учения", "text": "Сирены"}
        await world.publish(world.event("gov.notice.published", data, None, "mchs"), code="mchs")

    await notice()
    await page.until(f"{count} === {int(before) + 1}")
    await world.drop()
    await page.until("!document.getElementById('notice').hidden")
    await notice()
    await notice()
    world.back()
    await page.until(f"{count} === {int(before) + 3}")
    await page.run("location.reload()")
    await page.until(f"{LIVE} && {count} === {int(before) + 3}")


async def test_a_reject_is_in_the_journal_with_its_reason(browser: Chromium, world: World):
    page = await watch(browser, world, "rejected")
    broken = world.status(world.person(), "no-such-status") | {"id": "<img src=x onerror='window.broken=1'>"}
    with pytest.raises(Unsent):
        await world.publish(broken)
    await page.until(row("422 invalid"))
    assert "/data/status" in await page.text("tbody")
    assert "<img src=x" in await page.text("tbody")
    assert await page.run("window.broken") is None
    answer = await world.http.post(f"{world.direct}/v1/agencies/stranger/events", content=b"{}")
    assert answer.status_code == 401
    await page.until(row("stranger"))
    await page.run("document.querySelector('[name=reason]').value = 'unsigned'")
    await page.run("document.querySelector('[name=reason]').dispatchEvent(new Event('change'))")
    await page.until(f"{row('stranger')} && !{row('422 invalid')}")
    await page.click("Reset")
    await page.until(f"{row('stranger')} && {row('422 invalid')}")


async def test_an_alert_comes_on_top_and_goes_into_the_history(browser: Chromium, large: Large):
    now = time.time()
    said = {"value": 0.81, "bound": 0.5, "unit": "s"} | {
        "title": {"ru": "Медленная доставка: срочные", "en": "Slow delivery: urgent"},
        "text": {"ru": "Люди ждут.", "en": "People wait."},
    }
    page = await visit(browser, large.address, large.token)
    await page.until(LIVE)
    severe = said | {"severity": "critical"}
    await large.commit(history.alert("latency", "urgent", "firing", now, now - 60, **severe))
    # Another process appended it: the sweep finds it at the next beat, a new connection at once.
    await page.run("location.reload()")
    await page.until(says("Slow delivery: urgent", ".first"))
    assert (await page.run("document.title")).startswith("(1) ")
    await page.click("Slow delivery", ".first a")
    await page.until(says("People wait.", ".alerts"))
    await large.commit(history.alert("latency", "urgent", "resolved", now + 240, now - 60, **severe))
    await page.run("location.reload()")
    await page.until(f"{says('Nothing fires now')} && document.querySelectorAll('tbody tr').length === 2")
    assert "lasted 5 min" in await page.text("tbody")
    assert not (await page.run("document.title")).startswith("(")


async def test_an_alert_of_the_rules_comes_by_itself(browser: Chromium, tmp_path: Path):
    rules = tmp_path / "alerts.toml"
    rules.write_text("[strangers]\nbound = 0.001\nhold_s = 0\n")
    async with running(tmp_path / "data", ops_s="1", alerts=str(rules)) as made, httpx.AsyncClient() as http:
        page = await visit(browser, made.address, made.token)
        await page.until(LIVE)
        for _ in range(3):
            await http.post(f"{made.address}/v1/agencies/stranger/events", content=b"{}")
        await page.until(says("Requests of strangers", ".first"), 40)
        assert "Requests of strangers" in await page.run("document.getElementById('announce').textContent")


async def test_the_way_of_one_event(browser: Chromium, world: World, modules: Path):
    person = world.person()
    phone = await device(world, person, "phone-1", acks=True)
    tablet = await device(world, person, "tablet-2", acks=False)
    await world.publish(world.status(person, "approved", title="Секрет"))
    page = await watch(browser, world, "account")
    await page.run(f"document.querySelector('#account-id').value = '{person}'")
    await page.click("Find", "button[type=submit]")
    await page.until("document.querySelectorAll('.devices li').length === 2")
    await page.until(says("gov.status.changed"))
    assert person not in await page.run("location.href")
    await axe(page, modules)
    assert await page.serious() == []
    # Who looked is told to all operators, this one too.
    await page.until(says(f"account {person}", ".audits"))

    async def way() -> str:
        await page.click("Way", "td button")
        await page.until("document.querySelectorAll('.stages li').length === 8")
        return await page.text(".answer")

    async with asyncio.timeout(10):  # acks are stored within a second
        while "sent, not acknowledged yet" not in (told := await way()) or told.count("not yet") > 1:
            await page.click("All events")
    assert "Acknowledged by a device" in told
    assert await page.serious() == []
    await page.until(says(f"event {person} № 1", ".audits"))
    assert "Секрет" not in await page.text("body")
    for task in (phone, tablet):
        task.cancel()


async def test_an_unknown_account_has_a_sentence_and_a_way_on(browser: Chromium, world: World):
    page = await watch(browser, world, "account")
    await page.until("document.querySelector('#account-id')")
    await page.run("document.querySelector('#account-id').value = 'no body'")
    await page.click("Find", "button[type=submit]")
    await page.until("document.querySelector('#account-fault').textContent.length > 10")
    with refused(browser, 404):
        await page.run("document.querySelector('#account-id').value = 'nobody'")
        await page.click("Find", "button[type=submit]")
        await page.until(says("Account nobody is unknown"))
        await page.click("Change the id")
        assert await page.run("document.activeElement.id") == "account-id"
        await page.until(says("account nobody", ".audits"))


async def test_a_restored_store_is_shown_anew_and_nothing_twice(browser: Chromium, tmp_path: Path):
    async with running(tmp_path, ops_s="1") as made, httpx.AsyncClient() as http:
        now = time.time()
        await made.commit(*history.rejects(5, now), *history.all_figures(1, 3, 1, now))
        page = await visit(browser, made.address, made.token, "rejected")
        rows = "document.querySelectorAll('tbody tr').length"
        await page.until(f"{LIVE} && {rows} === 5")
        copy = str(tmp_path / "copy")
        await command("backup", copy, environment=made.gateway.environment)
        await made.gateway.stop()
        await page.until("!document.getElementById('notice').hidden")
        await command("restore", copy, environment=made.gateway.environment)
        await made.gateway.start()
        await page.until(f"{LIVE} && {rows} === 5")
        await http.post(f"{made.address}/v1/agencies/stranger/events", content=b"{}")
        await page.until(f"{rows} === 6")
        await page.run("location.hash = 'agencies'")
        accepted = "document.querySelector('[data-key=fns] [data-key=accepted]')?.textContent"
        await page.until(accepted)
        before = await page.run(accepted)
        await page.run("location.reload()")
        await page.until(f"{LIVE} && {accepted} === {json.dumps(before)}")


async def test_a_clock_that_is_wrong_is_not_believed(browser: Chromium, world: World):
    page = await browser.open("about:blank")
    wrong = "const right = Date.now; Date.now = () => right() - 3_600_000;"
    await page.call("Page.addScriptToEvaluateOnNewDocument", source=wrong)
    token = world.token("operator", scope="ops", now=time.time() - 60)
    await page.go(f"{world.address}/ops#nodes")
    await page.until("document.querySelector('#token')")
    await page.run(f"document.querySelector('#token').value = '{token}'")
    await page.click("Sign in", "button[type=submit]")
    await page.until(f"{LIVE} && document.querySelector('tbody .pill')?.textContent === 'up'")
    await page.run("location.hash = 'overview'")
    await page.until(f"Number({tile('sessions')}) >= 1 && document.querySelector('.plot path')")


# A large installation


async def test_it_stays_readable_with_50_agencies_and_8_nodes(browser: Chromium, large: Large):
    page = await visit(browser, large.address, large.token, "agencies")
    await page.until(f"{LIVE} && document.querySelectorAll('tbody tr').length === {AGENCIES}")
    # Those with a problem come first.
    names = await page.run("[...document.querySelectorAll('tbody tr')].slice(0, 2).map(e => e.dataset.key)")
    assert names == ["region-03", "region-11"]
    await page.run("document.querySelector('.check input').click()")
    await page.until("document.querySelectorAll('tbody tr').length === 2")
    await page.run("document.querySelector('.check input').click()")
    await page.run("document.querySelector('#agency-filter').value = 'region-3'")
    await page.run("document.querySelector('#agency-filter').dispatchEvent(new Event('input'))")
    await page.until("document.querySelectorAll('tbody tr').length === 10")
    await page.run("location.hash = 'nodes'")
    await page.until(f"document.querySelectorAll('tbody tr').length === {NODES + len(history.ROLES)}")
    assert "silent for" in await page.text("tbody tr")
    await page.run("location.hash = 'agencies'")
    await page.until("document.querySelector('tbody a')")
    await page.run("document.querySelector('[data-key=region-11] a').click()")
    await page.until("document.querySelector('[name=agency]')?.value === 'region-11'")
    for view, (width, height) in itertools.product(VIEWS, ((1440, 900), (1100, 800), (820, 1100), (390, 844))):
        await page.size(width, height)
        await page.run(f"location.hash = '{view}'")
        await page.until(f"document.querySelector('main').dataset.view?.startsWith('{view}')")
        wide = await page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{view} is wider than {width} by {wide}"


async def test_another_period_has_other_sums(browser: Chromium, large: Large):
    page = await visit(browser, large.address, large.token, prefers_reduced_motion="reduce")
    await page.until(f"{LIVE} && {tile('refused')} > ''")
    quarter = int((await page.run(tile("refused"))).replace(",", ""))
    await page.click("5 min", ".choice button")
    await page.until(f"Number({tile('refused')}) < {quarter / 2}")
    await page.click("60 min", ".choice button")
    await page.until(f"Number({tile('refused')}.replace(',', '')) >= {quarter}")
    assert await page.run("document.querySelectorAll('.choice [aria-pressed=true]').length") == 3


async def test_a_chart_is_read_with_the_arrow_keys(browser: Chromium, large: Large):
    page = await visit(browser, large.address, large.token)
    await page.until(f"{LIVE} && document.querySelector('.plot path')")
    await page.run("document.querySelector('.plot').focus()")
    said = "document.activeElement.getAttribute('aria-valuetext')"
    last = await page.until(said)
    assert "Urgent" in last
    for name, code in (("ArrowLeft", 37), ("ArrowLeft", 37), ("Home", 36)):
        await page.key(name, code)
        await page.until(f"{said} !== {json.dumps(last)}")
        last = await page.run(said)
    assert await page.run("document.querySelectorAll('.cross').length") == 1
    assert await page.text(".when") in last
    await page.key("Escape", 27)
    await page.until("!document.querySelector('.cross')")


async def test_the_language_is_changed_and_kept(browser: Chromium, large: Large):
    page = await visit(browser, large.address, large.token, "agencies")
    await page.until(f"{LIVE} && {says('Service level')}")
    await page.click("Русский")
    await page.until(says("Уровень сервиса"))
    assert await page.run("document.documentElement.lang") == "ru"
    await page.run("location.reload()")
    await page.until(says("Уровень сервиса"))


async def test_every_view_is_accessible(browser: Chromium, tmp_path: Path, modules: Path):
    now = time.time()
    said = {"value": 1.0, "bound": 0.0, "unit": ""} | {
        "title": {"ru": "Тревога", "en": "Alert"},
        "text": {"ru": "Посмотрите.", "en": "Look."},
    }
    async with running(tmp_path, ops_s="0", workers="false") as small:
        await small.commit(
            *history.all_figures(7, 18, 3, now),
            *history.rejects(12, now),
            history.alert("append", "", "resolved", now, now - 60, **said),
            history.alert("node", "node 1f2e3d95", "firing", now, now, severity="critical", **said),
            history.alert("late", "agency region-03", "firing", now, now, **said),
        )
        page = await visit(browser, small.address, small.token, prefers_reduced_motion="reduce")
        await page.until(f"{LIVE} && document.querySelector('.first .alert')")
        await axe(page, modules)
        found = []
        sizes = {"light": (1280, 860), "dark": (390, 844)}
        for scheme, view in itertools.product(sizes, VIEWS):
            await page.size(*sizes[scheme])
            await page.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
            await page.run(f"location.hash = '{view}'")
            await page.until(f"document.querySelector('main').dataset.view?.startsWith('{view}')")
            found += [f"{scheme} {view}: {fault}" for fault in await page.serious()]
        await page.click("Sign out")
        await page.until("document.querySelector('#token')")
        found += await page.serious()
    assert found == []

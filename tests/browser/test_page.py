"""The account page in a real browser: signing in, what arrives, a network that goes, tabs, languages, page states."""

import asyncio
import itertools
import json
import time
from pathlib import Path
from typing import Any

import pytest
from websockets.asyncio.client import connect

from client_sim.local import command
from gateway import web
from tests.browser.chromium import Chromium, Page
from tests.browser.conftest import World

pytestmark = pytest.mark.asyncio(loop_scope="module")
LIVE = "document.documentElement.dataset.state === 'live'"


def card(text: str) -> str:
    return f"[...document.querySelectorAll('.card')].find(e => e.textContent.includes({json.dumps(text)}))"


async def sign_in(browser: Chromium, world: World, account: str, language: str = "ru", **how: Any) -> Page:
    """A tab of somebody who was signed in before."""
    page = await browser.open(f"{world.address}/static/icon.svg", **how)
    await page.until("location.pathname.endsWith('.svg')")
    kept = json.dumps({"token": world.token(account, ttl=3600), "sample": False})
    await page.run(
        f"localStorage.setItem('account', {json.dumps(kept)}); localStorage.setItem('language', '{language}')"
    )
    await page.go(f"{world.address}/")
    await page.until(LIVE)
    return page


async def test_signing_in_as_a_sample_person(browser: Chromium, world: World):
    page = await browser.open(f"{world.address}/")
    await page.click("anna")
    await page.until(LIVE)
    assert "anna" in await page.text("#who")
    await page.until("document.querySelector('.empty')")


async def test_signing_in_with_a_token_by_keyboard_alone(browser: Chromium, world: World):
    person = world.person()
    await world.publish(world.status(person, "approved"))
    page = await browser.open(f"{world.address}/")
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
    await page.call("Input.insertText", text=world.token(person))
    await page.key("Tab", 9)
    await page.key("Enter", 13, "\r")
    await page.until(LIVE)
    await page.until(card("Approved"))


async def test_an_event_is_on_the_screen_within_a_second(browser: Chromium, world: World):
    person = world.person()
    await world.publish(world.status(person, "processing", "2026-000777"))
    page = await sign_in(browser, world, person)
    await page.until(card("В обработке"))
    began = time.monotonic()
    await world.publish(
        world.status(person, "action_required", "2026-000777", reason={"code": "x", "text": "Подпишите"})
    )
    await page.until(f"{card('2026-000777')}.textContent.includes('Требуется действие')")
    assert time.monotonic() - began < 1
    assert await page.run("document.querySelectorAll('.card').length") == 1
    assert "Подпишите" in await page.text(".card")
    assert "Требуется действие" in await page.run("document.getElementById('announce').textContent")
    assert await page.run("document.querySelector('.count').textContent") != ""


async def test_what_was_missed_comes_when_the_network_is_back_once(browser: Chromium, world: World):
    person = world.person()
    page = await sign_in(browser, world, person)
    await world.publish(world.notice(person, "Первое"))
    await page.run("location.hash = 'feed'")
    await page.until("document.body.innerText.includes('Первое')")
    await world.drop()
    await page.until("['waiting', 'connecting'].includes(document.documentElement.dataset.state)")
    await page.until("!document.getElementById('notice').hidden")
    assert "Первое" in await page.text("main")
    await world.publish(*(world.notice(person, f"Пропущенное {n}") for n in range(30)))
    world.back()
    await page.until(LIVE)
    titles = "[...document.querySelectorAll('.row h2')].map(e => e.textContent)"
    await page.until(f"{titles}.length === 31")
    assert await page.run(titles) == [f"Пропущенное {n}" for n in reversed(range(30))] + ["Первое"]
    assert await page.run("document.getElementById('notice').hidden")


async def test_a_flood_is_kept_whole_and_the_page_goes_on(browser: Chromium, world: World):
    person = world.person()
    page = await sign_in(browser, world, person)
    await world.publish(*(world.notice(person, f"Номер {n}") for n in range(400)))
    await world.publish(world.status(person, "done"))
    await page.until(card("Готово"))
    read = """new Promise((resolve, reject) => {
      const open = indexedDB.open('vestnik-%s');
      open.onerror = () => reject(open.error);
      open.onsuccess = () => {
        const keys = open.result.transaction('events').objectStore('events').getAllKeys();
        keys.onsuccess = () => { open.result.close(); resolve(keys.result.map(([, offset]) => offset)); };
      };
    })"""
    assert await page.run(read % person) == list(range(1, 402))


async def test_offline_and_online_events(browser: Chromium, world: World):
    person = world.person()
    page = await sign_in(browser, world, person)
    offline = {"latency": 0, "downloadThroughput": -1, "uploadThroughput": -1}
    await page.call("Network.emulateNetworkConditions", offline=True, **offline)
    await page.until("document.documentElement.dataset.state === 'offline'")
    assert "сохранённое" in await page.text("#notice")
    await world.publish(world.status(person, "done"))
    await page.call("Network.emulateNetworkConditions", offline=False, **offline)
    await page.until(card("Готово"))
    await page.until(LIVE)


async def test_two_tabs_are_one_device_with_one_socket(browser: Chromium, world: World):
    person = world.person()
    first = await sign_in(browser, world, person)
    opened = browser.opened
    second = await browser.open(f"{world.address}/")
    await second.until(LIVE)
    await world.publish(world.status(person, "approved"))
    for page in (first, second):
        await page.until(card("Одобрено"))
    assert browser.opened == opened
    leading = "document.documentElement.dataset.leading"
    assert [await page.run(leading) for page in (first, second)] == ["true", "false"]
    devices = await account(world, person, "devices")
    assert len(devices) == 1
    await first.close()
    await second.until(f"{leading} === 'true' && {LIVE}")
    await world.publish(world.status(person, "done"))
    await second.until(card("Готово"))
    devices = await account(world, person, "devices")
    assert len(devices) == 1


async def account(world: World, person: str, what: str) -> Any:
    """What the gateway itself says."""
    return (await world.http.get(f"{world.direct}/v1/{what}", headers=bearer(world, person))).json()


def bearer(world: World, person: str) -> dict[str, str]:
    return {"authorization": f"Bearer {world.token(person)}"}


async def test_the_tab_that_leads_next_follows_what_another_tab_chose(browser: Chromium, world: World):
    person = world.person()
    first = await sign_in(browser, world, person)
    second = await browser.open(f"{world.address}/#feed")
    await second.until(LIVE)
    await choose(second, "ФНС")
    await told(browser.sent, '"t":"subscribe"')
    await first.close()
    await second.until(f"document.documentElement.dataset.leading === 'true' && {LIVE}")
    await published(world, "fns", "После смены вкладки")
    await second.until("document.querySelector('.list').innerText.includes('После смены вкладки')")


async def choose(page: Page, name: str) -> None:
    """Tick or untick an agency by keyboard."""
    box = f"[...document.querySelectorAll('.checks label')].find(e => e.textContent === '{name}')?.control"
    await page.until(f"Boolean({box})")
    await page.run("document.querySelector('details').open = true")
    await page.run(f"{box}.focus()")
    await page.key(" ", 32, " ")
    assert await page.run(f"document.activeElement === {box}")


async def published(world: World, code: str, title: str) -> None:
    notice = world.event("gov.notice.published", {"title": title, "text": "Для всех"}, None, code)
    await world.publish(notice, code=code)


async def test_agencies_are_chosen_and_the_choice_is_kept(browser: Chromium, world: World):
    person = world.person()
    page = await sign_in(browser, world, person)
    await page.run("location.hash = 'feed'")
    shown = "document.querySelector('.list').innerText"
    await page.until("document.querySelectorAll('.checks input').length === 2")
    assert "Объявления ведомств: МЧС" in await page.text("summary")
    await published(world, "fns", "Не выбрано")
    await choose(page, "ФНС")
    assert "ФНС" in await page.run("document.getElementById('announce').textContent")
    await told(browser.sent, '"t":"subscribe"')
    await published(world, "fns", "Выбрано")
    await page.until(f"{shown}.includes('Выбрано') && {shown}.includes('ФНС')")
    assert "Не выбрано" not in await page.run(shown)
    await page.run("location.reload()")
    await page.until(f"{LIVE} && document.querySelectorAll('.checks input:checked').length === 2")
    await published(world, "fns", "И дальше")
    await page.until(f"{shown}.includes('И дальше')")
    other = await browser.open(f"{world.address}/#feed")
    await other.until(f"{LIVE} && {shown}.includes('И дальше')")
    await choose(page, "ФНС")
    await told(browser.sent, '"t":"unsubscribe"')
    for tab in (page, other):
        await tab.until(
            f"!{shown}.includes('Выбрано') && document.querySelectorAll('.checks input:checked').length === 1"
        )
    await published(world, "fns", "Уже нет")
    await world.publish(world.notice(person, "А своё есть"))
    await page.until(f"{shown}.includes('А своё есть')")
    assert "Уже нет" not in await page.run(shown)
    browser.sent.clear()
    await choose(other, "ФНС")
    await told(browser.sent, '"t":"subscribe"')
    await published(world, "fns", "И снова")
    for tab in (page, other):
        await tab.until(f"{shown}.includes('И снова')")
    assert "Уже нет" not in await page.run(shown)


async def told(sent: list[str], text: str) -> None:
    async with asyncio.timeout(5):
        while not any(text in message for message in sent):
            await asyncio.sleep(0.02)


async def test_a_page_in_the_background_saves_traffic(browser: Chromium, world: World):
    person = world.person()
    page = await sign_in(browser, world, person)
    sent: list[str] = browser.sent
    other = await browser.open("about:blank")
    await other.front()
    await page.until("document.hidden")
    await said(sent, '"mode":"saver"')
    await world.publish(world.notice(person, "Подождёт"))
    await page.until("document.querySelector('.count')")
    await page.front()
    await page.until("!document.hidden")
    await said(sent, '"mode":"full"')
    await told(sent, '"t":"ping"')  # does the connection still live?


async def said(sent: list[str], text: str) -> None:
    async with asyncio.timeout(5):
        while not any('"t":"mode"' in message and text in message for message in sent):
            await asyncio.sleep(0.02)


async def test_what_the_browser_deleted_is_loaded_again(browser: Chromium, world: World):
    person = world.person()
    await world.publish(world.status(person, "processing"))
    page = await sign_in(browser, world, person)
    await page.until(card("В обработке"))
    await page.call("Storage.clearDataForOrigin", origin=world.address, storageTypes="indexeddb")
    await world.publish(world.status(person, "approved"))
    await page.until(f"{card('Одобрено')} && {LIVE}")
    await page.run("location.reload()")
    await page.until(f"{card('Одобрено')} && {LIVE}")


async def test_a_browser_that_keeps_nothing_shows_the_account_all_the_same(browser: Chromium, world: World):
    person = world.person()
    page = await sign_in(browser, world, person)
    refuse = "IDBFactory.prototype.open = () => { throw new DOMException('not here', 'SecurityError') }"
    await page.call("Page.addScriptToEvaluateOnNewDocument", source=refuse)
    await page.run("location.reload()")
    await world.publish(world.status(person, "approved"))
    await page.until(f"{card('Одобрено')} && {LIVE}")


async def test_what_a_later_version_kept_is_no_obstacle(browser: Chromium, world: World):
    person = world.person()
    await world.publish(world.status(person, "approved"))
    page = await browser.open(f"{world.address}/static/icon.svg")
    await page.until("location.pathname.endsWith('.svg')")
    later = """new Promise((resolve) => {
      const open = indexedDB.open('vestnik-%s', 7);
      open.onsuccess = () => { open.result.close(); resolve(); };
    })"""
    await page.run(later % person)
    page = await sign_in(browser, world, person)
    await page.until(card("Одобрено"))


async def test_signing_out_waits_for_no_tab_that_is_stuck(browser: Chromium, world: World):
    person = world.person()
    page = await sign_in(browser, world, person)
    stuck = await browser.open(f"{world.address}/static/icon.svg")
    await stuck.until("location.pathname.endsWith('.svg')")
    hold = """new Promise((resolve) => {
      const open = indexedDB.open('vestnik-%s');
      open.onsuccess = () => { window.held = open.result; resolve(); };
    })"""
    await stuck.run(hold % person)
    await page.front()
    await page.click("Выйти")
    await page.until("document.querySelector('#token')")
    await stuck.close()
    await page.until("indexedDB.databases().then(all => all.length === 0)")


async def test_without_a_network_a_stopped_page_stays_stopped(browser: Chromium, world: World):
    page = await sign_in(browser, world, (person := world.person()))
    await command("revoke", "--sub", person, environment=world.gateway.environment)
    await page.until("document.body.innerText.includes('Сеанс завершён')")
    await page.run("dispatchEvent(new Event('offline'))")
    assert await page.run("document.documentElement.dataset.state") == "stopped"


async def test_reading_takes_the_unread_marks_away_on_every_device(browser: Chromium, world: World):
    person = world.person()
    page = await sign_in(browser, world, person)
    await world.publish(world.notice(person, "Новое"))
    await page.until("document.querySelector('.count')")
    await page.run("location.hash = 'feed'")
    await page.until("document.querySelector('.row.unread')")
    await page.until("!document.querySelector('.count')")
    async with asyncio.timeout(5):
        while not (await account(world, person, "snapshot"))["notices"][0]["seen"]:
            await asyncio.sleep(0.05)


async def test_sections_and_asking_for_new_data(browser: Chromium, world: World):
    person = world.person()
    record = {
        "registry": "taxes",
        "key": "land",
        "change": "updated",
        "fields": {"Начисление": "870.00"},
        "as_of": "2026-03-01",
    }
    await world.publish(world.event("gov.record.changed", record, person, subject="record/taxes/land"))
    page = await sign_in(browser, world, person)
    await page.run("location.hash = 'sections/taxes'")
    await page.until(card("870.00"))
    assert "Обновлено" in await page.text(".card")
    await page.click("Обновить данные")
    await page.until("document.querySelector('.said').textContent.length > 0")
    await page.click("Пенсия")
    await page.until("document.querySelector('.empty')")


async def test_what_was_asked_without_a_connection_is_asked_when_there_is_one(browser: Chromium, world: World):
    person = world.person()
    page = await sign_in(browser, world, person)
    await page.run("location.hash = 'sections/taxes'")
    await world.drop()
    await page.until("document.documentElement.dataset.state !== 'live'")
    await page.click("Обновить данные")
    await page.until("document.querySelector('.said').textContent.includes('Связи нет')")
    world.back()
    await page.until("!/Связи нет|Спрашиваем/.test(document.querySelector('.said').textContent)")


async def test_history_with_filters_and_csv(browser: Chromium, world: World):
    person = world.person()
    await world.publish(
        world.status(person, "approved"), world.status(person, "rejected", "2026-000124"), world.notice(person)
    )
    page = await sign_in(browser, world, person)
    await page.run("location.hash = 'history'")
    await page.until("document.querySelectorAll('.row').length === 3")
    await page.run("document.querySelector('[name=status]').value = 'rejected'")
    await page.click("Показать")
    await page.until("document.querySelectorAll('.row').length === 1")
    await page.run("document.querySelector('[name=type]').value = 'gov.court.decided'")
    await page.click("Показать")
    await page.until("document.querySelector('.empty')")
    await page.run("window.saved = null; HTMLAnchorElement.prototype.click = function () { window.saved = this.href }")
    await page.click("Сбросить")
    await page.until("document.querySelectorAll('.row').length === 3")
    await page.run("[...document.querySelectorAll('button')].find(e => e.textContent === 'Скачать CSV').click()")
    await page.until("window.saved?.startsWith('blob:')")
    await published(world, "mchs", "Для истории")
    await page.run("document.querySelector('[name=feed]').value = 'agency:mchs'")
    await page.click("Показать")
    await page.until("document.querySelector('.list').innerText.includes('Для истории')")


async def test_a_session_is_ended_from_another_device(browser: Chromium, world: World):
    person = world.person()
    page = await sign_in(browser, world, person)
    await page.run("location.hash = 'devices'")
    await page.until("document.querySelectorAll('.device').length === 1")
    (device,) = await account(world, person, "devices")
    await world.http.delete(f"{world.direct}/v1/devices/{device['device']}", headers=bearer(world, person))
    await page.until("document.body.innerText.includes('Сеанс завершён')")
    await page.click("Войти заново")
    await page.until("document.querySelector('#token')")


async def test_signing_out_forgets_everything_here(browser: Chromium, world: World):
    person = world.person()
    page = await sign_in(browser, world, person)
    await page.click("Выйти")
    await page.until("document.querySelector('#token')")
    assert await page.run("indexedDB.databases().then(all => all.length)") == 0
    devices = await account(world, person, "devices")
    assert devices == []


async def test_a_broken_token_has_a_sentence_and_a_way_on(browser: Chromium, world: World):
    page = await browser.open(f"{world.address}/")
    await page.until("document.querySelector('#token')")
    await page.run("document.querySelector('#token').value = 'aaaa.bbbb.cccc'")
    await page.click("Sign in", "button[type=submit]")
    await page.until("document.body.innerText.includes('The token is wrong or has ended')")
    await page.click("Sign in again")
    await page.until("document.querySelector('#token')")


async def test_a_gateway_that_is_away_has_a_sentence_and_a_way_on(browser: Chromium, world: World):
    page = await browser.open(f"{world.address}/static/icon.svg")
    await page.until("location.pathname.endsWith('.svg')")
    await page.go(f"{world.address}/")
    await page.until("document.querySelector('#token')")
    await world.drop()
    token = world.token(world.person())
    await page.run(f"document.querySelector('#token').value = '{token}'")
    await page.click("Sign in", "button[type=submit]")
    await page.until("document.body.innerText.includes('The gateway does not answer')")
    world.back()
    await page.click("Connect now")
    await page.until(LIVE)


async def test_the_same_device_elsewhere_has_a_sentence_and_a_way_on(browser: Chromium, world: World):
    person = world.person()
    page = await sign_in(browser, world, person)
    second = await browser.open(f"{world.address}/")
    await second.until(LIVE)
    (device,) = await account(world, person, "devices")
    async with connect(f"{world.direct.replace('http', 'ws')}/v1/socket", proxy=None) as other:
        hello = {"t": "hello", "token": world.token(person), "device": device["device"]}
        await other.send(json.dumps(hello))
        for tab in (page, second):
            await tab.until("document.body.innerText.includes('Кабинет открыт в другом месте')")
    await second.click("Продолжить здесь")  # the one that has no socket
    for tab in (page, second):
        await tab.until(LIVE)


async def test_what_is_erased_is_gone_from_the_screen(browser: Chromium, world: World):
    person = world.person()
    await world.publish(world.status(person, "approved"), world.status(person, "rejected", "2026-000124"))
    page = await sign_in(browser, world, person)
    await page.until(card("Отклонено"))
    erase = ("erase", "--account", person, "--offset", "2")
    await command(*erase, environment=world.gateway.environment)
    await page.until(f"!{card('Отклонено')} && {card('Одобрено')}")
    await page.run("location.hash = 'feed'")
    await page.until("document.querySelector('.row')")
    assert "Отклонено" not in await page.text("main")


async def test_a_tab_takes_over_from_one_that_does_nothing_any_more(browser: Chromium, world: World):
    person = world.person()
    first = await sign_in(browser, world, person)
    busy = asyncio.create_task(first.run("for (const end = Date.now() + 6000; Date.now() < end; );"))
    second = await browser.open(f"{world.address}/")
    await second.until(f"document.documentElement.dataset.leading === 'true' && {LIVE}")
    await world.publish(world.status(person, "approved"))
    await second.until(card("Одобрено"))
    assert not busy.done()
    await busy
    await first.until(card("Одобрено"))
    await first.until("document.documentElement.dataset.leading === 'false'")


async def test_signing_out_while_the_gateway_is_away(browser: Chromium, world: World):
    person = world.person()
    page = await sign_in(browser, world, person)
    await world.drop()
    await page.until("document.documentElement.dataset.state !== 'live'")
    await page.click("Выйти")
    await page.until("document.querySelector('#token')")
    assert await page.run("indexedDB.databases().then(all => all.length)") == 0
    world.back()


async def test_what_somebody_else_left_in_the_browser_is_no_obstacle(browser: Chromium, world: World):
    page = await browser.open(f"{world.address}/static/icon.svg")
    await page.until("location.pathname.endsWith('.svg')")
    await page.run("localStorage.setItem('account', '{')")
    await page.go(f"{world.address}/")
    await page.until("document.querySelector('#token')")


async def test_signing_out_signs_out_every_tab(browser: Chromium, world: World):
    person = world.person()
    first = await sign_in(browser, world, person)
    second = await browser.open(f"{world.address}/")
    await second.until(LIVE)
    await first.click("Выйти")
    for page in (first, second):
        await page.until("document.querySelector('#token')")


async def test_the_language_is_changed_and_kept(browser: Chromium, world: World):
    person = world.person()
    await world.publish(world.status(person, "approved"))
    page = await sign_in(browser, world, person)
    await page.until(card("Одобрено"))
    await page.click("English")
    await page.until(card("Approved"))
    assert await page.run("document.documentElement.lang") == "en"
    await page.run("location.reload()")
    await page.until(card("Approved"))


async def test_every_view_is_accessible(browser: Chromium, world: World, modules: Path):
    axe = (modules / "node_modules" / "axe-core" / "axe.min.js").read_text()
    person = world.person()
    fine = {"number": "18810", "status": "issued", "amount": 50000, "title": "Превышение скорости"}
    await world.publish(
        world.status(person, "action_required", reason={"code": "x", "text": "Подпишите"}),
        world.status(person, "rejected", "2026-000124", reason={"code": "x", "text": "Нет оснований"}),
        world.status(person, "done", "2026-000125"),
        world.status(person, "cancelled", "2026-000126", reason={"code": "x", "text": "Отозвано"}),
        world.event("gov.fine.changed", fine, person, subject="fine/18810"),
    )
    page = await sign_in(browser, world, person, prefers_reduced_motion="reduce")
    await page.run(axe)
    found = []
    sizes = {"light": (1280, 860), "dark": (390, 844)}
    for scheme, view in itertools.product(sizes, ("applications", "sections", "feed", "history", "devices")):
        await page.size(*sizes[scheme])
        await page.media(prefers_color_scheme=scheme, prefers_reduced_motion="reduce")
        await page.run(f"location.hash = '{view}'")
        await page.until(f"document.querySelector('main').dataset.view?.startsWith('{view[:7]}')")
        await page.until("document.querySelector('main .card, main .row, main .empty')")
        if view == "feed":
            await page.run("document.querySelector('details').open = true")
            await page.until("document.querySelectorAll('.checks input').length > 1")
        found += [f"{scheme} {view}: {fault}" for fault in await page.serious()]
        wide = await page.run("document.documentElement.scrollWidth - document.documentElement.clientWidth")
        assert wide <= 0, f"{view} is wider than the screen by {wide}"
        assert await page.run(SPILT) == [], view
    assert found == []


SPILT = """[...document.querySelectorAll('main input, main select, main button')].filter(e => e.checkVisibility())
  .filter(e => e.getBoundingClientRect().right > e.parentElement.getBoundingClientRect().right + 1)
  .map(e => e.outerHTML.slice(0, 80))"""


async def test_every_page_state_is_accessible(browser: Chromium, world: World, modules: Path):
    axe = (modules / "node_modules" / "axe-core" / "axe.min.js").read_text()
    person = world.person()
    found = {}
    page = await browser.open(f"{world.address}/", prefers_reduced_motion="reduce", prefers_color_scheme="dark")
    await page.until("document.querySelector('#token')")
    await page.run(axe)
    await page.run("document.querySelector('#token').value = 'nonsense'")
    await page.click("Sign in", "button[type=submit]")
    await page.until("document.querySelector('#fault').textContent")
    found["sign-in"] = await page.serious()
    await world.drop()
    await page.run(f"document.querySelector('#token').value = '{world.token(person)}'")
    await page.click("Sign in", "button[type=submit]")
    await page.until("document.body.innerText.includes('The gateway does not answer')")
    found["away"] = await page.serious()
    world.back()
    await page.click("Connect now")
    await page.until(f"{LIVE} && document.querySelector('.empty')")
    found["empty"] = await page.serious()
    await world.drop()
    await page.until("!document.getElementById('notice').hidden")
    found["offline"] = await page.serious()
    world.back()
    await page.until(LIVE)
    await command("revoke", "--sub", person, environment=world.gateway.environment)
    await page.until("document.body.innerText.includes('The session was ended')")
    found["ended"] = await page.serious()
    assert found == {state: [] for state in found}


async def test_what_an_agency_writes_is_text(browser: Chromium, world: World):
    person = world.person()
    await world.publish(world.notice(person, "<img src=x onerror='window.broken=1'><b>Жирно</b>"))
    page = await sign_in(browser, world, person)
    await page.run("location.hash = 'feed'")
    await page.until("document.querySelector('.row h2')?.textContent.includes('<b>Жирно</b>')")
    assert await page.run("window.broken") is None


async def test_the_client_runs_on_a_page_of_another_origin(browser: Chromium, world: World):
    person = world.person()
    page = await browser.open("about:blank")
    await page.call("Page.setBypassCSP", enabled=True)  # as a page would be that the gateway does not serve
    await page.go(f"{world.address}/static/icon.svg")
    await page.until("location.pathname.endsWith('.svg')")
    address, token = json.dumps(world.direct), json.dumps(world.token(person))
    script = f"""(async () => {{
      const {{ Vestnik }} = await import({address} + "/static/vestnik-client.js");
      const client = new Vestnik({{ address: {address}, token: () => {token}, subprotocol: "vestnik.v1.msgpack" }});
      window.got = [];
      client.on("events", ({{ events }}) => got.push(...events.map(([offset]) => offset)));
      await client.start();
      await new Promise((live) => client.on("state", ({{ name }}) => name === "live" && live()));
    }})()"""
    await page.run(script)
    await world.publish(world.notice(person))
    await page.until("got.length === 1")


async def test_the_policy_lets_in_nothing_from_outside(world: World):
    answer = await world.http.get(f"{world.direct}/")
    policy = answer.headers["content-security-policy"]
    assert policy == web.POLICY
    assert "unsafe" not in policy
    assert "//" not in policy
    assert "<style" not in answer.text
    assert " style=" not in answer.text
    assert "<script>" not in answer.text
    again = await world.http.get(f"{world.direct}/", headers={"if-none-match": answer.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert (await world.http.get(f"{world.direct}/static/nothing.js")).status_code == 404

"""The server's page as Chromium shows it: what it says, what it asks for, and what it never does."""

from __future__ import annotations

import contextlib
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from servers import ScriptedServer

from flexserve.testing import browser as chromium
from flexserve.testing.accessibility import beside, faint, nameless
from flexserve.testing.browser import Browser, Page
from flexserve.testing.script import Behaviour, Script
from flexserve.units import MIB

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(chromium.find() is None, reason=chromium.HOW_TO_GET),
]
MARKUP = "<img src=x onerror=document.title='taken'>"
KEY = "sk-the-only-key"
MODELS = {
    "tiny": Behaviour(sizes=(64 * MIB, 24 * MIB, 4 * MIB, 2 * MIB), memory=8 * MIB),
    "markup": Behaviour(tokens=[MARKUP, " is text"]),
    "slow": Behaviour(tokens=["word "] * 2000, token_delay=0.02),
    MARKUP: Behaviour(),
    "__proto__": Behaviour(),
}
ENTER, TAB, LEFT = ("Enter", 13), ("Tab", 9), ("ArrowLeft", 37)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with Browser() as browser:
        yield browser


@contextlib.contextmanager
def serving(sock: socket.socket, models: dict[str, Behaviour], *keys: str) -> Iterator[str]:
    port = sock.getsockname()[1]
    with ScriptedServer(sock, Script(models=models), keys):
        yield f"http://127.0.0.1:{port}/"


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(socket.create_server(("127.0.0.1", 0)), MODELS) as url:
        yield url


@pytest.fixture
def page(browser: Browser, url: str) -> Page:
    page = browser.open(url)
    page.wait_for("document.querySelectorAll('.model').length === 5")
    return page


def ask(page: Page, text: str, model: str = "tiny") -> None:
    page.value(f"document.getElementById('model').value = {model!r}")
    page.value("document.getElementById('prompt').focus()")
    page.type(text)
    page.press(*ENTER)


ANSWERED = "document.querySelector('.turn.assistant:last-child .about')?.textContent.includes('first token')"


def test_it_shows_what_the_server_knows_and_complains_of_nothing(page: Page) -> None:
    assert page.text("#status") == "ready"
    assert "scripted: unprotected" in page.text("#protection")
    assert "24.0 MiB of 64.0 MiB" in page.text(".model")
    assert "FlexServe has" in page.text("#memory-sum")
    names = page.value("[...document.querySelectorAll('#chart .label')].map((text) => text.textContent)")
    assert {"weights", "KV", "scratch", "others", "free"} <= set(names)
    assert "chunk of 2.0 MiB: in memory coming going on disk" in page.text("#chunk-legend")
    colour = "(part) => getComputedStyle(part, '::before').backgroundColor"
    colours = page.value(f"[...document.querySelectorAll('#chunk-legend [data-part]')].map({colour})")
    assert len(set(colours)) == 4
    described = page.value("document.querySelector('canvas').getAttribute('aria-label')")
    assert described == "32 chunks of weights: 12 in memory, 20 on disk"
    assert page.complaints() == []


def test_a_chat_is_answered_and_shows_where_the_time_went(page: Page, url: str) -> None:
    ask(page, "what is secret?")
    page.wait_for(ANSWERED)
    assert page.text(".turn.user .said") == "what is secret?"
    assert "Hello, world!" in page.text(".turn.assistant")
    assert "queue 1.5 ms, prompt 2.5 ms" in page.text(".turn.assistant .about")
    page.wait_for("document.querySelector('.request .rest')?.innerText.includes('4\u00a0tokens')")
    assert "tiny" in page.text(".request")
    page.wait_for("document.querySelectorAll('.decision').length >= 2")
    assert "grant" in page.text("#decision-list")
    assert "return" in page.text("#decision-list")
    assert page.value("location.href") == url
    assert "secret" not in page.text("#requests") + page.text("#decisions")
    assert page.complaints() == []


def test_what_models_are_called_and_say_is_text(page: Page) -> None:
    ask(page, MARKUP, "markup")
    page.wait_for(ANSWERED)
    assert f"{MARKUP} is text" in page.text(".turn.assistant")
    assert page.text(".turn.user .said") == MARKUP
    shown = page.value("[...document.querySelectorAll('.model .name')].map((name) => name.textContent)")
    assert {MARKUP, "__proto__"} <= set(shown)
    assert page.value("document.images.length") == 0
    assert page.value("document.title") == "FlexServe"
    assert page.complaints() == []


def test_its_policy_lets_no_markup_in(page: Page) -> None:
    refused = page.value(
        "(() => { try { document.body.innerHTML = 'x'; } catch (error) { return error.name; } })()"
    )
    assert refused == "TypeError"
    assert page.complaints()


def test_an_answer_can_be_stopped(page: Page) -> None:
    ask(page, "go on", "slow")
    page.wait_for("document.querySelector('.turn.assistant .said').textContent.includes('word')")
    page.click("#stop")
    page.wait_for("document.querySelector('.turn.assistant .about').textContent === 'stopped'")
    assert page.value("document.getElementById('send').hidden") is False


def test_a_key_is_asked_for_and_stays_in_the_page(browser: Browser) -> None:
    with serving(socket.create_server(("127.0.0.1", 0)), {"tiny": Behaviour()}, KEY) as url:
        page = browser.open(url)
        page.wait_for("document.activeElement.id === 'key'")
        assert page.value("document.getElementById('picture').hidden")
        page.type("sk-another-key")
        page.press(*ENTER)
        page.wait_for(
            "document.getElementById('key-error').textContent === 'The server does not know this key.'"
        )
        page.type(KEY)  # what was typed before is selected
        page.press(*ENTER)
        page.wait_for("document.querySelectorAll('.model').length === 1")
        ask(page, "hello")
        page.wait_for(ANSWERED)
        assert page.value("location.href") == url
        assert page.value("localStorage.length + sessionStorage.length + document.cookie.length") == 0
        assert KEY not in page.value("document.documentElement.outerHTML")
        assert page.value("document.getElementById('key').value") == ""
        assert nameless(page) == faint(page) == []


def test_a_server_that_goes_is_missed_and_found_again(browser: Browser) -> None:
    sock = socket.create_server(("127.0.0.1", 0))
    port = sock.getsockname()[1]
    with serving(sock, {"tiny": Behaviour()}) as url:
        page = browser.open(url)
        page.wait_for("document.querySelectorAll('.model').length === 1")
    sock.close()
    page.wait_for("document.getElementById('status').innerText === 'no connection'")
    assert "does not answer" in page.text("#notice")
    again = socket.create_server(("127.0.0.1", port))
    with serving(again, {"tiny": Behaviour(), "other": Behaviour()}):
        page.wait_for("document.querySelectorAll('.model').length === 2")
        assert page.text("#status") == "ready"
        assert page.value("document.getElementById('notice').hidden")


def test_a_store_without_models_says_what_to_do(browser: Browser) -> None:
    with serving(socket.create_server(("127.0.0.1", 0)), {}) as url:
        page = browser.open(url)
        page.wait_for("!document.getElementById('models-empty').hidden")
        assert "flexserve add" in page.text("#models-empty")
        assert page.value("document.getElementById('send').disabled")
        assert nameless(page) == faint(page) == []


def test_it_can_be_used_by_keyboard_alone(page: Page) -> None:
    reached: list[Any] = []
    for _ in range(12):
        page.press(*TAB)
        reached.append(page.value("document.activeElement.id || document.activeElement.textContent"))
    for place in ("Whole machine", "FlexServe", "chart", "model", "turns", "prompt", "send"):
        assert place in reached
    order = [place for place in reached if place in ("chart", "model", "prompt", "send")]
    assert order[:4] == ["chart", "model", "prompt", "send"]
    page.value("document.getElementById('chart').focus()")
    before = page.value("document.getElementById('chart').getAttribute('aria-valuetext')")
    time.sleep(1.1)  # there is a moment before the newest one then
    page.press(*LEFT)
    page.wait_for("document.querySelector('#chart .hand')")
    after = page.value("document.getElementById('chart').getAttribute('aria-valuetext')")
    assert "weights" in before
    assert "weights" in after
    assert page.value("getComputedStyle(document.activeElement).outlineStyle") == "solid"


LOOKS: list[Callable[[Page], None]] = [
    lambda page: page.look(dark=False),
    lambda page: page.look(dark=True),
    lambda page: page.resize(390, 844),
]


@pytest.mark.parametrize("look", LOOKS, ids=["light", "dark", "phone"])
def test_everybody_can_read_it(page: Page, look: Callable[[Page], None]) -> None:
    ask(page, "hello")
    page.wait_for(ANSWERED)
    page.wait_for("document.querySelector('.request')")
    look(page)
    assert nameless(page) == []
    assert faint(page) == []
    assert beside(page) == 0


def test_nothing_moves_for_those_who_want_it_calm(page: Page) -> None:
    ask(page, "go on", "slow")
    page.wait_for("document.querySelector('.turn[aria-busy]')")
    page.look(calm=False)
    assert page.value("document.getAnimations().length") == 1
    page.look(calm=True)
    assert page.value("document.getAnimations().length") == 0

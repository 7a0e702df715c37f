"""The server's page, as files: for browsers, self-contained, and closed to what comes from elsewhere."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from importlib.resources import files

import httpx
import pytest

from flexserve.normal.api.admission import Admission
from flexserve.normal.api.app import create_app
from flexserve.normal.api.keys import Key, Keys
from flexserve.normal.world import World

pytestmark = pytest.mark.anyio
BROWSER = {"Accept": "text/html,application/xhtml+xml,*/*;q=0.8"}
FOLDER = files("flexserve.normal") / "page"
NAMES = sorted(entry.name for entry in FOLDER.iterdir())
SVG = "http://www.w3.org/2000/svg"


@pytest.fixture
async def guarded(world: World) -> AsyncIterator[httpx.AsyncClient]:
    transport = httpx.ASGITransport(
        create_app(world, Admission(keys=Keys([Key.of("mine", "sk-the-only-key")])))
    )
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as client:
        yield client


async def test_browsers_get_the_page_and_others_a_word(guarded: httpx.AsyncClient) -> None:
    page = await guarded.get("/", headers=BROWSER)
    assert page.status_code == 200
    assert page.headers["content-type"].startswith("text/html")
    assert page.headers["vary"] == "Accept"
    assert "<title>FlexServe</title>" in page.text
    assert (await guarded.get("/")).text == "FlexServe is running"
    assert (await guarded.head("/")).status_code == 200


async def test_its_files_need_no_key_and_what_it_shows_does(guarded: httpx.AsyncClient) -> None:
    for name in NAMES:
        assert (await guarded.get(f"/page/{name}")).status_code == 200
    assert (await guarded.get("/events")).status_code == 401


async def test_nothing_else_lies_beside_them(guarded: httpx.AsyncClient) -> None:
    for path in ("/page/", "/page/nothing.js", "/page/..%2fpage.py", "/page/..%2f..%2fpy.typed", "/page/%00"):
        assert (await guarded.get(path)).status_code == 404


async def test_a_strict_policy_comes_with_every_file(guarded: httpx.AsyncClient) -> None:
    answers = [await guarded.get(f"/page/{name}") for name in NAMES]
    for answer in (await guarded.get("/", headers=BROWSER), *answers):
        policy = dict(rule.split(" ", 1) for rule in answer.headers["content-security-policy"].split("; "))
        assert policy["default-src"] == "'none'"
        assert policy["script-src"] == policy["style-src"] == policy["connect-src"] == "'self'"
        assert policy["require-trusted-types-for"] == "'script'"
        assert policy["frame-ancestors"] == "'none'"
        assert "unsafe" not in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert answer.headers["referrer-policy"] == "no-referrer"


async def test_it_refuses_other_names(guarded: httpx.AsyncClient) -> None:
    for path in ("/", "/page/main.js"):
        assert (await guarded.get(path, headers={**BROWSER, "Host": "evil.example"})).status_code == 403


@pytest.mark.parametrize("name", NAMES)
def test_no_file_names_an_address_elsewhere_or_makes_markup_of_text(name: str) -> None:
    text = (FOLDER / name).read_text()
    assert "://" not in text.replace(SVG, "")
    assert not re.search(r"(src|href|url\()\s*[=(]?\s*[\"']?//", text)
    for means in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval(", "localStorage"):
        assert means not in text
    assert "sessionStorage" not in text
    assert "document.cookie" not in text


def test_the_page_has_no_inline_script_or_style() -> None:
    html = (FOLDER / "index.html").read_text()
    assert re.findall(r"<script[^>]*>", html) == ['<script type="module" src="page/main.js">']
    assert "<style" not in html
    assert not re.search(r"\s(style|on\w+)=", html)


def test_every_file_that_is_named_is_there() -> None:
    html = (FOLDER / "index.html").read_text()
    named = set(re.findall(r'"page/([\w.]+)"', html))
    for name in NAMES:
        named |= set(re.findall(r'from "\./([\w.]+)"', (FOLDER / name).read_text()))
    assert named | {"index.html"} == set(NAMES)

"""Headless Chromium, driven over a pipe: what a person would see of a page, and what it complains of.

The DevTools protocol is JSON with a zero byte behind each message, so a pipe needs no library. Chromium is
Debian's, and nothing here fetches one.
"""

from __future__ import annotations

import base64
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import sys
import tempfile
import time
from collections import deque
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from flexserve.platforms.linux import parent_death

CHROMIUM = ("chromium", "chromium-headless-shell", "chromium-browser", "google-chrome")
HOW_TO_GET = "Chromium is not installed: `apt install chromium` brings it."
_TIMEOUT = 30.0  # seconds for an answer, or for a condition to hold
_POLL = 0.05
_FIRST_FREE = 10  # descriptors from here on are not those that Chromium reads its commands from
# Chromium reads commands from descriptor 3 and answers on 4.
_LAUNCH = """
import os, sys
os.dup2(int(sys.argv[1]), 3)
os.dup2(int(sys.argv[2]), 4)
os.execv(sys.argv[3], sys.argv[3:])
"""

Json = dict[str, Any]


class BrowserError(Exception):
    """Chromium refused, fell silent, or ended."""


def find() -> str | None:
    """Return the path of Chromium; None: there is none."""
    return next((path for name in CHROMIUM if (path := shutil.which(name))), None)


class Browser:
    """A headless Chromium from the start of a block to its end. Raises BrowserError when there is none."""

    def __init__(self) -> None:
        program = find()
        if program is None:
            raise BrowserError(HOW_TO_GET)
        self._folder = tempfile.TemporaryDirectory(prefix="chromium-", ignore_cleanup_errors=True)
        theirs_in, self._out = os.pipe()
        self._in, theirs_out = os.pipe()
        passed = [fcntl.fcntl(fd, fcntl.F_DUPFD, _FIRST_FREE) for fd in (theirs_in, theirs_out)]
        options = ["--headless=new", "--remote-debugging-pipe", f"--user-data-dir={self._folder.name}"]
        options += ["--disable-gpu", "--no-first-run", "--disable-background-networking", "--hide-scrollbars"]
        if os.geteuid() == 0:  # its sandbox refuses root
            options.append("--no-sandbox")
        launch = [sys.executable, "-c", _LAUNCH, *map(str, passed), program, *options]
        self._process = subprocess.Popen(
            parent_death.command(*launch),
            pass_fds=passed,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for fd in (theirs_in, theirs_out, *passed):
            os.close(fd)
        self._numbers = itertools.count(1)
        self._rest = b""
        self.events: deque[Json] = deque()

    def open(self, url: str, *, width: int = 1280, height: int = 800, dark: bool = False) -> Page:
        """Open `url` in a window of its own, of `width` by `height` pixels, and return the page."""
        context = self.call("Target.createBrowserContext")["browserContextId"]
        target = self.call("Target.createTarget", url="about:blank", browserContextId=context)["targetId"]
        session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        page = Page(self, session)
        page.resize(width, height)
        page.look(dark=dark)
        for domain in ("Page", "Runtime", "Log", "Network", "Accessibility"):
            page.call(f"{domain}.enable")
        page.go(url)
        return page

    def call(self, method: str, session: str | None = None, **parameters: Any) -> Json:
        """Have Chromium do something, and return its answer. Raises BrowserError."""
        number = next(self._numbers)
        message: Json = {"id": number, "method": method, "params": parameters}
        if session is not None:
            message["sessionId"] = session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") != number:
                self.events.append(answer)
            elif "error" in answer:
                raise BrowserError(f"{method}: {answer['error']['message']}")
            else:
                result: Json = answer["result"]
                return result

    def _next(self) -> Json:
        deadline = time.monotonic() + _TIMEOUT
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            piece = os.read(self._in, 1 << 20) if ready else b""
            if not piece:
                raise BrowserError("Chromium does not answer.")
            self._rest += piece
        message, _, self._rest = self._rest.partition(b"\0")
        decoded: Json = json.loads(message)
        return decoded

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        os.close(self._in)
        os.close(self._out)
        self._folder.cleanup()


class Page:
    """A page that is open. Methods raise BrowserError when it does not do as told."""

    def __init__(self, browser: Browser, session: str) -> None:
        self._browser, self._session = browser, session

    def call(self, method: str, **parameters: Any) -> Json:
        """Have Chromium do something with this page, and return its answer."""
        return self._browser.call(method, self._session, **parameters)

    def go(self, url: str) -> None:
        """Go to `url`."""
        answer = self.call("Page.navigate", url=url)
        if "errorText" in answer:
            raise BrowserError(f"{url}: {answer['errorText']}")
        self.wait_for("document.readyState === 'complete'")

    def resize(self, width: int, height: int) -> None:
        """Make the window that large, in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False},
        )

    def look(self, *, dark: bool = False, calm: bool = True) -> None:
        """Prefer a dark or a light look, and less motion."""
        features = [
            {"name": "prefers-color-scheme", "value": "dark" if dark else "light"},
            {"name": "prefers-reduced-motion", "value": "reduce" if calm else "no-preference"},
        ]
        self.call("Emulation.setEmulatedMedia", features=features)

    def value(self, expression: str) -> Any:
        """Return what a JavaScript expression is, or becomes, as JSON has it."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in answer:
            raise BrowserError(f"{expression}: {answer['exceptionDetails']}")
        return answer["result"].get("value")

    def wait_for(self, expression: str) -> None:
        """Wait until a JavaScript expression is true. Raises BrowserError when it stays false."""
        deadline = time.monotonic() + _TIMEOUT
        while not self.value(f"Boolean({expression})"):
            if time.monotonic() > deadline:
                raise BrowserError(f"It did not become true: {expression}")
            time.sleep(_POLL)

    def text(self, selector: str) -> str:
        """Return the text that is visible of an element, with ordinary spaces."""
        text = self.value(f"document.querySelector({json.dumps(selector)}).innerText")
        return str(text).replace("\xa0", " ")

    def type(self, text: str) -> None:
        """Type `text` where the focus is."""
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, *, shift: bool = False) -> None:
        """Press a key ("Tab", "Enter") with its code of Windows (9, 13)."""
        said = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": 8 if shift else 0}
        text = {"text": "\r"} if key == "Enter" else {}
        self.call("Input.dispatchKeyEvent", type="keyDown", **said, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **said)

    def click(self, selector: str) -> None:
        """Click on an element."""
        self.value(f"document.querySelector({json.dumps(selector)}).click()")

    def complaints(self) -> list[str]:
        """Return what Chromium had to complain of since the last call: errors, and what a policy refused."""
        self.value("0")  # what was said before is here then
        found = []
        for event in [event for event in self._browser.events if event.get("sessionId") == self._session]:
            self._browser.events.remove(event)
            parameters = event["params"]
            if event["method"] == "Runtime.exceptionThrown":
                details = parameters["exceptionDetails"]
                found.append(str(details.get("exception", {}).get("description", details["text"])))
            elif event["method"] == "Log.entryAdded" and parameters["entry"]["level"] == "error":
                found.append(f"{parameters['entry']['text']} {parameters['entry'].get('url', '')}")
        return found

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write what is seen to `path`, as PNG; `whole`: all of the page, as far as one could scroll."""
        data = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)["data"]
        path.write_bytes(base64.b64decode(data))

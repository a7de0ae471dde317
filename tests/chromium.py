"""A headless Chromium, driven over its own protocol through two pipes; no driver, no network."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
KEYS = {" ": "Space", "ArrowLeft": "ArrowLeft", "ArrowRight": "ArrowRight"}
WAIT = 40.0  # seconds, for the slowest machine


def browser_path() -> str:
    """Of a browser that is installed, or a skip that says which would do."""
    named = os.environ.get("OPENVIS_CHROMIUM", "")
    for name in (named, *BROWSERS):
        if name and (found := shutil.which(name)):
            return found
    pytest.skip(f"the page is tested in a browser, and there is none of {', '.join(BROWSERS)}")


class Chromium:
    """One page; use it in a ``with`` block.

    Attributes:
        requests: addresses that the page asked for, but for ``data:`` and ``blob:``.
        errors: what its scripts threw or complained of.
    """

    def __init__(self, profile: Path, size: tuple[int, int]) -> None:
        self._profile, self._size = profile, size
        self._number, self._session = 0, ""
        self.requests: list[str] = []
        self.errors: list[str] = []

    def __enter__(self) -> Chromium:
        theirs_in, ours_out = os.pipe()
        ours_in, theirs_out = os.pipe()

        def as_three_and_four() -> None:
            low, high = os.dup(theirs_in), os.dup(theirs_out)
            os.dup2(low, 3)
            os.dup2(high, 4)

        self._process = subprocess.Popen(
            [
                *(browser_path(), "--headless=new", "--no-sandbox", "--disable-gpu"),
                *("--remote-debugging-pipe", "--hide-scrollbars", "--no-first-run"),
                *("--disable-dev-shm-usage", f"--user-data-dir={self._profile}"),
                *("--autoplay-policy=no-user-gesture-required", "about:blank"),
            ],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            preexec_fn=as_three_and_four,  # noqa: PLW1509 - the protocol's pipes are 3 and 4
            close_fds=False,
        )
        os.close(theirs_in)
        os.close(theirs_out)
        self._out, self._in = os.fdopen(ours_out, "wb", 0), os.fdopen(ours_in, "rb")
        targets = self.call("Target.getTargets")["targetInfos"]
        [page] = [target["targetId"] for target in targets if target["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        self.resize(*self._size)
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        return self

    def __exit__(self, *_: object) -> None:
        self._session = ""
        try:
            self.call("Browser.close")
            self._process.wait(WAIT)
        except (OSError, EOFError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        self._out.close()
        self._in.close()

    def resize(self, width: int, height: int) -> None:
        """The window's size in pixels."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One call of the DevTools protocol."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        self._out.write(json.dumps(message).encode() + b"\0")
        while (answer := self._read()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, (method, answer)
        result: dict[str, Any] = answer["result"]
        return result

    def open(self, page: Path, ready: str) -> None:
        """Load a page, and wait until an expression is true."""
        self.go(page.as_uri())
        self.wait(ready)

    def go(self, address: str) -> None:
        """Load what is at an address, without waiting for it."""
        self.call("Page.navigate", url=address)

    def evaluate(self, expression: str) -> Any:
        """The value of an expression in the page; promises are awaited."""
        found = self.call(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true."""
        begin = time.monotonic()
        while not self.evaluate(expression):
            assert time.monotonic() - begin < WAIT, (expression, self.errors)
            time.sleep(0.02)

    def press(self, key: str) -> None:
        """A key, such as ``ArrowLeft`` or a letter."""
        text = {"text": key} if len(key) == 1 else {}
        code = KEYS.get(key, f"Key{key.upper()}" if len(key) == 1 else key)
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=code, **text)

    def click(self, x: float, y: float) -> None:
        """The mouse at a point of the window, in pixels."""
        for kind in ("mouseMoved", "mousePressed", "mouseReleased"):
            which = {} if kind == "mouseMoved" else {"button": "left", "clickCount": 1}
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, **which)

    def screenshot(self) -> bytes:
        """PNG of the window."""
        return base64.b64decode(self.call("Page.captureScreenshot")["data"])

    def _read(self) -> dict[str, Any]:
        letters = bytearray()
        while (letter := self._in.read(1)) != b"\0":
            if not letter:
                raise EOFError("the browser has gone")
            letters += letter
        answer: dict[str, Any] = json.loads(letters)
        return answer

    def _note(self, event: dict[str, Any]) -> None:
        facts = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent":
            address = facts["request"]["url"]
            if not address.startswith(("data:", "blob:")):
                self.requests.append(address)
        elif event.get("method") == "Runtime.exceptionThrown":
            self.errors.append(str(facts["exceptionDetails"]))
        elif event.get("method") == "Log.entryAdded" and facts["entry"]["level"] == "error":
            self.errors.append(facts["entry"]["text"])

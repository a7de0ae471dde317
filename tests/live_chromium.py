"""Headless Chromium over its debugging pipe, with nothing but the standard library.

with Chromium.open(tmp_path) as browser:
    browser.go("http://127.0.0.1:8000/")
    browser.until("document.title == 'ready'")
    browser.screenshot(path)
"""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

__all__ = ["BROWSER", "Chromium"]

BROWSER = next(
    (p for n in ("chromium", "chromium-browser", "google-chrome") if (p := shutil.which(n))), None
)
_FLAGS = (
    *("--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--mute-audio"),
    *("--no-first-run", "--disable-extensions", "--disable-background-networking"),
    *("--remote-debugging-pipe", "--disable-dev-shm-usage"),
)

_AS_3_AND_4 = """
import fcntl, os, sys
ends = [fcntl.fcntl(int(end), fcntl.F_DUPFD, 10) for end in sys.argv[1:3]]
os.dup2(ends[0], 3)
os.dup2(ends[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""


class Chromium:
    """One page of a browser; every call raises where the page answers with an error."""

    def __init__(self, to: int, back: int) -> None:
        self._to, self._back, self._held = to, back, b""
        self._number, self._session = 0, ""
        self.said: list[str] = []  # what the page wrote to its console, and errors it did not catch
        self.asked: list[str] = []  # every address that it asked for

    @classmethod
    @contextmanager
    def open(cls, folder: Path) -> Iterator[Chromium]:
        """A browser with a profile of its own in a folder."""
        assert BROWSER is not None
        read_here, write_there = os.pipe()
        read_there, write_here = os.pipe()
        ends = (str(read_there), str(write_there))
        flags = (*_FLAGS, f"--user-data-dir={folder}")
        command = [sys.executable, "-c", _AS_3_AND_4, *ends, BROWSER, *flags]
        process = subprocess.Popen(
            command, pass_fds=(read_there, write_there), stderr=subprocess.DEVNULL
        )
        os.close(read_there)
        os.close(write_there)
        browser = cls(write_here, read_here)
        try:
            browser._attach()
            yield browser
            browser.call("Browser.close")
            process.wait(10)
        finally:
            process.kill()
            process.wait()
            os.close(write_here)
            os.close(read_here)

    def call(self, method: str, **params: Any) -> Any:
        """One command of the DevTools protocol, and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session and not method.startswith(("Browser.", "Target.")):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while (answer := self._next()).get("id") != self._number:
            self._note(answer)
        assert "error" not in answer, answer
        return answer["result"]

    def go(self, address: str) -> None:
        """Open an address."""
        self.call("Page.navigate", url=address)

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives, as JSON."""
        found = self._evaluated(expression)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def until(self, expression: str, seconds: float = 10.0) -> Any:
        """Wait for an expression to become true; it may fail until then, as a page is loaded."""
        end = time.monotonic() + seconds
        while True:
            found = self._evaluated(expression)
            if "exceptionDetails" not in found and found["result"].get("value"):
                return found["result"]["value"]
            assert time.monotonic() < end, f"{expression} did not come true; {found} {self.said}"
            time.sleep(0.02)

    def look(self, width: int, height: int, *, dark: bool = False, scale: float = 1.0) -> None:
        """Set the window's size in CSS pixels and the wished colours."""
        self.call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=scale,
            mobile=width < 600,
        )
        wish = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[wish])

    def screenshot(self, path: Path) -> None:
        """The window as a PNG."""
        data = self.call("Page.captureScreenshot", format="png")["data"]
        path.write_bytes(base64.b64decode(data))

    def _evaluated(self, expression: str) -> Any:
        return self.call("Runtime.evaluate", expression=expression, returnByValue=True)

    def _attach(self) -> None:
        [page] = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        attached = self.call("Target.attachToTarget", targetId=page["targetId"], flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._held:
            data = os.read(self._back, 1 << 20)
            assert data, "the browser has ended"
            self._held += data
        line, _, self._held = self._held.partition(b"\0")
        return json.loads(line)

    def _note(self, event: dict[str, Any]) -> None:
        method, params = event.get("method"), event.get("params", {})
        if method == "Network.requestWillBeSent":
            self.asked.append(params["request"]["url"])
        elif method in ("Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"):
            self.said.append(json.dumps(params)[:500])

"""Headless Chromium, driven through the pipes of its DevTools protocol."""

import fcntl
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 60


def chromium() -> str | None:
    """Where a Chromium is, if anywhere."""
    return next((found for name in NAMES if (found := shutil.which(name))), None)


class Page:
    """A tab."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._number = 0
        self._session: dict[str, str] = {}
        self._held = b""
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        attached = self.send("Target.attachToTarget", targetId=target, flatten=True)
        self._session = {"sessionId": attached["sessionId"]}

    def send(self, method: str, **parameters: Any) -> Any:
        """A command of the protocol, and its result."""
        self._number += 1
        document = {"id": self._number, "method": method, "params": parameters, **self._session}
        data = json.dumps(document).encode() + b"\0"
        while data:
            data = data[os.write(self._writing, data) :]
        while True:
            message = json.loads(self._message())
            if message.get("id") == self._number:
                assert "error" not in message, message
                return message["result"]

    def _message(self) -> bytes:
        while b"\0" not in self._held:
            part = os.read(self._reading, 1 << 16)
            assert part, "the browser ended"
            self._held += part
        message, _, self._held = self._held.partition(b"\0")
        return message

    def open(self, url: str, width: int = 1280, height: int = 900) -> None:
        """Go to a page in a window of this size."""
        self.send(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )
        self.send("Page.navigate", url=url)
        self.wait(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def value(self, expression: str) -> Any:
        """What a JavaScript expression gives."""
        result = self.send(
            "Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def wait(self, expression: str) -> None:
        """Until an expression is true."""
        end = time.monotonic() + SECONDS
        while not self.value(f"Boolean({expression})"):
            assert time.monotonic() < end, f"{expression} does not become true"
            time.sleep(0.02)

    def color_scheme(self, scheme: str) -> None:
        """Prefer light or dark pages."""
        feature = {"name": "prefers-color-scheme", "value": scheme}
        self.send("Emulation.setEmulatedMedia", features=[feature])


@contextmanager
def browsing(profile: Path) -> Iterator[Page]:
    """A tab in a browser of its own, which ends with the block."""
    program = chromium()
    assert program is not None
    to_browser, from_browser = os.pipe(), os.pipe()

    def pipes() -> None:
        # the protocol is spoken on the descriptors 3 and 4, one of which an end may have
        ends = [fcntl.fcntl(end, fcntl.F_DUPFD, 10) for end in (to_browser[0], from_browser[1])]
        os.dup2(ends[0], 3)
        os.dup2(ends[1], 4)

    process = subprocess.Popen(
        [
            program,
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-background-networking",
            "--no-first-run",
            f"--user-data-dir={profile}",
            "--remote-debugging-pipe",
        ],
        preexec_fn=pipes,
        close_fds=False,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(to_browser[0])
    os.close(from_browser[1])
    try:
        page = Page(from_browser[0], to_browser[1])
        yield page
        page._session = {}
        page.send("Browser.close")
    finally:
        process.terminate()
        process.wait(10)
        os.close(from_browser[0])
        os.close(to_browser[1])

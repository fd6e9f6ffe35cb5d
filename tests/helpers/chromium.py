"""A page in headless Chromium: what a script finds there."""

import json
import re
import shutil
import subprocess
from html import escape, unescape
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
_FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    *("--hide-scrollbars", "--virtual-time-budget=2000"),
)


def found_in(page: Path, folder: Path, width: int, script: str, *, dark: bool = False) -> Any:
    """What the body of a JavaScript function returns in a page; skips where there is no Chromium.

    folder: for the browser's profile and a copy of the page. width: in pixels.
    """
    program = next(filter(None, map(shutil.which, NAMES)), None)
    if program is None:
        pytest.skip("no Chromium is installed")
    told = f"parent.document.body.dataset.found = JSON.stringify((() => {{{script}}})());"
    inner = page.read_text().replace("</body>", f"<script>{told}</script></body>")
    frame = folder / "frame.html"
    # a window is no narrower than 500 pixels, a frame is as narrow as it is told
    frame.write_text(
        '<!doctype html><meta charset="utf-8"><meta name="color-scheme" content="light dark">'
        f'<body><iframe width="{width}" height="900" style="border: 0" srcdoc="{escape(inner)}">'
    )
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    place = [f"--user-data-dir={folder / 'profile'}", "--window-size=1400,1000"]
    ran = subprocess.run(
        [program, *_FLAGS, *scheme, *place, "--dump-dom", frame.as_uri()],
        capture_output=True,
        text=True,
        timeout=120,
    )
    match = re.search('data-found="(.*?)"', ran.stdout)
    assert match is not None, ran.stderr[-2000:]
    return json.loads(unescape(match[1]))

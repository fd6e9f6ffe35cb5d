"""Makes docs/pictures/chat.png: the chat page of `minitron serve`, while a bundled model answers.

    python scripts/chat_picture.py [MODEL.gguf]

Needs Chromium. Without MODEL it converts and serves examples/nano-llama.
"""

import base64
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.browser import Page, browsing  # noqa: E402

PICTURE = ROOT / "docs" / "pictures" / "chat.png"
SETTINGS = {"temperature": "0.7", "top_p": "0.9", "max_tokens": "70", "seed": "7"}
SIZE = 1000, 720


def photograph(page: Page, url: str) -> bytes:
    """The page with a question and its answer."""
    page.color_scheme("light")
    page.open(url, *SIZE)
    page.wait("$('status').textContent || hasTemplate")
    for name, value in SETTINGS.items():
        page.value(f"$('{name}').value = {value}")
    page.value("$('settings').open = true; $('prompt').value = 'The old house stood'")
    page.value("$('form').requestSubmit()")
    page.wait("$('stop').disabled && document.querySelector('.assistant')")
    return base64.b64decode(page.send("Page.captureScreenshot")["data"])


def main() -> None:
    """Serve, ask, take the picture."""
    minitron = [sys.executable, "-m", "minitron_cli"]
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder, "nano-llama-F16.gguf")
        if len(sys.argv) > 1:
            model = Path(sys.argv[1])
        else:
            source = str(ROOT / "examples" / "nano-llama")
            subprocess.run([*minitron, "convert", source, "-o", str(model), "-q"], check=True)
        server = subprocess.Popen(
            [*minitron, "serve", str(model), "--port", "0", "--threads", "1", "-q"],
            stdout=subprocess.PIPE,
            text=True,
        )
        assert server.stdout is not None
        try:
            url = server.stdout.readline().strip().removesuffix("v1")
            with browsing(Path(folder, "profile")) as page:
                picture = photograph(page, url)
        finally:
            server.terminate()
            server.wait()
    PICTURE.parent.mkdir(exist_ok=True)
    PICTURE.write_bytes(picture)


if __name__ == "__main__":
    main()

"""Makes docs/pictures from real runs: a terminal's table, the report, the card, the chat page.

    python scripts/pictures.py

Runs examples/nano.toml, or continues it, which takes minutes the first time. The pages are
photographed by Chromium, through the tests' helper; without it only the SVG files are made.
"""

import base64
import os
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT / "tests"))

from helpers.browser import Page, browsing, chromium  # noqa: E402
from helpers.server import serving  # noqa: E402
from helpers.support import with_template  # noqa: E402

PICTURES = ROOT / "docs" / "pictures"
OUT = ROOT / "examples" / "out"
JOB = "examples/nano.toml"
# the bundled model continues text: what is said is the beginning of a story
TEMPLATE = "{{ bos_token }}{{ messages[-1].content }}"
# a character and a line of the font, and the space around the text, in pixels
CHARACTER, LINE, MARGIN = 7.2, 17, 16
TERMINAL = """<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height}" \
width="{width:.0f}" height="{height}" role="img" aria-label="{title}">
<style>text {{ font: 12px ui-monospace, "DejaVu Sans Mono", Menlo, Consolas, monospace; \
fill: #d6dde4; white-space: pre; }}
.typed {{ fill: #7fd18b; }} .head {{ font-weight: bold; }}</style>
<rect width="100%" height="100%" rx="8" fill="#14181c"/>
{lines}</svg>
"""


def minitron(*words: str) -> str:
    """What a command prints on stdout, in the root of the repository."""
    environment = {**os.environ, "COLUMNS": "120"}
    command = [sys.executable, "-m", "minitron_cli", *words]
    ran = subprocess.run(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)
    ran.check_returncode()
    return ran.stdout


def terminal(title: str, printed: str) -> str:
    """A command and what it printed, as SVG."""
    lines = [("typed", f"$ {title}")]
    for number, line in enumerate(printed.rstrip().splitlines()):
        lines.append(("head" if number == 0 else "", line.rstrip()))
    width = 2 * MARGIN + CHARACTER * max(len(line) for _, line in lines)
    places = (f'x="{MARGIN}" y="{MARGIN + LINE * number + 10}"' for number in range(len(lines)))
    texts = "".join(
        f'<text class="{kind}" {place}>{escape(line)}</text>\n'
        for place, (kind, line) in zip(places, lines, strict=True)
    )
    height = 2 * MARGIN + LINE * len(lines) - 4
    return TERMINAL.format(width=width, height=height, title=escape(title), lines=texts)


def photograph(page: Page, name: str) -> None:
    """What a tab shows, as a PNG file."""
    data = page.send("Page.captureScreenshot", format="png")["data"]
    (PICTURES / name).write_bytes(base64.b64decode(data))


def photograph_report(page: Page) -> None:
    """The report on a desk, and on a phone in the dark."""
    report = (OUT / "report.html").as_uri()
    page.color_scheme("light")
    page.open(report, 1000, 1180)
    photograph(page, "report.png")
    page.color_scheme("dark")
    page.open(f"{report}?phone", 390, 1100)
    photograph(page, "report-phone-dark.png")
    page.color_scheme("light")


def photograph_card(page: Page, folder: Path) -> None:
    """The end of the card's table, its figure, and which file to choose."""
    page.open(card_page(folder).as_uri(), 1000, 1000)
    page.wait("document.images[0].complete")
    page.value("scrollTo(0, document.images[0].offsetTop - 240)")
    photograph(page, "card.png")


def photograph_chat(page: Page, folder: Path) -> None:
    """The chat page after an answer."""
    model = with_template(OUT / "Nano-Llama-8.0M-Q4_K_M.gguf", folder / "nano.gguf", TEMPLATE)
    with serving(model) as url:
        page.open(f"{url}/", 1000, 640)
        page.wait("document.title === 'nano'")
        for name, value in (("temperature", 0.7), ("seed", 7), ("max_tokens", 80)):
            page.value(f"$('{name}').value = {value}")
            page.value(f"$('{name}').dispatchEvent(new Event('input'))")
        page.value("$('prompt').value = 'The old house stood'; $('form').requestSubmit()")
        page.wait("$('stop').disabled && document.querySelector('.assistant')")
        photograph(page, "chat.png")


def card_page(folder: Path) -> Path:
    """The model card of examples/out as a page, for the photograph."""
    from markdown_it import MarkdownIt

    text = (OUT / "README.md").read_text().split("---\n", 2)[2]
    body = MarkdownIt("commonmark").enable("table").render(text)
    page = folder / "card.html"
    style = (
        "body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; }"
        "table { border-collapse: collapse; font-size: .85rem; } td, th { padding: .2rem .5rem;"
        "border: 1px solid #d8dde3; white-space: nowrap; }"
        "pre { background: #f4f6f8; padding: .6rem; overflow: auto; }"
    )
    base = f'<base href="{OUT.as_uri()}/">'
    page.write_text(f'<!doctype html><meta charset="utf-8">{base}<style>{style}</style>{body}')
    return page


def main() -> None:
    """Make all pictures."""
    PICTURES.mkdir(parents=True, exist_ok=True)
    table = minitron("run", JOB, "--resume")
    rows = table.split("\n\n", 1)[0]
    (PICTURES / "table.svg").write_text(terminal(f"minitron run {JOB}", rows))
    shutil.copy(OUT / "report.svg", PICTURES / "report.svg")
    minitron("card", str(OUT), "--force")
    if chromium() is None:
        print("no Chromium: the pictures of pages are left as they are")
        return
    with tempfile.TemporaryDirectory() as name, browsing(Path(name) / "profile") as page:
        page.send("Emulation.setScrollbarsHidden", hidden=True)
        photograph_report(page)
        photograph_card(page, Path(name))
        photograph_chat(page, Path(name))


if __name__ == "__main__":
    main()

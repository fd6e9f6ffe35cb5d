"""Makes docs/pictures from real runs: the table of a terminal, the report, the model card.

    python scripts/pictures.py

Runs examples/nano.toml, or continues it, which takes minutes the first time. The pages are
photographed by Chromium; without it only the SVG files are made.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from html import escape
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "pictures"
OUT = ROOT / "examples" / "out"
JOB = "examples/nano.toml"
BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--hide-scrollbars",
)
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


def photograph(page: Path, name: str, width: int, height: int, *, dark: bool = False) -> None:
    """A page as Chromium shows it."""
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        print(f"no Chromium: {name} is left as it is")
        return
    scheme = ["--blink-settings=preferredColorScheme=0"] if dark else []
    with tempfile.TemporaryDirectory() as profile:
        place = [f"--user-data-dir={profile}", f"--window-size={width},{height}"]
        target = f"--screenshot={PICTURES / name}"
        command = [browser, *FLAGS, *scheme, *place, target, page.as_uri()]
        subprocess.run(command, check=True, capture_output=True, timeout=120)


def card_page(folder: Path) -> Path:
    """The model card of examples/out as a page, for the photograph."""
    from markdown_it import MarkdownIt

    text = (OUT / "README.md").read_text().split("---\n", 2)[2]
    body = MarkdownIt("commonmark").enable("table").render(text)
    page = folder / "card.html"
    style = (
        "body { font: 16px/1.5 system-ui, sans-serif; max-width: 54rem; margin: 2rem auto; }"
        "table { border-collapse: collapse; font-size: .85rem; } td, th { padding: .2rem .5rem;"
        "border: 1px solid #d8dde3; } pre { background: #f4f6f8; padding: .6rem; overflow: auto; }"
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
    report = OUT / "report.html"
    photograph(report, "report.png", 1000, 1180)
    photograph(report, "report-phone-dark.png", 390, 1100, dark=True)
    minitron("card", str(OUT), "--force")
    with tempfile.TemporaryDirectory() as folder:
        photograph(card_page(Path(folder)), "card.png", 1000, 900)


if __name__ == "__main__":
    main()

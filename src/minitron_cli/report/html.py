"""The report as one HTML file that needs nothing else: no scripts, no fonts, no network."""

from collections.abc import Iterable, Sequence
from html import escape
from typing import Any

_STYLE = """
:root { color-scheme: light dark; --ink: #1d2329; --faint: #5c6670; --paper: #fff;
  --line: #d8dde3; --band: #f4f6f8; --accent: #b8640c; }
@media (prefers-color-scheme: dark) { :root { --ink: #e4e8ec; --faint: #9aa5b1;
  --paper: #14181c; --line: #343b43; --band: #1c2126; --accent: #e8a15c; } }
@media print { :root { color-scheme: light; --ink: #000; --faint: #444; --paper: #fff;
  --line: #bbb; --band: #f2f2f2; } figure, table { break-inside: avoid; } }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  max-width: 70rem; margin: 2.5rem auto; padding: 0 1.25rem; }
h1 { font-size: 1.7rem; margin: 0 0 .25rem; } h2 { font-size: 1.15rem; margin: 2.5rem 0 .75rem; }
p.lead, figcaption, td.note { color: var(--faint); } p.lead { margin-top: 0; }
div.wide { overflow-x: auto; }
table { border-collapse: collapse; width: 100%; font-size: .9rem;
  font-variant-numeric: tabular-nums; }
th, td { padding: .3rem .5rem; text-align: right; white-space: nowrap;
  border-bottom: 1px solid var(--line); }
th:first-child, td:first-child { text-align: left; } th { color: var(--faint); font-weight: 600; }
tbody tr:nth-child(even) { background: var(--band); }
tr.best td:first-child { color: var(--accent); font-weight: 600; }
figure { margin: 1rem 0 2rem; } svg { width: 100%; height: auto; }
pre { background: var(--band); border: 1px solid var(--line); border-radius: 6px;
  padding: .8rem 1rem; overflow-x: auto; font-size: .85rem; }
code { font-family: ui-monospace, monospace; }
table.hashes td { text-align: left; font-family: ui-monospace, monospace; font-size: .8rem; }
"""


def page(title: str, lead: str, parts: Iterable[str]) -> str:
    """A whole page; `parts` are HTML already, title and lead are text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        f"{''.join(parts)}</body>\n</html>\n"
    )


def heading(text: str) -> str:
    """The heading of a part."""
    return f"<h2>{escape(text)}</h2>\n"


def paragraph(text: str) -> str:
    """A paragraph of text."""
    return f"<p>{escape(text)}</p>\n"


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    best: frozenset[int] = frozenset(),
    kind: str = "",
) -> str:
    """A table of texts; the rows numbered in `best` stand out."""
    head = "".join(f"<th>{escape(header)}</th>" for header in headers)
    lines = (
        f"<tr{' class=best' if number in best else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>\n"
        for number, row in enumerate(rows)
    )
    name = f' class="{kind}"' if kind else ""
    return (
        f'<div class="wide"><table{name}>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(lines)}</tbody>\n</table></div>\n"
    )


def figure(svg: str, caption: str) -> str:
    """A picture with its caption; nothing where there is no picture."""
    return f"<figure>\n{svg}<figcaption>{escape(caption)}</figcaption>\n</figure>\n" if svg else ""


def listing(lines: Iterable[str]) -> str:
    """Lines to be typed."""
    return f"<pre><code>{escape(chr(10).join(lines))}</code></pre>\n"


def facts(entries: dict[str, Any], kind: str = "hashes") -> str:
    """Names and values as a table without a head."""
    rows = "".join(
        f"<tr><td>{escape(str(name))}</td><td>{escape(str(value))}</td></tr>\n"
        for name, value in entries.items()
    )
    return f'<div class="wide"><table class="{kind}"><tbody>\n{rows}</tbody></table></div>\n'

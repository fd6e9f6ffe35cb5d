"""The report as one HTML file that needs nothing else: no fonts, no network, scripts only its own.

Without scripts it is the same page; with them the table sorts and points show their measures.
"""

import re
from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from typing import Any

from minitron_cli.report import figure, heatmap


def page(title: str, lead: str, parts: Iterable[str]) -> str:
    """A whole page; `parts` are HTML already, title and lead are text."""
    return (
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n"
        f"<style>{_file('report.css')}{figure.STYLE}{heatmap.STYLE}</style>\n</head>\n<body>\n"
        f'<h1>{escape(title)}</h1>\n<p class="lead">{escape(lead)}</p>\n'
        f"{''.join(parts)}<script>\n{_file('report.js')}</script>\n</body>\n</html>\n"
    )


def _file(name: str) -> str:
    return (files("minitron_cli.report") / name).read_text(encoding="utf-8")


def heading(text: str) -> str:
    """The heading of a part."""
    return f"<h2>{escape(text)}</h2>\n"


def paragraph(text: str) -> str:
    """A paragraph of text."""
    return f"<p>{escape(text)}</p>\n"


def advice(markdown: str) -> str:
    """Lines of Markdown with bold words, as paragraphs or as a list."""
    bold = re.compile(r"\*\*(.+?)\*\*")
    lines = [bold.sub(r"<b>\1</b>", escape(line)) for line in markdown.splitlines() if line]
    items = "".join(
        f"<li>{line.removeprefix('- ')}</li>\n" for line in lines if line.startswith("- ")
    )
    texts = "".join(f"<p>{line}</p>\n" for line in lines if not line.startswith("- "))
    return texts + (f"<ul>\n{items}</ul>\n" if items else "")


def table(
    headers: Sequence[str],
    rows: Sequence[Sequence[str]],
    best: frozenset[int] = frozenset(),
    kind: str = "",
    *,
    sortable: bool = False,
) -> str:
    """A table of texts; the rows numbered in `best` stand out."""
    head = "".join(f'<th scope="col">{escape(header)}</th>' for header in headers)
    lines = (
        f"<tr{' class=best' if number in best else ''}>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in row)
        + "</tr>\n"
        for number, row in enumerate(rows)
    )
    kinds = " ".join(filter(None, (kind, "sortable" if sortable else "")))
    name = f' class="{kinds}"' if kinds else ""
    return (
        f'<div class="wide"><table{name}>\n<thead><tr>{head}</tr></thead>\n'
        f"<tbody>\n{''.join(lines)}</tbody>\n</table></div>\n"
    )


def picture(svgs: Sequence[str], caption: str) -> str:
    """A picture in one or several shapes with its caption; nothing where there is no picture."""
    shown = "".join(svgs)
    return (
        f"<figure>\n{shown}<figcaption>{escape(caption)}</figcaption>\n</figure>\n" if shown else ""
    )


def named_below(svg: str, kind: str, names: Sequence[str]) -> str:
    """A picture, and below it the names for which it had no room."""
    told = f"Without a name above: {escape(', '.join(names))}." if names else ""
    return svg + (f'<p class="{kind}">{told}</p>\n' if told else "")


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

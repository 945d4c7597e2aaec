"""A page that needs no other file: styles inside, pictures inside, no script, and every text escaped."""

import base64
import html
from collections.abc import Sequence
from pathlib import Path


def page(title: str, *parts: str) -> str:
    """Returns an HTML document.

    Args:
        title: Its title and first heading, plain text.
        *parts: HTML, such as the other functions of this module give.
    """
    return _PAGE.format(title=html.escape(title), body="\n".join(part for part in parts if part))


def answer(text: str) -> str:
    """Returns what a page opens on: one or two sentences that one can act on."""
    return f'<p class="answer">{html.escape(text)}</p>'


def heading(text: str) -> str:
    """Returns a heading of a section."""
    return f"<h2>{html.escape(text)}</h2>"


def paragraph(text: str) -> str:
    """Returns a paragraph, such as a caption."""
    return f'<p class="caption">{html.escape(text)}</p>'


def bullets(texts: Sequence[str]) -> str:
    """Returns a list of sentences."""
    said = "\n".join(f"<li>{html.escape(text)}</li>" for text in texts)
    return f"<ul>\n{said}\n</ul>"


def picture(file: Path, description: str) -> str:
    """Returns a PNG file as an image that holds its own bytes."""
    data = base64.b64encode(file.read_bytes()).decode()
    return drawing(f'<img src="data:image/png;base64,{data}" alt="{html.escape(description)}">')


def drawing(element: str) -> str:
    """Returns an `<svg>` or `<img>` element on a white card: its colours are for paper, in a dark page too."""
    return f'<div class="wide card">{element}</div>'


def details(summary: str, *parts: str) -> str:
    """Returns parts of a page that are shown when somebody opens them; on paper they are.

    Args:
        summary: What they are, plain text.
        *parts: HTML.
    """
    body = "\n".join(part for part in parts if part)
    return f"<details>\n<summary>{html.escape(summary)}</summary>\n{body}\n</details>"


def grid(header: Sequence[str], rows: Sequence[Sequence[str]], classes: Sequence[str] | None = None) -> str:
    """Returns a table.

    Args:
        header: Titles of the columns, plain text.
        rows: Cells, plain text.
        classes: For each row the names of its CSS classes; default: none.
    """
    head = "".join(f"<th>{html.escape(title)}</th>" for title in header)
    body = "\n".join(
        f'<tr class="{html.escape(of_row)}">' + "".join(f"<td>{html.escape(cell)}</td>" for cell in cells) + "</tr>"
        for cells, of_row in zip(rows, classes or [""] * len(rows), strict=True)
    )
    return f'<div class="wide">\n<table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table>\n</div>'


_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>
:root {{ color-scheme: light dark; --text: #1f2933; --soft: #52606d; --line: #d9dee4; --ground: #fff; --mark: #eef4fb;
  --accent: #0b5cad; }}
@media (prefers-color-scheme: dark) {{ :root {{ --text: #e4e7eb; --soft: #a5b1bd; --line: #3b4651; --ground: #14181d;
  --mark: #1d2a38; --accent: #6cb2f5; }} }}
* {{ box-sizing: border-box; }}
body {{ font: 16px/1.5 system-ui, sans-serif; color: var(--text); background: var(--ground); max-width: 72rem;
  margin: 2rem auto; padding: 0 1rem; }}
h1 {{ font-size: 1.5rem; line-height: 1.25; overflow-wrap: anywhere; }}
h2 {{ font-size: 1.15rem; margin-top: 2rem; }}
.answer {{ font-size: 1.2rem; line-height: 1.45; background: var(--mark); border-left: 4px solid var(--accent);
  padding: .8rem 1rem; border-radius: 4px; max-width: 60rem; }}
p, li {{ max-width: 60rem; overflow-wrap: break-word; }}
.caption {{ color: var(--soft); font-size: .875rem; }}
.wide {{ overflow-x: auto; margin: 1rem 0; }}
.card {{ background: #fff; color: #1f2933; border: 1px solid var(--line); border-radius: 6px; padding: .5rem;
  width: fit-content; max-width: 100%; }}
.card svg, .card img {{ display: block; max-width: max(34rem, min(100%, 60rem)); height: auto; }}
.card img {{ max-width: max(40rem, min(100%, 60rem)); }}
table {{ border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; }}
th, td {{ padding: .3rem .55rem; text-align: right; border-bottom: 1px solid var(--line); }}
td {{ white-space: nowrap; }}
thead th {{ vertical-align: bottom; border-bottom: 2px solid var(--text); }}
th:first-child, td:first-child {{ text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 8rem;
  position: sticky; left: 0; background: var(--ground); }}
tr.ensemble, tr.baseline {{ font-weight: 600; }}
tr.reference td {{ background: var(--mark); }}
tr.chosen td:first-child {{ box-shadow: inset 4px 0 0 var(--accent); }}
details {{ margin: 1rem 0; }}
summary {{ cursor: pointer; font-weight: 600; }}
@media (max-width: 600px) {{ body {{ margin: 1rem auto; font-size: 15px; }} .answer {{ font-size: 1.05rem; }}
  .card svg, .card img {{ max-width: 100%; }} }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

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
    return f'<p><img src="data:image/png;base64,{data}" alt="{html.escape(description)}"></p>'


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
body {{ font: 15px/1.5 system-ui, sans-serif; color: #222; background: #fff; max-width: 80rem; margin: 2rem auto;
  padding: 0 1rem; }}
svg, img {{ max-width: 100%; height: auto; }}
.wide {{ overflow-x: auto; }}
table {{ border-collapse: collapse; font-variant-numeric: tabular-nums; }}
.caption {{ color: #555; }}
th, td {{ padding: .3rem .7rem; text-align: right; white-space: nowrap; border-bottom: 1px solid #ddd; }}
th:first-child, td:first-child {{ text-align: left; white-space: normal; overflow-wrap: anywhere; min-width: 9rem; }}
thead th {{ border-bottom: 2px solid #222; }}
tr.ensemble, tr.baseline {{ font-weight: 600; }}
tr.reference {{ background: #f3f3f3; }}
</style>
</head>
<body>
<h1>{title}</h1>
{body}
</body>
</html>
"""

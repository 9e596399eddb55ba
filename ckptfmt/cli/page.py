"""A page that shows a picture and its numbers: one file, nothing is fetched, no script."""

from __future__ import annotations

import html
import re
from typing import Final

from ckptfmt.cli import text
from ckptfmt.training.scene import Scene

_STYLE: Final = """
body { font: 15px/1.5 sans-serif; margin: 2em auto; max-width: 75em; color: #222 }
h1 { font-size: 1.2em }
svg { width: 100%; height: auto }
div { overflow-x: auto }
table { border-collapse: collapse; font-variant-numeric: tabular-nums }
th, td { text-align: right; padding: .15em .8em; border-bottom: 1px solid #ddd }
th { border-bottom: 1px solid #222; max-width: 20em; overflow-wrap: anywhere }
"""
_PROLOG: Final = re.compile(r"^.*?(?=<svg)", re.DOTALL)  # declarations that a page has not


def page(scene: Scene, svg: str) -> str:
    """Return the page; every name in it is text, whatever it contains."""
    titles = "".join(f"<h1>{_text(line)}</h1>\n" for line in scene.titles)
    notes = "".join(f"<li>{_text(line)}</li>\n" for line in scene.notes)
    marks = "".join(f"<li>at {m.x:,}: {_text(m.text)}</li>\n" for m in scene.marks())
    header, rows = scene.table()
    head = "".join(f"<th>{_text(cell)}</th>" for cell in header)
    body = "".join(
        f"<tr>{''.join(f'<td>{_text(cell)}</td>' for cell in row)}</tr>\n" for row in rows
    )
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        # Even a mistake of ours could not fetch or run anything.
        '<meta http-equiv="Content-Security-Policy"'
        " content=\"default-src 'none'; style-src 'unsafe-inline'\">\n"
        '<meta name="viewport" content="width=device-width">\n'
        f"<title>{_text(scene.runs[0].name)}</title>\n<style>{_STYLE}</style>\n</head>\n<body>\n"
        f"{titles}{_PROLOG.sub('', svg)}\n"
        + (f"<ul>\n{notes}</ul>\n" if notes else "")
        + (f"<ol>\n{marks}</ol>\n" if marks else "")
        + f"<div><table>\n<thead><tr>{head}</tr></thead>\n<tbody>\n{body}</tbody>\n"
        "</table></div>\n</body>\n</html>\n"
    )


def _text(shown: str) -> str:
    return html.escape(text.safe(shown))

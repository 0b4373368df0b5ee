"""Pages of HTML that hold their pictures, and need no other file and no network."""

import base64
import html
from collections.abc import Sequence

from aigc_jax.core.errors import printable

_STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 76em; padding: 0 1em; color: #222 }
.wide { overflow-x: auto; margin: .6em 0 1.6em } table { border-collapse: collapse }
th, td { border-bottom: 1px solid #ddd; padding: .25em .8em .25em 0; text-align: left; vertical-align: top }
td { overflow-wrap: break-word } th { font-weight: 600 } td.short { white-space: nowrap }
h1 { font-size: 1.6em; margin: 0 0 .4em } h2 { font-size: 1.2em; margin: 1.8em 0 .3em }
h3 { font-size: 1em; margin: 1.2em 0 0 } img { max-width: 100%; height: auto; display: block }
pre { background: #f5f5f5; padding: .6em; overflow-x: auto } .arm { font-weight: 600 } .note { color: #8a4b00 }
.below { font-size: .85em; color: #555 }
"""


def document(title: str, parts: Sequence[str]) -> str:
    """A page of parts that are HTML already. title: as text."""
    body = '\n'.join([f'<h1>{escape(title)}</h1>', *parts])
    return (
        f'<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        '<meta name="viewport" content="width=device-width">'
        f'<style>{_STYLE}</style></head>\n<body>\n{body}\n</body></html>\n'
    )


def table(head: Sequence[str], rows: Sequence[Sequence[str]], short: Sequence[int] = ()) -> str:
    """Of cells that are HTML already. short: the columns whose cells stay on one line."""
    mark = lambda k: ' class="short"' if k in short else ''
    lines = ['<tr>' + ''.join(f'<th>{cell}</th>' for cell in head) + '</tr>']
    lines += ['<tr>' + ''.join(f'<td{mark(k)}>{cell}</td>' for k, cell in enumerate(row)) + '</tr>' for row in rows]
    return '<div class="wide"><table>' + '\n'.join(lines) + '</table></div>'


def picture(png: bytes, words: str) -> str:
    return f'<img alt="{escape(words)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def escape(text: str) -> str:
    return html.escape(printable(text))

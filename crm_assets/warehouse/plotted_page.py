"""How pictures become PNG and a page that needs nothing besides itself.

Belongs here: the shell of a page. Not here: what it shows (`marts_page`, `models.page`).
"""

from __future__ import annotations

import base64
import html
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:75em;margin:2em auto;padding:0 1em}table{border-collapse:collapse;font-size:13px}"
    "td,th{border:1px solid #ccc;padding:.25em .6em;text-align:right}td:first-child,th:first-child{text-align:left}img{max-width:100%}"
)


def png_of(figure: Figure) -> bytes:
    """A figure as PNG, the same bytes whenever the same is drawn."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    FigureCanvasAgg(figure)  # the canvas without a screen, which the figure then saves by
    picture = io.BytesIO()
    figure.savefig(picture, format="png", dpi=90, metadata={"Software": None})
    return picture.getvalue()


def image(title: str, png: bytes) -> str:
    """A picture as an HTML element that holds it."""
    return f'<img alt="{html.escape(title)}" src="data:image/png;base64,{base64.b64encode(png).decode()}">'


def html_page(title: str, body: str) -> str:
    """An HTML page.

    Args:
        title: plain text, heading as well.
        body: HTML.
    """
    return (
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{html.escape(title)}</title><style>{_STYLE}</style>'
        f"<h1>{html.escape(title)}</h1>{body}</html>\n"
    )

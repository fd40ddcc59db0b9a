"""A part of a page that a command writes, between two marks; the rest of the page is written by hand."""

from __future__ import annotations

from pathlib import Path


def with_block(page: Path, begin: str, end: str, content: str) -> str:
    """The page's text with what stands between the marks replaced.

    Args:
        page: a text file that holds both marks.
        begin: the line before the generated part.
        end: the line after it.
        content: what shall stand between them, without a last line end.

    Raises:
        ValueError: a mark is missing.
    """
    head, first, rest = page.read_text().partition(f"{begin}\n")
    _, last, tail = rest.partition(end)
    if not first or not last:
        raise ValueError(f"{page.name} must hold the marks {begin!r} and {end!r}")
    return f"{head}{begin}\n{content}\n{end}{tail}"

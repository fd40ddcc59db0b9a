"""Errors about input that is wrong; they name file, line and field, and are raised before anything is sent."""

from __future__ import annotations

from dataclasses import dataclass

_SHOWN = 20


@dataclass(frozen=True)
class Problem:
    """One thing wrong in a file. `line` counts from 1, the header included; None speaks of the file as a whole."""

    line: int | None
    field: str | None
    text: str


class BadInputError(ValueError):
    """A file cannot be used. The message lists the first problems, one a line, as `file:line: field: what is wrong`."""

    def __init__(self, file: str, problems: list[Problem]) -> None:
        self.file = file
        self.problems = problems
        lines = [": ".join([f"{file}:{p.line}" if p.line else file, *([p.field] if p.field else []), p.text]) for p in problems[:_SHOWN]]
        if len(problems) > _SHOWN:
            lines.append(f"and {len(problems) - _SHOWN} more")
        lines.append("Nothing was sent.")
        super().__init__("\n".join(lines))

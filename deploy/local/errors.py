"""The one error the local stack shows to a person: what failed and what to do about it, on one line."""

from __future__ import annotations

from pydantic import ValidationError


class StackError(RuntimeError):
    """A command of the local stack cannot go on.

    Args:
        problem: what is wrong, naming the file, port, service or version.
        remedy: what the reader should do next.
    """

    def __init__(self, problem: str, remedy: str = "") -> None:
        super().__init__(f"{problem}; {remedy}" if remedy else problem)
        self.problem = problem
        self.remedy = remedy


def wrong_settings(error: ValidationError) -> list[str]:
    """A line for each variable whose value is not allowed.

    Args:
        error: what reading the settings raised.
    """
    return [f"CRM_{'.'.join(str(part) for part in p['loc']).upper()}={p.get('input')!r}: {p['msg']}" for p in error.errors()]

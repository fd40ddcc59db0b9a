"""The one error the local stack shows to a person: what failed and what to do about it, on one line."""

from __future__ import annotations


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

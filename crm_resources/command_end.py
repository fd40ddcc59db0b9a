"""How a command that cannot do its work ends: one line on standard error with what is wrong and what to do, and its exit code.

Belongs here: the look of that line. Not here: which errors a command expects; all others keep their traceback.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer


def failed(error: Exception, code: int = 1) -> typer.Exit:
    """Tell the error, and give what the command raises from it.

    Args:
        error: its message is for the reader, and stands as it is: nothing in it is markup, and it may be longer than a line.
        code: exit code of the command.
    """
    import typer
    from rich.console import Console

    Console(stderr=True).print(f"error: {error}", style="red", markup=False, soft_wrap=True, highlight=False)
    return typer.Exit(code)

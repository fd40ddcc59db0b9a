"""How a command ends that cannot do its work, or is asked to end.

Belongs here: the one line on standard error with what is wrong and what to do, and the exit code. Not here: which errors a command expects;
all others keep their traceback.
"""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import typer

_Handler = Callable[[int, FrameType | None], object] | int | None


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


def leave_on_sigterm() -> _Handler:
    """Have SIGTERM end this process through its `finally` blocks, with exit code 143; returns what SIGTERM did before.

    Only the main thread may call it.
    """
    return signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))

"""How a command of the stack tells what it is doing: one line per finished step, a spinner while it lasts."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from deploy.local.jars import Progress as JarProgress


class Reporter:
    """Tells a person what happens.

    Args:
        console: where to; nothing is told when it is quiet.
    """

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False)

    @contextmanager
    def step(self, text: str) -> Iterator[None]:
        """Show what is being done, and how long it took when it went well."""
        started = time.monotonic()
        with self.console.status(f"{text} …"):
            yield
        self.console.print(f"  [green]✓[/green] {text} [dim]({time.monotonic() - started:.1f} s)[/dim]")

    @contextmanager
    def long_step(self, text: str) -> Iterator[Callable[[str], None]]:
        """Like `step`, for one that takes minutes: what is called inside shows how far it has come."""
        started = time.monotonic()
        with self.console.status(f"{text} …") as status:
            yield lambda detail: status.update(f"{text} … {detail}")
        self.console.print(f"  [green]✓[/green] {text} [dim]({time.monotonic() - started:.1f} s)[/dim]")

    def note(self, text: str) -> None:
        """Tell something the reader should know although nothing is wrong."""
        self.console.print(f"  [yellow]![/yellow] {text}", soft_wrap=True)

    @contextmanager
    def jars(self) -> Iterator[JarProgress]:
        """Show jars as they arrive; nothing is shown when none is fetched."""
        columns = (TextColumn("    {task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
        progress = Progress(*columns, console=self.console, transient=True)
        tasks: dict[str, TaskID] = {}
        # All groups are fetched at the same time.
        turn = threading.Lock()

        def advance(group: str, done: int, total: int) -> None:
            with turn:
                progress.start()
                if group not in tasks:
                    tasks[group] = progress.add_task(f"fetching jars for {group}", total=total)
                progress.update(tasks[group], completed=done)

        try:
            yield advance
        finally:
            if tasks:
                progress.stop()

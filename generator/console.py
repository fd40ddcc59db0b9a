"""What the commands share with the person at the terminal: consoles, options, progress, and errors as messages and exit codes.

Exit codes: 0 all acked or refused as meant, 1 Kafka or disk, 2 bad input, 130 interrupted.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Annotated

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from crm_resources.kafka import KafkaUnavailableError, TopicError, client_log
from crm_resources.ledger import LedgerError
from crm_resources.settings import Settings, load_settings, wrong_settings
from generator.delivery import DeliveryError
from generator.errors import BadInputError

out = Console()
err = Console(stderr=True)

Environment = Annotated[str | None, typer.Option("--env", help="Data set to send to. Default: CRM_ENV, else demo.")]
Timeout = Annotated[float, typer.Option("--timeout", min=1, help="Seconds a record is tried before it is given up.")]


def settings_of(env: str | None) -> Settings:
    """Settings of a data set; of CRM_ENV when None."""
    return load_settings({**os.environ, "CRM_ENV": env} if env else None)


def complain(text: str) -> None:
    """Say what went wrong, as it is: no markup, no wrapping."""
    err.print(text, style="red", markup=False, highlight=False, soft_wrap=True)


@contextmanager
def progress_bar(title: str, total: int) -> Iterator[Callable[[int], None]]:
    """A bar while it lasts; yields what takes the number done so far."""
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
    with Progress(*columns, console=err, transient=True) as progress:
        task = progress.add_task(title, total=total)
        yield lambda done: progress.update(task, completed=done)


@contextmanager
def errors() -> Iterator[None]:
    """Turn what can go wrong outside into a message and an exit code."""
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, signal.default_int_handler)  # a stop by a supervisor ends like Ctrl-C: with what was acked
    client_log.setLevel(logging.CRITICAL)  # attempts the client repeats by itself; what comes of them is reported here
    try:
        yield
    except KeyboardInterrupt as error:
        complain("interrupted")
        raise typer.Exit(130) from error
    except BadInputError as error:
        complain(str(error))
        raise typer.Exit(2) from error
    except ValidationError as error:
        complain("\n".join(wrong_settings(error)))
        raise typer.Exit(2) from error
    except (KafkaUnavailableError, TopicError) as error:
        complain(f"{error}\nNothing was sent.")
        raise typer.Exit(1) from error
    except (DeliveryError, LedgerError) as error:
        complain(str(error))
        raise typer.Exit(1) from error

"""Waiting for a condition with a deadline, instead of for a time."""

from __future__ import annotations

from collections.abc import Callable

from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

from deploy.local.errors import StackError


def wait_for(condition: Callable[[], bool], seconds: float, otherwise: str, *, every: float = 0.2) -> None:
    """Return as soon as the condition holds.

    Args:
        condition: asked again and again; what it raises goes through.
        seconds: how long at most.
        otherwise: what to say when it never held.
        every: seconds between two questions.

    Raises:
        StackError: it did not hold in time.
    """
    waiting = Retrying(retry=retry_if_result(lambda held: not held), stop=stop_after_delay(seconds), wait=wait_fixed(every))
    try:
        waiting(condition)
    except RetryError as error:
        raise StackError(f"after {seconds:.0f} s: {otherwise}") from error

"""Waiting for something that works: patience is spent only while it gives no sign of life.

A limit in seconds alone is tuned to one machine: what takes 20 s on an idle one takes minutes beside other work. Belongs here: the waiting,
and the sign of life a process gives. Not here: what is waited for, or limits of a protocol (0024 lists them).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from typing import TypeVar

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""How long something may give no sign of life; between two signs of a start lie 15 s at most on two idle cores."""

CPU_STEP_SECONDS = 5.0
"""CPU time that is one sign of life: within the patience 4 % of a core. A starved process gets more, one that only idles takes less."""

CPU_LIMIT_SECONDS = 600.0
"""CPU time of a process after which it is no sign of life any more, for it works in a circle; the costliest start takes a tenth of it."""

MOST_PROCESSES = 5
"""Processes of one program within one wait; when there are more, it ends again and again."""


def wait_for(
    condition: Callable[[], T],
    sign_of_life: Callable[[], Hashable | None],
    otherwise: Callable[[str], Exception],
    *,
    patience_seconds: float = PATIENCE_SECONDS,
    every_seconds: float = 0.2,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> T:
    """Wait until a condition holds, for as long as there are signs of life; returns what the condition gave.

    Args:
        condition: asked again and again until it gives something true; what it raises goes through.
        sign_of_life: anything that changes while there is progress; None when nothing can come any more.
        otherwise: makes the error from the reason, which is a clause such as `nothing has moved for 120 s`.
        patience_seconds: how long the sign may stay the same.
        every_seconds: pause between two looks.
        clock: seconds that never go back.
        sleep: pauses.
    """
    sign, since = sign_of_life(), clock()
    while not (held := condition()):
        sleep(every_seconds)
        found = sign_of_life()
        if found is None and not (held := condition()):
            raise otherwise("it has ended")
        if held:
            return held
        if found != sign:
            sign, since = found, clock()
        elif clock() - since > patience_seconds:
            raise otherwise(f"nothing has moved for {patience_seconds:.0f} s")
    return held


class ProcessLife:
    """Sign of life of one program: the CPU time of its process and of all below it, in steps, and which process it is.

    Both could go on for ever, in a process that works in a circle or one that ends again and again: neither counts beyond its limit.

    Args:
        cpu: CPU seconds of a process and of all below it, None when it is gone.
    """

    def __init__(self, cpu: Callable[[int], float | None] | None = None) -> None:
        self._cpu = cpu or cpu_seconds
        self._first: dict[int, float] = {}
        self._steps = 0

    def __call__(self, pid: int | None) -> Hashable | None:
        """The sign now; None after too many processes.

        Args:
            pid: the program's process, None while there is none.
        """
        used = self._cpu(pid) if pid else None
        if pid and used is not None:
            first = self._first.setdefault(pid, used)
            self._steps = int(min(used - first, CPU_LIMIT_SECONDS) // CPU_STEP_SECONDS)
        return None if len(self._first) > MOST_PROCESSES else (len(self._first), self._steps)


def cpu_seconds(pid: int) -> float | None:
    """CPU time of a process, of all below it, and of those below it that have ended, in seconds; None when it is gone."""
    import psutil

    try:
        top = psutil.Process(pid)
        family = [top, *top.children(recursive=True)]
    except psutil.NoSuchProcess:
        return None
    total = 0.0
    for member in family:
        try:
            times = member.cpu_times()
        except psutil.NoSuchProcess:
            continue  # its time is in its parent's from now on
        total += times.user + times.system + times.children_user + times.children_system
    return total

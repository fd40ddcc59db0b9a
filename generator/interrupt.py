"""Ctrl-C and SIGTERM as a flag, while records are under way.

Python raises KeyboardInterrupt between any two steps: inside the acknowledgement of a record, or after a ledger batch reached the
disk and before the writer knows it. The first loses a row, the second writes rows twice. So the sending loop asks instead.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

SIGNALS = (signal.SIGINT, signal.SIGTERM)


@contextmanager
def asked_to_stop() -> Iterator[Callable[[], bool]]:
    """While it lasts, an interrupt is remembered instead of raised; yields the question whether there was one.

    Outside the main thread, where Python delivers no signals, the answer is always no.
    """
    asked = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield asked.is_set
        return
    before = {number: signal.signal(number, lambda _number, _frame: asked.set()) for number in SIGNALS}
    try:
        yield asked.is_set
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)

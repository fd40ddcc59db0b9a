"""Peak memory of everything a stack runs: sampled while a block of work is done."""

from __future__ import annotations

import threading
from pathlib import Path
from types import TracebackType
from typing import Self

from deploy.local.run import MARK

_SAMPLE_SECONDS = 2.0


class PeakMemory:
    """Samples the memory of a stack's processes every two seconds; `peak_mib` is the largest sum seen.

    Proportional set size is summed, so that pages PostgreSQL's processes share count once.
    """

    def __init__(self, home: Path) -> None:
        self.peak_mib = 0.0
        self._home = str(home)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        self._thread.join()

    def _sample(self) -> None:
        while True:
            self.peak_mib = max(self.peak_mib, used_mib(self._home))
            if self._stop.wait(_SAMPLE_SECONDS):
                return


def used_mib(home: str) -> float:
    """MiB used now by all processes whose environment carries the mark of the stack at `home`, and by their children.

    Children count by descent: PostgreSQL's overwrite their environment with their title.
    """
    import psutil

    counted: dict[int, int] = {}
    for process in psutil.process_iter():
        try:
            if process.environ().get(MARK) != home:
                continue
            for member in (process, *process.children(recursive=True)):
                counted[member.pid] = member.memory_full_info().pss
        except (psutil.NoSuchProcess, psutil.AccessDenied, psutil.ZombieProcess):
            continue  # it ended between the listing and the look, or is not ours to read
    return sum(counted.values()) / 2**20

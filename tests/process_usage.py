"""CPU time and memory of processes and everything below them, measured from outside.

Belongs here: the measuring. Not here: what is measured.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

import psutil  # noqa: TID253 -- it measures with it

SAMPLE_SECONDS = 0.25


@dataclass(frozen=True)
class _Memory:
    """What a process holds, in bytes, and whose child it is."""

    parent: int
    resident: int
    reserved: int


def _resident(found: Mapping[int, _Memory]) -> int:
    """Bytes that processes hold together; pure.

    A child that reserves exactly what its parent does is on its way to another program and lives in its parent's memory until then.
    """
    return sum(m.resident for m in found.values() if m.parent not in found or found[m.parent].reserved != m.reserved)


class ProcessUsage:
    """Samples process trees while the block runs. A member's last known CPU time stays in the sum after it has ended.

    Args:
        roots: ids of the processes at the top of the trees; asked at each sample, so that a tree may come later.
    """

    def __init__(self, *roots: int | Callable[[], int | None]) -> None:
        self._roots = roots
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._cpu: dict[tuple[int, float], float] = {}
        self._before = 0.0
        self._peak_bytes = 0

    @property
    def cpu_seconds(self) -> float:
        """CPU time used since the block began."""
        self._sample()
        return sum(self._cpu.values()) - self._before

    @property
    def peak_mib(self) -> float:
        """Most memory the trees held at once (resident), in MiB."""
        return self._peak_bytes / 2**20

    def forget_peak(self) -> None:
        """Measure the peak anew from here on."""
        self._peak_bytes = 0

    def __enter__(self) -> Self:
        self._sample()
        self._before = sum(self._cpu.values())
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        while not self._stop.wait(SAMPLE_SECONDS):
            self._sample()

    def _sample(self) -> None:
        with self._lock:
            found: dict[int, _Memory] = {}
            for member in self._members():
                try:
                    with member.oneshot():
                        times, memory = member.cpu_times(), member.memory_info()
                        self._cpu[member.pid, member.create_time()] = times.user + times.system
                        found[member.pid] = _Memory(member.ppid(), memory.rss, memory.vms)
                except psutil.NoSuchProcess:
                    continue
            self._peak_bytes = max(self._peak_bytes, _resident(found))

    def _members(self) -> list[psutil.Process]:
        found: dict[int, psutil.Process] = {}
        for root in self._roots:
            pid = root() if callable(root) else root
            try:
                top = psutil.Process(pid) if pid else None
                for member in [top, *top.children(recursive=True)] if top else []:
                    found[member.pid] = member
            except psutil.NoSuchProcess:
                continue
        return list(found.values())

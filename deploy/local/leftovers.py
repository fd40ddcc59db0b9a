"""Processes of a stack that nobody keeps any more, because the supervisor or their parent was killed.

They are known by the mark in their environment and by the recorded starts; a process that merely got the same number
later is told apart by its birth. Belongs here: finding and ending them. Not here: an orderly stop (`supervisord`).
"""

from __future__ import annotations

import signal
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from crm_resources.settings import Settings
from crm_resources.supervisor import Service, read_starts
from deploy.local.run import MARK
from deploy.local.supervisord import PROGRAMS, folder

if TYPE_CHECKING:
    import psutil

_SAME_BIRTH_SECONDS = 2
"""The kernel's record of a birth moves a little when the clock is set."""

_LAST_SECONDS = 10
"""For what was not started by the supervisor itself, and after the kill."""


def find(settings: Settings) -> list[psutil.Process]:
    """Processes of this home's stack, the supervisor aside, whoever their parent is now."""
    import psutil

    recorded = _recorded(settings)
    mine = psutil.Process()
    own_line = {mine.pid, *(parent.pid for parent in mine.parents())}
    found = []
    for process in psutil.process_iter():
        try:
            ours = _service_of(process, recorded) is not None or process.environ().get(MARK) == str(settings.home)
            if ours and process.pid not in own_line and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            # Gone meanwhile, or somebody else's and so none of ours.
            continue
    return found


def stop(settings: Settings) -> list[str]:
    """End what was left over, each in its own way; returns what was ended, for the reader.

    The stream's driver is asked first and may finish its batch. Whoever does not end in time is killed.
    """
    import psutil

    recorded = _recorded(settings)
    leaders = [(process, service) for process in find(settings) if (service := _service_of(process, recorded)) is not None]
    for process, service in leaders:
        _signal(process, signal.Signals[f"SIG{PROGRAMS[service].stop_signal}"])
    if leaders:
        psutil.wait_procs([process for process, _ in leaders], timeout=max(PROGRAMS[service].stop_seconds for _, service in leaders))
    rest = find(settings)
    for process in rest:
        _signal(process, signal.SIGTERM)
    _, stubborn = psutil.wait_procs(rest, timeout=_LAST_SECONDS)
    for process in stubborn:
        _signal(process, signal.SIGKILL)
    psutil.wait_procs(stubborn, timeout=_LAST_SECONDS)
    for file in _starts_files(settings):
        file.unlink(missing_ok=True)
    led = {process.pid for process, _ in leaders}
    return [f"{service.value} (process {process.pid})" for process, service in leaders] + [
        f"process {process.pid}" for process in rest if process.pid not in led
    ]


def _recorded(settings: Settings) -> dict[int, tuple[float, Service]]:
    """Birth and service of every process the supervisor started, by process id."""
    found = {}
    for file in _starts_files(settings):
        service = Service(file.name.split(".")[1])
        for start in read_starts(file):
            found[start.pid] = (start.created, service)
    return found


def _service_of(process: psutil.Process, recorded: Mapping[int, tuple[float, Service]]) -> Service | None:
    if process.pid not in recorded:
        return None
    created, service = recorded[process.pid]
    return service if abs(process.create_time() - created) < _SAME_BIRTH_SECONDS else None


def _starts_files(settings: Settings) -> list[Path]:
    return sorted((folder(settings) / "starts").glob("*.jsonl"))


def _signal(process: psutil.Process, number: int) -> None:
    import psutil

    try:
        process.send_signal(number)
    except psutil.NoSuchProcess:
        # It ended by itself, which is what was wanted.
        return

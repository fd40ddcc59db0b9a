"""The lake's lock: at most one process writes the tables of a lake.

Two processes that write one Delta table on a local disk lose commits without a word (each looks whether the next version
exists, then renames its own over it). Belongs here: taking and giving back the lock. Not here: who needs it (the driver,
catch-up and rebuild take it for as long as they run).
"""

from __future__ import annotations

import fcntl
import json
import os
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self


@dataclass(frozen=True)
class Holder:
    """Who holds the lock: process id, what it does, and since when (ISO 8601, UTC)."""

    pid: int
    role: str
    since: str

    def __str__(self) -> str:
        return f"{self.role} (process {self.pid}, since {self.since})"


class LakeLocked(RuntimeError):
    """Another process writes this lake."""

    def __init__(self, lake_root: str, holder: Holder | None) -> None:
        self.holder = holder
        who = str(holder) if holder else "a process that left no name"
        super().__init__(
            f"the lake {lake_root} is being written by {who}; two writers would lose each other's commits. "
            "Stop it first (the stream: the job `stop_stream`), or let it do the work."
        )


class LakeLock(Protocol):
    """A lock on a lake, used as a context manager; entering raises `LakeLocked` at once when it is taken."""

    def __enter__(self) -> Self: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class LocalLakeLock:
    """Lock of a lake on a local disk: the operating system's lock on `<lake>/_lock`, gone with the process that holds it.

    Args:
        lake_root: folder of the lake, made when absent.
        role: what the holder does, for the message another process gets, e.g. `stream`.
    """

    def __init__(self, lake_root: str, role: str) -> None:
        self._root = lake_root
        self._role = role
        self._file: IO[str] | None = None

    def __enter__(self) -> Self:
        path = Path(self._root) / "_lock"
        path.parent.mkdir(parents=True, exist_ok=True)
        # Opened without truncating: the name inside belongs to the holder until the lock is ours.
        file = os.fdopen(os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600), "r+")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            holder = _parse(file.read())
            file.close()
            raise LakeLocked(self._root, holder) from error
        file.seek(0)
        file.truncate()
        json.dump(asdict(Holder(os.getpid(), self._role, datetime.now(UTC).isoformat(timespec="seconds"))), file)
        file.flush()
        self._file = file
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()
            self._file.close()
            self._file = None


def lake_lock(lake_root: str, role: str) -> LakeLock:
    """The lock that fits where the lake lives.

    Args:
        lake_root: folder of the lake, or the address of an object store.
        role: what the holder does, e.g. `stream`, `rebuild`.

    Raises:
        NotImplementedError: an object store, which needs a lock made of conditional writes.
    """
    if "://" in lake_root:
        raise NotImplementedError(
            f"no writer lock for the lake {lake_root}: only lakes on a local disk can be written; "
            "unset CRM_LAKE_URI or point it to a folder"
        )
    return LocalLakeLock(lake_root, role)


def lock_holder(lake_root: str) -> Holder | None:
    """Who holds the lock of a lake on a local disk now, `None` when it is free. Takes nothing."""
    path = Path(lake_root) / "_lock"
    if not path.exists():
        return None
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(file.read()) or Holder(0, "unknown", "unknown")
        return None


def _parse(text: str) -> Holder | None:
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None

"""The lake's lock: at most one process writes the tables of a lake.

Two processes that write one Delta table on a local disk lose commits without a word (each looks whether the next version
exists, then renames its own over it); so do Spark's on an object store. Belongs here: what a lock is, which one fits a lake, and the one
on a local disk. Not here: the one on an object store (`lake_lease`), or who needs it (the driver, catch-up, rebuild and backfill take it
for as long as they run).
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Protocol, Self

from crm_resources.settings import Settings

if TYPE_CHECKING:
    from crm_resources.object_store import ObjectStore


@dataclass(frozen=True)
class Holder:
    """Who holds the lock: process id, what it does, since when (ISO 8601, UTC), and on which machine when that may be another one."""

    pid: int
    role: str
    since: str
    host: str = ""

    def __str__(self) -> str:
        return f"{self.role} (process {self.pid}{f' on {self.host}' if self.host else ''}, since {self.since})"


class LakeLocked(RuntimeError):
    """Another process writes this lake."""

    def __init__(self, lake_root: str, holder: Holder | None) -> None:
        self.holder = holder
        who = str(holder) if holder else "a process that left no name"
        super().__init__(
            f"the lake {lake_root} is being written by {who}; two writers would lose each other's commits. "
            "Stop it first (the stream: the job `stop_stream`), or let it do the work."
        )


class LakeLockLost(RuntimeError):
    """The lock can no longer be counted on, so nothing may be written; what is committed stays."""

    def __init__(self, lake_root: str, why: str) -> None:
        super().__init__(
            f"the lock of the lake {lake_root} is lost: {why}. Nothing more is written; look whether the object store answers and whether "
            "another stream runs, then start again"
        )


class LakeLock(Protocol):
    """A lock on a lake, used as a context manager.

    Entering raises `LakeLocked` when another process writes the lake, leaving `LakeLockLost` when the lock was lost meanwhile.
    """

    def check(self) -> None:
        """Raise `LakeLockLost` unless the lock is held now; whoever writes asks before each commit."""
        ...

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

    def check(self) -> None:
        """Nothing to look at: the operating system takes this lock from nobody."""

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._file is not None:
            self._file.seek(0)
            self._file.truncate()
            self._file.close()
            self._file = None


def lake_lock(settings: Settings, role: str, on_lost: Callable[[LakeLockLost], None] | None = None) -> LakeLock:
    """The lock that fits where the lake lives.

    Args:
        settings: where that is.
        role: what the holder does, e.g. `stream`, `rebuild`.
        on_lost: called once, from another thread, when the lock is lost; has to end whatever writes. Never called on a local disk.

    Raises:
        crm_resources.object_store.UnsafeStoreError: the object store does not keep two writers apart; nothing was written.
        crm_resources.object_store.ObjectStoreError: the object store does not answer, or refuses.
    """
    if not settings.lake_on_object_store:
        return LocalLakeLock(settings.lake_root, role)
    from crm_resources.lake_lease import LeaseLock
    from crm_resources.object_store import demand_safe

    store = _lock_store(settings)
    # A lock made of conditional writes is worth as much as they are, and so are the commits of the tables.
    demand_safe(store)
    return LeaseLock(store, settings.lake_root, role, on_lost=on_lost)


def lock_holder(settings: Settings) -> Holder | None:
    """Who holds the lock of the lake now, `None` when it is free. Takes nothing; on an object store it may wait for a sign of life."""
    if settings.lake_on_object_store:
        from crm_resources.lake_lease import lease_holder

        return lease_holder(_lock_store(settings))
    path = Path(settings.lake_root) / "_lock"
    if not path.exists():
        return None
    with path.open("r+") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return _parse(file.read()) or Holder(0, "unknown", "unknown")
        return None


def _lock_store(settings: Settings) -> ObjectStore:
    """One try and a short wait: a request that was tried twice may have won at its first try and be told that it lost."""
    from crm_resources.object_store import ObjectStore

    return ObjectStore(settings, attempts=1, timeout_seconds=3.0)


def _parse(text: str) -> Holder | None:
    try:
        return Holder(**json.loads(text))
    except (ValueError, TypeError):
        return None

"""The lake's lock on an object store: one object, written on condition, that counts for as long as its holder renews it.

The object says who holds the lock, and changes with every renewal. It is made by `If-None-Match: *`, and replaced (renewed, given back,
taken over) by `If-Match` on the ETag that was read, so of several who try exactly one succeeds; a store that does not honour that is
refused. Clocks of two machines are never compared: who wants the lock watches the object by its own clock, and takes it over only after it
has not changed for a whole lease. A holder that could not renew in time stops before anybody can have watched that long.

Belongs here: the form of the object, the decision whether it may be taken, and the thread that renews it. Not here: who needs the lock
(`lake_lock` says that), or the requests themselves (`object_store`).
"""

from __future__ import annotations

import json
import logging
import os
import socket
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from enum import Enum, auto
from types import TracebackType
from typing import Protocol, Self

from crm_resources.lake_lock import Holder, LakeLocked, LakeLockLost
from crm_resources.object_store import ObjectStoreError

LOG = logging.getLogger(__name__)

LOCK_OBJECT = "_lock"
"""Path of the object below the lake's root."""

LEASE_SECONDS = 20.0
"""How long a lock counts without being renewed, so the longest wait of a stream that starts again after `kill -9`."""

RENEW_SECONDS = 5.0

SAFETY_SECONDS = 5.0
"""A holder stops this long before its lease is over; a request in hand may take some of it."""

POLL_SECONDS = 0.5


@dataclass(frozen=True)
class Lease:
    """Content of the object.

    Attributes:
        token: made for each holder; tells its own object from another's.
        pid: process of the holder.
        host: machine of the holder.
        role: what it does, e.g. `stream`.
        since: when it took the lock (ISO 8601, UTC).
        lease_seconds: how long the object must not change before somebody else may take the lock.
        renewals: counts up, so that every renewal is another object.
        released: whether the holder gave the lock back.
    """

    token: str
    pid: int
    host: str
    role: str
    since: str
    lease_seconds: float
    renewals: int = 0
    released: bool = False

    @property
    def holder(self) -> Holder:
        """Who it is, for messages."""
        return Holder(self.pid, self.role, self.since, self.host)

    def to_bytes(self) -> bytes:
        """As the object holds it."""
        return json.dumps(asdict(self)).encode()


def parse_lease(body: bytes) -> Lease | None:
    """Read the object; `None` when it is none of ours."""
    try:
        return Lease(**json.loads(body))
    except (ValueError, TypeError):
        return None


class Verdict(Enum):
    """What who wants the lock does about an object that is there."""

    TAKE = auto()
    WAIT = auto()
    REFUSE = auto()


def judge(lease: Lease | None, *, changed: bool, unchanged_seconds: float) -> Verdict:
    """Whether the lock may be taken; pure.

    Args:
        lease: what the object says now, `None` when it cannot be read as a lease.
        changed: whether it changed while it was watched: its holder is alive.
        unchanged_seconds: how long it has been watched without a change, by the watcher's own clock.
    """
    if lease is not None and lease.released:
        return Verdict.TAKE
    if changed:
        return Verdict.REFUSE
    return Verdict.TAKE if unchanged_seconds >= (lease.lease_seconds if lease else LEASE_SECONDS) else Verdict.WAIT


class Store(Protocol):
    """The requests a lock is made of, see `object_store.ObjectStore`."""

    def get(self, path: str) -> tuple[bytes, str] | None:
        """Content and ETag, `None` when there is no object."""
        ...

    def put_new(self, path: str, body: bytes) -> str | None:
        """ETag of the object that was made, `None` when there was one."""
        ...

    def replace(self, path: str, body: bytes, etag: str) -> str | None:
        """ETag of the object that took the place of another, `None` when that was not there."""
        ...


class LeaseLock:
    """Lock of a lake on an object store; entering waits at most one lease for a holder that has gone silent.

    Args:
        store: the lake's store.
        lake_root: the lake, for messages.
        role: what the holder does.
        on_lost: called once, from the renewing thread, when the lock can no longer be counted on; whatever writes must stop then.
        lease_seconds: see `LEASE_SECONDS`; tests take less.
        clock: seconds that only go forward.
        pause: waits that many seconds.
    """

    def __init__(
        self,
        store: Store,
        lake_root: str,
        role: str,
        *,
        on_lost: Callable[[LakeLockLost], None] | None = None,
        lease_seconds: float = LEASE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
        pause: Callable[[float], None] = time.sleep,
    ) -> None:
        self._store = store
        self._root = lake_root
        self._on_lost = on_lost
        self._clock = clock
        self._pause = pause
        self._every = lease_seconds * RENEW_SECONDS / LEASE_SECONDS
        self._margin = lease_seconds * SAFETY_SECONDS / LEASE_SECONDS
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._lease = Lease(uuid.uuid4().hex, os.getpid(), socket.gethostname(), role, now, lease_seconds)
        self._etag = ""
        self._good_until = 0.0
        self._lost: LakeLockLost | None = None
        self._end = threading.Event()
        self._renewing = threading.Thread(target=self._renew_until_the_end, name="lake-lock", daemon=True)

    def __enter__(self) -> Self:
        self._acquire()
        self._renewing.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._end.set()
        self._renewing.join()
        if self._lost is not None:
            raise self._lost from error
        try:
            self._store.replace(LOCK_OBJECT, replace(self._lease, released=True).to_bytes(), self._etag)
        except ObjectStoreError as failure:
            # Nothing is wrong but the next writer's patience: the lease ends by itself.
            seconds = self._lease.lease_seconds
            LOG.warning("the lock of %s could not be given back, it ends by itself in %.0f s: %s", self._root, seconds, failure)

    def check(self) -> None:
        """Make sure that the lock is held now; whoever writes asks before each commit.

        Raises:
            LakeLockLost: it is not, or nobody knows.
        """
        if self._lost is not None:
            raise self._lost
        if self._clock() >= self._good_until:
            raise LakeLockLost(self._root, "it could not be renewed in time")

    def renew(self) -> None:
        """Renew the lease once; what goes wrong for a moment is tried again by the next renewal."""
        try:
            if not self._renewed() and not self._renewed():
                LOG.warning("the lock of %s could not be renewed: it changes under our hands", self._root)
        except LakeLockLost as lost:
            self._lost = lost
            LOG.error("%s", lost)  # noqa: TRY400 -- the message says all
        except ObjectStoreError as error:
            LOG.warning("the lock of %s could not be renewed: %s", self._root, error)
        except Exception:
            # Whatever it is, the thread must live on: it is the one that says when the lock is lost.
            LOG.exception("the lock of %s could not be renewed", self._root)

    def _renewed(self) -> bool:
        """Replace the object by the next renewal; false when an earlier one, whose answer was lost, stood in its way."""
        begun = self._clock()
        self._lease = replace(self._lease, renewals=self._lease.renewals + 1)
        etag = self._store.replace(LOCK_OBJECT, self._lease.to_bytes(), self._etag)
        if etag is not None:
            self._etag, self._good_until = etag, begun + self._lease.lease_seconds - self._margin
            return True
        found = self._store.get(LOCK_OBJECT)
        there = parse_lease(found[0]) if found else None
        if found is None or there is None or there.token != self._lease.token:
            raise LakeLockLost(self._root, "another process has taken it")
        # It arrived nobody knows when, so it makes the lock good for no longer; only a renewal that is answered does.
        self._etag = found[1]
        return False

    def _acquire(self) -> None:
        """Take the lock, or raise `LakeLocked`."""
        etag: str | None = None
        while etag is None:
            seen = watch(self._store, clock=self._clock, pause=self._pause)
            if seen.alive:
                raise LakeLocked(self._root, seen.lease.holder if seen.lease else None)
            begun, body = self._clock(), self._lease.to_bytes()
            etag = self._store.put_new(LOCK_OBJECT, body) if seen.etag is None else self._store.replace(LOCK_OBJECT, body, seen.etag)
            # When somebody else was quicker, the next look says who.
        self._etag, self._good_until = etag, begun + self._lease.lease_seconds - self._margin

    def _renew_until_the_end(self) -> None:
        while not self._end.wait(self._every if self._clock() + self._every < self._good_until else self._every / 5):
            self.renew()
            if self._lost is None and self._clock() >= self._good_until:
                self._lost = LakeLockLost(self._root, "it could not be renewed in time")
                LOG.error("%s", self._lost)
            if self._lost is not None:
                if self._on_lost is not None:
                    self._on_lost(self._lost)
                return


@dataclass(frozen=True)
class Seen:
    """What watching the object came to.

    Attributes:
        alive: whether a holder renewed it meanwhile.
        lease: what it says, `None` when it is absent or none of ours.
        etag: which object that was, `None` when it is absent.
    """

    alive: bool
    lease: Lease | None = None
    etag: str | None = None


def watch(store: Store, *, clock: Callable[[], float] = time.monotonic, pause: Callable[[float], None] = time.sleep) -> Seen:
    """Watch the object until it is clear whether its holder is alive: one renewal at most when it is, one lease when it is not."""
    first: str | None = None
    since = clock()
    while (found := store.get(LOCK_OBJECT)) is not None:
        lease, etag = parse_lease(found[0]), found[1]
        if first is None:
            first, since = etag, clock()
            if lease is not None and not lease.released:
                LOG.info("the lock is held by %s; looking whether it is still renewed", lease.holder)
        verdict = judge(lease, changed=etag != first, unchanged_seconds=clock() - since)
        if verdict is not Verdict.WAIT:
            return Seen(verdict is Verdict.REFUSE, lease, etag)
        pause(POLL_SECONDS)
    return Seen(alive=False)


def lease_holder(store: Store) -> Holder | None:
    """Who holds the lock now, `None` when it is free or its holder has gone silent. Takes nothing; as long as `watch`."""
    seen = watch(store)
    return seen.lease.holder if seen.alive and seen.lease is not None else None

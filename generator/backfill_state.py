"""Which days of a backfill are done, and who is at work on which: in a file, or in Redis for several processes.

A day is done when each of its records was acknowledged and stands in the ledger. A day that was under way when its process died is sent
again as a whole: the records are the same bytes under the same ids, and the platform drops what had arrived before. So neither store has
to be exact about a day in hand; losing the state costs sending again, never a wrong result.
"""

from __future__ import annotations

import fcntl
import os
import socket
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Protocol, Self

import orjson

if TYPE_CHECKING:
    from redis import Redis

CLAIM_SECONDS = 120
"""How long a claim on a day outlives the process that made it; a living process renews it."""


class StateError(RuntimeError):
    """The state of a backfill cannot be used; the message names the file or server and says what to do."""


@dataclass(frozen=True)
class DayDone:
    """What was sent of a day. The last two count events, and orders placed, by hour of the day (UTC)."""

    day: date
    records: int
    seconds: float
    events_by_hour: tuple[int, ...]
    orders_by_hour: tuple[int, ...]

    def to_json(self) -> bytes:
        """As the stores keep it."""
        return orjson.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: bytes) -> DayDone:
        """What `to_json` wrote."""
        found = orjson.loads(text)
        return cls(
            date.fromisoformat(found["day"]),
            found["records"],
            found["seconds"],
            tuple(found["events_by_hour"]),
            tuple(found["orders_by_hour"]),
        )


class StateStore(Protocol):
    """Where a backfill remembers its days."""

    def done(self) -> dict[date, DayDone]:
        """The days that are done, by day."""
        ...

    def claim(self, day: date) -> bool:
        """Take a day that nobody is at work on; False when somebody is."""
        ...

    def renew(self, day: date) -> None:
        """Say that the work on a claimed day goes on."""
        ...

    def finish(self, result: DayDone) -> None:
        """Write down durably that a day is done."""
        ...

    def release(self, day: date) -> None:
        """Give a claimed day back, not done."""
        ...

    def close(self) -> None:
        """Let go of the store."""
        ...


class FileState:
    """The state of one process in `<folder>/<run_id>.json`; a second process on the same run is turned away.

    Raises:
        StateError: another process is at work on the run, or the file cannot be used.
    """

    def __init__(self, folder: Path, run_id: str) -> None:
        self.path = folder / f"{run_id}.json"
        self._run_id = run_id
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._lock = (folder / f"{run_id}.lock").open("a")
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self._lock.close()
            raise StateError(
                f"another process is at work on {run_id} (it holds {folder / run_id}.lock); wait for it, or set CRM_REDIS_URL for all of "
                "them to share the run"
            ) from error
        except OSError as error:
            raise StateError(f"cannot keep the state of the backfill in {folder}: {error.strerror}") from error
        self._done = self._read()

    def done(self) -> dict[date, DayDone]:
        """The days that are done, by day."""
        return dict(self._done)

    def claim(self, day: date) -> bool:
        """Every day is this process's own, which the lock has seen to."""
        return day not in self._done

    def renew(self, day: date) -> None:
        """Do nothing: the lock lives as long as the process."""

    def finish(self, result: DayDone) -> None:
        """Write down durably that a day is done.

        Raises:
            StateError: the disk refused; the day counts as not done.
        """
        days = {**self._done, result.day: result}
        content = orjson.dumps(
            {"run_id": self._run_id, "days": [asdict(days[day]) for day in sorted(days)]},
        )
        temporary = self.path.with_suffix(".tmp")
        try:
            with temporary.open("wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(self.path)
            descriptor = os.open(self.path.parent, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)
        except OSError as error:
            raise StateError(f"cannot write {self.path}: {error.strerror}; {result.day} counts as not sent") from error
        self._done = days

    def release(self, day: date) -> None:
        """Do nothing: a day that is not done is free once the process is gone."""

    def close(self) -> None:
        """Let go of the lock."""
        self._lock.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def _read(self) -> dict[date, DayDone]:
        if not self.path.exists():
            return {}
        try:
            days = [DayDone.from_json(orjson.dumps(day)) for day in orjson.loads(self.path.read_bytes())["days"]]
        except (OSError, ValueError, KeyError, TypeError) as error:
            self._lock.close()
            raise StateError(
                f"{self.path} cannot be read as the state of a backfill ({error}); move it away to send every day again, "
                "which the platform takes for what it is: the same records once more"
            ) from error
        return {found.day: found for found in days}


class RedisState:
    """The state of all processes that share a run, in Redis: a hash of the days that are done, and a key with an expiry per claimed day.

    Args:
        client: of the server.
        env: data set.
        run_id: run of the backfill.
        claim_seconds: how long a claim outlives its process.
    """

    def __init__(self, client: Redis, env: str, run_id: str, claim_seconds: int = CLAIM_SECONDS) -> None:
        self._client = client
        self._base = f"crm:{env}:backfill:{run_id}"
        self._token = f"{socket.gethostname()}/{os.getpid()}/{uuid.uuid4().hex}"
        self._claim_seconds = claim_seconds

    @classmethod
    def connect(cls, url: str, env: str, run_id: str, claim_seconds: int = CLAIM_SECONDS) -> RedisState:
        """The state at a `redis://` address.

        Raises:
            StateError: the address is wrong, or nobody answers there.
        """
        import redis

        try:
            client = redis.Redis.from_url(url, socket_connect_timeout=5, socket_timeout=10)
            client.ping()
        except (redis.RedisError, ValueError) as error:
            # The address may hold a password: only what the client says of it is shown.
            raise StateError(f"Redis at CRM_REDIS_URL cannot be used: {error}; unset it to keep the state in a file") from error
        return cls(client, env, run_id, claim_seconds)

    def done(self) -> dict[date, DayDone]:
        """The days that any process has done, by day."""
        with _redis_errors():
            found = self._client.hgetall(f"{self._base}:done")
        days = [DayDone.from_json(value) for value in dict(found).values()]  # type: ignore[arg-type]  # the client is a synchronous one
        return {day.day: day for day in days}

    def claim(self, day: date) -> bool:
        """Take a day that nobody is at work on and nobody has done."""
        with _redis_errors():
            if not self._client.set(self._claim_key(day), self._token, nx=True, ex=self._claim_seconds):
                return False
            if self._client.hexists(f"{self._base}:done", day.isoformat()):
                # Done between the look at the list and the claim.
                self._client.delete(self._claim_key(day))
                return False
            return True

    def renew(self, day: date) -> None:
        """Put the claim's expiry off, if it is still this process's."""
        with _redis_errors():
            if self._client.get(self._claim_key(day)) == self._token.encode():
                self._client.expire(self._claim_key(day), self._claim_seconds)

    def finish(self, result: DayDone) -> None:
        """Write down that a day is done and drop the claim, both or neither."""
        with _redis_errors(), self._client.pipeline(transaction=True) as pipeline:
            pipeline.hset(f"{self._base}:done", result.day.isoformat(), result.to_json())
            pipeline.delete(self._claim_key(result.day))
            pipeline.execute()

    def release(self, day: date) -> None:
        """Give a day back, if the claim is still this process's."""
        with _redis_errors():
            if self._client.get(self._claim_key(day)) == self._token.encode():
                self._client.delete(self._claim_key(day))

    def close(self) -> None:
        """Close the connection."""
        self._client.close()

    def _claim_key(self, day: date) -> str:
        return f"{self._base}:claim:{day.isoformat()}"


@contextmanager
def _redis_errors() -> Iterator[None]:
    """Turn what the client raises into a `StateError`."""
    import redis

    try:
        yield
    except redis.RedisError as error:
        raise StateError(f"Redis went away: {error}; run the same command again when it is back") from error

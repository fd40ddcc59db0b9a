"""Start, watch and drain the stream's driver, wherever it runs.

Belongs here: the protocol `StreamLauncher` and its implementation under the local supervisor. Not here: what the driver
does (`crm_assets.streaming`), or how the supervisor is configured (`deploy.local`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from crm_resources.settings import Settings
from crm_resources.supervisor import ProcessInfo, ProcessState, Service, Supervisor, SupervisorError, starts, starts_file


class StreamState(StrEnum):
    """What the stream's process is doing."""

    STOPPED = "stopped"
    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    RESTARTING = "restarting"
    FAILED = "failed"


ALIVE = frozenset({StreamState.STARTING, StreamState.RUNNING, StreamState.RESTARTING})
"""States in which there is a driver, or will be one in a moment."""

_STATES = {
    ProcessState.STOPPED: StreamState.STOPPED,
    ProcessState.STARTING: StreamState.STARTING,
    ProcessState.RUNNING: StreamState.RUNNING,
    ProcessState.STOPPING: StreamState.DRAINING,
    ProcessState.BACKOFF: StreamState.RESTARTING,
    ProcessState.EXITED: StreamState.STOPPED,
    ProcessState.FATAL: StreamState.FAILED,
    ProcessState.UNKNOWN: StreamState.FAILED,
}


@dataclass(frozen=True)
class StreamStatus:
    """State of the stream's driver.

    Attributes:
        state: what the process is doing.
        pid: its process id, None when there is no process.
        since: when it came into this state (UTC), None when it never started.
        restarts: how often it was started again since it was last applied.
        log: where its output goes.
    """

    state: StreamState
    pid: int | None
    since: datetime | None
    restarts: int
    log: Path


class StreamError(RuntimeError):
    """The stream did not come into the wanted state; the message says where to look."""


class StreamLauncher(Protocol):
    """Desired state of the stream: one driver, running until it is stopped on purpose."""

    def apply(self, *, timeout_seconds: float = 30) -> StreamStatus:
        """Start the driver, or adopt the one that runs. Returns once a process exists.

        Raises:
            StreamError: it could not be started in time.
        """
        ...

    def verify(self, reports: Callable[[StreamStatus], bool], *, timeout_seconds: float) -> StreamStatus:
        """Wait until the driver is seen to work.

        Args:
            reports: whether what the driver says of itself is what was waited for; what it raises is passed on.
            timeout_seconds: longest wait. A driver that needs longer goes on.

        Raises:
            StreamError: it ended, or the time is over.
        """
        ...

    def scale(self, cores: int) -> StreamStatus:
        """Give the driver another number of cores.

        Raises:
            StreamError: it has that many, more than there are were asked for, or it could not be started with them.
        """
        ...

    def status(self) -> StreamStatus:
        """What the driver is doing now.

        Raises:
            StreamError: nobody can tell.
        """
        ...

    def stop(self, *, wait: bool = True) -> StreamStatus:
        """Drain: the running batch is finished, then the driver ends. Nothing happens when none runs.

        Args:
            wait: whether to return only when it is gone.

        Raises:
            StreamError: it did not end in time.
        """
        ...


class SupervisedStream:
    """The driver as a process of the local supervisor.

    Args:
        settings: names the data set whose stream is meant.
        drain_seconds: how long `stop` waits for its end; the supervisor kills the process before that.
    """

    def __init__(self, settings: Settings, *, drain_seconds: float = 150) -> None:
        self._settings = settings
        self._supervisor = Supervisor(settings)
        self._drain_seconds = drain_seconds

    @property
    def is_wanted(self) -> bool:
        """Whether the stream was applied and not stopped since; such a stream comes back with `make up`."""
        return self._wanted_file.exists()

    def apply(self, *, timeout_seconds: float = 30) -> StreamStatus:
        """Start the driver, or adopt the one that runs. Returns once a process exists.

        Raises:
            StreamError: the stack is down, or the process could not be started.
        """
        deadline = time.monotonic() + timeout_seconds
        status = self.status()
        if status.state is StreamState.DRAINING:
            status = self._wait({StreamState.STOPPED, StreamState.FAILED}, timeout_seconds, "end its last batch")
        self._wanted_file.parent.mkdir(parents=True, exist_ok=True)
        self._wanted_file.touch()
        if status.state in {StreamState.STOPPED, StreamState.FAILED}:
            # A fresh count: whoever applies has looked at what failed before.
            starts_file(self._settings, Service.STREAM).unlink(missing_ok=True)
            self._ask(Service.STREAM, start=True)
        left = max(1.0, deadline - time.monotonic())
        return self._wait({StreamState.STARTING, StreamState.RUNNING}, left, "start", hopeless={StreamState.FAILED})

    def verify(self, reports: Callable[[StreamStatus], bool], *, timeout_seconds: float) -> StreamStatus:
        """Wait until the driver is seen to work.

        Raises:
            StreamError: it ended, or the time is over; a driver that needs longer goes on.
        """
        return self._wait(
            set(ALIVE), timeout_seconds, "report that it works", hopeless={StreamState.STOPPED, StreamState.FAILED}, also=reports
        )

    def scale(self, cores: int) -> StreamStatus:
        """Give the driver another number of cores: it is drained and started again, and stays so through `make down` and `make up`.

        Raises:
            StreamError: it has that many, the machine has fewer, or it could not be started with them.
        """
        there = os.cpu_count() or 1
        if cores == self._settings.spark_cores:
            raise StreamError(f"the stream of {self._settings.env} uses {cores} cores already; nothing is changed")
        if not 1 <= cores <= there:
            raise StreamError(f"the stream of {self._settings.env} cannot use {cores} cores, this machine has {there}")
        if "CRM_SPARK_CORES" in os.environ:
            raise StreamError(
                "CRM_SPARK_CORES is set in the environment, which comes first; unset it, or change it there and run `make up`"
            )
        _set_fact(self._settings.environment_dir / "environment.env", "CRM_SPARK_CORES", str(cores))
        if self.status().state in {StreamState.STOPPED, StreamState.FAILED}:
            return self.status()
        self.stop()
        return self.apply()

    def status(self) -> StreamStatus:
        """What the driver is doing now.

        Raises:
            StreamError: the supervisor does not answer, or knows no stream for this data set.
        """
        try:
            info = self._supervisor.process(Service.STREAM)
        except SupervisorError as error:
            raise StreamError(str(error)) from error
        if info is None:
            raise StreamError(f"data set {self._settings.env} is not up; run `CRM_ENV={self._settings.env} make up`")
        state = _STATES[info.state]
        return StreamStatus(
            state=state,
            pid=info.pid or None,
            since=_since(info),
            restarts=max(0, len(starts(self._settings, Service.STREAM)) - 1),
            log=Service.STREAM.log_file(self._settings),
        )

    def stop(self, *, wait: bool = True) -> StreamStatus:
        """Drain: the running batch is finished, then the driver ends. Nothing happens when none runs.

        Args:
            wait: whether to return only when it is gone.

        Raises:
            StreamError: it did not end in time, or the supervisor does not answer.
        """
        self._wanted_file.unlink(missing_ok=True)
        if self.status().state in {StreamState.STOPPED, StreamState.FAILED}:
            return self.status()
        self._ask(Service.STREAM, start=False)
        if not wait:
            return self.status()
        return self._wait({StreamState.STOPPED, StreamState.FAILED}, self._drain_seconds, "end its last batch")

    @property
    def _wanted_file(self) -> Path:
        return self._settings.environment_dir / "stream.wanted"

    def _ask(self, service: Service, *, start: bool) -> None:
        try:
            if start:
                self._supervisor.start(service)
            else:
                self._supervisor.stop(service)
        except SupervisorError as error:
            raise StreamError(str(error)) from error

    def _wait(
        self,
        wanted: set[StreamState],
        seconds: float,
        what: str,
        hopeless: frozenset[StreamState] | set[StreamState] = frozenset(),
        also: Callable[[StreamStatus], bool] = lambda _status: True,
    ) -> StreamStatus:
        from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

        waiting = Retrying(
            retry=retry_if_result(lambda status: status.state not in hopeless and not (status.state in wanted and also(status))),
            stop=stop_after_delay(seconds),
            wait=wait_fixed(0.2),
        )
        try:
            status = waiting(self.status)
        except RetryError as error:
            last = error.last_attempt.result()
            raise StreamError(f"the stream did not {what} within {seconds:.0f} s (it is {last.state}); see {last.log}") from error
        if status.state in hopeless:
            raise StreamError(f"the stream did not {what} (it is {status.state}); see {status.log}")
        return status


def _set_fact(path: Path, name: str, value: str) -> None:
    """Note a fact of the data set, replacing the file in one step."""
    lines = path.read_text().splitlines() if path.exists() else []
    kept = [line for line in lines if not line.startswith(f"{name}=")]
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(".tmp")
    draft.write_text("\n".join([*kept, f"{name}={value}"]) + "\n")
    draft.replace(path)


def _since(info: ProcessInfo) -> datetime | None:
    return info.started if info.state.is_up else info.stopped or info.started

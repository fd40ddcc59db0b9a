"""Start, watch and drain the stream's driver, wherever it runs.

Belongs here: the protocol `StreamLauncher` and its implementation under the local supervisor. Not here: what the driver
does (`crm_assets.streaming`), or how the supervisor is configured (`deploy.local`).
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Protocol

from crm_resources.settings import Settings
from crm_resources.supervisor import ProcessInfo, ProcessState, Service, Supervisor, SupervisorError, starts, starts_file
from crm_resources.waiting import PATIENCE_SECONDS, ProcessLife, cpu_seconds, wait_for


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

ENDED = frozenset({StreamState.STOPPED, StreamState.FAILED})
"""States out of which nothing comes by itself."""

DRAIN_PATIENCE_SECONDS = 150.0
"""Longer than the 120 s after which the driver interrupts its batch and the supervisor kills it, so that every stop ends."""

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

    def apply(self) -> StreamStatus:
        """Start the driver, or adopt the one that runs. Returns once a process exists.

        Raises:
            StreamError: it could not be started.
        """
        ...

    def verify(self, reports: Callable[[StreamStatus], bool], milestones: Callable[[], Hashable]) -> StreamStatus:
        """Wait until the driver is seen to work, for as long as it shows signs of life.

        Args:
            reports: whether what the driver says of itself is what was waited for; what it raises is passed on.
            milestones: what it has reached on the way there; a sign of life when it changes.

        Raises:
            StreamError: it ended, ends again and again, or gives no sign of life; in the last case it is left as it is.
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
            StreamError: it did not end.
        """
        ...


class SupervisedStream:
    """The driver as a process of the local supervisor.

    Args:
        settings: names the data set whose stream is meant.
        clock: seconds that never go back.
        sleep: pauses.
        cpu: CPU seconds of a process and of all below it.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
        cpu: Callable[[int], float | None] = cpu_seconds,
    ) -> None:
        self._settings = settings
        self._supervisor = Supervisor(settings)
        self._clock, self._sleep, self._cpu = clock, sleep, cpu

    @property
    def is_wanted(self) -> bool:
        """Whether the stream was applied and not stopped since; such a stream comes back with `make up`."""
        return self._wanted_file.exists()

    def apply(self) -> StreamStatus:
        """Start the driver, or adopt the one that runs. Returns once a process exists.

        Raises:
            StreamError: the stack is down, or the process could not be started.
        """
        status = self.status()
        if status.state is StreamState.DRAINING:
            status = self._wait_for_end()
        self._wanted_file.parent.mkdir(parents=True, exist_ok=True)
        self._wanted_file.touch()
        if status.state in ENDED:
            # A fresh count: whoever applies has looked at what failed before.
            starts_file(self._settings, Service.STREAM).unlink(missing_ok=True)
            self._ask(Service.STREAM, start=True)
        return self._wait("start", frozenset({StreamState.STARTING, StreamState.RUNNING}), frozenset({StreamState.FAILED}))

    def verify(self, reports: Callable[[StreamStatus], bool], milestones: Callable[[], Hashable]) -> StreamStatus:
        """Wait until the driver is seen to work, for as long as it shows signs of life.

        Raises:
            StreamError: it ended, ends again and again, or gives no sign of life; in the last case it is left as it is.
        """
        return self._wait("report that it works", ALIVE, ENDED, reports, milestones)

    def signs_of_life(self) -> Callable[[], Hashable | None]:
        """What gives the driver's sign of life: it changes while the driver works, and is None once it has ended for good."""
        life = ProcessLife(self._cpu)

        def sign() -> Hashable | None:
            status = self.status()
            alive = life(status.pid)
            return None if alive is None or status.state in ENDED else (status.state, alive)

        return sign

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
        if self.status().state in ENDED:
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
            StreamError: it did not end, or the supervisor does not answer.
        """
        self._wanted_file.unlink(missing_ok=True)
        if self.status().state in ENDED:
            return self.status()
        self._ask(Service.STREAM, start=False)
        if not wait:
            return self.status()
        return self._wait_for_end()

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

    def _wait_for_end(self) -> StreamStatus:
        return self._wait("end its last batch", ENDED, patience_seconds=DRAIN_PATIENCE_SECONDS)

    def _wait(
        self,
        what: str,
        wanted: frozenset[StreamState],
        hopeless: frozenset[StreamState] = frozenset(),
        reports: Callable[[StreamStatus], bool] = lambda _status: True,
        milestones: Callable[[], Hashable] = lambda: None,
        patience_seconds: float = PATIENCE_SECONDS,
    ) -> StreamStatus:
        life = ProcessLife(self._cpu)
        status = self.status()

        def failed(why: str) -> StreamError:
            return StreamError(f"the stream did not {what}: {why} (it is {status.state}); see {status.log}")

        def reached() -> bool:
            nonlocal status
            status = self.status()
            if status.state in hopeless:
                raise failed("it has ended")
            return status.state in wanted and reports(status)

        def sign() -> Hashable | None:
            alive = life(status.pid)
            return None if alive is None else (status.state, alive, milestones())

        wait_for(reached, sign, failed, patience_seconds=patience_seconds, clock=self._clock, sleep=self._sleep)
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

"""The stream's driver as a process of its own, and what its tables hold; for tests, fault runs and benchmarks.

Belongs here: starting, watching, killing and stopping it. Not here: what is sent to it.
"""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import IO

import psutil  # noqa: TID253 -- a test may load what it tests with

from crm_assets.streaming.progress import StreamNotRunning, StreamProgress, milestones, read_progress, running
from crm_assets.streaming.tables import refined_tables
from crm_resources.lake import row_count
from crm_resources.layout import BRONZE
from crm_resources.settings import load_settings
from crm_resources.waiting import ProcessLife, wait_for

DEADLINE_SECONDS = 180
DRIVER = ("crm_assets.streaming.driver",)


def wait_until(condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> float:
    """Wait for a condition; returns the seconds it took.

    Args:
        condition: looked at five times a second.
        what: names it in the failure.
        seconds: deadline.
    """
    begun = time.monotonic()
    while not condition():
        assert time.monotonic() - begun < seconds, f"not within {seconds:.0f} s: {what}"
        time.sleep(0.2)
    return time.monotonic() - begun


class DriverProcess:
    """A driver of one data set, and what its tables hold.

    Args:
        environ: variables of the process.
        module: what to start, a module with its arguments; the product's driver unless a control wants another.
        name: name of the log beside the data set's folder.
    """

    def __init__(self, environ: dict[str, str], module: Sequence[str] = DRIVER, name: str = "driver") -> None:
        self.environ = environ
        self.module = tuple(module)
        self.settings = load_settings(environ)
        self.process: subprocess.Popen[bytes] | None = None
        self.log = self.settings.home / f"{self.settings.env}-{name}.log"
        self._output: IO[bytes] | None = None

    def launch(self, **variables: str) -> subprocess.Popen[bytes]:
        """Start the process and do not wait for anything.

        Args:
            variables: further variables of the process.
        """
        self.close_log()
        self._output = self.log.open("ab")
        command = [sys.executable, "-m", *self.module]
        self.process = subprocess.Popen(command, env=self.environ | variables, stdout=self._output, stderr=subprocess.STDOUT)
        return self.process

    def start(self) -> StreamProgress:
        """Start the process and wait until both queries run."""
        process = self.launch()
        life = ProcessLife()
        found = wait_for(
            lambda: running(self.settings, process.pid),
            lambda: None if process.poll() is not None else (life(process.pid), milestones(self.settings)),
            lambda why: StreamNotRunning(f"both queries did not run: {why}; see {self.log}"),
        )
        assert found is not None
        return found

    @property
    def running(self) -> subprocess.Popen[bytes]:
        """The process."""
        assert self.process is not None
        return self.process

    def java(self) -> psutil.Process:
        """The process of Spark."""
        return next(p for p in psutil.Process(self.running.pid).children(recursive=True) if "java" in p.name())

    def progress(self) -> StreamProgress | None:
        """What this process reported last, `None` before its first word."""
        found = read_progress(self.settings)
        return found if found is not None and self.process is not None and found.pid == self.process.pid else None

    def rows(self) -> dict[str, int]:
        """Rows of bronze and of the refined tables, by name."""
        return {t.name: row_count(self.settings, t.path) for t in (BRONZE, *refined_tables())}

    def placed(self) -> int:
        """Rows of the refined tables."""
        return sum(n for name, n in self.rows().items() if name != BRONZE.name)

    def said(self) -> str:
        """The log until now."""
        return self.log.read_text(errors="replace") if self.log.exists() else ""

    def stop(self) -> int:
        """Ask it to end and wait; returns the exit status."""
        if self.running.poll() is None:
            self.running.send_signal(signal.SIGTERM)
        return self.running.wait(DEADLINE_SECONDS)

    def kill(self) -> None:
        """`kill -9`, Java first: a driver must not get to do anything more. Waits until both are gone."""
        for member in reversed([psutil.Process(self.running.pid), *psutil.Process(self.running.pid).children(recursive=True)]):
            try:
                member.kill()
            except psutil.NoSuchProcess:
                continue
        self.running.wait()

    def end(self) -> None:
        """Leave nothing behind."""
        if self.process is not None and self.process.poll() is None:
            self.kill()
        self.close_log()

    def close_log(self) -> None:
        """Close the log's file."""
        if self._output is not None:
            self._output.close()
            self._output = None

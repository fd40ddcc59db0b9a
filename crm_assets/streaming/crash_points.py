"""Places where the driver can be told to die, so that tests can show what a crash there leaves behind.

`CRM_CRASH_AT=refine.between_tables:3` kills the driver, Java first, as `kill -9` would, the third time it comes by there.
Without the variable nothing happens. Not here: what must hold after a crash (`tests/faults`).
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

LOG = logging.getLogger(__name__)

VARIABLE = "CRM_CRASH_AT"


class CrashPoint(StrEnum):
    """Where a driver can die. Each is passed once per batch that writes rows; a query's last one lies before Spark's own commit."""

    INGEST_BEFORE_COMMIT = "ingest.before_commit"
    INGEST_AFTER_COMMIT = "ingest.after_commit"
    INGEST_BEFORE_CHECKPOINT = "ingest.before_checkpoint"
    REFINE_BEFORE_COMMIT = "refine.before_commit"
    REFINE_BETWEEN_TABLES = "refine.between_tables"
    REFINE_AFTER_COMMIT = "refine.after_commit"
    REFINE_BEFORE_CHECKPOINT = "refine.before_checkpoint"
    REPLAY_BETWEEN_TABLES = "replay.between_tables"
    REPLAY_BEFORE_LEDGER = "replay.before_ledger"
    REPLAY_BETWEEN_CHUNKS = "replay.between_chunks"


@dataclass
class CrashPoints:
    """Counts how often the chosen point is passed, and dies there.

    Args:
        chosen: the point, `None` for no crash.
        times: at which passing, from 1.
    """

    chosen: CrashPoint | None = None
    times: int = 1
    _passed: int = 0

    def passing(self, point: CrashPoint) -> None:
        """Die if this is the place and the time."""
        if point is not self.chosen:
            return
        self._passed += 1
        if self._passed == self.times:
            _die(point)


def crash_points(environ: Mapping[str, str] | None = None) -> CrashPoints:
    """The crash the environment asks for, usually none.

    Args:
        environ: variables instead of the process's own.

    Raises:
        ValueError: the variable names no point, or a count that is no whole number from 1.
    """
    asked = (os.environ if environ is None else environ).get(VARIABLE)
    if not asked:
        return CrashPoints()
    name, _, times = asked.partition(":")
    try:
        found = CrashPoints(CrashPoint(name), int(times or 1))
    except ValueError as error:
        raise ValueError(f"{VARIABLE}={asked}: write one of {', '.join(CrashPoint)}, and if wanted `:` and at which passing") from error
    if found.times < 1:
        raise ValueError(f"{VARIABLE}={asked}: passings are counted from 1")
    LOG.warning("%s=%s: this driver will kill itself there; it is meant for tests", VARIABLE, asked)
    return found


def _die(point: CrashPoint) -> None:
    from crm_resources.spark import java_pid

    LOG.warning("dying at %s", point)
    java = java_pid()
    if java is not None:
        os.kill(java, signal.SIGKILL)
    os.kill(os.getpid(), signal.SIGKILL)

"""The JSON report every command that shows something leaves under `<home>/reports`."""

from __future__ import annotations

import json
import subprocess
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from enum import StrEnum
from pathlib import Path

from crm_resources.settings import REPOSITORY


class Verdict(StrEnum):
    """Whether every promise of the command was kept."""

    PASS = "pass"  # noqa: S105 -- a verdict, not a password
    FAIL = "fail"


@dataclass(frozen=True)
class Report:
    """One run of a command. `figures` is flat; each name ends in its unit."""

    verdict: Verdict
    commit: str
    started: str
    seconds: float
    figures: dict[str, float]


def write_report(
    directory: Path,
    target: str,
    verdict: Verdict,
    figures: dict[str, float],
    *,
    started: datetime,
    now: datetime | None = None,
) -> Path:
    """Write `<directory>/<target>.json` and return its path.

    Args:
        directory: folder of the reports, made when absent.
        target: name of the make target, e.g. `demo`.
        verdict: pass or fail.
        figures: flat names with units to numbers.
        started: when the command began.
        now: when it ended; the current time when omitted.
    """
    ended = now or datetime.now(UTC)
    report = Report(verdict, _commit(), started.astimezone(UTC).isoformat(), round((ended - started).total_seconds(), 3), figures)
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{target}.json"
    path.write_text(json.dumps(asdict(report), indent=2) + "\n")
    return path


def _commit() -> str:
    found = subprocess.run(["git", "rev-parse", "HEAD"], cwd=REPOSITORY, capture_output=True, text=True, check=False)  # noqa: S607 -- git is wherever PATH says
    return found.stdout.strip() or "unknown"

"""What a run of the whole suite came to, as a report; and the suite with its planted faults in one command.

Belongs here: the pytest plugin that counts (`tests/conftest.py` registers it), and `python -m tests.suite_report`. Seconds are those of
pytest, from its start to its end; lint is not in them.
"""

from __future__ import annotations

import json
import subprocess
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import typer

from crm_resources.report import Verdict, write_report
from crm_resources.settings import REPOSITORY, load_settings

NARROWING = ("keyword", "markexpr", "deselect", "ignore", "ignore_glob", "collectonly", "lf", "stepwise")
"""Options of pytest that leave tests out."""


@dataclass
class Tally:
    """Tests by what became of them; a test that failed in any phase has failed."""

    outcomes: dict[str, str] = field(default_factory=dict)

    def note(self, test: str, phase: str, outcome: str) -> None:
        """Take in a phase of a test.

        Args:
            test: its node id.
            phase: setup, call or teardown.
            outcome: passed, failed or skipped.
        """
        if outcome != "passed" or phase == "call":
            worst = "failed" if "failed" in (outcome, self.outcomes.get(test)) else outcome
            self.outcomes[test] = worst

    def figures(self) -> dict[str, float]:
        """How many tests, and how many of each outcome."""
        counted = Counter(self.outcomes.values())
        return {"tests": len(self.outcomes), **{name: counted[name] for name in ("passed", "failed", "skipped")}}


class SuiteReport:
    """Plugin that writes `test.json` when the whole suite has run.

    Args:
        folder: folder of the reports.
        started: when pytest began.
    """

    def __init__(self, folder: Path, started: datetime) -> None:
        self._folder = folder
        self._started = started
        self._tally = Tally()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """A phase of a test ended, here or in a worker."""
        self._tally.note(report.nodeid, report.when or "", report.outcome)

    def pytest_sessionfinish(self, session: pytest.Session, exitstatus: int) -> None:
        """All tests ran, or pytest was stopped before: then there is no report."""
        if exitstatus not in (pytest.ExitCode.OK, pytest.ExitCode.TESTS_FAILED) or session.shouldfail or session.shouldstop:
            return
        ended = datetime.now(UTC)
        figures = self._tally.figures() | {"seconds": round((ended - self._started).total_seconds(), 3)}
        verdict = Verdict.PASS if exitstatus == pytest.ExitCode.OK else Verdict.FAIL
        write_report(self._folder, "test", verdict, figures, started=self._started, now=ended)


def register(config: pytest.Config) -> None:
    """Have the report written, unless this is a worker or runs only some of the tests."""
    whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS and not any(config.getoption(name, None) for name in NARROWING)
    if whole and not hasattr(config, "workerinput"):
        config.pluginmanager.register(SuiteReport(load_settings().reports_dir, datetime.now(UTC)), "suite-report")


def report_since(path: Path, started: datetime) -> dict[str, Any] | None:
    """A report that was begun after a time; an older one tells of another run.

    Args:
        path: the report.
        started: the time.
    """
    found: dict[str, Any] | None = json.loads(path.read_text()) if path.is_file() else None
    return found if found and datetime.fromisoformat(found["started"]) >= started else None


def main() -> None:
    """Run `make test`, then `make planted-faults`, and write `test-suite.json` of both; `seconds` are those of the tests."""
    folder, started = load_settings().reports_dir, datetime.now(UTC)
    figures: dict[str, float] = {}
    passed = True
    for target, names in (("test", ("seconds", "tests")), ("planted-faults", ("planted_faults", "planted_faults_caught"))):
        if passed:
            # Make is wherever PATH says.
            passed = subprocess.run(["make", target], cwd=REPOSITORY, check=False).returncode == 0  # noqa: S607
        found = report_since(folder / f"{target}.json", started)
        passed = passed and found is not None
        figures |= {name: found["figures"][name] for name in names} if found else {}
    path = write_report(folder, "test-suite", Verdict.PASS if passed else Verdict.FAIL, figures, started=started)
    typer.echo(f"report: {path}")
    if not passed:
        typer.echo("error: a test failed, or a planted fault was not caught; it stands above", err=True)
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

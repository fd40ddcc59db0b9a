"""A report of the whole suite: what it counts, and which run it speaks of."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from crm_resources.report import Verdict, write_report
from crm_resources.settings import REPOSITORY
from tests.suite_report import Tally, report_since

pytest_plugins = ["pytester"]

NOON = datetime(2026, 3, 1, 12, tzinfo=UTC)

CONFTEST = "from tests import suite_report\ndef pytest_configure(config):\n    suite_report.register(config)\n"
TESTS = "import pytest\ndef test_one(): pass\ndef test_two(): assert False\n@pytest.mark.skip\ndef test_three(): pass\n"


def test_a_test_counts_once_and_fails_in_any_phase() -> None:
    tally = Tally()
    for test, phases in {
        "good": ("passed", "passed", "passed"),
        "bad": ("passed", "failed", "passed"),
        "unready": ("failed",),
        "untidy": ("passed", "passed", "failed"),
        "left out": ("skipped",),
    }.items():
        for phase, outcome in zip(("setup", "call", "teardown"), phases, strict=False):
            tally.note(test, phase, outcome)
    assert tally.figures() == {"tests": 5, "passed": 1, "failed": 3, "skipped": 1}


def test_a_report_of_an_earlier_run_is_none(tmp_path: Path) -> None:
    path = write_report(tmp_path, "test", Verdict.PASS, {"tests": 3}, started=NOON)
    found = report_since(path, NOON - timedelta(seconds=1))
    assert found is not None
    assert found["figures"] == {"tests": 3}
    assert report_since(path, NOON + timedelta(seconds=1)) is None
    assert report_since(tmp_path / "absent.json", NOON) is None


@pytest.mark.parametrize(
    ("arguments", "whole"), [((), True), (("-n", "1"), True), (("-k", "one"), False), (("checks",), False), (("-x",), False)], ids=str
)
def test_only_a_run_of_all_tests_leaves_a_report(
    pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], whole: bool
) -> None:
    monkeypatch.setenv("CRM_HOME", str(pytester.path / "home"))
    monkeypatch.setenv("PYTHONPATH", str(REPOSITORY))
    pytester.makeini("[pytest]\ntestpaths = checks")
    checks = pytester.mkdir("checks")
    (checks / "conftest.py").write_text(CONFTEST)
    (checks / "test_three.py").write_text(TESTS)
    pytester.runpytest_inprocess(*arguments)
    report = pytester.path / "home" / "reports" / "test.json"
    assert report.exists() == whole
    if whole:
        found = json.loads(report.read_text())
        figures = {name: found["figures"][name] for name in ("tests", "passed", "failed", "skipped")}
        assert (found["verdict"], figures) == ("fail", {"tests": 3, "passed": 1, "failed": 1, "skipped": 1})

"""`make demo` leaves its report however it ends, and says on one line what went wrong; `make demo-busy` leaves no loops behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dagster as dg
import psutil  # noqa: TID253 -- looks at the processes from outside
import pytest
from typer.testing import CliRunner

from crm_resources.kafka import KafkaUnavailableError
from crm_resources.report import Verdict, write_report
from crm_resources.settings import REPOSITORY
from deploy.local import demo
from deploy.local.errors import StackError
from tests.benchmarks.demo_busy import busy, figures_of
from tests.driver_process import wait_until

NOW = datetime(2026, 3, 1, tzinfo=UTC)


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.setenv("CRM_HOME", str(tmp_path))
    monkeypatch.delenv("CRM_DEMO_STARTED", raising=False)
    monkeypatch.setattr(demo.console, "width", 200)
    before = signal.getsignal(signal.SIGTERM)
    yield tmp_path
    signal.signal(signal.SIGTERM, before)


def failing(error: BaseException) -> Callable[..., demo.Audited]:
    """A demo that starts its stack, and fails at the second step."""

    def run(steps: demo.Steps, figures: dict[str, float], *_: object) -> demo.Audited:
        with steps.step("stack", "starting"):
            figures["bronze_rows"] = 7
        with steps.step("stream", "applying"):
            raise error

    return run


def test_a_wrong_setting_is_named_before_anything_is_started(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRM_SPARK_CORES", "many")

    ended = CliRunner().invoke(demo.app, [])

    assert ended.exit_code == 1
    assert "error: CRM_SPARK_CORES='many': " in ended.output
    assert list(home.iterdir()) == []


@pytest.mark.parametrize(
    "error",
    [StackError("the marts are behind", "see `make status`"), KafkaUnavailableError("no [broker]"), KeyboardInterrupt(), SystemExit(143)],
)
def test_a_demo_that_fails_leaves_its_report_with_the_figures_so_far(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], error: BaseException
) -> None:
    monkeypatch.setattr(demo, "_run", failing(error))

    ended = CliRunner().invoke(demo.app, [])

    assert ended.exit_code != 0
    report = json.loads((home / "reports" / "demo.json").read_text())
    assert report["verdict"] == "fail"
    assert report["figures"]["bronze_rows"] == 7
    assert {"step_setup_seconds", "step_stack_seconds", "step_stream_seconds", "total_seconds"} <= report["figures"].keys()
    shown = ended.output + capsys.readouterr().out
    assert "seconds per step" in shown
    assert f"error: {error if isinstance(error, Exception) else 'it was interrupted'}" in shown
    assert "Traceback" not in shown


@dg.asset
def talks() -> None:
    raise RuntimeError("Kafka does not answer; run `make up`") from OSError("connection refused")


@dg.asset
def driver() -> None:
    raise dg.Failure("the stream did not start: nothing has moved for 120 s", allow_retries=False) from OSError("inner")


@pytest.mark.parametrize(
    ("asset", "told"),
    [
        (talks, "talks failed: Kafka does not answer; run `make up`"),
        (driver, "driver failed: the stream did not start: nothing has moved for 120 s"),
    ],
)
def test_what_dagster_prints_of_a_failure_is_told_on_one_line(
    capfd: pytest.CaptureFixture[str], asset: dg.AssetsDefinition, told: str
) -> None:
    assert not dg.materialize([asset], raise_on_error=False).success
    printed = capfd.readouterr()
    assert "Stack Trace" in printed.err
    assert demo.failure_in(printed.out + printed.err) == told


def test_output_without_a_failed_step_names_none() -> None:
    assert demo.failure_in("Error: no such option: --selct") is None


def is_over(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_busy_loops_use_the_cpu_and_are_gone_afterwards() -> None:
    with busy(2) as pids:
        wait_until(lambda: all(psutil.Process(pid).cpu_times().user > 0.2 for pid in pids), "both loops work")
    assert not any(psutil.pid_exists(pid) for pid in pids)


def test_busy_loops_end_when_their_command_is_killed() -> None:
    code = (
        "import time\nfrom tests.benchmarks.demo_busy import busy\nwith busy(2) as pids:\n    print(*pids, flush=True)\n    time.sleep(600)"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE, text=True) as command:
        assert command.stdout is not None
        pids = [int(pid) for pid in command.stdout.readline().split()]
        os.kill(command.pid, signal.SIGKILL)
    assert len(pids) == 2
    wait_until(lambda: all(map(is_over, pids)), "both loops have ended", 60)


def test_the_figures_of_a_demo_are_those_of_this_one(tmp_path: Path) -> None:
    begun = datetime.now(UTC) - timedelta(minutes=1)
    assert figures_of(tmp_path / "demo.json", begun) == (Verdict.FAIL, {})

    path = write_report(tmp_path, "demo", Verdict.PASS, {"total_seconds": 1.5}, started=begun)

    assert figures_of(path, begun) == (Verdict.PASS, {"total_seconds": 1.5})
    assert figures_of(path, datetime.now(UTC) + timedelta(minutes=1)) == (Verdict.FAIL, {})

"""What a backfill remembers between its runs, and what it refuses."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner

from generator.backfill import day_done
from generator.backfill_state import DayDone, FileState, StateError
from generator.cli import app
from generator.population_model import PopulationOptions, PopulationShop

DAY = date(2026, 10, 1)
SMALL = ["--customers", "40", "--days", "3", "--end", "2025-01-31", "--products", "10", "--visits", "5"]


def done(day: date) -> DayDone:
    return DayDone(day, 10, 0.5, tuple(range(24)), (1,) * 24)


def test_a_finished_day_is_there_for_the_next_process(tmp_path: Path) -> None:
    with FileState(tmp_path, "run") as state:
        assert state.claim(DAY)
        state.finish(done(DAY))
        state.finish(done(DAY + timedelta(days=1)))
    with FileState(tmp_path, "run") as state:
        assert state.done() == {day.day: day for day in (done(DAY), done(DAY + timedelta(days=1)))}
        assert not state.claim(DAY)
        assert state.claim(DAY + timedelta(days=2))
    with FileState(tmp_path, "another-run") as state:
        assert state.done() == {}


def test_a_second_process_on_the_same_run_is_turned_away(tmp_path: Path) -> None:
    program = f"from pathlib import Path; from generator.backfill_state import FileState; FileState(Path({str(tmp_path)!r}), 'run')"
    with FileState(tmp_path, "run"):
        turned_away = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert "StateError: another process is at work on run" in turned_away.stderr
        assert "set CRM_REDIS_URL" in turned_away.stderr
    assert subprocess.run([sys.executable, "-c", program], capture_output=True, check=False).returncode == 0


def test_a_lock_does_not_outlive_its_process(tmp_path: Path) -> None:
    program = (
        "import os, signal; from pathlib import Path; from generator.backfill_state import FileState; "
        f"state = FileState(Path({str(tmp_path)!r}), 'run'); os.kill(os.getpid(), signal.SIGKILL)"
    )
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == -9
    FileState(tmp_path, "run").close()


def test_a_state_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text('{"days": [{"day"')
    with pytest.raises(StateError, match=r"run\.json cannot be read as the state of a backfill .* move it away"):
        FileState(tmp_path, "run")


def test_a_state_that_cannot_be_written_leaves_the_day_undone(tmp_path: Path) -> None:
    with FileState(tmp_path, "run") as state:
        (tmp_path / "run.tmp").mkdir()
        with pytest.raises(StateError, match="2026-10-01 counts as not sent"):
            state.finish(done(DAY))
        assert state.done() == {}


def test_a_day_is_counted_by_hour() -> None:
    shop = PopulationShop(PopulationOptions(end=DAY, customers=500, days=3, products=10))
    table = shop.table(DAY)
    counted = day_done(DAY, table, 1.0)
    assert DayDone.from_json(counted.to_json()) == counted
    assert counted.records == table.num_rows
    records = list(shop.records(DAY))
    assert sum(counted.events_by_hour) == sum(r.entity == "event" for r in records)
    assert sum(counted.orders_by_hour) == sum(b'"status":"placed"' in (r.value or b"") for r in records) > 0


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[int, str]]:
    """Run the command in a home of its own."""
    monkeypatch.setenv("CRM_HOME", str(tmp_path))
    monkeypatch.setenv("COLUMNS", "300")
    monkeypatch.delenv("CRM_REDIS_URL", raising=False)

    def command(*arguments: str) -> tuple[int, str]:
        result = CliRunner().invoke(app, ["backfill", *arguments])
        return result.exit_code, result.output

    return command


def test_a_plan_needs_no_kafka_and_leaves_truth_plot_and_report(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, shown = run(*SMALL, "--plan-only", "--env", "planned")
    assert code == 0, shown
    (truth,) = (tmp_path / "planned" / "truth").iterdir()
    assert truth.name.startswith("backfill-1-20250129-20250131-")
    assert (tmp_path / "reports" / "backfill-plan-season.png").read_bytes().startswith(b"\x89PNG")
    report = json.loads((tmp_path / "reports" / "backfill-plan.json").read_text())
    assert (report["verdict"], report["figures"]["days_done"]) == ("pass", 3)
    assert report["figures"]["done_rows"] > 0


def test_a_backfill_into_the_future_is_refused(run: Callable[..., tuple[int, str]], tmp_path: Path) -> None:
    code, shown = run("--end", "2999-01-01")
    assert code == 2
    assert "2999-01-01 lies in the future" in shown
    assert not (tmp_path / "demo").exists()


@pytest.mark.parametrize("argument", [("--customers", "0"), ("--days", "0"), ("--seed", "-1"), ("--end", "yesterday"), ("--visits", "-1")])
def test_arguments_that_make_no_sense_are_refused(run: Callable[..., tuple[int, str]], argument: tuple[str, str]) -> None:
    code, shown = run(*argument)
    assert code == 2
    assert argument[0] in shown


def test_a_redis_that_does_not_answer_ends_with_1_and_shows_no_password(
    run: Callable[..., tuple[int, str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRM_REDIS_URL", "redis://:hush-hush@127.0.0.1:1/0")
    code, shown = run(*SMALL)
    assert code == 1
    assert "Redis at CRM_REDIS_URL cannot be used" in shown
    assert "hush-hush" not in shown

"""The fast path puts each day into bronze once, with a ledger that says the same, wherever it was stopped."""

from __future__ import annotations

from datetime import date
from pathlib import Path

import deltalake  # noqa: TID253 -- tests need not start fast
import pytest

from crm_resources.lake import files_of, open_table, read_columns
from crm_resources.lake_lock import LakeLocked, lake_lock
from crm_resources.layout import BRONZE
from crm_resources.ledger import ledger_dir, ledger_files, payload_md5, read_ledger
from crm_resources.settings import Settings, load_settings
from generator import bronze_path
from generator.bronze_path import BronzeOutcome, partition_of, run_bronze_backfill
from generator.population_model.options import PopulationOptions
from generator.population_model.shop import PopulationShop

OPTIONS = PopulationOptions(end=date(2026, 3, 10), seed=5, customers=20, days=8, products=12)

Coordinates = tuple[str, int, int]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return settings_in(tmp_path / "home")


def settings_in(home: Path) -> Settings:
    return load_settings({"CRM_HOME": str(home), "CRM_ENV": "fast"})


def run(settings: Settings, *, rows_per_commit: int = 60, days: int | None = None) -> BronzeOutcome:
    """Run in this process's own pool, at most until `days` days were committed."""
    seen = [0]

    def progress(done: int, _rows: int) -> None:
        seen[0] = done

    return run_bronze_backfill(
        settings,
        OPTIONS,
        workers=1,
        progress=progress,
        stop=lambda: days is not None and seen[0] >= days,
        rows_per_commit=rows_per_commit,
    )


def bronze(settings: Settings) -> dict[Coordinates, bytes]:
    table = open_table(settings, BRONZE.path)
    assert table is not None
    columns = ["kafka_topic", "kafka_partition", "kafka_offset", "value"]
    rows = read_columns(settings, BRONZE.path, files_of(table), columns).to_pylist()
    found = {(r["kafka_topic"], r["kafka_partition"], r["kafka_offset"]): r["value"] for r in rows}
    assert len(found) == len(rows)
    return found


def ledger(settings: Settings) -> dict[Coordinates, bytes]:
    files = ledger_files(ledger_dir(settings.environment_dir))
    rows = [row for path in files for batch in read_ledger(path) for row in batch.to_pylist()]
    found = {(r["topic"], r["partition"], r["offset"]): r["payload_md5"] for r in rows}
    assert len(found) == len(rows)
    return found


def test_bronze_holds_what_kafka_would_get_and_the_ledger_says_so(settings: Settings) -> None:
    outcome = run(settings)
    shop = PopulationShop(OPTIONS)
    expected = [r.value for day in shop.days for r in shop.records(day)]
    found = bronze(settings)
    assert sorted(found.values()) == sorted(v for v in expected if v is not None)
    assert ledger(settings) == {where: payload_md5(value) for where, value in found.items()}
    assert (outcome.days_added, outcome.rows, outcome.interrupted) == (8, len(expected), False)


def test_coordinates_are_run_day_and_an_unbroken_count(settings: Settings) -> None:
    run(settings)
    by_place: dict[tuple[str, int], list[int]] = {}
    for topic, partition, offset in bronze(settings):
        by_place.setdefault((topic, partition), []).append(offset)
    assert {p for _, p in by_place} == {partition_of(OPTIONS.run_id, d) for d in PopulationShop(OPTIONS).days}
    assert all(p < 0 for _, p in by_place)
    assert all(sorted(offsets) == list(range(len(offsets))) for offsets in by_place.values())


def test_repeating_adds_nothing(settings: Settings) -> None:
    run(settings)
    before = bronze(settings)
    again = run(settings)
    assert (again.days_before, again.days_added, again.rows) == (8, 0, 0)
    assert bronze(settings) == before
    assert set(ledger(settings)) == set(before)


def test_a_stopped_run_goes_on_and_equals_one_that_was_not(settings: Settings, tmp_path: Path) -> None:
    stopped = run(settings, days=3)
    assert stopped.interrupted
    assert 3 <= stopped.days_added < 8
    rest = run(settings)
    assert rest.days_before == stopped.days_added
    whole = settings_in(tmp_path / "whole")
    run(whole)
    assert bronze(settings) == bronze(whole)
    assert ledger(settings) == ledger(whole)


@pytest.mark.parametrize("crash_in", ["write_deltalake", "publish_ledger"])
def test_a_crash_around_the_commit_leaves_ledger_and_bronze_alike(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, crash_in: str
) -> None:
    def crash(*_arguments: object, **_options: object) -> None:
        raise RuntimeError("the process dies here")

    with monkeypatch.context() as patch:
        patch.setattr(deltalake if crash_in == "write_deltalake" else bronze_path, crash_in, crash)
        with pytest.raises(RuntimeError, match="dies here"):
            run(settings)
    run(settings)
    assert set(bronze(settings)) == set(ledger(settings))
    assert not list((ledger_dir(settings.environment_dir) / "staged").iterdir())


def test_a_lake_that_is_being_written_is_left_alone(settings: Settings) -> None:
    with lake_lock(settings, "stream"), pytest.raises(LakeLocked, match="stream"):
        run(settings)
    assert open_table(settings, BRONZE.path) is None

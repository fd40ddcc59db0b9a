"""The code location: loads with nothing around it, fast, without the heavy modules, and is complete."""

import json
import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import dagster as dg
import pytest

from crm_assets.build import build_defs
from crm_assets.definitions import defs
from crm_assets.monitoring.refresh import EVERYTHING_JOB, EVERYTHING_TAG, REFRESH_JOB
from crm_assets.warehouse.assets import DBT_MANIFEST
from crm_assets.warehouse.table_rules import left_to_the_night
from tests.asset_graph import live_graph, pictured_graph

REPOSITORY = Path(__file__).resolve().parents[2]
SNAPSHOT = Path(__file__).parent / "asset_graph.json"
IMPORT_BUDGET_SECONDS = 12
"""CPU time, which a busy machine stretches less than the clock; on an idle one it takes a third."""

BARE = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "LANG": "C.UTF-8"}


def specs() -> list[dg.AssetSpec]:
    return list(defs.resolve_all_asset_specs())


def test_it_loads_in_a_fresh_interpreter_without_heavy_modules_within_the_budget():
    program = (
        "import sys, time; t = time.process_time(); import crm_assets.definitions; "
        "heavy = [m for m in ('pyspark', 'kubernetes', 'dagster_k8s', 'dagster_pyspark') if m in sys.modules]; "
        "print(time.process_time() - t, ','.join(heavy))"
    )
    done = subprocess.run([sys.executable, "-c", program], cwd=REPOSITORY, env=BARE, capture_output=True, text=True, check=True)
    seconds, _, heavy = done.stdout.strip().partition(" ")
    assert heavy == ""
    assert float(seconds) < IMPORT_BUDGET_SECONDS


def test_loading_writes_nothing(tmp_path: Path):
    before = set((REPOSITORY / ".crm").rglob("*")) if (REPOSITORY / ".crm").exists() else set()
    env = {**BARE, "CRM_HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1"}
    subprocess.run([sys.executable, "-c", "import crm_assets.definitions"], cwd=REPOSITORY, env=env, capture_output=True, check=True)
    assert not (tmp_path / "home").exists()
    if not before:
        assert not (REPOSITORY / ".crm").exists()


def test_definitions_validate_with_every_service_down_and_an_empty_environment():
    done = subprocess.run(
        [Path(sys.executable).with_name("dagster"), "definitions", "validate", "-w", "workspace.yaml"],
        cwd=REPOSITORY,
        env=BARE,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_dg_knows_the_same_code_location():
    done = subprocess.run(
        [Path(sys.executable).with_name("dg"), "list", "defs", "--json"],
        cwd=REPOSITORY,
        env={**BARE, "HOME": os.environ.get("HOME", "/nonexistent")},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "marts/rfm_segments" in done.stdout


def test_the_asset_graph_is_the_one_that_was_agreed():
    """A changed graph is a decision: rewrite the snapshot with `CRM_WRITE_SNAPSHOT=1 make test-unit` and commit it."""
    found = live_graph()
    if os.environ.get("CRM_WRITE_SNAPSHOT"):
        SNAPSHOT.write_text(json.dumps(found, indent=1) + "\n")
    assert found == json.loads(SNAPSHOT.read_text())


def test_the_picture_in_the_readme_shows_the_graph_of_today():
    assert pictured_graph(REPOSITORY / "docs" / "images" / "lineage.png") == live_graph(), "run `make graph-picture` and commit it"


def test_lineage_leads_from_the_broker_to_the_segments():
    nodes = live_graph()

    def ancestors(key: str) -> set[str]:
        parents = nodes[key]["deps"]
        return set(parents).union(*(ancestors(p) for p in parents)) if parents else set()

    assert {"infrastructure/kafka", "topics/orders", "stream/driver", "lake/bronze", "silver/orders", "warehouse/raw/orders"} <= ancestors(
        "marts/rfm_segments"
    )


@pytest.mark.parametrize("spec", sorted(specs(), key=lambda s: s.key), ids=lambda s: s.key.to_user_string())
def test_each_asset_says_who_owns_it_what_it_is_and_what_it_is_made_of(spec: dg.AssetSpec):
    assert spec.owners
    assert spec.group_name
    assert spec.kinds
    assert spec.description
    if spec.key.path[0] in {"lake", "silver", "warehouse", "staging", "intermediate", "marts", "models"}:
        schema = spec.metadata["dagster/column_schema"]
        assert isinstance(schema, dg.TableSchema)
        assert schema.columns
        assert all(c.description for c in schema.columns), [c.name for c in schema.columns if not c.description]


def test_what_must_run_by_itself_is_on_by_default():
    sensors = {s.name: s.default_status for s in defs.sensors or []}
    assert sensors["refresh_marts"] is dg.DefaultSensorStatus.RUNNING
    assert sensors["lake_growth"] is dg.DefaultSensorStatus.RUNNING
    assert all(s.default_status is dg.DefaultScheduleStatus.RUNNING for s in defs.schedules or [] if isinstance(s, dg.ScheduleDefinition))


def test_a_refresh_is_one_load_and_one_dbt_invocation_whatever_stands_between_the_models():
    """The fit of the purchase models reads dbt models and is read by others; a job that held it too would run dbt twice."""
    for job in (REFRESH_JOB, EVERYTHING_JOB):
        assert {node.name for node in defs.resolve_job_def(job).graph.nodes} == {"load_raw", "dbt_models"}


def test_a_refresh_of_what_changed_leaves_out_what_the_tables_refuse_by_themselves_and_nothing_else():
    manifest = json.loads(DBT_MANIFEST.read_text())
    tests = {node["name"] for node in manifest["nodes"].values() if node["resource_type"] == "test"}

    def checks(job: str) -> set[str]:
        nodes = defs.resolve_job_def(job).asset_layer.data
        return {key.name for node in nodes for key in node.assets_def.check_keys} - {"columns_match_contract"}

    assert checks(EVERYTHING_JOB) == tests
    assert checks(REFRESH_JOB) == tests - left_to_the_night(manifest)
    assert "rfm_scores_follow_the_rank_formula" in checks(REFRESH_JOB)
    assert "not_null_rfm_segments_segment" in checks(REFRESH_JOB), "it holds for some rows only, which no rule of a table can say"


@pytest.mark.parametrize("mart", ["fct_orders", "fct_order_lines", "daily_sales", "rfm_segments"])
def test_marts_promise_to_be_fresh_within_a_minute_and_to_be_rebuilt_every_day(mart: str):
    (policy,) = [spec.freshness_policy for spec in specs() if spec.key == dg.AssetKey(["marts", mart])]
    assert policy == dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=26), warn_window=timedelta(seconds=60))


def test_everything_is_built_and_tested_once_a_night():
    (nightly,) = [s for s in defs.schedules or [] if s.name == "refresh_everything_nightly"]
    assert isinstance(nightly, dg.ScheduleDefinition)
    assert nightly.job_name == EVERYTHING_JOB
    assert defs.resolve_job_def(EVERYTHING_JOB).tags[EVERYTHING_TAG] == "true"


def test_an_override_with_a_wrong_name_is_refused():
    with pytest.raises(KeyError, match="settings"):
        build_defs({"setings": object()})

"""The dbt project as kept: manifest and lineage in step with the SQL, every model described, every segment code there once."""

from __future__ import annotations

import csv
import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from crm_assets.warehouse.audiences.declarations import read_audiences
from crm_assets.warehouse.lineage import LINEAGE, column_lineage, kept_lineage, lineage_text
from crm_assets.warehouse.manifest import MANIFEST, compile_project, manifest_text, normalised
from crm_resources.settings import REPOSITORY
from tests.oracle.marts import SEGMENT_BY_CODE

LAYERS = {"staging", "intermediate", "marts"}
MARTS = {"dim_customers", "dim_products", "dim_date", "fct_orders", "fct_order_lines", "daily_sales", "rfm_scores", "rfm_segments"}
MARTS |= {"rfm_cut_points", "rfm_published", "segment_history", "segment_migration_daily"}
MARTS |= {"churn_risk", "customer_value", "audience_changes", "audience_members"}
MARTS |= {"fct_events", "fct_sessions", "conversion_daily"}
MARTS |= {"daily_sales_by_channel", "daily_sales_by_category", "sales_by_customer_type", "customer_cohorts", "product_performance"}


@pytest.fixture(scope="module")
def manifest() -> dict[str, Any]:
    return json.loads(MANIFEST.read_text())


@pytest.fixture(scope="module")
def compiled() -> dict[str, Any]:
    return compile_project()


def models(manifest: dict[str, Any]) -> list[dict[str, Any]]:
    return [node for node in manifest["nodes"].values() if node["resource_type"] == "model"]


def checks_of(manifest: dict[str, Any], unique_id: str) -> list[dict[str, Any]]:
    children = [manifest["nodes"].get(child, {}) for child in manifest["child_map"][unique_id]]
    return [child for child in children if child.get("resource_type") == "test" and child.get("attached_node") == unique_id]


def test_the_kept_manifest_is_what_the_project_says(compiled: dict[str, Any]):
    assert MANIFEST.read_text() == manifest_text(normalised(compiled)), "run `python -m crm_assets.warehouse.manifest`"


def test_the_kept_lineage_is_what_the_sql_says(compiled: dict[str, Any]):
    assert LINEAGE.read_text() == lineage_text(column_lineage(compiled)), "run `python -m crm_assets.warehouse.manifest`"


def test_nothing_of_a_machine_or_a_run_is_kept(manifest: dict[str, Any]):
    text = MANIFEST.read_text() + LINEAGE.read_text()
    for trace in (str(REPOSITORY), str(Path.home()) + "/", "created_at", "compiled_code"):
        assert trace not in text
    assert manifest["metadata"]["generated_at"].startswith("1970-01-01")


def test_the_promised_marts_are_there(manifest: dict[str, Any]):
    assert {m["name"] for m in models(manifest) if m["schema"] == "marts"} == MARTS


def test_models_live_in_the_schema_of_their_folder(manifest: dict[str, Any]):
    assert {m["schema"] for m in models(manifest)} == LAYERS
    assert all(m["schema"] == m["fqn"][1] for m in models(manifest))


def test_every_model_says_its_grain_and_describes_every_column(manifest: dict[str, Any]):
    for model in models(manifest):
        assert model["description"].startswith("Grain: one row per"), model["name"]
        assert model["config"]["meta"]["owner"], model["name"]
        for column in model["columns"].values():
            assert column["description"], (model["name"], column["name"])
            assert column["data_type"], (model["name"], column["name"])
        assert f"{model['name']}.yml" in model["patch_path"]


def test_every_model_has_a_tested_key(manifest: dict[str, Any]):
    for model in models(manifest):
        kinds = {t["test_metadata"]["name"] for t in checks_of(manifest, model["unique_id"])}
        assert {"unique", "not_null"} <= kinds or {"unique_combination", "not_null"} <= kinds, model["name"]


def test_facts_point_at_their_dimensions(manifest: dict[str, Any]):
    pointing = {
        (node["attached_node"].split(".")[-1], node["column_name"])
        for node in manifest["nodes"].values()
        if node["resource_type"] == "test" and node.get("test_metadata") and node["test_metadata"]["name"] == "relationships"
    }
    lines = {("fct_order_lines", column) for column in ("order_id", "customer_key", "product_key", "business_date")}
    assert lines | {("fct_orders", "customer_key"), ("fct_orders", "business_date"), ("daily_sales", "business_date")} <= pointing
    assert {("fct_events", column) for column in ("session_key", "customer_key", "product_key", "business_date")} <= pointing
    assert {("fct_sessions", "customer_key"), ("fct_sessions", "business_date"), ("product_performance", "product_key")} <= pointing


def test_sources_are_the_raw_assets_and_the_fitted_models(manifest: dict[str, Any]):
    keys = {source["name"]: source["meta"]["dagster"]["asset_key"] for source in manifest["sources"].values()}
    raw = {name: ["warehouse", "raw", name] for name in ("events", "orders", "order_lines", "products", "profiles")}
    assert keys == {**raw, "purchase_models": ["models", "purchase_models"]}


def test_every_column_has_its_lineage_worked_out(manifest: dict[str, Any]):
    lineage = kept_lineage()
    for model in models(manifest):
        assert set(lineage[model["unique_id"]]) == set(model["columns"]), model["name"]
        parents = {parent for deps in lineage[model["unique_id"]].values() for parent, _ in deps}
        assert parents <= set(model["depends_on"]["nodes"])
        assert parents, model["name"]
    assert lineage["model.crm.rfm_scores"]["monetary"] == (("model.crm.int_rfm_measures", "monetary"),)
    assert set(lineage["model.crm.int_customer_activity"]["amount_restated"]) >= {
        ("model.crm.int_order_totals", "sale_amount"),
        ("model.crm.int_cancellations", "applied_amount"),
        ("model.crm.int_cancellations", "unmatched_amount"),
    }


def test_what_was_known_survives_a_full_refresh(manifest: dict[str, Any]):
    kept = {m["name"] for m in models(manifest) if m["config"]["full_refresh"] is False}
    assert kept == {"rfm_cut_points", "rfm_published", "segment_history", "segment_migration_daily", "audience_changes"}


def test_whether_a_customer_is_alive_decides_nothing_about_audiences(manifest: dict[str, Any]):
    """`p_alive` is a diagnostic: no column and no condition of an audience is made of it."""
    concerned = [model for model in models(manifest) if "audience" in model["name"]]
    assert len(concerned) == 4
    for model in concerned:
        assert "p_alive" not in model["raw_code"].lower(), model["name"]
        used = {column for deps in kept_lineage()[model["unique_id"]].values() for _, column in deps}
        assert not {"p_alive", "p_alive_usable"} & used


def test_every_audience_is_an_exposure_of_its_marts(manifest: dict[str, Any]):
    exposures = {exposure["name"]: set(exposure["depends_on"]["nodes"]) for exposure in manifest["exposures"].values()}
    expected = {"model.crm.audience_members", "model.crm.audience_changes"}
    assert exposures == {audience.name: expected for audience in read_audiences()}


def test_the_segment_map_covers_every_code_once_as_defined():
    with (REPOSITORY / "dbt" / "seeds" / "rfm_segment_map.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    assert [row["rfm_code"] for row in rows] == ["".join(digits) for digits in itertools.product("12345", repeat=3)]
    assert {row["rfm_code"]: row["segment"] for row in rows} == SEGMENT_BY_CODE
    assert {row["segment"] for row in rows if row["is_lapsed"] == "true"} == {"Hibernating", "Lost"}
    ranks = dict(sorted({int(row["rank"]): row["segment"] for row in rows}.items()))
    assert list(ranks) == list(range(1, 12))
    assert (ranks[1], ranks[11]) == ("Champions", "Lost")

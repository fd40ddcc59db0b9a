"""The documented columns are the real ones, and the SQL's own unit tests pass."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from crm_assets.warehouse.dbt_docs import generate
from crm_assets.warehouse.manifest import MANIFEST
from crm_resources import warehouse
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from tests.oracle.refresh import data_set, run_dbt


@pytest.fixture(scope="module")
def empty(stack_services: Stack) -> Settings:
    """All models over no rows at all: an empty data set must build as well."""
    settings = data_set(stack_services.settings, "marts_empty")
    warehouse.prepare(settings)
    run_dbt(settings, "build")
    return settings


def test_documented_columns_and_types_are_those_in_the_database(empty: Settings):
    nodes = json.loads(MANIFEST.read_text())["nodes"].values()
    for model in (node for node in nodes if node["resource_type"] == "model"):
        actual = [(c.name, c.data_type) for c in warehouse.actual_columns(empty, model["schema"], model["name"])]
        assert actual == [(c["name"], c["data_type"]) for c in model["columns"].values()], model["name"]


def test_what_tests_say_of_a_column_is_a_rule_of_its_table(empty: Settings):
    nodes = json.loads(MANIFEST.read_text())["nodes"]
    required, keys = set(), set()
    for test in nodes.values():
        model = nodes.get(test.get("attached_node") or "", {})
        if model.get("config", {}).get("materialized") in {"table", "incremental"} and not test["config"].get("where"):
            column = (model["schema"], model["name"], test["column_name"])
            required |= {column} if test["test_metadata"]["name"] == "not_null" else set()
            keys |= {column} if test["test_metadata"]["name"] == "unique" else set()
    not_null = "select table_schema::text, table_name::text, column_name::text from information_schema.columns where is_nullable = 'NO'"
    unique = (
        "select n.nspname::text, c.relname::text, a.attname::text from pg_index as i join pg_class as c on c.oid = i.indrelid "
        "join pg_namespace as n on n.oid = c.relnamespace join pg_attribute as a on a.attrelid = c.oid and a.attnum = i.indkey[0] "
        "where i.indisunique and i.indnatts = 1 and i.indpred is null"
    )

    assert len(required) > 80
    assert required <= set(warehouse.fetch_rows(empty, not_null))
    assert len(keys) > 40
    indexes = warehouse.fetch_rows(empty, unique)
    assert {key: indexes.count(key) for key in keys} == dict.fromkeys(keys, 1)


def test_an_empty_data_set_has_only_the_unknown_members(empty: Settings):
    expected_rows = {"dim_customers": 1, "dim_products": 1, "fct_orders": 0, "daily_sales": 0, "rfm_segments": 0, "customer_cohorts": 0}
    expected_rows |= {"fct_events": 0, "fct_sessions": 0, "conversion_daily": 0, "product_performance": 0, "sales_by_customer_type": 0}
    for table, expected in expected_rows.items():
        assert warehouse.count_rows(empty, "marts", table) == expected


def test_the_documentation_is_one_page_with_every_model(empty: Settings, tmp_path: Path):
    page = tmp_path / "docs.html"
    generate(empty, page)
    text = page.read_text()
    nodes = json.loads(MANIFEST.read_text())["nodes"]
    assert [name for name, node in nodes.items() if node["resource_type"] == "model" and name not in text] == []


def test_unit_tests_of_the_sql(empty: Settings):
    output = run_dbt(empty, "test", "--select", "test_type:unit", unit_tests=True)
    assert f"PASS={len(json.loads(MANIFEST.read_text())['unit_tests'])} " in output

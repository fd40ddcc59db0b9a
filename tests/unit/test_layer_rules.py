"""The rules of the dbt project's layers: kept by the project, and broken by what breaks them."""

from __future__ import annotations

import json
from copy import deepcopy
from typing import Any

import pytest

from crm_assets.warehouse.layer_rules import EXCEPTIONS, offences
from crm_assets.warehouse.manifest import MANIFEST


@pytest.fixture
def manifest() -> dict[str, Any]:
    return dict(json.loads(MANIFEST.read_text()))


def test_the_project_keeps_to_its_layers(manifest: dict[str, Any]):
    assert offences(manifest) == []


@pytest.mark.parametrize(
    ("reader", "read"),
    [("model.crm.fct_orders", "model.crm.stg_crm__orders"), ("model.crm.int_order_totals", "model.crm.fct_orders")],
)
def test_a_model_that_reads_against_the_layers_is_named(manifest: dict[str, Any], reader: str, read: str):
    manifest["nodes"][reader]["depends_on"]["nodes"].append(read)

    (found,) = offences(manifest)

    assert found.startswith(f"{reader.split('.')[-1]} (")
    assert f"reads {read.split('.')[-1]}" in found


def test_only_staging_reads_sources(manifest: dict[str, Any]):
    source = next(key for key, node in manifest["sources"].items() if node["name"] == "orders")
    manifest["nodes"]["model.crm.daily_sales"]["depends_on"]["nodes"].append(source)

    assert [found.split(";")[0] for found in offences(manifest)] == ["daily_sales (marts) reads orders (source)"]


def test_a_model_with_the_name_of_another_layer_and_a_staging_table_are_named(manifest: dict[str, Any]):
    changed = deepcopy(manifest)
    changed["nodes"]["model.crm.fct_orders"]["name"] = "stg_orders"
    changed["nodes"]["model.crm.stg_crm__orders"]["config"]["materialized"] = "table"

    assert sorted(offences(changed)) == [
        "stg_crm__orders is a table; staging holds views",
        "stg_orders has the name of another layer than marts",
    ]


def test_a_staging_view_with_a_cte_and_a_view_of_a_swapped_table_are_named(manifest: dict[str, Any]):
    staging = manifest["nodes"]["model.crm.stg_crm__orders"]
    staging["raw_code"] = "with source as (select 1) select * from source -- with"
    manifest["nodes"]["model.crm.int_orders_current"]["config"]["materialized"] = "table"

    assert sorted(found.split(":")[0].split(",")[0] for found in offences(manifest)) == [
        "int_sales_movements is a view of int_orders_current",
        "stg_crm__orders has a `with`",
    ]


def test_an_exception_that_nobody_needs_is_told(manifest: dict[str, Any]):
    assert offences(manifest, {**EXCEPTIONS, ("fct_orders", "orders"): "none"}) == [
        "the exception for fct_orders and orders is needed no longer"
    ]

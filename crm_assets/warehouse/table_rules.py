"""Which of dbt's tests are rules of the tables themselves, and which a refresh of what changed leaves to the night.

Belongs here: the decision, from dbt's manifest. Not here: the statements that make the rules (`dbt/macros/table_rules.sql`, which decides
in the same words; a test holds the two together on a real database).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

NIGHTLY = "nightly"
"""dbt's tag of tests that read whole tables."""

RULES = frozenset({"not_null", "unique", "unique_combination", "accepted_values", "holds"})
"""Generic tests that PostgreSQL can keep by itself: `not null`, a unique index, or a check of each row."""

_TABLES = frozenset({"table", "incremental"})


def is_table_rule(test: Mapping[str, Any], model: Mapping[str, Any]) -> bool:
    """Whether PostgreSQL refuses the rows that this test would find.

    Args:
        test: node of a test in the manifest.
        model: node of what it is attached to.
    """
    return (
        (test.get("test_metadata") or {}).get("name") in RULES
        and model["resource_type"] == "model"
        and model["config"]["materialized"] in _TABLES
        and test["config"]["severity"].lower() == "error"
        and not test["config"].get("where")
    )


def table_rules(manifest: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """Nodes of all tests that are rules of a table."""
    tests = [node for node in manifest["nodes"].values() if node["resource_type"] == "test" and node.get("attached_node")]
    return [test for test in tests if (model := manifest["nodes"].get(test["attached_node"])) and is_table_rule(test, model)]


def left_to_the_night(manifest: Mapping[str, Any]) -> frozenset[str]:
    """Names of the tests that a refresh of what changed leaves out.

    These are rules of the tables, what is tagged as reading whole tables, tests of views, which cannot say which of their rows are new, and
    tests of seeds, which a refresh does not load. A query for each of two hundred rules takes as long as all the rest of the refresh.
    """
    tests = [node for node in manifest["nodes"].values() if node["resource_type"] == "test"]
    nightly = {test["name"] for test in tests if NIGHTLY in test["tags"] or _reads_whole(test, manifest["nodes"])}
    return frozenset(nightly | {test["name"] for test in table_rules(manifest)})


def _reads_whole(test: Mapping[str, Any], nodes: Mapping[str, Mapping[str, Any]]) -> bool:
    looked_at = nodes.get(test.get("attached_node") or "")
    if looked_at is not None:
        return bool(looked_at["resource_type"] == "seed" or looked_at["config"]["materialized"] == "view")
    return all(nodes[name]["resource_type"] == "seed" for name in test["depends_on"]["nodes"] if name in nodes)

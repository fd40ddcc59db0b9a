"""Which layer of the dbt project may read which: `python -m crm_assets.warehouse.layer_rules`, a part of `make lint`.

Belongs here: the rules of staging, intermediate and marts, held against the kept manifest. Not here: whether the manifest is up to date
(`manifest`), or what a model says of itself (its tests).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

from crm_assets.warehouse.manifest import MANIFEST

MAY_READ: Mapping[str, frozenset[str]] = {
    "staging": frozenset({"source"}),
    "intermediate": frozenset({"staging", "intermediate", "seed"}),
    "marts": frozenset({"intermediate", "marts", "seed"}),
}
"""Layers by layer. Only staging reads what dbt does not make, so that names and types are settled in one place."""

EXCEPTIONS: Mapping[tuple[str, str], str] = {
    ("fct_events", "stg_crm__events"): "an event has no state to be worked out: the fact is the message with its session",
    ("int_audience_eligible", "churn_risk"): "audiences are chosen by what the marts publish, so that both say the same",
    ("int_audience_eligible", "customer_value"): "as for churn_risk",
    ("int_audience_eligible", "rfm_segments"): "as for churn_risk",
    ("int_audience_suppressions", "churn_risk"): "as for churn_risk",
    ("int_audience_suppressions", "dim_customers"): "as for churn_risk",
    ("int_scoring_basis", "purchase_models"): "refuses a model in another unit before any row of it is used",
}
"""Reader and what it reads against the rules, with the reason. One that is no longer needed is an offence itself."""

_WITH = re.compile(r"\bwith\s+\w+\s+as\b", re.IGNORECASE)

PREFIXES: Mapping[str, tuple[str, ...]] = {"staging": ("stg_",), "intermediate": ("int_",)}
"""How the names of a layer's models begin; those of marts begin with neither."""


def offences(manifest: Mapping[str, Any], exceptions: Mapping[tuple[str, str], str] = EXCEPTIONS) -> list[str]:
    """What breaks the rules, in words; pure.

    Args:
        manifest: dbt's manifest.
        exceptions: reader and read model that may stand against the rules.
    """
    nodes = {**manifest["nodes"], **manifest["sources"]}
    found: list[str] = []
    used: set[tuple[str, str]] = set()
    for node in manifest["nodes"].values():
        if node["resource_type"] != "model":
            continue
        layer, name = _layer(node), node["name"]
        parents = [nodes[key] for key in node["depends_on"]["nodes"] if key in nodes]
        if layer not in MAY_READ:
            found.append(f"{name} stands in {layer}; layers are {', '.join(MAY_READ)}")
            continue
        foreign = tuple(prefix for other, prefixes in PREFIXES.items() if other != layer for prefix in prefixes)
        if not name.startswith(PREFIXES.get(layer, ("",))) or name.startswith(foreign):
            found.append(f"{name} has the name of another layer than {layer}")
        if layer == "staging" and node["config"]["materialized"] != "view":
            found.append(f"{name} is a {node['config']['materialized']}; staging holds views")
        if layer == "staging" and _WITH.search(_without_comments(node["raw_code"])):
            found.append(
                f"{name} has a `with`: PostgreSQL cannot look for single keys through it and reads the whole table; select from the source"
            )
        if node["config"]["materialized"] == "view":
            swapped = [parent["name"] for parent in parents if _is_swapped(parent)]
            found += [f"{name} is a view of {parent}, which is made anew and would take the view with it" for parent in swapped]
        for parent in parents:
            if _layer(parent) in MAY_READ[layer]:
                continue
            pair = (name, parent["name"])
            used.add(pair)
            if pair not in exceptions:
                found.append(
                    f"{name} ({layer}) reads {parent['name']} ({_layer(parent)}); {layer} reads {', '.join(sorted(MAY_READ[layer]))}"
                )
    return found + [f"the exception for {reader} and {read} is needed no longer" for reader, read in sorted(set(exceptions) - used)]


def _is_swapped(node: Mapping[str, Any]) -> bool:
    """Whether each refresh puts a new table in the place of this one."""
    return bool(node["resource_type"] == "model" and node["config"]["materialized"] == "table")


def _without_comments(sql: str) -> str:
    return re.sub(r"--[^\n]*", "", sql)


def _layer(node: Mapping[str, Any]) -> str:
    return str(node["fqn"][1]) if node["resource_type"] == "model" else str(node["resource_type"])


def main() -> None:
    """Command line: list what breaks the rules; exit code 1 when something does."""
    import typer
    from rich.console import Console

    def run() -> None:
        """Hold the dbt project's layers against their rules."""
        found = offences(json.loads(MANIFEST.read_text()))
        for offence in found:
            Console(stderr=True).print(f"[red]layer:[/red] {offence}", soft_wrap=True, highlight=False)
        if found:
            raise typer.Exit(1)
        Console().print("dbt layers: every model reads what its layer may", highlight=False)

    typer.run(run)


if __name__ == "__main__":
    main()

"""Which upstream column each column of a dbt model comes from, read from the models' SQL.

Belongs here: working it out with sqlglot from compiled SQL (when the manifest is rewritten), and reading the kept result. Working it
out takes seconds and needs the whole project, so it happens once per change of the SQL and not in each run.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from crm_resources.settings import REPOSITORY

if TYPE_CHECKING:
    from sqlglot import MappingSchema

LINEAGE = REPOSITORY / "dbt" / "column_lineage.json"

ColumnLineage = Mapping[str, Mapping[str, tuple[tuple[str, str], ...]]]
"""By dbt unique id and column: the (unique id, column) pairs it is made of."""

_DIALECT = "postgres"


def column_lineage(compiled: Mapping[str, Any]) -> ColumnLineage:
    """Lineage of every model's columns back to its direct parents' columns.

    Args:
        compiled: manifest of `dbt compile`, whose models hold their SQL and whose yml names every column.
    """
    from sqlglot import MappingSchema

    relations = {**compiled["nodes"], **compiled["sources"]}
    schema = MappingSchema(dialect=_DIALECT)
    for node in relations.values():
        if node["resource_type"] in ("model", "seed", "source"):
            types = {name: column.get("data_type") or "text" for name, column in node["columns"].items()}
            schema.add_table(node["relation_name"], types, dialect=_DIALECT)
    return {
        unique_id: _model_lineage(node, relations, schema)
        for unique_id, node in sorted(compiled["nodes"].items())
        if node["resource_type"] == "model"
    }


def kept_lineage() -> ColumnLineage:
    """The lineage kept in the repository beside the manifest."""
    document: dict[str, dict[str, list[list[str]]]] = json.loads(LINEAGE.read_text())
    return {
        unique_id: {name: tuple((source, column) for source, column in deps) for name, deps in columns.items()}
        for unique_id, columns in document.items()
    }


def lineage_text(lineage: ColumnLineage) -> str:
    """Text of the kept file, one column a line."""
    models = []
    for unique_id in sorted(lineage):
        columns = ",\n".join(f"    {json.dumps(name)}: {json.dumps(deps)}" for name, deps in sorted(lineage[unique_id].items()))
        models.append(f"  {json.dumps(unique_id)}: {{\n{columns}\n  }}")
    return "{\n" + ",\n".join(models) + "\n}\n"


def _model_lineage(node: Mapping[str, Any], relations: Mapping[str, Any], schema: MappingSchema) -> dict[str, tuple[tuple[str, str], ...]]:
    from sqlglot import exp, parse_one
    from sqlglot.lineage import lineage
    from sqlglot.optimizer import optimize

    parents = {_table_name(relations[parent]["relation_name"]): parent for parent in node["depends_on"]["nodes"]}
    # Qualified once for all columns; as text, because sqlglot's lineage re-derives what it needs from text only.
    sql = optimize(parse_one(node["compiled_code"], dialect=_DIALECT), schema=schema, dialect=_DIALECT).sql(dialect=_DIALECT)
    found: dict[str, tuple[tuple[str, str], ...]] = {}
    for column in node["columns"]:
        deps = set()
        for step in lineage(column, sql, schema=schema, dialect=_DIALECT).walk():
            table = step.expression.find(exp.Table)
            if step.downstream or table is None:
                continue
            parent = parents.get(f"{table.db}.{table.name}")
            if parent is not None:
                deps.add((parent, exp.to_column(step.name).name))
        found[column] = tuple(sorted(deps))
    return found


def _table_name(relation: str) -> str:
    from sqlglot import exp

    table = exp.to_table(relation, dialect=_DIALECT)
    return f"{table.db}.{table.name}"

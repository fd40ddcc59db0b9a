"""Contract → files kept in the repository: JSON Schemas, a page of fields, the dbt sources, later fields of the staging models.

`python -m crm_resources.contracts.derive_files` rewrites them; a test fails when they differ from the contracts. The JSON Schemas are what
producers were told: a contract that accepts less than they say is refused before a file is written.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

import yaml

from crm_resources.contracts.derive_postgres import RAW_SCHEMA, RawTable, postgres_type, raw_tables
from crm_resources.contracts.evolution import Refusal, SchemaRefused, compare_published
from crm_resources.contracts.model import Column, ColumnType, Contract, contracts

REPOSITORY = Path(__file__).resolve().parents[2]
STAGING = Path("dbt/models/staging")
SOURCES = STAGING / "_sources.yml"

LATER_COLUMNS = "      # Fields the contract gained later, written by `make contracts`; nothing is kept below this line.\n"


def generated_files() -> dict[Path, str]:
    """Text of every generated file by its path in the repository."""
    tables = [table for contract in contracts() for table in raw_tables(contract)]
    return {
        **{_schema_path(c): json.dumps(c.model.model_json_schema(), indent=2) + "\n" for c in contracts()},
        Path("docs/contracts.md"): _fields_page(),
        SOURCES: _dbt_sources(),
        Path("dbt/macros/later_columns.sql"): _later_columns_macro(tables),
        **{_staging_path(t): _with_later_columns((REPOSITORY / _staging_path(t)).read_text(), t) for t in tables},
    }


def fingerprint() -> str:
    """Short text that changes when the contracts do, so that processes which run an older declaration can be told."""
    return hashlib.sha256("\0".join(generated_files().values()).encode()).hexdigest()[:16]


def stale_files(root: Path = REPOSITORY) -> list[Path]:
    """Generated files that are absent or differ from what the contracts say now."""
    return [path for path, text in generated_files().items() if not (root / path).exists() or (root / path).read_text() != text]


def write_files(root: Path = REPOSITORY) -> list[Path]:
    """Write the stale files and return them.

    Raises:
        SchemaRefused: a contract accepts less than its published JSON Schema; nothing is written.
    """
    refused = narrowed_contracts(root)
    if refused:
        raise SchemaRefused(refused)
    stale = stale_files(root)
    texts = generated_files()
    for path in stale:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(texts[path])
    return stale


def narrowed_contracts(root: Path = REPOSITORY) -> list[Refusal]:
    """Where the contracts accept less than the JSON Schemas in the repository say."""
    return [
        refusal
        for contract in contracts()
        if (root / _schema_path(contract)).exists()
        for refusal in compare_published(
            contract.entity, json.loads((root / _schema_path(contract)).read_text()), contract.model.model_json_schema()
        )
    ]


def _schema_path(contract: Contract) -> Path:
    return Path("crm_resources/contracts/json_schema") / f"{contract.entity}.schema.json"


def _staging_path(table: RawTable) -> Path:
    return STAGING / f"stg_crm__{table.name}.yml"


def _dbt_sources() -> str:
    tables = [
        {
            "name": table.name,
            "description": table.description,
            "meta": {"dagster": {"asset_key": ["warehouse", "raw", table.name]}},
            "columns": [_dbt_column(c) for c in table.columns],
        }
        for contract in contracts()
        for table in raw_tables(contract)
    ]
    header = "# Derived from crm_resources/contracts; rewrite with `make contracts`.\n"
    document = {"version": 2, "sources": [{"name": "crm", "schema": RAW_SCHEMA, "description": "Silver as loaded.", "tables": tables}]}
    return header + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


def _dbt_column(column: Column) -> dict[str, str]:
    return {"name": column.name, "description": column.description, "data_type": postgres_type(column)}


def _with_later_columns(text: str, table: RawTable) -> str:
    """The description of a staging model with the columns it has of later fields, behind those described by hand."""
    head, mark, _ = text.partition(LATER_COLUMNS)
    if not mark:
        msg = f"{_staging_path(table)} must hold the line {LATER_COLUMNS.strip()!r} behind its last column"
        raise ValueError(msg)
    later = [_dbt_column(c) for c in table.columns if c.is_later]
    listed = yaml.safe_dump(later, sort_keys=False, allow_unicode=True, width=120) if later else ""
    return head + mark + "".join(f"      {line}\n" for line in listed.splitlines())


def _later_columns_macro(tables: Iterable[RawTable]) -> str:
    names = {table.name: [c.name for c in table.columns if c.is_later] for table in tables}
    return (
        "{# Fields the contracts gained later, as columns of their staging models. Derived; rewrite with `make contracts`. #}\n"
        "{% macro later_columns(table) -%}\n"
        f"    {{%- set columns = {json.dumps(names)}[table] -%}}\n"
        "    {%- for column in columns -%}{{ column }},{{ ' ' if not loop.last }}{%- endfor -%}\n"
        "{%- endmacro %}\n"
    )


def _fields_page() -> str:
    """Markdown page with every field of every contract."""
    lines = [
        "# The fields of every message",
        "",
        "Derived from `crm_resources/contracts`; rewritten by `make contracts` and `make up`. *Since* is the schema version that brought",
        "the field: messages that follow an earlier one do not have it. [How to add one](changing-a-contract.md).",
    ]
    for contract in contracts():
        lines += ["", f"## {contract.entity}", "", contract.description.splitlines()[0], ""]
        lines += ["| field | type | required | since | meaning |", "|---|---|---|---|---|", *_field_rows(contract.columns)]
    return "\n".join(lines) + "\n"


def _field_rows(columns: Iterable[Column], prefix: str = "") -> Iterator[str]:
    for column in columns:
        kind = "list" if column.type is ColumnType.LIST else str(column.type)
        if column.type is ColumnType.DECIMAL:
            kind += f"({column.precision},{column.scale})"
        meaning = column.description.replace("|", "/")
        yield f"| `{prefix}{column.name}` | {kind} | {'' if column.nullable else 'yes'} | {column.since} | {meaning} |"
        yield from _field_rows(column.items, f"{prefix}{column.name}.")


if __name__ == "__main__":
    try:
        for written in write_files():
            print(written)  # noqa: T201 -- a command's output
    except SchemaRefused as refused:
        sys.exit(f"error: {refused}. Nothing was written")

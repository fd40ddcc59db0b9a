"""Contract → files kept in the repository: JSON Schemas and the dbt sources, and whether they are stale.

`python -m crm_resources.contracts.derive_files` rewrites them; a test fails when they differ from the contracts.
"""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from crm_resources.contracts.derive_postgres import RAW_SCHEMA, postgres_type, raw_tables
from crm_resources.contracts.model import contracts

REPOSITORY = Path(__file__).resolve().parents[2]


def generated_files() -> dict[Path, str]:
    """Text of every generated file by its path in the repository."""
    files = {
        Path("crm_resources/contracts/json_schema") / f"{c.entity}.schema.json": json.dumps(c.model.model_json_schema(), indent=2) + "\n"
        for c in contracts()
    }
    files[Path("dbt/models/staging/_sources.yml")] = _dbt_sources()
    return files


def stale_files(root: Path = REPOSITORY) -> list[Path]:
    """Generated files that are absent or differ from what the contracts say now."""
    return [path for path, text in generated_files().items() if not (root / path).exists() or (root / path).read_text() != text]


def write_files(root: Path = REPOSITORY) -> list[Path]:
    """Write the stale files and return them."""
    stale = stale_files(root)
    texts = generated_files()
    for path in stale:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(texts[path])
    return stale


def _dbt_sources() -> str:
    tables = [
        {
            "name": table.name,
            "description": table.description,
            "meta": {"dagster": {"asset_key": ["warehouse", "raw", table.name]}},
            "columns": [{"name": c.name, "description": c.description, "data_type": postgres_type(c)} for c in table.columns],
        }
        for contract in contracts()
        for table in raw_tables(contract)
    ]
    header = "# Derived from crm_resources/contracts; rewrite with `make contracts`.\n"
    document = {"version": 2, "sources": [{"name": "crm", "schema": RAW_SCHEMA, "description": "Silver as loaded.", "tables": tables}]}
    return header + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=120)


if __name__ == "__main__":
    for written in write_files():
        print(written)  # noqa: T201 -- a command's output

"""Brings what is derived from the contracts up to date before anything starts: `make up` is all that a changed contract needs.

Belongs here: refusing a change that rows or producers stand against, rewriting the derived files, and noticing that the dbt manifest is
behind them. Not here: what may change (`crm_resources.contracts.evolution`), or the tables, which their writers bring up to date themselves
(`crm_resources.lake_tables` at the stream's start, `crm_resources.warehouse.prepare`).
"""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

from crm_resources.contracts import contracts
from crm_resources.contracts.derive_files import narrowed_contracts, write_files
from crm_resources.contracts.derive_postgres import RAW_SCHEMA, postgres_type, raw_tables
from crm_resources.lake import open_table
from crm_resources.lake_tables import stored_changes
from crm_resources.layout import BATCHES, BRONZE, DEAD_LETTERS, DUPLICATES, REPLAYS, SILVER
from crm_resources.settings import REPOSITORY, Settings
from deploy.local.errors import StackError
from deploy.local.reporter import Reporter

MANIFEST = REPOSITORY / "dbt" / "manifest.json"


def bring_up_to_date(settings: Settings, say: Reporter) -> None:
    """Rewrite what differs from the contracts; a second call changes nothing.

    Args:
        settings: the data set whose lake must be able to follow.
        say: told what happens.

    Raises:
        StackError: a contract or a table changed in a way that is refused; nothing was touched. Or dbt cannot read the project.
    """
    tables = (BRONZE, *SILVER.values(), DEAD_LETTERS, DUPLICATES, REPLAYS, BATCHES)
    # An object store may be a service that is only about to start; there the stream's own start says the same.
    reachable = tables if "://" not in settings.lake_root else ()
    stored = [(table, opened) for table in reachable if (opened := open_table(settings, table.path)) is not None]
    refused = [*narrowed_contracts(), *(refusal for table, opened in stored for refusal in stored_changes(table, opened).refused)]
    if refused:
        raise StackError("nothing was touched, for a change is refused:\n" + "\n".join(f"  {refusal}" for refusal in refused))
    for path in write_files():
        say.note(f"the contracts have changed; {path} was brought up to date")
    if not _manifest_knows_the_contracts():
        with say.step("bringing the dbt manifest up to date"):
            done = subprocess.run(
                [sys.executable, "-m", "crm_assets.warehouse.manifest"], cwd=REPOSITORY, capture_output=True, text=True, check=False
            )
        if done.returncode:
            raise StackError(f"the dbt manifest could not be written: {done.stderr.strip()[-3000:]}", "correct the dbt project")


def _manifest_knows_the_contracts() -> bool:
    """Whether the kept manifest, which Dagster's code location reads, holds the contracts' raw columns as its sources."""
    if not MANIFEST.exists():
        return False
    sources: dict[str, Any] = json.loads(MANIFEST.read_text())["sources"]
    raw = [source for source in sources.values() if source["schema"] == RAW_SCHEMA]
    kept = {s["name"]: [(c["name"], c["data_type"], c["description"]) for c in s["columns"].values()] for s in raw}
    tables = [table for contract in contracts() for table in raw_tables(contract)]
    return kept == {t.name: [(c.name, postgres_type(c), c.description) for c in t.columns] for t in tables}

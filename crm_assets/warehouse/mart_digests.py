"""What the marts of a database hold, in a form two databases can be compared by: rows, checksum, and the key figures.

Belongs here: which marts there are, digesting them, and the fingerprint of the SQL that makes them. Not here: writing digests down
(`crm_resources.refresh_reports`), or comparing them (`time_travel`).

A checksum is order-free: each row as PostgreSQL spells it, its md5 as two 64-bit numbers, each summed modulo 2^64. Columns that say
when a run took place are left out; they differ between two runs by their nature.

Of marts that are built by changed keys the digest is kept by the build itself (`dbt/macros/digests.sql`), so that a refresh need not read
the rows it leaves alone; the others are read.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crm_assets.warehouse.dbt_command import PROJECT
from crm_assets.warehouse.manifest import MANIFEST
from crm_resources import warehouse
from crm_resources.contracts.derive_postgres import RAW_SCHEMA
from crm_resources.refresh_reports import MartDigest
from crm_resources.settings import Settings

RUN_COLUMNS = ("scored_at", "loaded_at")
"""Columns of marts that hold the time of a run or of a load; `dbt/macros/digests.sql` names them as well."""

REBUILT = ("table", "view", "seed", "incremental")
"""Materializations that can be made anew from what they read. Others (snapshots) carry state of earlier runs, and so do incremental models
that refuse a full refresh."""

SCORED_BY_CUT_POINTS = ("rfm_scores", "rfm_segments")
"""Marts that rest on cut points, which a business day computes once: within the day they depend on what its first run saw."""

_MODULUS = 2**64


def mart_names(manifest: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """Marts that are made from silver, seeds and the as-of date alone, sorted.

    Left out are those with a state of their own, and all that is made of a source other than raw: a fitted model is not in silver.

    Args:
        manifest: dbt's; the one kept in the repository when omitted.
    """
    document = manifest if manifest is not None else json.loads(MANIFEST.read_text())
    nodes = {uid: node for uid, node in document["nodes"].items() if node["resource_type"] in ("model", "seed")}
    fitted = {uid for uid, source in document.get("sources", {}).items() if source["schema"] != RAW_SCHEMA}
    while further := {uid for uid, node in nodes.items() if fitted & set(node.get("depends_on", {}).get("nodes", ()))} - fitted:
        fitted |= further
    marts = [node for uid, node in nodes.items() if node["schema"] == warehouse.MARTS_SCHEMA and uid not in fitted]
    return tuple(
        sorted(n["name"] for n in marts if n["config"]["materialized"] in REBUILT and n["config"].get("full_refresh") is not False)
    )


def models_fingerprint(project: Path = PROJECT) -> str:
    """Hash of everything that decides what dbt makes of raw: models, macros, seeds, and the variables of the project."""
    digest = hashlib.sha256()
    files = [project / "dbt_project.yml"]
    files += (f for folder in ("models", "macros", "seeds") for f in (project / folder).rglob("*") if f.suffix in (".sql", ".csv"))
    for file in sorted(files):
        digest.update(f"{file.relative_to(project)}\0{file.stat().st_size}\0".encode())
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def digest_marts(settings: Settings, *, read_all: bool = False) -> tuple[dict[str, MartDigest], dict[str, str]]:
    """Digests of the marts by name, and the key figures as exact decimals, of one moment.

    A mart that the database lacks is absent, and so are scores by cut points of an earlier run: nobody can make those again from
    silver alone.

    Args:
        settings: which data set; its database must be prepared.
        read_all: read every row, also of marts whose digest is kept: what stands there, whoever wrote it.
    """
    digests = {}
    with warehouse.connect(settings) as connection, connection.cursor() as cursor:
        cursor.execute("set transaction isolation level repeatable read, read only")
        # Times are spelled in the session's zone and style.
        cursor.execute("set local timezone to 'UTC'")
        cursor.execute("set local datestyle to 'ISO, YMD'")
        kept = _kept_digests(cursor)
        left_out = SCORED_BY_CUT_POINTS if _cut_points_are_of_an_earlier_run(cursor) else ()
        for name in mart_names():
            if name in left_out:
                continue
            if not read_all and name in kept:
                digests[name] = kept[name]
            elif columns := _columns(cursor, name):
                cursor.execute(digest_sql(name, columns))
                digests[name] = _digest(*cursor.fetchall()[0])
        figures = {}
        for name, sql in KEY_FIGURES.items():
            cursor.execute(sql)
            figures[name] = str(cursor.fetchall()[0][0])
    return digests, figures


def digest_sql(mart: str, columns: Iterable[str]) -> str:
    """Query for the rows of a mart and the sums of the halves of their md5, read as signed numbers."""
    row = ", ".join(f"f.{warehouse.quoted(c)}" for c in columns)
    halves = ", ".join(f"coalesce(sum(('x' || substr(d, {start}, 16))::bit(64)::bigint), 0)::text" for start in (1, 17))
    return (
        f"select count(*), {halves} "  # noqa: S608 -- names of the dbt project
        f"from (select md5(row({row})::text) as d from {warehouse.MARTS_SCHEMA}.{warehouse.quoted(mart)} as f) as digested"
    )


KEY_FIGURES: Mapping[str, str] = {
    "customers": "select count(*) from marts.dim_customers where not is_unknown",
    "orders": "select count(*) from marts.fct_orders where sale_lines > 0",
    "order_lines": "select count(*) from marts.fct_order_lines",
    "net_amount_booked": "select coalesce(sum(net_amount_booked), 0)::text from marts.daily_sales",
    "net_amount_restated": "select coalesce(sum(net_amount_restated), 0)::text from marts.daily_sales",
}
"""The numbers a person asks for first: amounts in the base currency, up to the as-of date."""


def _cut_points_are_of_an_earlier_run(cursor: Any) -> bool:  # noqa: ANN401 -- the driver carries no types
    if not (_columns(cursor, "rfm_scores") and _columns(cursor, "rfm_cut_points")):
        return False
    cursor.execute(
        "select coalesce(bool_or(c.computed_at < s.scored_at), false) from (select as_of, max(scored_at) as scored_at "
        "from marts.rfm_scores group by as_of) as s join marts.rfm_cut_points as c on c.as_of = s.as_of"
    )
    return bool(cursor.fetchall()[0][0])


def _kept_digests(cursor: Any) -> dict[str, MartDigest]:  # noqa: ANN401 -- the driver carries no types
    cursor.execute("select mart, digested_rows, high::text, low::text from meta.mart_digests")
    return {mart: _digest(rows, high, low) for mart, rows, high, low in cursor.fetchall()}


def _digest(rows: int, high: str, low: str) -> MartDigest:
    return MartDigest(int(rows), f"{int(high) % _MODULUS:016x}{int(low) % _MODULUS:016x}")


def _columns(cursor: Any, mart: str) -> list[str]:  # noqa: ANN401 -- the driver carries no types
    cursor.execute(
        "select column_name::text from information_schema.columns where table_schema = $1::text and table_name = $2::text "
        "order by ordinal_position",
        (warehouse.MARTS_SCHEMA, mart),
    )
    return [name for (name,) in cursor.fetchall() if name not in RUN_COLUMNS]

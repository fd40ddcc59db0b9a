"""What a data set amounts to: the audit's verdict, the sales, the segments, and how long events took to reach the marts.

Belongs here: reading these figures together, and the command `python -m crm_assets.monitoring.summary`, which leaves them as
JSON for `make demo`. Not here: the audit (`audit`) or any business rule (the dbt project).
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crm_assets.monitoring.audit import run_audit
from crm_resources import warehouse
from crm_resources.contracts import contracts
from crm_resources.settings import Settings, load_settings

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True)
class Sales:
    """Sales of known customers as booked, up to the as-of date: scored customers, orders, sale lines, exact revenue."""

    customers: int
    invoices: int
    lines: int
    revenue: str


@dataclass(frozen=True)
class Segment:
    """A segment as booked: how many customers it holds and what they bought, exact."""

    segment: str
    customers: int
    revenue: str


@dataclass(frozen=True)
class Summary:
    """Everything `make demo` shows; `passed` and `verdict` are the audit's, `figures` flat numbers with units."""

    passed: bool
    verdict: str
    figures: dict[str, float]
    segments: tuple[Segment, ...]


def summarize(settings: Settings) -> Summary:
    """Audit the data set and read its marts."""
    audit = run_audit(settings)
    sales = read_sales(settings)
    figures = audit.figures() | {
        "customers": sales.customers,
        "invoices": sales.invoices,
        "lines": sales.lines,
        "revenue": float(sales.revenue),
    }
    latency = event_to_mart_seconds(settings, 0.95)
    if latency is not None:
        figures["event_to_mart_seconds_p95"] = round(latency, 3)
    return Summary(audit.passed, audit.verdict_text(), figures, tuple(read_segments(settings)))


def read_sales(settings: Settings) -> Sales:
    """Sales of known customers as booked."""
    (row,) = warehouse.fetch_rows(
        settings,
        "select (select count(*) from marts.rfm_scores where basis = 'booked'), "
        "(select coalesce(sum(frequency), 0)::bigint from marts.rfm_scores where basis = 'booked'), "
        "(select count(*) from marts.fct_order_lines as l join marts.fct_orders as o on o.order_id = l.order_id "
        " where l.line_class = 'sale' and o.customer_known and o.is_base_currency and o.is_within_as_of), "
        "(select coalesce(sum(monetary), 0)::text from marts.rfm_scores where basis = 'booked')",
    )
    return Sales(int(row[0]), int(row[1]), int(row[2]), str(row[3]))


def read_segments(settings: Settings) -> Iterator[Segment]:
    """Segments as booked, the best first."""
    rows = warehouse.fetch_rows(
        settings,
        "select g.segment, count(*), sum(s.monetary)::text from marts.rfm_segments as g "
        "join marts.rfm_scores as s on s.rfm_score_key = g.rfm_score_key where g.basis = 'booked' group by g.segment, g.segment_rank "
        "order by g.segment_rank",
    )
    for segment, customers, revenue in rows:
        yield Segment(str(segment), int(customers), str(revenue))


def event_to_mart_seconds(settings: Settings, quantile: float) -> float | None:
    """Quantile of the seconds from the intended send time of a record to the end of the first refresh that includes it.

    Only records of the ledger count, since only their intended time is known. None when there are none.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    from crm_resources.ledger import ledger_dir, ledger_files, read_ledger

    batches = [b for file in ledger_files(ledger_dir(settings.environment_dir)) for b in read_ledger(file, ["event_id", "intended_at"])]
    if not batches:
        return None
    sent = pa.Table.from_batches(batches)
    intended = pa.table({"event_id": sent["event_id"].cast(pa.string()), "intended_at": sent["intended_at"]})
    visible = _visible_at(settings)
    joined = intended.group_by("event_id").aggregate([("intended_at", "min")]).join(visible, "event_id", join_type="inner")
    if joined.num_rows == 0:
        return None
    waited = pc.subtract(joined["visible_at"], joined["intended_at_min"]).cast(pa.int64())
    return float(pc.quantile(waited, q=quantile)[0].as_py()) / 1e6


def _visible_at(settings: Settings) -> pa.Table:
    """Event id → end of the first refresh that began after the row was loaded."""
    loaded = " union all ".join(f"select event_id, loaded_at from raw.{c.plural}" for c in contracts())  # noqa: S608 -- contract names
    return warehouse.fetch_arrow(
        settings,
        f"select e.event_id, r.finished_at as visible_at from ({loaded}) as e "  # noqa: S608 -- contract names
        "cross join lateral (select finished_at from meta.refreshes where started_at >= e.loaded_at order by started_at limit 1) as r",
    )


def main(output: Annotated[Path, typer.Option(help="File to write the summary to, as JSON.")]) -> None:
    """Audit the data set of CRM_ENV, read its marts, and write both as JSON; exit code 1 when the audit fails."""
    summary = summarize(load_settings())
    output.write_text(json.dumps(asdict(summary), indent=1) + "\n")
    raise typer.Exit(0 if summary.passed else 1)


if __name__ == "__main__":
    typer.run(main)

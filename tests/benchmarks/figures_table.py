"""`make figures`: the tables of figures in `README.md` and `docs/performance.md`, each figure taken from a kept report.

A row names the report and how its figures are shown; nothing is typed in by hand. A unit test fails when a page says something else
than the reports under `docs/benchmarks/`.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import typer

from crm_resources.generated_block import with_block
from crm_resources.report import Verdict
from crm_resources.settings import REPOSITORY

Figures = Mapping[str, float]

REPORTS = REPOSITORY / "docs" / "benchmarks"
PAGES = {REPOSITORY / "README.md": True, REPOSITORY / "docs" / "performance.md": False}
"""Page → whether it has the rows for a stranger only."""
BEGIN = "<!-- figures: written by `make figures` -->"
END = "<!-- figures end -->"


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Attributes:
        what: what was measured, and under which load.
        report: name of the kept report, without its ending.
        shown: the figure with its unit.
        in_readme: whether a stranger needs it.
    """

    what: str
    report: str
    shown: Callable[[Figures], str]
    in_readme: bool = False


def latency(key: str) -> Callable[[Figures], str]:
    """How soon 95 of 100 records are in bronze and in silver."""
    return lambda f: f"{f[f'{key}_bronze_p95_seconds']:.1f} s and {f[f'{key}_silver_p95_seconds']:.1f} s"


def by_history(name: str) -> Callable[[Figures], str]:
    """Seconds with 1, 5 and 20 million order lines of history."""
    return lambda f: " / ".join(f"{f[f'{name}_at_{lines}_lines']:.1f}" for lines in (1_000_000, 5_000_000, 20_000_000)) + " s"


def verdict_of_faults(f: Figures) -> str:
    """Sums over all faults of a run."""
    sums = {
        name: sum(value for key, value in f.items() if key.endswith(name)) for name in ("acked_records", "missing_rows", "doubled_rows")
    }
    return f"{sums['missing_rows']:.0f} lost, {sums['doubled_rows']:.0f} doubled of {sums['acked_records']:,.0f}"


ROWS = (
    Row("`make demo` from an empty clone, until the marts are audited", "demo-first", lambda f: f"{f['total_seconds']:.0f} s", True),
    Row("`make demo` a second time, with everything installed", "demo-second", lambda f: f"{f['total_seconds']:.0f} s", True),
    Row("most memory all processes of `make demo` used at once", "demo-first", lambda f: f"{f['peak_memory_mib'] / 1024:.1f} GiB", True),
    Row(
        "`make demo DATA=` with the Online Retail file: sales of known customers",
        "demo-online-retail",
        lambda f: f"{f['customers']:,.0f} customers, {f['invoices']:,.0f} invoices, {f['lines']:,.0f} lines, {f['revenue']:,.3f} in all",
    ),
    Row("3,000 records/s: 95 % are in bronze and in silver after", "bench-stream", latency("at_3000"), True),
    Row("10,000 records/s: 95 % are in bronze and in silver after", "bench-stream", latency("at_10000")),
    Row(
        "50 records/s: 95 % are in bronze and in silver after (small batches wait up to 10 s, for fewer and larger files)",
        "bench-stream",
        latency("at_50"),
    ),
    Row(
        "10,000 records/s with quick-start code instead: 95 % are in its tables after",
        "bench-stream",
        lambda f: f"{f['quickstart_at_10000_quickstart_p95_seconds']:.0f} s",
    ),
    Row("largest rate the stream sustains", "bench-stream", lambda f: f"{f['sustained_records_per_s']:,.0f} records/s", True),
    Row("lake on MinIO, 3,000 records/s: 95 % are in bronze and in silver after", "bench-stream-minio", latency("at_3000"), True),
    Row("lake on MinIO, 10,000 records/s: 95 % are in bronze and in silver after", "bench-stream-minio", latency("at_10000")),
    Row("one record in 200 refused, 3,000 records/s: 95 % are in bronze and in silver after", "bench-stream-refused", latency("at_3000")),
    Row(
        "50 records/s with everything running: 95 % are in daily sales and in RFM segments after",
        "bench-freshness",
        lambda f: f"{f['daily_sales_p95_seconds']:.0f} s and {f['rfm_segments_p95_seconds']:.0f} s",
        True,
    ),
    Row(
        "50 records/s with everything running: 95 % are in order facts, sessions, churn risk and customer value after",
        "bench-freshness",
        lambda f: (
            ", ".join(f"{f[f'{mart}_p95_seconds']:.0f}" for mart in ("fct_orders", "fct_sessions", "churn_risk", "customer_value")) + " s"
        ),
    ),
    Row("3 million waiting records, written to bronze only", "bench-drain", lambda f: f"{f['bronze_rows_per_s']:,.0f} rows/s"),
    Row("3 million waiting records, through to silver", "bench-drain", lambda f: f"{f['silver_rows_per_s']:,.0f} rows/s", True),
    Row(
        "3 million waiting records, through to silver that holds 10 million older rows",
        "bench-drain",
        lambda f: f"{f['silver_with_history_rows_per_s']:,.0f} rows/s",
    ),
    Row(
        "3 million waiting records, plain code that keeps the same promises",
        "bench-drain",
        lambda f: f"{f['plain_rows_per_s']:,.0f} rows/s",
    ),
    Row(
        "3 million waiting records, quick-start code that keeps none of them",
        "bench-drain",
        lambda f: f"{f['quickstart_rows_per_s']:,.0f} rows/s",
    ),
    Row("a year of 20,000 customers, straight into bronze", "bench-backfill", lambda f: f"{f['bronze_rows_per_s']:,.0f} rows/s"),
    Row(
        "one generator process, encoding and sending", "bench-generator", lambda f: f"{f['encode_and_produce_events_per_s']:,.0f} events/s"
    ),
    Row(
        "10,000 new order lines onto 1 / 5 / 20 million: refresh of facts, sessions and daily figures",
        "bench-marts",
        by_history("refresh_seconds"),
    ),
    Row(
        "10,000 new order lines onto 1 / 5 / 20 million: refresh of every mart",
        "bench-marts",
        by_history("refresh_all_models_seconds"),
        True,
    ),
    Row(
        "10,000 new order lines onto 1 / 5 / 20 million: first refresh after everything was built",
        "bench-marts",
        by_history("first_refresh_seconds"),
    ),
    Row("1 / 5 / 20 million order lines: building everything", "bench-marts", by_history("full_build_seconds")),
    Row(
        "scoring 50,000 / 500,000 customers with the purchase models",
        "bench-marts",
        lambda f: f"{f['scoring_seconds_at_50000_customers']:.1f} / {f['scoring_seconds_at_500000_customers']:.1f} s",
    ),
    Row("auditing 50 million events", "bench-audit-50m", lambda f: f"{f['audit_seconds']:.0f} s, {f['peak_rss_mib'] / 1024:.1f} GiB"),
    Row("stream killed, poisoned and confused: records that Kafka confirmed", "faults-stream", verdict_of_faults, True),
    Row("stream on MinIO killed, poisoned and confused: records that Kafka confirmed", "faults-stream-minio", verdict_of_faults),
)


def table(page: Path, *, short: bool) -> str:
    """Markdown table for the page: what, figure, link to the report.

    Args:
        page: links are relative to it.
        short: only the rows for a stranger.
    """
    folder = REPORTS.relative_to(page.parent)
    lines = ["| what | figure | report |", "|---|---|---|"]
    for row in ROWS:
        if row.in_readme or not short:
            report = json.loads((REPORTS / f"{row.report}.json").read_text())
            missed = "" if report["verdict"] == Verdict.PASS else " (missed one of its targets)"
            lines.append(f"| {row.what} | {row.shown(report['figures'])} | [{row.report}]({folder}/{row.report}.json){missed} |")
    return "\n".join(lines)


def up_to_date(page: Path) -> str:
    """The page's text with the figures of the kept reports.

    Raises:
        ValueError: a mark is missing.
    """
    return with_block(page, BEGIN, END, table(page, short=PAGES[page]))


def main() -> None:
    """Write the tables of figures in README.md and docs/performance.md from the reports under docs/benchmarks/."""
    for page in PAGES:
        page.write_text(up_to_date(page))
        typer.echo(f"wrote {page}")


if __name__ == "__main__":
    typer.run(main)

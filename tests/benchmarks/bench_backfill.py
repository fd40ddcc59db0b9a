"""How fast a year of a population reaches bronze without Kafka, and silver from there: `make bench-backfill`.

The first part runs the command a user would; its clock is that of the whole command, the drawing of the population included. The second
starts Spark and refines what bronze holds, timed from the first trigger to the last commit.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from crm_resources.report import Verdict, write_report
from crm_resources.settings import load_settings
from tests.own_stack import own_home
from tests.process_usage import ProcessUsage

BRONZE_TARGET = 100_000

CONSOLE = Console()
app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@dataclass
class Watched:
    """A finished process: seconds of wall clock, and the most memory it and its children held at once."""

    seconds: float
    peak_mib: float
    output: str


@app.callback(invoke_without_command=True)
def measure(
    context: typer.Context,
    customers: Annotated[int, typer.Option(help="Mean number of customers.")] = 20_000,
    days: Annotated[int, typer.Option(help="Days of history.")] = 365,
    driver_memory: Annotated[str, typer.Option(help="Heap of Spark.")] = "3g",
) -> None:
    """Measure the fast path of a backfill."""
    if context.invoked_subcommand is not None:
        return
    started = datetime.now(UTC)
    settings = load_settings()
    variables = {"CRM_DRIVER_MEMORY": driver_memory, "CRM_SPARK_CORES": str(settings.spark_cores), "CRM_TRIGGER_SECONDS": "0"}
    with own_home("bench-backfill", **variables) as environ:
        home = Path(environ["CRM_HOME"])
        command = ["-m", "generator", "backfill", "--into", "bronze", "--customers", str(customers), "--days", str(days)]
        with CONSOLE.status("into bronze"):
            bronze = _watched(environ, *command)
        rows = int(json.loads((home / "reports" / "backfill.json").read_text())["figures"]["acked_now_rows"])
        with CONSOLE.status("refining"):
            silver = _watched(environ, "-m", "tests.benchmarks.bench_backfill", "refine")
        refined = json.loads(silver.output.splitlines()[-1])
        lake_mib = sum(f.stat().st_size for f in Path(home / "bench" / "lake" / "bronze").rglob("*.parquet")) / 2**20
    figures = {
        "rows": float(rows),
        "bronze_rows_per_s": round(rows / bronze.seconds),
        "bronze_seconds": round(bronze.seconds, 1),
        "bronze_peak_rss_mib": round(bronze.peak_mib),
        "bronze_size_mib": round(lake_mib),
        "silver_rows": float(refined["silver"]),
        "silver_rows_per_s": round(refined["rows"] / refined["seconds"]),
        "silver_peak_rss_mib": round(silver.peak_mib),
    }
    table = Table("", "rows", "rows/s", "peak MiB", title=f"a backfill of {customers:,} customers and {days} days, past Kafka")
    table.add_row("bronze", f"{rows:,}", f"{figures['bronze_rows_per_s']:,}", f"{figures['bronze_peak_rss_mib']:,}")
    table.add_row("silver", f"{refined['silver']:,}", f"{figures['silver_rows_per_s']:,}", f"{figures['silver_peak_rss_mib']:,}")
    CONSOLE.print(table)
    missed = []
    if figures["bronze_rows_per_s"] < BRONZE_TARGET:
        missed.append(f"bronze below {BRONZE_TARGET:,} rows/s")
    if refined["silver"] != rows:
        missed.append(f"{rows - refined['silver']:,} rows did not reach silver")
    for line in missed:
        CONSOLE.print(f"[red]missed:[/red] {line}")
    path = write_report(settings.reports_dir, "bench-backfill", Verdict.FAIL if missed else Verdict.PASS, figures, started=started)
    CONSOLE.print(f"report: {path}")
    if missed:
        raise typer.Exit(1)


@app.command(hidden=True)
def refine() -> None:
    """Refine what bronze holds; print rows and seconds as JSON."""
    from crm_assets.streaming.refine import RefineStep, drain_refine
    from crm_assets.streaming.tables import live
    from crm_resources.spark import end_session, spark_session
    from tests.benchmarks.drain_run import span

    settings = load_settings()
    spark = spark_session(settings, "bench-backfill")
    step = RefineStep(settings, live(settings))
    query = drain_refine(spark, settings, step)
    query.awaitTermination()
    error = query.exception()
    if error is not None:
        raise error
    first, last = span(query)
    end_session(spark)
    typer.echo(json.dumps({"rows": step.total.read, "silver": step.total.silver, "seconds": last - first}))


def _watched(environ: dict[str, str], *arguments: str) -> Watched:
    begun = time.monotonic()
    with (
        subprocess.Popen([sys.executable, *arguments], env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process,
        ProcessUsage(process.pid) as usage,
    ):
        output, complaints = process.communicate()
    if process.returncode:
        CONSOLE.print(complaints[-4000:], markup=False)
        raise typer.Exit(1)
    return Watched(time.monotonic() - begun, usage.peak_mib, output)


if __name__ == "__main__":
    app()

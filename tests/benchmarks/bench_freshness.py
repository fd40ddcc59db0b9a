"""`make bench-freshness`: seconds from an event to each mart, with the whole platform running as a shop runs it.

Everything is up: Kafka, the stream, PostgreSQL, Dagster with its sensors. A generator holds a rate; nobody clicks. A record counts as
shown by a mart when Dagster has noted the mart's materialization, in the run whose load brought the record or in a later one; that is a
little after the table was committed.
"""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

import polars as pl
import typer
from rich.console import Console
from rich.table import Table

from crm_resources import warehouse
from crm_resources.ledger import ledger_dir, ledger_files
from crm_resources.report import Verdict, write_report
from crm_resources.settings import REPOSITORY, Settings, load_settings
from deploy.local.demo import marts_backlog, stream_backlog
from deploy.local.stack import Stack
from tests.benchmarks.stream_latency import sent
from tests.driver_process import wait_until
from tests.own_stack import own_home

CONSOLE = Console()
TARGET_SECONDS = 60.0
SETTLE_SECONDS = 600.0
QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}
MIX = {"events": 0.90, "orders": 0.07, "products": 0.005, "profiles": 0.025}

MARTS = {
    "events": ("fct_events", "fct_sessions", "conversion_daily"),
    "orders": ("fct_orders", "fct_order_lines", "daily_sales", "rfm_scores", "rfm_segments", "churn_risk", "customer_value"),
}
"""Marts by the raw table whose records they show."""

MATERIALIZATIONS = """query ($path: [String!]!) { assetOrError(assetKey: {path: $path}) { ... on Asset {
    assetMaterializations(limit: 1000) { timestamp } } } }"""

RUNS = """query { runsOrError(filter: {pipelineName: "refresh", statuses: [SUCCESS]}, limit: 500) { ... on Runs { results {
    creationTime startTime endTime stepStats { stepKey startTime endTime } } } } }"""


def main(
    rate: Annotated[float, typer.Option(help="Records a second.")] = 50,
    seconds: Annotated[float, typer.Option(min=60, help="How long the rate is held.")] = 300,
    warm_seconds: Annotated[float, typer.Option(min=0, help="Traffic before, unmeasured.")] = 90,
    trigger_delay: Annotated[float | None, typer.Option(min=0, help="CRM_MAX_TRIGGER_DELAY_SECONDS; the default if omitted.")] = None,
) -> None:
    """Measure how old the marts are; exit code 1 when 95 % of the records are not shown within a minute."""
    started = datetime.now(UTC)
    variables = {} if trigger_delay is None else {"CRM_MAX_TRIGGER_DELAY_SECONDS": str(trigger_delay)}
    with own_home("bench-freshness", CRM_ENV="bench", **variables) as environ:
        stack = Stack(load_settings(environ), environ=environ)
        try:
            url = stack.up().webserver
            assert url is not None
            settings = load_settings(environ)
            with CONSOLE.status("applying broker, topics and stream"):
                select = "group:infrastructure or group:ingestion or group:streaming"
                _run(environ, "deploy.local.run", "dagster", "asset", "materialize", "--select", select, "-m", "crm_assets.definitions")
            with CONSOLE.status(f"{rate:g} records a second for {warm_seconds + seconds:.0f} s"):
                _run(environ, "generator", "run", str(_scenario(settings, rate, warm_seconds, seconds)), "--env", settings.env)
            with CONSOLE.status("waiting until everything is in the marts"):
                wait_until(lambda: stream_backlog(settings) is None, "everything is refined", SETTLE_SECONDS)
                wait_until(lambda: marts_backlog(settings) is None, "everything is in the marts", SETTLE_SECONDS)
            found = _latencies(settings, url, warm_seconds)
            refreshes = _refreshes(settings) | _parts_of_a_run(url)
        finally:
            stack.down()
    figures: dict[str, float] = {"rate_records_per_s": rate, "held_seconds": seconds, **refreshes}
    figures["max_trigger_delay_seconds"] = settings.max_trigger_delay_seconds
    table = Table("mart", "records", *QUANTILES, title=f"bench-freshness at {rate:g} records a second", title_justify="left")
    missed = []
    for name, waited in found.items():
        values = {q: float(waited.quantile(share) or 0.0) for q, share in QUANTILES.items()}
        figures |= {f"{name}_records": waited.len(), f"{name}_absent_records": waited.null_count()}
        figures |= {f"{name}_{q}_seconds": round(value, 2) for q, value in values.items()}
        table.add_row(name, f"{waited.len():,}", *(f"{value:.1f}" for value in values.values()))
        if waited.null_count():
            missed.append(f"{waited.null_count():,} records are not in {name}")
        if values["p95"] > TARGET_SECONDS:
            missed.append(f"95 % are in {name} after {values['p95']:.0f} s, not {TARGET_SECONDS:.0f}")
    CONSOLE.print(table)
    CONSOLE.print(table_of_parts(refreshes))
    for line in missed:
        CONSOLE.print(f"[red]missed:[/red] {line}", highlight=False)
    path = write_report(load_settings().reports_dir, "bench-freshness", Verdict.FAIL if missed else Verdict.PASS, figures, started=started)
    CONSOLE.print(f"report: {path}", soft_wrap=True)
    raise typer.Exit(1 if missed else 0)


def table_of_parts(refreshes: Mapping[str, float]) -> Table:
    """What a refresh spends its time on."""
    table = Table("part of a refresh", "seconds", title=f"{refreshes['refreshes']:.0f} refreshes", title_justify="left")
    for name, seconds in refreshes.items():
        if name.endswith("_seconds"):
            table.add_row(name.removesuffix("_seconds").replace("_", " "), f"{seconds:.1f}")
    return table


def _run(environ: Mapping[str, str], *command: str) -> None:
    done = subprocess.run([sys.executable, "-m", *command], cwd=REPOSITORY, env=dict(environ), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{' '.join(command[:2])} ended with {done.returncode}:\n{done.stdout[-3000:]}{done.stderr[-3000:]}")


def _scenario(settings: Settings, rate: float, *durations: float) -> str:
    file = settings.home / "freshness.yml"
    phases = [{"name": name, "duration": d, "rate": rate} for name, d in zip(("warm", "held"), durations, strict=True) if d]
    # JSON is YAML.
    file.write_text(json.dumps({"seed": 1, "customers": 500, "products": 100, "truth": {"bgnbd": False}, "mix": MIX, "phases": phases}))
    return str(file)


def _latencies(settings: Settings, url: str, warm_seconds: float) -> dict[str, pl.Series]:
    """Seconds from the intended time of each record of the held rate, to being loaded (`raw_…`) and to each mart."""
    records = pl.concat([sent(file) for file in ledger_files(ledger_dir(settings.environment_dir))])
    records = records.group_by("event_id").agg(pl.col("intended_us").min())
    # What a scenario introduces beforehand has no rate; the traffic begins behind it.
    begin = int(records["intended_us"].min() or 0)
    held = records.filter(pl.col("intended_us") > begin + warm_seconds * 1e6)
    found: dict[str, pl.Series] = {}
    for plural, marts in MARTS.items():
        loaded = pl.DataFrame(warehouse.fetch_arrow(settings, f"select event_id, loaded_at from raw.{plural}"))
        rows = loaded.select("event_id", loaded_us=pl.col("loaded_at").dt.timestamp("us")).join(held, on="event_id").sort("loaded_us")
        found[f"raw_{plural}"] = (rows["loaded_us"] - rows["intended_us"]) / 1e6
        rows = _next(rows, "loaded_us", "load_us", _materialized_us(url, "warehouse", "raw", plural)).sort("load_us")
        for mart in marts:
            shown = _next(rows, "load_us", "shown_us", _materialized_us(url, "marts", mart))
            found[mart] = (shown["shown_us"] - shown["intended_us"]) / 1e6
    return found


def _next(rows: pl.DataFrame, after: str, name: str, moments: list[int]) -> pl.DataFrame:
    """The rows with the first of the moments that is not before their column `after`."""
    times = pl.DataFrame({name: sorted(moments)}, schema={name: pl.Int64})
    return rows.join_asof(times, left_on=after, right_on=name, strategy="forward", coalesce=False)


def _materialized_us(url: str, *path: str) -> list[int]:
    """When Dagster noted the asset's materializations, microseconds since 1970 UTC."""
    found = _ask(url, MATERIALIZATIONS, path=list(path))["assetOrError"]
    return [int(float(m["timestamp"]) * 1_000) for m in found["assetMaterializations"]]


def _parts_of_a_run(url: str) -> dict[str, float]:
    """Median seconds of what a run of the refresh consists of, and from the end of one to the making of the next."""
    runs = sorted(_ask(url, RUNS)["runsOrError"]["results"], key=lambda run: run["creationTime"])
    parts: dict[str, list[float]] = {name: [] for name in ("start", "load", "between_steps", "dbt", "end", "until_next")}
    for run, following in itertools.zip_longest(runs, runs[1:]):
        steps = {step["stepKey"]: step for step in run["stepStats"]}
        load, dbt = steps["load_raw"], steps["dbt_models"]
        parts["start"].append(load["startTime"] - run["creationTime"])
        parts["load"].append(load["endTime"] - load["startTime"])
        parts["between_steps"].append(dbt["startTime"] - load["endTime"])
        parts["dbt"].append(dbt["endTime"] - dbt["startTime"])
        parts["end"].append(run["endTime"] - dbt["endTime"])
        if following:
            parts["until_next"].append(following["creationTime"] - run["endTime"])
    return {f"run_{name}_p50_seconds": round(float(pl.Series(found).median() or 0), 2) for name, found in parts.items()}  # type: ignore[arg-type]


def _ask(url: str, query: str, **variables: Any) -> dict[str, Any]:
    """The answer of Dagster's GraphQL."""
    body = json.dumps({"query": query, "variables": variables}).encode()
    request = urllib.request.Request(f"{url}/graphql", body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=60) as answer:
        found: dict[str, Any] = json.load(answer)["data"]
    return found


def _refreshes(settings: Settings) -> dict[str, float]:
    """How many refreshes there were, how long dbt took, and how long from the end of one to the end of the next."""
    rows = warehouse.fetch_rows(
        settings, "select extract(epoch from started_at)::float8, extract(epoch from finished_at)::float8 from meta.refreshes order by 1"
    )
    took = pl.Series([end - begin for begin, end in rows], dtype=pl.Float64)
    apart = pl.Series([later[1] - earlier[1] for earlier, later in itertools.pairwise(rows)], dtype=pl.Float64)
    return {
        "refreshes": len(rows),
        "refresh_p50_seconds": round(float(took.median() or 0), 2),  # type: ignore[arg-type]
        "refresh_max_seconds": round(float(took.max() or 0), 2),  # type: ignore[arg-type]
        "refresh_to_refresh_p50_seconds": round(float(apart.median() or 0), 2),  # type: ignore[arg-type]
    }


if __name__ == "__main__":
    typer.run(main)

"""`make bench-marts`: what a refresh costs when the history grows, and what scoring costs when the customers do.

For each length of history a data set of its own: everything is built once, then batches of new lines follow, each refreshed the way the
platform does, but in two parts: facts, sessions and daily models with all that they are made of, and then the others. The first part must
cost the same at every length. Customers are scored from one row each; that is timed apart, at two numbers of customers. Runs on PostgreSQL
and dbt of this machine, without Kafka's or Spark's part.
"""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from crm_assets.warehouse.assets import TABLES_ONLY
from crm_assets.warehouse.dbt_command import run_dbt
from crm_assets.warehouse.manifest import MANIFEST
from crm_assets.warehouse.recorded_refresh import recorded_refresh
from crm_resources import warehouse
from crm_resources.report import Verdict, write_report
from crm_resources.settings import Settings, load_settings
from tests.benchmarks.marts_history import (
    LINES_PER_ORDER,
    Shop,
    as_of,
    expected_daily_sales,
    found_daily_sales,
    write_members,
    write_model,
    write_orders,
)
from tests.own_stack import own_stack

CONSOLE = Console()
FIRST_BATCHES = 5
"""Batches after a build of everything, which leaves the indexes of a long history on disk alone; the first is reported, none is counted."""

BATCHES = 7
"""Batches after these, whose refreshes are counted: their median."""

SCORINGS = 3
"""How often all customers are scored; the median counts."""

MAY_DIFFER = 0.2
"""How far the slowest refresh may lie above the fastest one, as a share."""

FACTS = {
    "fct_orders",
    "fct_order_lines",
    "fct_events",
    "fct_sessions",
    "daily_sales",
    "daily_sales_by_channel",
    "daily_sales_by_category",
    "conversion_daily",
}
"""Facts, sessions and daily models; what they are made of is built and timed with them, and nothing else."""

LINES = {"fct_order_lines", "int_order_lines_classified", "stg_crm__order_lines"}
"""What no model that scores customers may read."""

ACTIVITY = "int_customer_activity"
"""One row per customer; every model below it, but the sales, scores customers from it."""


@dataclass(frozen=True)
class Invocation:
    """One run of dbt: seconds of its models, from the begin of the first to the end of the last, and by model."""

    seconds: float
    by_model: Mapping[str, float]


@dataclass(frozen=True)
class Refresh:
    """One refresh: its two parts, and the seconds of the whole with dbt's two starts and what is kept about it."""

    facts: Invocation
    others: Invocation
    whole: float

    @property
    def seconds(self) -> float:
        """Seconds of all models."""
        return self.facts.seconds + self.others.seconds


def main(
    sizes: Annotated[str, typer.Option(help="Lines of history, with commas.")] = "1000000,5000000,20000000",
    batch: Annotated[int, typer.Option(help="New lines of a batch.")] = 10_000,
    customers: Annotated[str, typer.Option(help="Customers: of the shop whose history grows, and of the larger one that is scored.")] = (
        "50000,500000"
    ),
) -> None:
    """Measure refreshes and scoring; exit code 1 when a refresh costs more with a longer history, or a result is wrong."""
    started = datetime.now(UTC)
    lengths = [int(size) for size in sizes.split(",")]
    counts = [int(count) for count in customers.split(",")]
    figures: dict[str, float] = {"batch_lines": batch, "customers": counts[0]}
    wrong: list[str] = []
    with own_stack("bench-marts") as environ:
        settings = load_settings(environ)
        table = Table(
            "lines",
            "full build s",
            "first refresh s",
            "refresh s",
            "of all models s",
            "daily sales",
            title="bench-marts",
            title_justify="left",
        )
        for lines in lengths:
            found = _history(settings, lines, batch, counts[0])
            figures |= {f"{name}_at_{lines}_lines": value for name, value in found.items()}
            equal = not found["wrong_days"]
            wrong += [] if equal else [f"daily sales at {lines:,} lines"]
            names = ("full_build_seconds", "first_refresh_seconds", "refresh_seconds", "refresh_all_models_seconds")
            table.add_row(f"{lines:,}", *(f"{found[name]:.1f}" for name in names), "equal" if equal else "WRONG")
        refreshes = [figures[f"refresh_seconds_at_{lines}_lines"] for lines in lengths]
        figures["slowest_over_fastest_ratio"] = round(max(refreshes) / min(refreshes), 3)
        scoring = Table("customers", "scoring s", "rows of one aggregate each", title_justify="left")
        for count in counts:
            seconds, rows = _scoring(settings, count)
            figures |= {f"scoring_seconds_at_{count}_customers": seconds, f"scored_at_{count}_customers": rows}
            scoring.add_row(f"{count:,}", f"{seconds:.1f}", f"{rows:,}")
    CONSOLE.print(table)
    CONSOLE.print(scoring)
    if figures["slowest_over_fastest_ratio"] > 1 + MAY_DIFFER:
        wrong.append(f"the slowest refresh takes {figures['slowest_over_fastest_ratio']:.2f} times the fastest")
    for message in wrong:
        CONSOLE.print(f"[red]broken:[/red] {message}")
    write_report(load_settings().reports_dir, "bench-marts", Verdict.FAIL if wrong else Verdict.PASS, figures, started=started)
    raise typer.Exit(1 if wrong else 0)


def _history(settings: Settings, lines: int, batch: int, customers: int) -> dict[str, float]:
    """Figures of one length of history; its database is dropped at the end."""
    shop = Shop(customers, orders_per_day=2_000)
    before, per_batch = lines // LINES_PER_ORDER, batch // LINES_PER_ORDER
    batches = FIRST_BATCHES + BATCHES
    last = as_of(shop, before + batches * per_batch).date()
    place = settings.model_copy(update={"env": f"bench_{lines}", "as_of": last})
    warehouse.prepare(place)
    try:
        clock = time.monotonic()
        write_model(place)
        write_members(place, shop)
        write_orders(place, shop, 0, before)
        _analyze(place)
        written = time.monotonic() - clock
        CONSOLE.print(f"{lines:,} lines written in {written:.0f} s")
        full = _refresh(place)
        CONSOLE.print(f"{lines:,} lines: everything built in {full.seconds:.0f} s")
        _settle(place)
        refreshes = []
        for number in range(batches):
            write_orders(place, shop, before + number * per_batch, per_batch)
            refreshes.append(_refresh(place))
            for name, part in (("facts", refreshes[-1].facts), ("the others", refreshes[-1].others)):
                slowest = sorted(part.by_model.items(), key=lambda item: -item[1])[:4]
                CONSOLE.print(f"{lines:,} lines: {name} in {part.seconds:.1f} s; {', '.join(f'{n} {s:.1f}' for n, s in slowest)}")
        expected, found = expected_daily_sales(place), found_daily_sales(place)
        wrong = abs(expected.height - found.height) + expected.join(found, on=expected.columns, how="anti").height
    finally:
        _drop(place)
    first, counted = refreshes[0], refreshes[FIRST_BATCHES:]
    return {
        "write_seconds": round(written, 1),
        "full_build_seconds": round(full.seconds, 2),
        "first_refresh_seconds": round(first.facts.seconds, 2),
        "refresh_all_models_seconds": round(statistics.median(r.seconds for r in counted), 2),
        "refresh_with_two_starts_seconds": round(statistics.median(r.whole for r in counted), 2),
        "refresh_seconds": round(statistics.median(r.facts.seconds for r in counted), 2),
        "refresh_other_models_seconds": round(statistics.median(r.others.seconds for r in counted), 2),
        "wrong_days": wrong,
    }


def _scoring(settings: Settings, customers: int) -> tuple[float, int]:
    """Seconds to score that many customers from their aggregates, and how many were scored."""
    shop = Shop(customers, orders_per_day=customers // 125)
    orders = customers * 2
    place = settings.model_copy(update={"env": f"bench_of_{customers}", "as_of": as_of(shop, orders).date()})
    warehouse.prepare(place)
    try:
        write_model(place)
        write_members(place, shop)
        write_orders(place, shop, 0, orders)
        _analyze(place)
        _refresh(place)
        timed = [_dbt(place, None, "run", "--select", *sorted(_scored())).seconds for _ in range(SCORINGS)]
        return round(statistics.median(timed), 2), warehouse.count_rows(place, "intermediate", ACTIVITY)
    finally:
        _drop(place)


def _models() -> dict[str, dict[str, Any]]:
    """Models of the project by id."""
    manifest: dict[str, Any] = json.loads(MANIFEST.read_text())
    return {uid: node for uid, node in manifest["nodes"].items() if node["resource_type"] == "model"}


def _parents(models: Mapping[str, dict[str, Any]], uid: str) -> set[str]:
    return {parent for parent in models[uid]["depends_on"]["nodes"] if parent in models}


def _facts() -> set[str]:
    """Names of facts, sessions and daily models, and of all that they are made of."""
    models = _models()
    found: set[str] = set()
    waiting = {uid for uid, node in models.items() if node["name"] in FACTS}
    while waiting:
        found |= waiting
        waiting = {parent for uid in waiting for parent in _parents(models, uid)} - found
    return {models[uid]["name"] for uid in found}


def _scored() -> set[str]:
    """Names of the models that score customers, all of which start from one aggregate row per customer.

    Raises:
        SystemExit: one of them reads order lines on another way than through that row.
    """
    models = _models()
    scoring = {uid for uid, node in models.items() if node["fqn"][2] not in ("sales", "changes")}
    found = {uid for uid, node in models.items() if node["name"] == ACTIVITY}
    while grown := {uid for uid in scoring - found if _parents(models, uid) & found}:
        found |= grown
    for uid in found:
        read = {models[parent]["name"] for parent in _parents(models, uid)} & LINES
        if read and models[uid]["name"] != ACTIVITY:
            raise SystemExit(f"{models[uid]['name']} reads {', '.join(sorted(read))}; it is to read {ACTIVITY} alone")
    return {models[uid]["name"] for uid in found} - {ACTIVITY}


def _refresh(settings: Settings) -> Refresh:
    """Refresh the marts as the platform does, without the tests; what is promised of the first part is not to wait for the others."""
    facts = [*sorted(_facts()), "resource_type:seed"]
    clock = time.monotonic()
    with recorded_refresh(settings, whole=True, warn=CONSOLE.print) as planned:
        left_out = ("test", "unit_test") if planned.scope.whole else ("test", "unit_test", "seed")
        without_views = () if planned.scope.whole else TABLES_ONLY
        arguments = ("build", "--exclude-resource-type", *left_out)
        first = _dbt(planned.settings, planned.scope.since, *arguments, "--select", *facts, *without_views)
        second = _dbt(planned.settings, planned.scope.since, *arguments, *(without_views or ("--exclude",)), *facts)
    return Refresh(first, second, time.monotonic() - clock)


def _dbt(settings: Settings, since: Mapping[str, datetime] | None, *arguments: str) -> Invocation:
    environment = warehouse.dbt_environment(settings, since)
    done = run_dbt(arguments, folder=environment["DBT_TARGET_PATH"], variables=environment)
    if done.returncode:
        raise SystemExit(done.stdout[-4000:] + done.stderr[-2000:])
    results: dict[str, Any] = json.loads((Path(environment["DBT_TARGET_PATH"]) / "run_results.json").read_text())
    return Invocation(results["elapsed_time"], {r["unique_id"].split(".")[2]: r["execution_time"] for r in results["results"]})


def _analyze(settings: Settings) -> None:
    with warehouse.connect(settings, autocommit=True) as connection, closing(connection.cursor()) as cursor:
        for table in ("orders", "order_lines", "events", "profiles", "products"):
            cursor.execute(f"vacuum (analyze) raw.{table}")


def _settle(settings: Settings) -> None:
    """Do what PostgreSQL would do by itself in the minutes after everything was built, beside the refreshes that are timed."""
    with warehouse.connect(settings, autocommit=True) as connection, closing(connection.cursor()) as cursor:
        cursor.execute("vacuum (analyze)")
        cursor.execute("checkpoint")


def _drop(settings: Settings) -> None:
    with warehouse.connect_to_server(settings) as connection, closing(connection.cursor()) as cursor:
        cursor.execute(f"drop database {warehouse.quoted(settings.database)} with (force)")


if __name__ == "__main__":
    typer.run(main)

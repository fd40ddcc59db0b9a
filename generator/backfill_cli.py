"""`python -m generator backfill`: a year (or any days) of a population with known truth, sent through Kafka day by day."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, date, datetime, timedelta
from enum import StrEnum
from typing import Annotated

import typer
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from crm_resources.contracts.evolution import SchemaRefused
from crm_resources.kafka import DELIVERY_SECONDS
from crm_resources.lake_lock import LakeLocked, LakeLockLost
from crm_resources.lake_tables import TableAltered
from crm_resources.object_store import ObjectStoreError
from crm_resources.report import Verdict, write_report
from crm_resources.settings import Settings
from generator.backfill import BackfillError, BackfillOutcome, day_done, run_backfill
from generator.backfill_plot import plot_season
from generator.backfill_state import FileState, RedisState, StateError, StateStore
from generator.bronze_path import run_bronze_backfill
from generator.console import Environment, Timeout, complain, err, errors, out, settings_of
from generator.interrupt import asked_to_stop
from generator.population_model.options import PopulationOptions
from generator.population_model.purchases import BgNbd
from generator.population_model.shop import PopulationShop
from generator.population_model.truth import write_truth


class Target(StrEnum):
    """Where the records go."""

    KAFKA = "kafka"
    BRONZE = "bronze"


def backfill(
    env: Environment = None,
    customers: Annotated[int, typer.Option(min=1, max=1_000_000, help="Mean number of customers; how many arrive is Poisson.")] = 20_000,
    days: Annotated[int, typer.Option(min=1, max=3_660, help="Number of days.")] = 365,
    end: Annotated[datetime | None, typer.Option(formats=["%Y-%m-%d"], help="Last day. Default: yesterday (UTC).")] = None,
    seed: Annotated[int, typer.Option(min=0, help="The same seed and options give the same bytes.")] = 1,
    products: Annotated[int, typer.Option(min=1, max=99_999, help="Products for sale.")] = 300,
    visits: Annotated[float, typer.Option(min=0, max=10_000, help="Visits without a purchase per customer and year.")] = 45,
    dropout_at_first: Annotated[
        bool, typer.Option("--dropout-at-first", help="Customers may drop out after their first purchase too (MBG/NBD).")
    ] = False,
    into: Annotated[
        Target, typer.Option(help="`kafka`, or `bronze`: past Kafka straight into the lake, while the stream is stopped.")
    ] = Target.KAFKA,
    plan_only: Annotated[bool, typer.Option("--plan-only", help="Write the truth and the plot; send nothing and need no Kafka.")] = False,
    timeout: Timeout = DELIVERY_SECONDS,
) -> None:
    """Send the history of customers whose truth is known; a killed run goes on at the day where it stopped.

    The truth (rates, drop-outs, future purchases) goes to a sealed folder that only its owner can read, never into the stream.
    """
    with errors(), _own_errors():
        settings = settings_of(env)
        started = datetime.now(UTC)
        last = end.date() if end else started.date() - timedelta(days=1)
        _refuse_the_future(last, started.date())
        options = PopulationOptions(
            end=last,
            seed=seed,
            customers=customers,
            days=days,
            products=products,
            visits_per_customer=visits,
            purchase_model=BgNbd(dropout_at_first=dropout_at_first),
        )
        shop = PopulationShop(options)
        with err.status("drawing the population"):
            truth = write_truth(shop, settings.environment_dir)
        out.print(
            f"{shop.run_id}: {shop.customers.count:,} customers, {shop.orders:,} purchases in {days} days up to {last}; truth in {truth}",
            soft_wrap=True,
        )
        if plan_only:
            outcome = _plan(shop)
        elif into is Target.BRONZE:
            outcome = _into_bronze(settings, options)
        else:
            out.print(f"if it is stopped, the same command with --end {last} goes on where it was", soft_wrap=True)
            store = _store(settings, shop.run_id)
            try:
                with _progress(days) as progress, asked_to_stop() as stop:
                    outcome = run_backfill(settings, shop, store, progress=progress, stop=stop, delivery_timeout_seconds=timeout)
            finally:
                store.close()
        _finish(settings, shop, outcome, started, "backfill-plan" if plan_only else "backfill")


def _into_bronze(settings: Settings, options: PopulationOptions) -> BackfillOutcome:
    """Append to bronze what it lacks of the population; the file of days is kept for the plot, bronze itself knows what it holds."""
    store = FileState(settings.environment_dir / "backfill-bronze", options.run_id)
    try:
        with _progress(options.days) as progress, asked_to_stop() as stop:
            added = run_bronze_backfill(
                settings, options, workers=settings.spark_cores, progress=progress, committed=store.finish, stop=stop
            )
        outcome = BackfillOutcome(added.days_added, added.rows, added.seconds, added.interrupted, store.done())
    finally:
        store.close()
    if not outcome.interrupted:
        out.print(
            "bronze holds every day; start the stream, or run the job `catch_up`, and they are refined like any others", soft_wrap=True
        )
    return outcome


def _refuse_the_future(last: date, today: date) -> None:
    if last > today:
        raise typer.BadParameter(
            f"{last} lies in the future, where the stream sets events aside; the last day can be {today} at most", param_hint="--end"
        )


def _plan(shop: PopulationShop) -> BackfillOutcome:
    """What would be sent, without sending it."""
    outcome = BackfillOutcome()
    with _progress(shop.options.days) as progress:
        for day in shop.days:
            begun = datetime.now(UTC)
            table = shop.table(day)
            outcome.done[day] = day_done(day, table, (datetime.now(UTC) - begun).total_seconds())
            progress(len(outcome.done), 0)
    return outcome


def _store(settings: Settings, run_id: str) -> StateStore:
    if settings.redis_url is not None:
        return RedisState.connect(settings.redis_url.get_secret_value(), settings.env, run_id)
    return FileState(settings.environment_dir / "backfill", run_id)


@contextmanager
def _progress(days: int) -> Iterator[_DaysProgress]:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("days, {task.fields[records]:,} records"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=err, transient=True) as progress:
        yield _DaysProgress(progress, days)


class _DaysProgress:
    """A bar over the days."""

    def __init__(self, progress: Progress, days: int) -> None:
        self._progress = progress
        self._task = progress.add_task("backfill", total=days, records=0)

    def __call__(self, days: int, records: int) -> None:
        """Show the days done and the records this process has handed over."""
        self._progress.update(self._task, completed=days, records=records)


def _finish(settings: Settings, shop: PopulationShop, outcome: BackfillOutcome, started: datetime, report: str) -> None:
    """Print the table, leave report and plot, and end with the exit code of an interrupted run where it was one."""
    days = shop.options.days
    rate = outcome.records / outcome.sending_seconds if outcome.sending_seconds > 0 else 0.0
    table = Table(title=f"{shop.run_id} into {settings.env}")
    for heading in ("days done", "of", "days sent now", "records acked now", "sending s", "acked/s"):
        table.add_column(heading, justify="right")
    table.add_row(
        f"{len(outcome.done):,}",
        f"{days:,}",
        f"{outcome.sent_days:,}",
        f"{outcome.records:,}",
        f"{outcome.sending_seconds:.1f}",
        f"{rate:,.0f}",
    )
    out.print(table)
    if outcome.done:
        plot = plot_season(shop.season, outcome.done, shop.run_id, settings.reports_dir / f"{report}-season.png")
        out.print(f"season: {plot}", soft_wrap=True)
    complete = len(outcome.done) == days
    figures = {
        "days_done": float(len(outcome.done)),
        "days_total": float(days),
        "days_sent_now": float(outcome.sent_days),
        "acked_now_rows": float(outcome.records),
        "done_rows": float(sum(d.records for d in outcome.done.values())),
        "done_orders": float(sum(sum(d.orders_by_hour) for d in outcome.done.values())),
        "done_events": float(sum(sum(d.events_by_hour) for d in outcome.done.values())),
        "customers": float(shop.customers.count),
        "purchases_to_the_truths_horizon": float(shop.purchases.count),
        "sending_seconds": round(outcome.sending_seconds, 3),
    }
    write_report(settings.reports_dir, report, Verdict.PASS if complete else Verdict.FAIL, figures, started=started)
    if outcome.interrupted:
        raise typer.Exit(130)


@contextmanager
def _own_errors() -> Iterator[None]:
    """Turn the errors of a backfill's own into a message and an exit code."""
    try:
        yield
    except (StateError, BackfillError, LakeLocked, LakeLockLost, ObjectStoreError, TableAltered, SchemaRefused) as error:
        complain(str(error))
        raise typer.Exit(1) from error

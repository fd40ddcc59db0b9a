"""The command line: `python -m generator run | synthetic | replay | …`, also installed as `crm-generator`.

Belongs here: the commands with their arguments, and the table at the end. Not here: what is sent, or what errors look like (`console`).
"""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from random import Random
from typing import Annotated

import typer
from rich.table import Table

from crm_resources.kafka import DELIVERY_SECONDS
from crm_resources.report import Verdict, write_report
from crm_resources.settings import Settings
from generator import online_retail
from generator.backfill_cli import backfill
from generator.console import Environment, Timeout, err, errors, out, progress_bar, settings_of
from generator.defects import DefectShares, with_defects
from generator.delivery import Outcome, deliver
from generator.environment import write_environment
from generator.interrupt import asked_to_stop
from generator.pacing import Accelerated, AsFastAsPossible, Pace, PerSecond
from generator.raw_replay_cli import COMMAND as REPLAY_RAW
from generator.raw_replay_cli import replay_raw
from generator.records import Outgoing
from generator.scenario_cli import run
from generator.send import check_file
from generator.synthetic import Shop, ShopOptions

app = typer.Typer(
    help="Sends shop data through Kafka and keeps a ledger of what was acknowledged. Each command ends with a table of records sent, "
    "acked and refused, and leaves the same figures in the reports folder.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.command(REPLAY_RAW)(replay_raw)
app.command()(run)


@app.command()
def synthetic(
    env: Environment = None,
    seed: Annotated[int, typer.Option(help="The same seed and sizes give the same shop.")] = 1,
    customers: Annotated[int, typer.Option(min=1, help="Customers with a profile.")] = 2_000,
    products: Annotated[int, typer.Option(min=1, help="Products for sale.")] = 300,
    orders: Annotated[int, typer.Option(min=0, help="Orders placed in the window; later states and returns come on top.")] = 12_000,
    events: Annotated[int, typer.Option(min=0, help="Browsing and purchase events in the window.")] = 60_000,
    days: Annotated[int, typer.Option(min=1, help="Length of the window, which ends now.")] = 120,
    duplicates: Annotated[float, typer.Option(min=0, max=1, help="Share of records sent a second time with the same bytes.")] = 0.01,
    broken: Annotated[float, typer.Option(min=0, max=0.5, help="Share of additional records that are broken on purpose.")] = 0.002,
    history: Annotated[bool, typer.Option("--history/--no-history", help="Send the window before any live traffic.")] = True,
    live: Annotated[float, typer.Option(min=0, help="Seconds of live traffic after the window.")] = 0,
    rate: Annotated[float, typer.Option(min=0.001, help="Records a second of the live traffic.")] = 20,
    timeout: Timeout = DELIVERY_SECONDS,
) -> None:
    """Send a made-up shop: products, profiles, sessions and orders of the past months, then live traffic if asked."""
    with errors():
        settings = settings_of(env)
        started = datetime.now(UTC)
        options = ShopOptions(seed=seed, customers=customers, products=products, orders=orders, events=events, days=days)
        shares = DefectShares.usual(duplicates, broken)
        shop = Shop(options, started.replace(microsecond=0))
        faults = Random(f"{seed}/defects")
        outcomes = []
        if history:
            records = list(with_defects(shop.history(), shares, faults))
            outcomes.append(_send(settings, shop.run_id, records, len(records), "history", timeout=timeout))
        if live and not (outcomes and outcomes[-1].interrupted):
            count = round(live * rate)
            traffic = with_defects(shop.live(datetime.now(UTC), rate, count), shares, faults)
            outcomes.append(_send(settings, shop.run_id, traffic, count, "live", pace=PerSecond(rate), timeout=timeout))
        _finish(settings, "synthetic", outcomes, started)


@app.command()
def replay(
    file: Annotated[Path, typer.Argument(help="The Online Retail file, .csv or .csv.gz.")],
    env: Annotated[str, typer.Option(help="Data set to replay into; synthetic and real data never mix.")] = "online_retail",
    speed: Annotated[str, typer.Option(help="`max`, or how many times as fast as it happened, e.g. 86400 for a day a second.")] = "max",
    messages_per_second: Annotated[float | None, typer.Option(min=0.001, help="A constant rate instead of a speed.")] = None,
    encoding: Annotated[str, typer.Option(help="Encoding of the text; older copies are latin-1.")] = "utf-8",
    prepare_only: Annotated[
        bool, typer.Option("--prepare-only", help="Check the file and write the data set's facts; send nothing.")
    ] = False,
    timeout: Timeout = DELIVERY_SECONDS,
) -> None:
    """Replay the Online Retail file, one order per invoice. The whole file is checked before the first order leaves."""
    with errors():
        factor = _speed(speed)
        settings = settings_of(env)
        started = datetime.now(UTC)
        with err.status(f"checking {file.name}"):
            checked = online_retail.read_file(file, encoding=encoding)
        facts = write_environment(settings, checked.facts)
        out.print(f"{file.name}: {checked.rows:,} lines, {len(checked.invoices):,} invoices, no fault found; facts in {facts}")
        if prepare_only:
            return
        records = list(online_retail.messages(checked))
        pace: Pace = AsFastAsPossible()
        if messages_per_second is not None:
            pace = PerSecond(messages_per_second)
        elif factor is not None:
            pace = Accelerated(factor, records[0].event_us)
        outcome = _send(settings, checked.run_id, records, len(records), "replay", pace=pace, plurals=("orders",), timeout=timeout)
        _finish(settings, "replay", [outcome], started)


@app.command()
def send(
    file: Annotated[Path, typer.Argument(help="JSON Lines: one record a line.")],
    entity: Annotated[str | None, typer.Option(help="Entity of records that do not name it: event, order, product or profile.")] = None,
    env: Environment = None,
    check_only: Annotated[bool, typer.Option("--check-only", help="Check the records; send nothing.")] = False,
    timeout: Timeout = DELIVERY_SECONDS,
) -> None:
    """Check a shop's own records against the contracts and send them; one bad record and none is sent."""
    with errors():
        settings = settings_of(env)
        started = datetime.now(UTC)
        checked = check_file(file, entity, started + timedelta(seconds=settings.future_tolerance_seconds))
        out.print(f"{file.name}: {len(checked.records):,} records, all follow their contracts")
        if check_only:
            return
        plurals = sorted({r.plural for r in checked.records})
        outcome = _send(settings, checked.run_id, checked.records, len(checked.records), "send", plurals=plurals, timeout=timeout)
        _finish(settings, "send", [outcome], started)


def _speed(text: str) -> float | None:
    if text == "max":
        return None
    try:
        factor = float(text)
    except ValueError:
        factor = 0.0
    if not 0 < factor < float("inf"):
        raise typer.BadParameter(f"{text!r} is neither `max` nor a number above 0", param_hint="--speed")
    return factor


def _send(
    settings: Settings,
    run_id: str,
    records: Iterable[Outgoing],
    total: int,
    title: str,
    *,
    pace: Pace | None = None,
    plurals: Iterable[str] = ("events", "orders", "products", "profiles"),
    timeout: float,
) -> Outcome:
    with progress_bar(title, total) as progress, asked_to_stop() as stop:
        return deliver(
            settings, run_id, records, pace=pace, plurals=plurals, progress=progress, stop=stop, delivery_timeout_seconds=timeout
        )


def _finish(settings: Settings, command: str, outcomes: list[Outcome], started: datetime) -> None:
    """Print the table, leave the report, and end with the exit code of an interrupted run where it was one."""
    table = Table(title=f"{command} into {settings.env}")
    for heading in ("sent", "acked", "refused", "unknown", "seconds", "acked/s", "latest s"):
        table.add_column(heading, justify="right")
    for o in outcomes:
        table.add_row(
            f"{o.offered:,}",
            f"{o.acked:,}",
            f"{o.refused:,}",
            f"{o.unknown:,}",
            f"{o.seconds:.1f}",
            f"{o.acked_per_second:,.0f}",
            f"{o.lateness_seconds_max:.3f}",
        )
    out.print(table)
    for o in outcomes:
        out.print(f"ledger: {o.ledger}", soft_wrap=True)
    figures: dict[str, float] = {
        "offered_rows": sum(o.offered for o in outcomes),
        "acked_rows": sum(o.acked for o in outcomes),
        "refused_rows": sum(o.refused for o in outcomes),
        "unknown_rows": sum(o.unknown for o in outcomes),
        "sending_seconds": round(sum(o.seconds for o in outcomes), 3),
        "lateness_seconds_max": max((o.lateness_seconds_max for o in outcomes), default=0.0),
    }
    complete = all(o.acked + o.refused == o.offered for o in outcomes)
    write_report(settings.reports_dir, command, Verdict.PASS if complete else Verdict.FAIL, figures, started=started)
    if any(o.interrupted for o in outcomes):
        raise typer.Exit(130)


app.command()(backfill)

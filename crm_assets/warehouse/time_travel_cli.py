"""The command of time travel: `make time-travel`, with what it found as tables.

Belongs here: options, tables, exit codes. Not here: the journey itself (`time_travel`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from crm_assets.warehouse.time_travel import Journey, Outcome, check_reachable, find_destination, kept_databases, travel
from crm_assets.warehouse.travel_choice import TimeTravelError
from crm_resources import lake, refresh_reports
from crm_resources.command_end import failed
from crm_resources.layout import SILVER
from crm_resources.report import write_report
from crm_resources.settings import Settings, load_settings
from crm_resources.warehouse import WarehouseError

if TYPE_CHECKING:
    from rich.console import Console

_COLOURS = {Outcome.EQUAL: "green", Outcome.NOT_REPORTED: "yellow"}

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    at: Annotated[str, typer.Option(help="Date (its end, in the business time zone) or time, e.g. 2026-11-20T12:00Z.")] = "",
    report: Annotated[int | None, typer.Option(help="Number of a report.")] = None,
    versions: Annotated[str, typer.Option(help="Silver versions, e.g. orders=12,events=40; tables not named at their latest.")] = "",
    as_of: Annotated[str, typer.Option(help="With --versions: the date the marts shall show.")] = "",
    keep: Annotated[bool, typer.Option("--keep", help="Leave the database behind, to look into it.")] = False,
    list_: Annotated[bool, typer.Option("--list", help="Only show what can be travelled to.")] = False,
) -> None:
    """Build the marts of an earlier point once more, and compare them with what was reported then.

    Works on the data set CRM_ENV names, in a database beside its own. Writes `time-travel.json` into the reports folder. Exit code 1
    when something differs, 2 when the point cannot be reached.
    """
    from rich.console import Console

    settings = load_settings()
    started = datetime.now(UTC)
    console = Console()
    try:
        if list_:
            print_list(settings, console)
            return
        destination = find_destination(settings, now=started, at=at, report_id=report, versions=versions, as_of=as_of)
        journey = travel(settings, destination, keep=keep)
    except (TimeTravelError, WarehouseError, lake.LakeError) as error:
        raise failed(error, 2) from error
    print_journey(settings, journey, console)
    write_report(settings.reports_dir, "time-travel", journey.verdict, journey.figures(), started=started)
    if journey.differing:
        raise typer.Exit(1)


def print_journey(settings: Settings, journey: Journey, console: Console) -> None:
    """Show the point, each figure and mart then and now, and the verdict."""
    from rich.table import Table

    place = journey.destination
    report = place.report
    versions = ", ".join(f"{name} {version}" for name, version in sorted(place.versions.items()))
    what = f"report {report.refresh_id} of {_spelled(report.reported_at)}" if report else "a point at which nothing was reported"
    console.print(f"{settings.env}: {what}", markup=False, highlight=False)
    console.print(
        f"silver {versions or 'without rows'}; as of {place.as_of} in {place.business_timezone}; {journey.rows_loaded:,} rows loaded, "
        f"{journey.seconds:.1f} s",
        highlight=False,
        soft_wrap=True,
    )
    table = Table("figure or mart", "reported then", "reproduced now", "")
    for c in journey.comparisons:
        table.add_row(c.name, c.then or "", c.now or "", f"[{_COLOURS.get(c.outcome, 'red')}]{c.outcome}[/]")
    console.print(table)
    if report is None:
        console.print("No refresh reported from these versions for this date, so there is nothing to compare with.", style="yellow")
    elif journey.differing:
        why = "; the models have changed since that report, which may be the reason" if journey.models_changed else ""
        console.print(f"DIFFERENT: {', '.join(c.name for c in journey.differing)}{why}", style="red", soft_wrap=True)
    else:
        console.print("EQUAL: everything is as it was reported", style="green")
    if journey.kept:
        console.print(
            f'The marts are in the database {journey.database}: make psql ARGS="-d {journey.database}". The role crm_read may read them. '
            "The same command without KEEP=1 drops it.",
            soft_wrap=True,
            highlight=False,
        )


def print_list(settings: Settings, console: Console) -> None:
    """Show the last report of each business date and whether it can be reached, and the databases that were kept."""
    from rich.table import Table

    days = refresh_reports.reported_days(settings)
    names = tuple(SILVER)
    table = Table(title=f"reports of {settings.env} ({settings.business_timezone})", title_justify="left")
    for heading in ("date", "reports", "last", "reported at", "as of", *names, "net booked", "net restated", "reachable"):
        table.add_column(heading, overflow="fold")
    for day in days:
        last = day.last
        try:
            check_reachable(settings, last.versions)
            reachable = "[green]yes[/green]"
        except TimeTravelError as error:
            reachable = f"[red]{str(error).split(';')[0]}[/red]"
        table.add_row(
            str(day.day),
            f"{day.reports:,}",
            str(last.refresh_id),
            _spelled(last.reported_at),
            str(last.as_of),
            *(str(last.versions.get(name, "")) for name in names),
            last.figures.get("net_amount_booked", ""),
            last.figures.get("net_amount_restated", ""),
            reachable,
        )
    console.print(table)
    if not days:
        console.print("No refresh has written a report yet; the next one will.", style="yellow")
    kept = kept_databases(settings)
    if kept:
        console.print(f"kept databases: {', '.join(kept)}", markup=False, soft_wrap=True)


def _spelled(moment: datetime) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%dT%H:%M:%SZ}"


if __name__ == "__main__":
    app()

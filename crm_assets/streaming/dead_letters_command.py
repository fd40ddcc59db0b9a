"""The commands behind `make dead-letters` and `make replay-dead-letters`: what is open and what to do, and trying it again.

Belongs here: options, tables on the screen, the JSON report. Not here: what is open (`dead_letters`) or the replay (`replay`).
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Annotated

import typer

from crm_assets.streaming.dead_letters import open_dead_letters, summary_by_reason
from crm_assets.streaming.replay_request import RECORDS_PER_SECOND, ReplayInvalid, outcome_rows, replay_and_wait, replay_arguments
from crm_assets.streaming.requests import RequestUnanswered
from crm_resources.dagster_resources import StreamLauncherResource
from crm_resources.report import Verdict, write_report
from crm_resources.settings import load_settings
from crm_resources.stream_launcher import ALIVE, StreamError

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command("list")
def list_open() -> None:
    """Show open dead letters by reason: how many, since when, one of them, and what to do."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    settings = load_settings()
    started = datetime.now(UTC)
    found = summary_by_reason(open_dead_letters(settings))
    shown = Table(title=f"open dead letters of {settings.env}", title_justify="left")
    shown.add_column("reason", no_wrap=True)
    shown.add_column("open", justify="right")
    for name in ("oldest", "example", "what to do"):
        shown.add_column(name, overflow="fold")
    for one in found:
        example = Text(f"{one.example} {one.detail}".strip())  # what a producer sent is no markup
        shown.add_row(one.reason, f"{one.count:,}", f"{one.oldest:%Y-%m-%d %H:%M:%S}Z", example, one.what_to_do)
    console = Console()
    if found:
        console.print(shown)
    else:
        console.print(f"no open dead letters in {settings.env}")
    figures = {"open_rows": float(sum(one.count for one in found)), **{f"{one.reason}_rows": float(one.count) for one in found}}
    write_report(settings.reports_dir, "dead-letters", Verdict.PASS, figures, started=started)


@app.command("replay")
def replay(
    reason: Annotated[list[str] | None, typer.Option(help="Only this reason; may be repeated.")] = None,
    failed_from: Annotated[str | None, typer.Option("--from", help="Latest refusal not before this time, with time zone.")] = None,
    failed_before: Annotated[str | None, typer.Option("--to", help="Latest refusal before this time, with time zone.")] = None,
    event_id: Annotated[list[str] | None, typer.Option(help="Only this event id; may be repeated.")] = None,
    coordinate: Annotated[list[str] | None, typer.Option(help="Only this record, e.g. demo.orders[3]@1234; may be repeated.")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run/--no-dry-run", help="Judge and count, write nothing.")] = True,
    records_per_second: Annotated[float, typer.Option(help="Most records tried in a second, on average.")] = RECORDS_PER_SECOND,
    timeout: Annotated[float, typer.Option(min=1, help="Wait so many seconds for the end; the driver goes on after that.")] = 3600,
) -> None:
    """Try open dead letters again; a dry run unless --no-dry-run is given. The stream must run.

    Exit code 1 when the driver failed, 2 when it was not asked or did not answer.
    """
    from rich.console import Console
    from rich.table import Table

    settings = load_settings()
    started = datetime.now(UTC)
    console, errors = Console(), Console(stderr=True)
    given = {
        "reasons": reason or (),
        "failed_from": failed_from,
        "failed_before": failed_before,
        "event_ids": event_id or (),
        "coordinates": coordinate or (),
        "dry_run": dry_run,
        "records_per_second": records_per_second,
    }
    launcher = StreamLauncherResource().launcher(settings)
    try:
        arguments = replay_arguments(given)
        answer = replay_and_wait(
            settings, f"replay-{uuid.uuid4().hex}", arguments, timeout_seconds=timeout, alive=lambda: launcher.status().state in ALIVE
        )
    except (ReplayInvalid, RequestUnanswered, StreamError) as error:
        errors.print(str(error), style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    if not answer.ok:
        errors.print(f"the driver could not carry the replay out: {answer.error}", style="red", markup=False, soft_wrap=True)
        write_report(settings.reports_dir, "replay-dead-letters", Verdict.FAIL, {}, started=started)
        raise typer.Exit(1)
    shown = Table(
        "reason", "would become" if dry_run else "became", "records", title=f"dead letters of {settings.env}", title_justify="left"
    )
    for name, outcome, count in outcome_rows(answer.figures):
        shown.add_row(name, outcome, f"{count:,}")
    console.print(shown if answer.figures["selected"] else "no open dead letter fits")
    if dry_run:
        console.print("a dry run: nothing was written; --no-dry-run does it")
    figures = {"selected_rows": answer.figures["selected"], **{f"{name}_rows": n for name, n in answer.figures["totals"].items()}}
    write_report(settings.reports_dir, "replay-dead-letters", Verdict.PASS, figures, started=started)


if __name__ == "__main__":
    app()

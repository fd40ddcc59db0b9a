"""The commands of the audiences: list them, export them, write what dbt reads of their declarations.

Belongs here: options, tables, exit codes. Not here: the export itself (`export`), or what may be declared (`declarations`).
"""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer

from crm_assets.warehouse.audiences.declarations import AudienceError, read_audiences, write_files
from crm_assets.warehouse.audiences.destinations import ExportError
from crm_assets.warehouse.audiences.export import Way, destination_of, export_audiences
from crm_assets.warehouse.audiences.identities import Identity, PseudonymKeyMissing
from crm_assets.warehouse.audiences.ledger import ExportUnderWay, last_acknowledged
from crm_assets.warehouse.audiences.reconcile import Action
from crm_resources import warehouse
from crm_resources.command_end import failed
from crm_resources.contracts.evolution import SchemaRefused
from crm_resources.report import Verdict, write_report
from crm_resources.settings import REPOSITORY, load_settings

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)

_FAULTS = (AudienceError, ExportError, ExportUnderWay, PseudonymKeyMissing, warehouse.WarehouseError, SchemaRefused)


@app.command("list")
def list_() -> None:
    """Show the declared audiences: conditions, consent, members now, last change, last message that arrived."""
    from rich.console import Console
    from rich.table import Table

    settings = load_settings()
    started = datetime.now(UTC)
    try:
        audiences = read_audiences()
        members = dict(warehouse.rows_if_prepared(settings, "select audience, count(*) from marts.audience_members group by audience"))
        changed = dict(
            warehouse.rows_if_prepared(settings, "select audience, max(modified_at) from marts.audience_changes group by audience")
        )
        exported = last_acknowledged(settings)
    except _FAULTS as error:
        raise failed(error) from error
    table = Table("audience", "consent", "segment", "risk", "value", "members", "last change", "last exported")
    for audience in audiences:
        risk, value = audience.risk, audience.value
        table.add_row(
            audience.name,
            audience.consent,
            ", ".join(audience.segment),
            "" if risk is None else _condition(", ".join(risk.bands), risk.min, risk.max),
            "" if value is None else _condition(", ".join(value.tiers), value.min_revenue, None),
            f"{members.get(audience.name, 0):,}",
            _moment(changed.get(audience.name)),
            _moment(exported.get(audience.name)),
        )
    Console().print(table)
    figures = {f"{audience.name}_members": float(members.get(audience.name, 0)) for audience in audiences}
    write_report(settings.reports_dir, "audiences", Verdict.PASS, figures, started=started)


@app.command()
def export(
    to: Annotated[Way, typer.Option(help="Files in a folder, or the webhook of CRM_AUDIENCE_WEBHOOK_URL.")] = Way.CSV,
    identity: Annotated[Identity, typer.Option(help="How members are called: by keyed pseudonym, or for ad platforms by e-mail hash.")] = (
        Identity.PSEUDONYM
    ),
    audience: Annotated[list[str] | None, typer.Option(help="Only this one; may be repeated.")] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder of the files. Default: `<home>/<env>/audiences`.")] = None,
) -> None:
    """Send joins and leaves that the destination has not acknowledged yet; running it again sends nothing twice."""
    from rich.console import Console
    from rich.table import Table

    settings = load_settings()
    started = datetime.now(UTC)
    try:
        result = export_audiences(settings, destination_of(settings, to, identity, folder), identity, audience or ())
    except _FAULTS as error:
        write_report(settings.reports_dir, "audience-export", Verdict.FAIL, {}, started=started)
        raise failed(error) from error
    table = Table("audience", "joins", "leaves")
    for name in result.audiences:
        table.add_row(name, *(f"{result.sent[name, action]:,}" for action in Action))
    console = Console()
    console.print(table)
    console.print(f"{result.identity}s to {result.destination}, {result.seconds:.1f} s", markup=False, soft_wrap=True, highlight=False)
    write_report(settings.reports_dir, "audience-export", Verdict.PASS, result.figures(), started=started)


@app.command()
def write() -> None:
    """Check dbt/audiences.yml, and write the seed and the exposures that are made of it."""
    try:
        written = write_files()
    except AudienceError as error:
        raise failed(error) from error
    for path in written:
        typer.echo(f"{path.relative_to(REPOSITORY)} rewritten")


def _condition(names: str, least: float | None, most: float | None) -> str:
    bounds = [f"at least {least:g}"] if least is not None else []
    bounds += [f"at most {most:g}"] if most is not None else []
    return "; ".join([*([names] if names else []), *bounds])


def _moment(moment: datetime | None) -> str:
    return f"{moment.astimezone(UTC):%Y-%m-%d %H:%M} UTC" if moment else ""

"""Commands of the purchase models: fit a file, refit a data set (`make fit-models`), evaluate it (`make evaluate-models`).

Belongs here: options, tables, exit codes. Not here: fitting, judging, storing.
"""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crm_assets.warehouse.models.csv_file import CsvError, read_histories
from crm_assets.warehouse.models.evaluation import HORIZON_DAYS
from crm_assets.warehouse.models.evaluation_result import Evaluation
from crm_assets.warehouse.models.fitting import FitError, PurchaseFit, fit_purchases
from crm_assets.warehouse.models.histories import Family, HistoryError
from crm_assets.warehouse.models.page import CALIBRATION_HEADINGS, SCORE_HEADINGS, calibration_rows, page, score_rows
from crm_resources.command_end import failed
from crm_resources.report import Verdict, write_report
from crm_resources.settings import load_settings
from crm_resources.warehouse import WarehouseError

if TYPE_CHECKING:
    from rich.console import Console

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, help="Purchase models: fit, refit, evaluate.")


@app.command("fit")
def fit_command(
    file: Annotated[Path, typer.Argument(help="CSV with the header x,t_x,T; a customer per line, times in one unit.")],
    model: Annotated[Family, typer.Option(help="BG/NBD, or MBG/NBD with a drop-out coin after the first purchase as well.")] = Family.BGNBD,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Fit a purchase model to the histories in a file; alpha is in the file's unit of time. Exit code 2 when the file is no good."""
    try:
        found = fit_purchases(read_histories(file), model)
    except (CsvError, FitError) as error:
        raise failed(error, 2) from error
    facts = fit_facts(found)
    if as_json:
        typer.echo(json.dumps(facts))
        return
    from rich.console import Console
    from rich.table import Table

    table = Table("figure", "value", title=str(file), title_justify="left")
    for name, value in facts.items():
        table.add_row(name, f"{value:.6g}" if isinstance(value, float) and name != "log_likelihood" else str(value))
    Console().print(table)


def fit_facts(found: PurchaseFit) -> dict[str, str | float | int | bool]:
    """A fit as the command prints it."""
    m = found.parameters
    return {
        "model": m.family.value,
        "r": m.r,
        "alpha": m.alpha,
        "a": m.a,
        "b": m.b,
        "log_likelihood": found.log_likelihood,
        "n": found.customers,
        "dropout_identified": m.dropout_identified,
        "why_unidentified": found.why_unidentified,
        "method": m.method,
        "data_hash": found.data_hash,
    }


@app.command("refit")
def refit_command() -> None:
    """Fit the models of the data set CRM_ENV names, judge them, and promote by the rule. Exit code 1 behind a closed gate."""
    from rich.console import Console
    from rich.table import Table

    from crm_assets.warehouse.models.reading import models_as_of
    from crm_assets.warehouse.models.refit import refit

    settings, started = load_settings(), datetime.now(UTC)
    try:
        done = refit(settings, as_of=models_as_of(settings, started), now=started)
    except (WarehouseError, FitError, HistoryError) as error:
        raise failed(error, 2) from error
    console = Console()
    console.print(f"{settings.env}, as of {done.as_of}: {done.gate.customers:,} customers, {done.gate.days} days", highlight=False)
    figures: dict[str, float] = {"customers": done.gate.customers, "stored_versions": done.stored_versions}
    if not done.gate.open:
        console.print(f"GATE CLOSED: {'; '.join(done.gate.closed)}. The recency rule scores.", style="yellow", soft_wrap=True)
        write_report(settings.reports_dir, "fit-models", Verdict.FAIL, figures, started=started)
        raise typer.Exit(1)
    table = Table("version", "r", "alpha (days)", "a", "b", "log-likelihood", "drop-out identified")
    for version in done.versions:
        m = version.fit.parameters
        identified = "yes" if m.dropout_identified else f"no: {version.fit.why_unidentified}"
        parameters = (f"{value:.4f}" for value in (m.r, m.alpha, m.a, m.b))
        table.add_row(version.model_version, *parameters, f"{version.fit.log_likelihood:.2f}", identified)
        figures[f"{m.family}_log_likelihood"] = version.fit.log_likelihood
    console.print(table)
    if done.spend is not None:
        found = done.spend.parameters
        text = f"p = {found.p:.4f}, q = {found.q:.4f}, v = {found.v:.4f}" if found else f"refused: {done.spend.refusal}"
        console.print(
            f"Gamma-Gamma of {done.spend.customers:,} customers: {text}; correlation {done.spend.correlation:+.3f}", highlight=False
        )
    if done.promotion is not None:
        figures["promoted"] = float(done.promotion.promote)
        console.print(
            f"{'PROMOTED' if done.promotion.promote else 'NOT PROMOTED'}: {done.promotion.reason}", soft_wrap=True, highlight=False
        )
    for warning in done.drift.warnings if done.drift else ():
        console.print(f"DRIFT: {warning}", style="yellow", highlight=False)
    write_report(settings.reports_dir, "fit-models", Verdict.PASS, figures, started=started)


@app.command("evaluate")
def evaluate_command(
    as_of: Annotated[str, typer.Option(help="The split, e.g. 2026-08-01; a horizon before the date the marts show by default.")] = "",
    horizon: Annotated[int, typer.Option(min=1, help="Days of the hold-out.")] = HORIZON_DAYS,
) -> None:
    """Fit both models on what was known at the split, and judge them by who bought after it.

    Works on the data set CRM_ENV names; stores nothing in it. Writes `evaluate-models.json` and a page with plots into the reports folder.
    Exit code 1 when the model does not rank better than recency alone, 2 when there is nothing to judge.
    """
    from rich.console import Console

    from crm_assets.warehouse.models.reading import models_as_of
    from crm_assets.warehouse.models.refit import evaluate_past

    settings, started = load_settings(), datetime.now(UTC)
    console = Console()
    try:
        shown = models_as_of(settings, started)
        split = date.fromisoformat(as_of) if as_of else shown - timedelta(days=horizon)
        found = evaluate_past(settings, split, horizon, shown=shown)
    except (WarehouseError, FitError, ValueError) as error:
        raise failed(error, 2) from error
    for name, evaluation in found.items():
        print_evaluation(name, evaluation, console)
    path = settings.reports_dir / f"purchase-models-{settings.env}.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page(f"Purchase models of {settings.env}", found))
    console.print(f"page: {path}", soft_wrap=True, highlight=False)
    kept = all(evaluation.auc_above_recency.value > 0 for evaluation in found.values())
    figures = {f"{name}_{figure}": value for name, e in found.items() for figure, value in e.headline().items()}
    write_report(settings.reports_dir, "evaluate-models", Verdict.PASS if kept else Verdict.FAIL, figures, started=started)
    if not kept:
        console.print("NOT BETTER than recency alone", style="red")
        raise typer.Exit(1)


def print_evaluation(name: str, found: Evaluation, console: Console) -> None:
    """Show scores against the baselines, and calibration by decile and by frequency."""
    from rich.table import Table

    for title, headings, rows in (
        (f"{name} ({found.method}), as of {found.as_of} + {found.horizon_days} days", SCORE_HEADINGS, score_rows(found)),
        ("by decile of probability", CALIBRATION_HEADINGS, calibration_rows(found.by_decile)),
        ("by repeat purchases", CALIBRATION_HEADINGS, calibration_rows(found.by_frequency)),
    ):
        table = Table(*headings, title=title, title_justify="left")
        for row in rows:
            table.add_row(*row)
        console.print(table)
    style = "yellow" if found.miscalibrated else "green"
    console.print(f"{found.calibration_reason}", style=style, soft_wrap=True, highlight=False)

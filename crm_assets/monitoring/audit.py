"""The audit: whether everything that was acknowledged stands exactly once, unchanged and in order, in lake, warehouse and marts.

Belongs here: running it, showing its verdict, and the command `python -m crm_assets.monitoring.audit`. Not here: reading
(`audit_sources`, `audit_reading`), the invariants (`audit_checks`), the asset check (`checks`).

Invariants: I1 no loss (an acked record is in bronze, and goes on to where it belongs), I2 no duplicate (event ids are unique in
silver and the warehouse), I3 content (raw: md5 of the bytes, ledger against bronze; typed: md5 of the canonical text, ledger against
silver against warehouse), I4 order (sequences of a key do not go backwards along the offsets), I5 books (each bronze record in
exactly one of silver, open dead letters and duplicates; batches, offsets and replays without gaps; revenue equal to the last digit, up
to the marts).
Records without a ledger row, because another producer sent them, are counted and take part in the books.
"""

from __future__ import annotations

import tempfile
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from crm_assets.monitoring.audit_checks import Judge
from crm_assets.monitoring.audit_lists import FindingLists
from crm_assets.monitoring.audit_reading import MISSING, Reading
from crm_assets.monitoring.audit_result import AuditResult, CheckResult, Outcome
from crm_assets.monitoring.audit_sources import AuditSources, open_sources
from crm_resources.kafka import KafkaUnavailableError, TopicError
from crm_resources.lake import LakeError
from crm_resources.ledger import LedgerError, ledger_dir, ledger_files, ledger_runs
from crm_resources.report import write_report
from crm_resources.settings import Settings, load_settings
from crm_resources.warehouse import WarehouseError

if TYPE_CHECKING:
    from rich.console import Console

_SHOWN = 20
_SHOWN_DOUBLED = 10_000
_COLOURS = {Outcome.OK: "green", Outcome.BROKEN: "red", Outcome.NOT_CHECKED: "yellow"}


def run_audit(
    settings: Settings,
    *,
    run_id: str | None = None,
    grace_seconds: float = 0,
    with_kafka: bool = True,
    now: datetime | None = None,
    lists: Path | None = None,
) -> AuditResult:
    """Audit an environment.

    Args:
        settings: which environment, and where everything is.
        run_id: look only at the ledger of this run; the books still cover everything.
        grace_seconds: records acked or captured within this time before `now` are not judged; 0 when nothing is under way.
        with_kafka: compare bronze with the topics' offsets as well.
        now: end of the judged time; the current time when omitted.
        lists: file for the complete lists of what is broken; made only when something is.

    Raises:
        KafkaUnavailableError: Kafka does not answer.
        WarehouseError: PostgreSQL does not answer.
        LedgerError: a ledger file is none, or the run has none.
    """
    folder = ledger_dir(settings.environment_dir)
    if run_id is not None and not ledger_files(folder, run_id):
        known = ", ".join(ledger_runs(folder)) or "none"
        raise LedgerError(f"no ledger of a run {run_id} in {folder}; runs with a ledger: {known}")
    cutoff = (now or datetime.now(UTC)) - timedelta(seconds=grace_seconds) if grace_seconds > 0 else None
    return audit(open_sources(settings, run_id=run_id, with_kafka=with_kafka), cutoff=cutoff, run_id=run_id, lists=lists)


def audit(sources: AuditSources, *, cutoff: datetime | None = None, run_id: str | None = None, lists: Path | None = None) -> AuditResult:
    """Audit what the sources give.

    Args:
        sources: readers.
        cutoff: what was acked or captured after it is not judged.
        run_id: run whose ledger the sources give, for the verdict.
        lists: see `run_audit`.
    """
    with tempfile.TemporaryDirectory(prefix="crm-audit-") as folder, FindingLists(lists) as found:
        reading = Reading(sources, cutoff, Path(folder), found)
        reading.read_all()
        judge = Judge(reading)
        judge.judge()
        return AuditResult(
            run_id=run_id,
            counts=judge.counts(),
            checks=tuple(judge.checks),
            missing_rows=judge.missing_rows,
            missing=tuple(f.event_id for f in found.of(MISSING)),
            doubled_rows=sum(judge.doubled.values()),
            doubled=tuple(sorted(judge.doubled)[:_SHOWN_DOUBLED]),
            checksums=judge.checksums(),
            ledger_revenue=reading.ledger_revenue,
            warehouse_revenue=reading.warehouse_revenue,
            mart_revenue=judge.mart_revenue,
            dead_letter_reasons=dict(sorted(reading.reasons.items())),
            lists=found.written,
        )


def backlog(settings: Settings) -> str | None:
    """What is still under way to silver or from there to the warehouse, or None; cheap, by counts alone."""
    from crm_resources import lake, warehouse
    from crm_resources.contracts import contracts

    stream = lake.stream_counts(settings)
    try:
        loaded = sum(warehouse.count_rows(settings, "raw", c.plural) for c in contracts())
    except warehouse.DatabaseMissing:
        loaded = 0
    return None if stream.settled and loaded == stream.silver else f"{stream}, {loaded:,} of {stream.silver:,} accepted rows loaded"


def print_result(result: AuditResult, console: Console, environment: str) -> None:
    """Show the counts, each check with what was compared, and what broke it."""
    from rich.table import Table

    c = result.counts
    title = f"audit of {environment}" + (f", run {result.run_id}" if result.run_id else "")
    counts = Table(title=title, title_justify="left", show_header=False)
    counts.add_column()
    counts.add_column(justify="right")
    for name, number in (
        ("acked", c.acked),
        ("refused by the producer or broker", c.refused),
        ("bronze", c.bronze),
        ("silver", c.silver),
        ("open dead letters", c.dead_letters),
        ("dead letters replayed", c.replayed),
        ("exact duplicates dropped", c.duplicates),
        ("warehouse", c.warehouse),
        ("missing", result.missing_rows),
        ("doubled", result.doubled_rows),
    ):
        counts.add_row(name, f"{number:,}")
    console.print(counts)
    checks = Table("", "compared", "figures", "verdict")
    for check in result.checks:
        colour = _COLOURS[check.outcome]
        figures = check.unchecked if check.outcome is Outcome.NOT_CHECKED else check.detail
        checks.add_row(check.invariant, check.name, figures, f"[{colour}]{check.outcome}[/]")
    console.print(checks)
    if result.dead_letter_reasons:
        console.print("open dead letters by reason: " + ", ".join(f"{name} {n:,}" for name, n in result.dead_letter_reasons.items()))
    sums = result.checksums
    console.print(f"raw checksum: ledger {sums.ledger_raw}, bronze {sums.bronze_raw}", soft_wrap=True)
    console.print(f"typed checksum of the ledger's records: ledger {sums.ledger_typed}, silver {sums.silver_typed}", soft_wrap=True)
    console.print(f"typed checksum of all records: silver {sums.silver_all}, warehouse {sums.warehouse_all}", soft_wrap=True)
    if c.unledgered:
        console.print(f"{c.unledgered:,} bronze records come from producers without a ledger, or from another run")
    if c.in_flight:
        console.print(f"{c.in_flight:,} records are too young to be judged")
    for name, ids in (("missing", result.missing), ("doubled", result.doubled)):
        for event_id in ids[:_SHOWN]:
            console.print(f"{name}: {event_id}", style="red", markup=False)
    for check in result.checks:
        for example in () if check.passed else check.examples[:_SHOWN]:
            console.print(f"{check.name}: {example}", style="red", markup=False, soft_wrap=True)
    if result.lists:
        console.print(f"complete lists: {result.lists}", soft_wrap=True)
    console.print(result.verdict_text(), style="green" if result.passed else "red", markup=False, soft_wrap=True)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    run_id: Annotated[str | None, typer.Option(help="Only the ledger of this run.")] = None,
    grace: Annotated[float, typer.Option(min=0, help="Do not judge what is younger than so many seconds.")] = 0,
    wait: Annotated[float, typer.Option(min=0, help="Wait up to so many seconds until nothing is under way.")] = 0,
    kafka: Annotated[bool, typer.Option("--kafka/--no-kafka", help="Compare bronze with the topics' offsets.")] = True,
) -> None:
    """Prove that nothing acknowledged was lost, doubled, changed or put out of order. Exit code 1 when something was.

    Works on the data set CRM_ENV names. Writes `audit.json` into the reports folder, and beside it `audit-lists.csv` when something is
    broken.
    """
    from rich.console import Console
    from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

    settings = load_settings()
    started = datetime.now(UTC)
    console = Console()
    errors = Console(stderr=True)
    try:
        if wait:
            waiting = Retrying(stop=stop_after_delay(wait), wait=wait_fixed(1), retry=retry_if_result(lambda left: left is not None))
            try:
                waiting(backlog, settings)
            except RetryError as error:
                errors.print(f"after {wait:.0f} s still under way: {error.last_attempt.result()}", style="yellow")
        lists = settings.reports_dir / "audit-lists.csv"
        result = run_audit(settings, run_id=run_id, grace_seconds=grace, with_kafka=kafka, lists=lists)
    except (KafkaUnavailableError, TopicError, LedgerError, LakeError, WarehouseError, OSError) as error:
        errors.print(f"the audit of {settings.env} could not run: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    print_result(result, console, settings.env)
    write_report(settings.reports_dir, "audit", result.verdict, result.figures(), started=started)
    if not result.passed:
        raise typer.Exit(1)


__all__ = ["AuditResult", "AuditSources", "CheckResult", "audit", "run_audit"]

if __name__ == "__main__":
    app()

"""`make demo`: the whole pipeline with one command, from an empty folder to an RFM table, timed and audited.

It leaves its report and shows its table however it ends. Belongs here: the order of the steps, waiting while there is progress, the table
and the report. Not here: any step's own work. Assets are reached through the Dagster command line, data through the generator's.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Hashable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from pydantic import ValidationError
from rich.console import Console
from rich.markup import escape
from rich.panel import Panel
from rich.table import Table

from crm_resources import lake, warehouse
from crm_resources.command_end import leave_on_sigterm
from crm_resources.kafka import KafkaUnavailableError, TopicError
from crm_resources.layout import SILVER
from crm_resources.report import Verdict, write_report
from crm_resources.settings import REPOSITORY, Settings, load_settings, wrong_settings
from crm_resources.stream_launcher import StreamError, SupervisedStream
from crm_resources.supervisor import Service, Supervisor, SupervisorError
from crm_resources.waiting import PATIENCE_SECONDS, ProcessLife, wait_for
from deploy.local import contracts, dagster
from deploy.local.errors import StackError
from deploy.local.lake_choice import LakeKind
from deploy.local.memory import PeakMemory
from deploy.local.reporter import Reporter
from deploy.local.stack import Stack, UpResult

REPLAY_ENVIRONMENT = "online_retail"
MARTS_PATIENCE_SECONDS = 300.0
"""How long nothing of a refresh may move: beside its own work lie a tick of the sensor and the start of a run."""

MOST_FAILED_REFRESHES = 2
"""The sensor tries again after a failure, for ever; the demo does not wait for a third one."""

EXPECTED = (StackError, SupervisorError, StreamError, KafkaUnavailableError, TopicError, lake.LakeError, warehouse.WarehouseError, OSError)
"""What can go wrong outside the code; each says on one line what to do."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


@dataclass
class Steps:
    """Seconds of each step, in the order in which they ran."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """Show the step while it runs, and keep how long it took."""
        started = time.monotonic()
        console.print(f"[bold]▸ {text}[/bold]")
        outcome = "[red]failed[/red] after"
        try:
            yield
            outcome = "[green]done[/green] in"
        finally:
            self.seconds[name] = round(time.monotonic() - started, 1)
            console.print(f"  {outcome} {self.seconds[name]} s")


@dataclass(frozen=True)
class Audited:
    """Where everything is, and what the audit found."""

    up: UpResult
    summary: Mapping[str, Any]


@app.command()
def demo(
    data: Annotated[Path | None, typer.Option(help="Replay this Online Retail file (csv or csv.gz) instead of a made-up shop.")] = None,
    speed: Annotated[str, typer.Option(help="Speed of the replay: `max`, or how many times as fast as it happened.")] = "max",
    lake: Annotated[LakeKind | None, typer.Option(help="What the data set's lake shall stand on. Default: the local disk.")] = None,
    stop_at_end: Annotated[bool, typer.Option("--exit", help="Stop every service at the end; for scripts.")] = False,
) -> None:
    """Run the pipeline end to end: start the stack, send data, stream, load, build the marts, audit, and show the result."""
    started = datetime.fromtimestamp(float(os.environ.get("CRM_DEMO_STARTED") or time.time()), UTC)
    if data is not None and not os.environ.get("CRM_ENV"):
        os.environ["CRM_ENV"] = REPLAY_ENVIRONMENT
    try:
        load_settings()
    except ValidationError as error:
        for problem in wrong_settings(error):
            _tell(problem)
        raise typer.Exit(1) from error
    # Asked to end, it leaves its report and, with --exit, no service.
    leave_on_sigterm()
    steps = Steps({"setup": round(time.time() - started.timestamp(), 1)})
    figures: dict[str, float] = {}
    audited: Audited | None = None
    problem = "it was interrupted"
    try:
        audited = _run(steps, figures, data, speed, lake)
    except EXPECTED as error:
        problem = str(error)
    finally:
        passed = audited is not None and bool(audited.summary["passed"])
        report = leave_report(load_settings(), started, steps, figures, passed=passed)
        _show(load_settings(), steps, figures, audited, problem)
        console.print(f"report: {report}", soft_wrap=True)
        if stop_at_end:
            passed = _stop(steps) and passed
    raise typer.Exit(0 if passed else 1)


def _stop(steps: Steps) -> bool:
    """Stop every service; returns whether they stopped."""
    try:
        with steps.step("stop", "Stopping every service"):
            Stack(load_settings()).down()
    except EXPECTED as error:
        _tell(str(error))
        return False
    return True


def _run(steps: Steps, figures: dict[str, float], data: Path | None, speed: str, lake_kind: LakeKind | None) -> Audited:
    environment = load_settings().env
    if data is not None:
        # A wrong file is told before a minute is spent on starting services; a right one leaves the data set's facts.
        with steps.step("check", f"Checking {data.name}"):
            _tool("generator", "replay", str(data), "--env", environment, "--prepare-only")
    with steps.step("stack", "Starting Kafka, PostgreSQL and Dagster"):
        contracts.bring_up_to_date(load_settings(), Reporter(console))
        up = Stack(load_settings(), Reporter(console), lake=lake_kind).up()
    settings = load_settings()
    with _peak_memory(settings, figures):
        with steps.step("stream", "Applying broker, topics and stream, as Dagster assets"):
            _materialize(settings, "group:infrastructure or group:ingestion or group:streaming")
        with steps.step("send", "Sending data through Kafka"):
            if data is not None:
                _tool("generator", "replay", str(data), "--env", environment, "--speed", speed)
            else:
                _tool("generator", "synthetic", "--env", environment)
        with steps.step("silver", "Waiting until the stream has refined everything"):
            _wait_for_silver(settings, figures)
        with steps.step("marts", "Waiting until the refresh sensor has loaded PostgreSQL and dbt has built the marts"):
            _wait_for_marts(settings, up.webserver)
        with steps.step("audit", "Auditing ledger, bronze, silver, dead letters and warehouse"):
            audited = Audited(up, _summary(settings))
    figures |= audited.summary["figures"]
    return audited


@contextmanager
def _peak_memory(settings: Settings, figures: dict[str, float]) -> Iterator[None]:
    with PeakMemory(settings.home) as memory:
        try:
            yield
        finally:
            figures["peak_memory_mib"] = round(memory.peak_mib)


def stream_backlog(settings: Settings) -> str | None:
    """What the stream has still to do, or None: Kafka → bronze → silver, dead letters or duplicates."""
    counts = lake.stream_counts(settings)
    return None if counts.settled else str(counts)


def marts_backlog(settings: Settings) -> str | None:
    """What the warehouse has still to do, or None: every silver version loaded, and a refresh finished since."""
    marks = warehouse.bookmarks(settings)
    behind = [
        plural
        for plural, table in SILVER.items()
        if (version := lake.table_version(settings, table.path)) is not None and (plural not in marks or marks[plural].version < version)
    ]
    if behind:
        return f"not loaded yet: {', '.join(behind)}"
    ((fresh,),) = warehouse.fetch_rows(
        settings,
        "select coalesce((select max(started_at) from meta.refreshes) >= (select max(finished_at) from meta.loads), false)",
    )
    return None if fresh else "loaded; dbt is building the marts"


def _wait_for_silver(settings: Settings, figures: dict[str, float]) -> None:
    """Wait while records move or the driver works."""
    driver = SupervisedStream(settings).signs_of_life()

    def backlog() -> str | None:
        counts = lake.stream_counts(settings)
        figures.update(kafka_records=counts.kafka, bronze_rows=counts.bronze, refined_rows=counts.refined)
        return None if counts.settled else str(counts)

    _wait("the stream has not refined everything", backlog, driver, "see `make logs SERVICE=stream`, then run `make demo` again")


def _wait_for_marts(settings: Settings, webserver: str | None) -> None:
    """Wait while loads or models get done, or a run of Dagster works."""
    remedy = f"see the runs of the job `refresh` in {webserver} and `make logs SERVICE=daemon`, then run `make demo` again"
    _wait("the marts are behind", lambda: marts_backlog(settings), _refresh_signs(settings), remedy, MARTS_PATIENCE_SECONDS)


def _refresh_signs(settings: Settings) -> Callable[[], Hashable | None]:
    """Signs of life of refreshes: what Dagster noted of their runs, and, while one is unfinished, the CPU time of the runs' parent."""
    life = ProcessLife()
    supervisor = Supervisor(settings)
    query = """
        with refreshes as (select run_id, status from runs where pipeline_name like 'refresh%')
        select (select coalesce(max(id), 0) from event_logs where run_id in (select run_id from refreshes)),
               (select count(*) from refreshes where status = 'FAILURE'),
               (select count(*) from refreshes where status not in ('SUCCESS', 'FAILURE', 'CANCELED'))
    """
    failed_before: int | None = None

    def sign() -> Hashable | None:
        nonlocal failed_before
        with warehouse.connect(settings, dagster.database(settings)) as connection, connection.cursor() as cursor:
            cursor.execute(query)
            event, failed, unfinished = cursor.fetchall()[0]
        failed_before = failed if failed_before is None else failed_before
        server = supervisor.process(Service.CODE_SERVER)
        alive = life(server.pid if server and unfinished else None)
        return None if alive is None or failed - failed_before >= MOST_FAILED_REFRESHES else (event, failed, unfinished, alive)

    return sign


def _wait(
    what: str,
    backlog: Callable[[], str | None],
    signs: Callable[[], Hashable | None],
    remedy: str,
    patience_seconds: float = PATIENCE_SECONDS,
) -> None:
    """Poll until there is no backlog, for as long as it changes or there are other signs of life.

    Raises:
        StackError: nothing moves any more.
    """
    left: str | None = ""
    with console.status("") as status:

        def done() -> bool:
            nonlocal left
            left = backlog()
            status.update(left or "")
            return left is None

        def sign() -> Hashable | None:
            alive = signs()
            return None if alive is None else (left, alive)

        def failed(why: str) -> StackError:
            return StackError(f"{what} ({left}): {why}", remedy)

        wait_for(done, sign, failed, patience_seconds=patience_seconds, every_seconds=1)


def _tool(module: str, *arguments: str) -> None:
    _command([sys.executable, "-m", module, *arguments])


def _materialize(settings: Settings, selection: str) -> None:
    """Materialize assets; Dagster's own account of it goes to a file.

    Raises:
        StackError: an asset failed, with its reason.
    """
    arguments = ["dagster", "asset", "materialize", "--select", selection, "-m", "crm_assets.definitions"]
    log = settings.environment_dir / "logs" / "materialize.log"
    with log.open("w") as out:
        command = [sys.executable, "-m", "deploy.local.run", *arguments]
        done = subprocess.run(command, cwd=REPOSITORY, stdout=out, stderr=subprocess.STDOUT, check=False)
    if done.returncode != 0:
        reason = failure_in(log.read_text(errors="replace")) or f"Dagster ended with exit code {done.returncode}"
        raise StackError(reason, f"see {log} and `make logs SERVICE=stream`, then run `make demo` again")


def failure_in(output: str) -> str | None:
    """Which step failed and why, on one line, from what Dagster prints of a run; None where it names none; pure."""
    found = re.search(r'Execution of step "([^"]+)" failed\.\n(.*?)\n\s*Stack Trace:', output, re.DOTALL)
    if found is None:
        return None
    # Dagster's own line goes before the error of an asset that raised another one than `Failure`.
    told = [line.strip() for line in found[2].splitlines() if "Error occurred while executing" not in line]
    reason = re.sub(r"^[\w.]+: ", "", " ".join(filter(None, told)))
    return f"{found[1]} failed: {reason}"


def _command(command: list[str]) -> None:
    """Run one of our commands, which says itself what is wrong.

    Raises:
        StackError: it ended with an error.
    """
    done = subprocess.run(command, cwd=REPOSITORY, check=False)
    if done.returncode != 0:
        raise StackError(f"`{' '.join(command[2:])}` ended with exit code {done.returncode}", "its own message stands above")


def _summary(settings: Settings) -> dict[str, Any]:
    """Audit the data set and read the marts, in a process of their own; a broken promise is in the answer."""
    path = settings.environment_dir / "summary.json"
    path.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "crm_assets.monitoring.summary", "--output", str(path)], cwd=REPOSITORY, check=False)
    if not path.exists():
        raise StackError("the audit gave no answer", "its own message stands above")
    return dict(json.loads(path.read_text()))


def leave_report(settings: Settings, started: datetime, steps: Steps, figures: dict[str, float], *, passed: bool) -> Path:
    """Complete the figures with the times, and write `demo.json`."""
    ended = datetime.now(UTC)
    figures["total_seconds"] = round((ended - started).total_seconds(), 1)
    figures |= {f"step_{name}_seconds": seconds for name, seconds in steps.seconds.items()}
    return write_report(settings.reports_dir, "demo", Verdict.PASS if passed else Verdict.FAIL, figures, started=started, now=ended)


def _show(settings: Settings, steps: Steps, figures: Mapping[str, float], audited: Audited | None, problem: str) -> None:
    rows = Table(title=f"data set {settings.env}", title_justify="left")
    rows.add_column("figure")
    rows.add_column("value", justify="right")
    for name, value in figures.items():
        if not name.startswith("step_"):
            rows.add_row(name, f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value:,}")
    console.print(rows)
    if audited is not None:
        segments = Table(title="top segments (as booked)", title_justify="left")
        for heading in ("segment", "customers", "revenue"):
            segments.add_column(heading, justify="left" if heading == "segment" else "right")
        for segment in audited.summary["segments"]:
            segments.add_row(segment["segment"], f"{segment['customers']:,}", segment["revenue"])
        console.print(segments)
    timing = Table(title="seconds per step", title_justify="left")
    for name in steps.seconds:
        timing.add_column(name, justify="right")
    timing.add_row(*(f"{seconds:g}" for seconds in steps.seconds.values()))
    console.print(timing)
    if audited is None:
        _tell(problem)
        return
    colour = "green" if audited.summary["passed"] else "red"
    console.print(Panel(audited.summary["verdict"], title="audit", border_style=colour, title_align="left", expand=False))
    up = audited.up
    console.print(
        f"Dagster: {up.webserver}\nPostgreSQL: {up.postgres}, database {settings.database} (`make psql`)\nKafka: {up.kafka}", soft_wrap=True
    )


def _tell(problem: str) -> None:
    console.print(f"[red]error:[/red] {escape(problem)}", soft_wrap=True, highlight=False)


if __name__ == "__main__":
    app()

"""`make demo`: the whole pipeline with one command, from an empty folder to an RFM table, timed and audited.

Belongs here: the order of the steps, waiting on conditions, the table at the end and its report. Not here: any step's
own work. Assets are reached through the Dagster command line, data through the generator's.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.panel import Panel
from rich.table import Table

from crm_resources import lake, warehouse
from crm_resources.layout import SILVER
from crm_resources.report import Verdict, write_report
from crm_resources.settings import REPOSITORY, Settings, load_settings
from deploy.local import contracts
from deploy.local.errors import StackError
from deploy.local.lake_choice import LakeKind
from deploy.local.memory import PeakMemory
from deploy.local.reporter import Reporter
from deploy.local.stack import Stack, UpResult

REPLAY_ENVIRONMENT = "online_retail"
SETTLE_SECONDS = 600
"""Longest wait for the stream or the marts; reached only when something is broken, and then the step says what."""

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
console = Console()


class StillWaitingError(RuntimeError):
    """A condition was not met in time."""


@dataclass
class Steps:
    """Seconds of each step, in the order in which they ran."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def step(self, name: str, text: str) -> Iterator[None]:
        """Show the step while it runs, and keep how long it took."""
        started = time.monotonic()
        console.print(f"[bold]▸ {text}[/bold]")
        yield
        self.seconds[name] = round(time.monotonic() - started, 1)
        console.print(f"  [green]done[/green] in {self.seconds[name]} s")


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
    steps = Steps({"setup": round(time.time() - started.timestamp(), 1)})
    passed = False
    try:
        passed = _run(started, steps, data, speed, lake)
    except (StackError, StillWaitingError) as error:
        console.print(f"[red]error:[/red] {error}", soft_wrap=True, highlight=False)
    finally:
        if stop_at_end:
            with steps.step("stop", "Stopping every service"):
                Stack(load_settings()).down()
    raise typer.Exit(0 if passed else 1)


def _run(started: datetime, steps: Steps, data: Path | None, speed: str, lake_kind: LakeKind | None) -> bool:
    environment = load_settings().env
    if data is not None:
        # A wrong file is told before a minute is spent on starting services; a right one leaves the data set's facts.
        with steps.step("check", f"Checking {data.name}"):
            _tool("generator", "replay", str(data), "--env", environment, "--prepare-only")
    with steps.step("stack", "Starting Kafka, PostgreSQL and Dagster"):
        contracts.bring_up_to_date(load_settings(), Reporter(console))
        up = Stack(load_settings(), Reporter(console), lake=lake_kind).up()
    settings = load_settings()
    with PeakMemory(settings.home) as memory:
        with steps.step("stream", "Applying broker, topics and stream, as Dagster assets"):
            _dagster("asset", "materialize", "--select", "group:infrastructure or group:ingestion or group:streaming")
        with steps.step("send", "Sending data through Kafka"):
            if data is not None:
                _tool("generator", "replay", str(data), "--env", environment, "--speed", speed)
            else:
                _tool("generator", "synthetic", "--env", environment)
        with steps.step("silver", "Waiting until the stream has refined everything"):
            _wait("the stream has not refined everything", lambda: stream_backlog(settings), "see `make logs SERVICE=stream`")
        with steps.step("marts", "Waiting until the refresh sensor has loaded PostgreSQL and dbt has built the marts"):
            _wait("the marts are behind", lambda: marts_backlog(settings), "see the runs of the job `refresh` in the web UI")
        with steps.step("audit", "Auditing ledger, bronze, silver, dead letters and warehouse"):
            audited = _summary(settings)
    return _show(settings, started, steps, audited, memory.peak_mib, up)


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


def _wait(what: str, backlog: Callable[[], str | None], remedy: str) -> None:
    """Poll until there is no backlog.

    Raises:
        StillWaitingError: it did not vanish in time.
    """
    deadline = time.monotonic() + SETTLE_SECONDS
    with console.status("") as status:
        while (left := backlog()) is not None:
            status.update(left)
            if time.monotonic() > deadline:
                raise StillWaitingError(f"{what} after {SETTLE_SECONDS} s ({left}); {remedy}")
            time.sleep(1)


def _tool(module: str, *arguments: str) -> None:
    _command([sys.executable, "-m", module, *arguments])


def _dagster(*arguments: str) -> None:
    _command([sys.executable, "-m", "deploy.local.run", "dagster", *arguments, "-m", "crm_assets.definitions"], quiet=True)


def _command(command: list[str], *, quiet: bool = False) -> None:
    """Run one of our commands; a quiet one shows its last lines only when it fails.

    Raises:
        StackError: it ended with an error.
    """
    done = subprocess.run(command, cwd=REPOSITORY, capture_output=quiet, text=True, check=False)
    if done.returncode != 0:
        tail = "\n" + "\n".join((done.stdout + done.stderr).splitlines()[-25:]) if quiet else ""
        raise StackError(f"`{' '.join(command[2:])}` ended with exit code {done.returncode}{tail}", "its own message stands above")


def _summary(settings: Settings) -> dict[str, Any]:
    """Audit the data set and read the marts, in a process of their own; a broken promise is in the answer."""
    path = settings.environment_dir / "summary.json"
    path.unlink(missing_ok=True)
    subprocess.run([sys.executable, "-m", "crm_assets.monitoring.summary", "--output", str(path)], cwd=REPOSITORY, check=False)
    if not path.exists():
        raise StackError("the audit gave no answer", "its own message stands above")
    return dict(json.loads(path.read_text()))


def _show(settings: Settings, started: datetime, steps: Steps, summary: Mapping[str, Any], peak_mib: float, up: UpResult) -> bool:
    figures: dict[str, float] = dict(summary["figures"])
    ended = datetime.now(UTC)
    figures |= {"peak_memory_mib": round(peak_mib), "total_seconds": round((ended - started).total_seconds(), 1)}
    figures |= {f"step_{name}_seconds": seconds for name, seconds in steps.seconds.items()}
    passed = bool(summary["passed"])
    write_report(settings.reports_dir, "demo", Verdict.PASS if passed else Verdict.FAIL, figures, started=started, now=ended)

    rows = Table(title=f"data set {settings.env}", title_justify="left")
    rows.add_column("figure")
    rows.add_column("value", justify="right")
    for name, value in figures.items():
        if not name.startswith("step_"):
            rows.add_row(name, f"{value:,.3f}".rstrip("0").rstrip(".") if isinstance(value, float) else f"{value:,}")
    console.print(rows)
    segments = Table(title="top segments (as booked)", title_justify="left")
    for heading in ("segment", "customers", "revenue"):
        segments.add_column(heading, justify="left" if heading == "segment" else "right")
    for segment in summary["segments"]:
        segments.add_row(segment["segment"], f"{segment['customers']:,}", segment["revenue"])
    console.print(segments)
    timing = Table(title="seconds per step", title_justify="left")
    for name in steps.seconds:
        timing.add_column(name, justify="right")
    timing.add_row(*(f"{seconds:g}" for seconds in steps.seconds.values()))
    console.print(timing)
    colour = "green" if passed else "red"
    console.print(Panel(summary["verdict"], title="audit", border_style=colour, title_align="left", expand=False))
    console.print(
        f"Dagster: {up.webserver}\nPostgreSQL: {up.postgres}, database {settings.database} (`make psql`)\nKafka: {up.kafka}", soft_wrap=True
    )
    console.print(f"report: {settings.reports_dir / 'demo.json'}", soft_wrap=True)
    return passed


if __name__ == "__main__":
    app()

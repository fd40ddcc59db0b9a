"""`python -m generator run`: a scenario's options, its live figures, the tables at the end, its report and exit codes.

Belongs here: what a person sees. Not here: how a scenario is run (`scenario_run`), or what its report looks like (`scenario_report`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from crm_resources.kafka import DELIVERY_SECONDS
from crm_resources.report import Verdict, write_report
from generator.backfill_cli import Target, backfill
from generator.console import Environment, Timeout, complain, err, errors, out, settings_of
from generator.delivery import DeliveryError, Outcome, WhenFull
from generator.interrupt import asked_to_stop
from generator.meter import Second
from generator.metrics import MetricsError, served
from generator.scenario import BackfillScenario, seconds_of
from generator.scenario_file import load_scenario, scenario_names
from generator.scenario_report import SecondsFile, figures_of, phase_table, plot
from generator.scenario_run import RunOptions, ScenarioRun

REPORT = "scenario"


def run(
    scenario: Annotated[str, typer.Argument(help=f"{', '.join(scenario_names())}, or a YAML file.")],
    env: Environment = None,
    length: Annotated[str | None, typer.Option("--for", help="End after this time, e.g. 90s or 10m, whatever the scenario says.")] = None,
    seed: Annotated[int | None, typer.Option(min=0, help="Another seed than the scenario's.")] = None,
    start: Annotated[
        datetime | None,
        typer.Option(help="UTC time at which the scenario's clock begins; with it the same seed gives the same bytes. Default: now."),
    ] = None,
    when_full: Annotated[
        WhenFull, typer.Option(help="When the producer's queue is full: wait and be late, or leave records out and count them.")
    ] = WhenFull.WAIT,
    metrics_port: Annotated[
        int | None, typer.Option(min=0, max=65535, help="Serve Prometheus metrics on this loopback port; 0 takes a free one.")
    ] = None,
    with_plot: Annotated[bool, typer.Option("--plot", help="Draw the seconds of the run as a picture beside the report.")] = False,
    check_only: Annotated[bool, typer.Option("--check-only", help="Check the scenario and say what it would send; send nothing.")] = False,
    timeout: Timeout = DELIVERY_SECONDS,
    wait: Annotated[float, typer.Option(min=0, help="Seconds an unreachable broker is waited for at the start.")] = 20,
) -> None:
    """Run a scenario: records leave at their scheduled times, whatever the broker does, with the ordered defects among them."""
    with errors():
        settings = settings_of(env)
        started = datetime.now(UTC)
        found = load_scenario(scenario)
        name = re.sub(r"[^A-Za-z0-9_.-]", "_", Path(scenario).stem)
        if isinstance(found, BackfillScenario):
            for option, given in (("--for", length), ("--start", start), ("--metrics-port", metrics_port), ("--plot", with_plot or None)):
                if given is not None:
                    raise typer.BadParameter("does not apply to a backfill, which has no pace", param_hint=option)
            _backfill(found, env, seed, timeout, check_only=check_only)
            return
        if seed is not None:
            found = found.model_copy(update={"seed": seed})
        options = RunOptions(
            start=start.replace(tzinfo=UTC) if start else None,
            limit_seconds=_length(length),
            when_full=when_full,
            delivery_timeout_seconds=timeout,
            wait_seconds=wait,
        )
        progress = _Progress()
        running = ScenarioRun(settings, name, found, options, progress.second)
        schedule = running.schedule
        out.print(
            f"{name}: {len(running.stretches)} phases, {schedule.seconds:,.0f} s, about {schedule.expected:,.0f} records; "
            f"truth: bgnbd {str(found.truth.bgnbd).lower()}",
            highlight=False,
        )
        if check_only:
            return
        reports = settings.reports_dir
        introduction = outcome = None
        failure: DeliveryError | None = None
        serving = served(running.meter, [p.name for p in found.phases], metrics_port) if metrics_port is not None else nullcontext("")
        try:
            with SecondsFile(reports / f"{REPORT}.jsonl", running) as seconds, serving as address, asked_to_stop() as stop:
                if address:
                    err.print(f"metrics: {address}", highlight=False)
                with err.status(f"introducing {found.products:,} products and {found.customers:,} customers"):
                    introduction = running.introduce(stop)
                if not introduction.interrupted:
                    with progress.shown(schedule.seconds, seconds.add):
                        outcome = running.send(stop)
        except MetricsError as error:
            complain(f"{error}\nNothing was sent.")
            raise typer.Exit(1) from error
        except DeliveryError as error:
            failure = error
            introduction, outcome = (error.outcome, None) if introduction is None else (introduction, error.outcome)
        _finish(running, introduction, outcome, reports, started, with_plot=with_plot)
        if failure is not None:
            raise failure
        if (outcome or introduction).interrupted:
            raise typer.Exit(130)


def _backfill(scenario: BackfillScenario, env: str | None, seed: int | None, timeout: float, *, check_only: bool) -> None:
    """Make the history a scenario describes, as the command of its own does."""
    if check_only:
        out.print(
            f"a history of {scenario.customers:,} customers over {scenario.days:,} days; truth: bgnbd {str(scenario.truth.bgnbd).lower()}",
            highlight=False,
        )
        return
    backfill(
        env=env,
        customers=scenario.customers,
        days=scenario.days,
        end=None,
        seed=scenario.seed if seed is None else seed,
        products=scenario.products,
        visits=scenario.visits,
        dropout_at_first=scenario.dropout_at_first,
        into=Target.KAFKA,
        plan_only=False,
        timeout=timeout,
    )


def _length(text: str | None) -> float | None:
    if text is None:
        return None
    try:
        seconds = float(seconds_of(text))
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--for") from error
    if seconds <= 0:
        raise typer.BadParameter("must be more than 0", param_hint="--for")
    return seconds


def _finish(
    running: ScenarioRun, introduction: Outcome, outcome: Outcome | None, reports: Path, started: datetime, *, with_plot: bool
) -> None:
    """Print the tables and leave report and picture."""
    out.print(phase_table(f"{running.run_id} into {running.settings.env}", running.meter.by_phase.values()))
    outcomes = [introduction, *([outcome] if outcome else [])]
    for title, o in zip(("introduced", "traffic"), outcomes, strict=False):
        out.print(
            f"{title}: {o.offered:,} offered, {o.acked:,} acked, {o.refused:,} refused, {o.shed:,} shed, {o.unknown:,} unknown; "
            f"p99 lateness {o.lateness_seconds_p99:.4f} s; ledger {o.ledger}",
            soft_wrap=True,
            highlight=False,
        )
    figures = figures_of(running, introduction, outcome)
    complete = outcome is not None and all(o.acked + o.refused + o.shed == o.offered for o in outcomes)
    path = write_report(reports, REPORT, Verdict.PASS if complete else Verdict.FAIL, figures, started=started)
    out.print(f"report: {path}; its seconds: {path.with_suffix('.jsonl')}", soft_wrap=True, highlight=False)
    if with_plot:
        plot(path.with_suffix(".jsonl"), path.with_suffix(".png"))
        out.print(f"plot: {path.with_suffix('.png')}", soft_wrap=True, highlight=False)


@dataclass
class _Progress:
    """The line that shows what is going on, and the way of each second to it and to the file."""

    bar: Progress | None = None
    task: TaskID | None = None
    keep: Callable[[Second], None] | None = None

    def second(self, over: Second) -> None:
        """A second is over."""
        if self.keep:
            self.keep(over)
        if self.bar and self.task is not None:
            text = (
                f"{over.phase}: offered {over.offered:,}/s, achieved {over.achieved:,}/s, acked {over.acked:,}/s, "
                f"late p99 {1000 * over.lateness.p99_seconds:,.1f} ms, queue {over.queue:,}"
                + (f", shed {over.shed:,}" if over.shed else "")
            )
            self.bar.update(self.task, completed=over.second + 1, text=text)

    @contextmanager
    def shown(self, seconds: float, keep: Callable[[Second], None]) -> Iterator[None]:
        """Show the line while it lasts, and hand each second on to `keep`."""
        columns = (BarColumn(bar_width=20), TimeElapsedColumn(), TimeRemainingColumn(), TextColumn("{task.fields[text]}", markup=False))
        # Twice a second: drawing takes the interpreter from the sending loop for a moment.
        with Progress(*columns, console=err, transient=True, refresh_per_second=2) as bar:
            self.bar, self.keep = bar, keep
            self.task = bar.add_task("", total=seconds, text="")
            try:
                yield
            finally:
                self.bar = None

"""`make faults-stream`: throw faults at the stream, ask the audit what is left, and show that each protection is needed.

Starts a stack of its own, runs each experiment in data sets of its own, shows a table, and leaves `faults-stream.json` (flat figures) and
`faults-stream.md` (what was done and seen) in the reports folder. Exit code 1 when a promise is broken or a control did not fail.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from crm_resources.kafka import client_log
from crm_resources.report import Verdict, write_report
from crm_resources.settings import load_settings
from tests.faults.data_set import Ground
from tests.faults.experiments_content import duplicates, late, poison
from tests.faults.experiments_crash import STREAM_POINTS, crash_points, lost_checkpoint, random_kills
from tests.faults.experiments_replay import replay
from tests.faults.experiments_writers import second_writer
from tests.faults.page import figures_of, page_of, table_of
from tests.faults.trial import Finding, Invariant, Trial
from tests.own_stack import DISK, own_stack

TRIALS: dict[str, Callable[[Ground], Trial]] = {
    "F4-kills": random_kills,
    "F4-points": crash_points,
    "F4-checkpoint": lost_checkpoint,
    "F8": poison,
    "F9": duplicates,
    "F10": late,
    "F13": second_writer,
    "F21": replay,
}

CONSOLE = Console()


def main(
    only: Annotated[str, typer.Option(help="Experiments to run, separated by commas, e.g. F4,F9 or F4-points; all when empty.")] = "",
    kills: Annotated[int, typer.Option(min=1, help="Random kills of the driver.")] = 20,
    rate: Annotated[int, typer.Option(min=10, help="Records a second of the traffic.")] = 1_000,
    seed: Annotated[int, typer.Option(help="Seed of the random choices.")] = 1,
    lake: Annotated[str, typer.Option(help="Where the lakes are: disk or minio.")] = DISK,
    points: Annotated[str, typer.Option(help="Crash points to try, separated by commas; all when empty.")] = "",
) -> None:
    """Throw faults at the stream."""
    started, begun = datetime.now(UTC), time.monotonic()
    client_log.setLevel(logging.CRITICAL)
    chosen = _chosen(only)
    crash_at = tuple(p.strip() for p in points.split(",") if p.strip())
    if unknown := sorted(set(crash_at) - {p.value for p in STREAM_POINTS}):
        raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(STREAM_POINTS)}", param_hint="--points")
    trials: list[Trial] = []
    variables = {"CRM_DRIVER_MEMORY": "1g", "CRM_TRIGGER_SECONDS": "1", "CRM_MAX_TRIGGER_DELAY_SECONDS": "0", "CRM_ENV": "faults"}
    with CONSOLE.status("starting Kafka and PostgreSQL") as status, own_stack("faults", lake, **variables) as environ:

        def say(what: str) -> None:
            status.update(f"{time.monotonic() - begun:,.0f} s  {what}")
            CONSOLE.print(f"[dim]{time.monotonic() - begun:7,.0f} s  {what}[/]", highlight=False)

        ground = Ground(environ, say, kills, rate, seed, crash_at)
        for name in chosen:
            trials.append(_tried(name, ground))
            CONSOLE.print(_line(trials[-1]), highlight=False)
    CONSOLE.print(table_of(trials))
    complaints = [complaint for trial in trials for complaint in trial.complaints()]
    for complaint in complaints:
        CONSOLE.print(complaint, style="red", markup=False)
    for trial in trials:
        if trial.skipped:
            CONSOLE.print(f"SKIPPED {trial.experiment}: {trial.skipped}", style="yellow", markup=False)
    settings = load_settings()
    verdict = Verdict.FAIL if complaints or not any(t.passed for t in trials) else Verdict.PASS
    target = "faults-stream" if lake == DISK else f"faults-stream-{lake}"
    path = write_report(settings.reports_dir, target, verdict, figures_of(trials), started=started)
    page = path.with_suffix(".md")
    # What the drivers said names their home; the page is read elsewhere.
    page.write_text(page_of(trials, verdict, started, time.monotonic() - begun).replace(str(settings.home), ".crm"))
    CONSOLE.print(f"report: {path}\npage: {page}", soft_wrap=True)
    if verdict is Verdict.FAIL:
        raise typer.Exit(1)


def _chosen(only: str) -> list[str]:
    """Names of the trials that were asked for; an experiment stands for all of its trials."""
    asked = [name.strip().lower() for name in only.split(",") if name.strip()]
    known = {name.lower() for name in TRIALS} | {name.lower().partition("-")[0] for name in TRIALS}
    if unknown := [name for name in asked if name not in known]:
        raise typer.BadParameter(f"{', '.join(unknown)}: there are {', '.join(TRIALS)}", param_hint="--only")
    return [name for name in TRIALS if not asked or name.lower() in asked or name.lower().partition("-")[0] in asked]


def _tried(name: str, ground: Ground) -> Trial:
    """A trial, a failed one where it could not be finished: the others are made all the same."""
    begun = time.monotonic()
    try:
        return TRIALS[name](ground)
    except Exception as error:  # noqa: BLE001 -- whatever ends an experiment is its finding
        CONSOLE.print_exception()
        said = f"the experiment could not be finished: {type(error).__name__}: {error}"
        figures_name = name.lower().replace("-", "_")
        findings = {Invariant.I6: Finding(False, said)}
        return Trial(
            name.partition("-")[0], figures_name, "the experiment could not be finished", findings, seconds=time.monotonic() - begun
        )


def _line(trial: Trial) -> str:
    if trial.skipped:
        return f"[yellow]{trial.name} skipped: {trial.skipped}[/]"
    word = "[green]held[/]" if trial.passed else "[red]BROKEN[/]"
    return f"{trial.name} {word} after {trial.seconds:,.0f} s"


if __name__ == "__main__":
    typer.run(main)

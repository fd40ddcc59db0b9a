"""`python -m tests.planted_faults`: plant every declared fault, one at a time, and see that its tests catch it."""

from __future__ import annotations

import json
import os
import subprocess
import threading
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from crm_resources.command_end import leave_on_sigterm
from crm_resources.report import Verdict, write_report
from crm_resources.settings import REPOSITORY, load_settings
from tests.planted_faults.faults import FAULTS, Fault, Tests
from tests.planted_faults.planting import PASSED, Outcome, Result, Run, environ_of, run_tests, stale

CONSOLE = Console()
COLOURS = {Outcome.CAUGHT: "green", Outcome.MISSED: "red", Outcome.ERROR: "yellow"}
TARGET = "planted-faults"


def main(
    only: Annotated[str, typer.Option(help="Faults or areas, separated by commas; all when empty.")] = "",
    show: Annotated[bool, typer.Option("--list", help="List the faults and the promises they break; plant none.")] = False,
    root: Annotated[Path, typer.Option(help="Checkout to copy; it is only read.")] = REPOSITORY,
    jobs: Annotated[int, typer.Option(min=1, help="Runs side by side.")] = 2,
) -> None:
    """Plant one-line faults into copies of the checkout; the tests must catch each. Exit code 1 when one is not caught."""
    started, root = datetime.now(UTC), root.resolve()
    faults = _chosen(only)
    if show:
        for fault in faults:
            CONSOLE.print(f"[bold]{fault.area} {fault.name}[/]: {fault.promise}", highlight=False)
        return
    if complaints := stale(faults, root):
        for complaint in complaints:
            typer.echo(f"error: {complaint}", err=True)
        raise typer.Exit(2)
    results = _results(faults, root, jobs)
    CONSOLE.print(_table(results))
    for result in results:
        if result.outcome is not Outcome.CAUGHT:
            run = result.control if result.control.code != PASSED else result.planted
            without = " without the fault" if run is result.control else ""
            said = f"{result.outcome} {result.fault.name}: {result.fault.promise} Exit code {run.code}{without} of:"
            CONSOLE.print(f"{said} {_spelled(result.fault.tests)}", style="red", markup=False)
            if result.outcome is Outcome.ERROR:
                CONSOLE.print(run.output, markup=False, highlight=False)
    caught = sum(r.outcome is Outcome.CAUGHT for r in results)
    seconds = (datetime.now(UTC) - started).total_seconds()
    CONSOLE.print(f"{caught} of {len(results)} faults caught in {seconds:,.0f} s")
    folder = load_settings().reports_dir
    CONSOLE.print(f"each fault: {_write_list(folder, root, results)}", soft_wrap=True)
    if root == REPOSITORY and len(faults) == len(FAULTS):
        figures = {"planted_faults": len(results), "planted_faults_caught": caught, "seconds": round(seconds, 3)}
        verdict = Verdict.PASS if caught == len(results) else Verdict.FAIL
        CONSOLE.print(f"report: {write_report(folder, TARGET, verdict, figures, started=started)}", soft_wrap=True)
    if caught < len(results):
        raise typer.Exit(1)


def _chosen(only: str) -> list[Fault]:
    asked = {name.strip() for name in only.split(",") if name.strip()}
    if unknown := asked - {f.name for f in FAULTS} - {f.area.value for f in FAULTS}:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: --list names the faults and areas", param_hint="--only")
    return [f for f in FAULTS if not asked or f.name in asked or f.area.value in asked]


def _results(faults: list[Fault], root: Path, jobs: int) -> list[Result]:
    """Faults of the same tests one after the other, behind the one control they share."""
    environ = environ_of(root, load_settings().jars_root, os.environ)
    runs: dict[Tests | Fault, Future[Run]] = {}
    pool, stop = ThreadPoolExecutor(jobs), threading.Event()
    leave_on_sigterm()  # so that no tests, services and copies stay behind

    def run(tests: Tests, fault: Fault | None) -> Run:
        done = run_tests(root, tests, environ, stop, fault)
        what = fault.name if fault else f"no fault in {Path(tests.file).name}"
        CONSOLE.print(f"[dim]{done.seconds:4.0f} s  exit code {done.code}  {what}[/]", highlight=False)
        return done

    try:
        for tests in dict.fromkeys(f.tests for f in faults):
            runs[tests] = pool.submit(run, tests, None)
            runs.update({f: pool.submit(run, tests, f) for f in faults if f.tests == tests})
        return [Result(f, runs[f.tests].result(), runs[f].result()) for f in faults]
    finally:
        stop.set()
        pool.shutdown(cancel_futures=True)


def _table(results: list[Result]) -> Table:
    table = Table("area", "fault", "verdict")
    table.add_column("s", justify="right")
    for result in results:
        word = f"[{COLOURS[result.outcome]}]{result.outcome}[/]"
        table.add_row(result.fault.area, result.fault.name, word, f"{result.planted.seconds:.0f}")
    return table


def _write_list(folder: Path, root: Path, results: list[Result]) -> Path:
    """Each fault with its promise and who caught it, beside the report."""
    commit = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)  # noqa: S607 -- as PATH says
    rows = [
        {
            **asdict(result.fault),
            "outcome": result.outcome,
            "caught_by": result.planted.failed if result.outcome is Outcome.CAUGHT else "",
            "seconds": round(result.planted.seconds, 1),
            "control_seconds": round(result.control.seconds, 1),
        }
        for result in results
    ]
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{TARGET}-each.json"
    path.write_text(json.dumps({"commit": commit.stdout.strip(), "faults": rows}, indent=2, ensure_ascii=False) + "\n")
    return path


def _spelled(tests: Tests) -> str:
    return f"{tests.file} -k {tests.keyword!r}" if tests.keyword else tests.file


if __name__ == "__main__":
    typer.run(main)

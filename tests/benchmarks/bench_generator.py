"""`make bench-generator`: how fast one process encodes and produces events with ledger and callbacks.

Beside it, in the same run and interleaved: the whole of a scenario, in which the events are drawn as well; delivery alone; the
producer's own limit (bytes encoded before, no ledger); and plain code that calls Faker for each event, once with a shopper and a
product made up each time, once with the fields of our events alone. Each run is a new process (`generator_run`) against a broker of
the benchmark's own. Shows medians with their spread, writes `.crm/reports/bench-generator.json`, and ends with 1 when a promise is
missed.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from crm_resources.report import Verdict, write_report
from crm_resources.settings import load_settings
from tests.benchmarks.generator_run import Measured, Mode
from tests.own_stack import own_stack

EVENTS_PER_SECOND = 50_000
FAKER_FACTOR = 20

CONSOLE = Console()


def main(
    events: Annotated[int, typer.Option(help="Events of each run.")] = 500_000,
    faker_events: Annotated[int, typer.Option(help="Events of each run of the Faker code, which is slow.")] = 5_000,
    runs: Annotated[int, typer.Option(help="Runs of each mode.")] = 5,
) -> None:
    """Measure the generator."""
    started = datetime.now(UTC)
    found: dict[Mode, list[Measured]] = {mode: [] for mode in Mode}
    with own_stack("bench-generator") as environ:
        _run(environ, Mode.RAW, min(events, 100_000))  # the broker's first records are slow
        for number in range(runs):
            for mode in Mode:
                with CONSOLE.status(f"run {number + 1} of {runs}: {mode}"):
                    found[mode].append(_run(environ, mode, faker_events if mode in (Mode.FAKER, Mode.FAKER_SHORT) else events))
                CONSOLE.print(f"run {number + 1} {mode}: {found[mode][-1].per_second:,.0f} events/s")
    figures = _figures(found)
    missed = _missed(figures)
    _show(found, missed)
    verdict = Verdict.FAIL if missed else Verdict.PASS
    path = write_report(load_settings().reports_dir, "bench-generator", verdict, figures, started=started)
    CONSOLE.print(f"report: {path}")
    if missed:
        raise typer.Exit(1)


def _run(environ: dict[str, str], mode: Mode, events: int) -> Measured:
    command = [sys.executable, "-m", "tests.benchmarks.generator_run", mode, "--events", str(events)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    if done.returncode:
        CONSOLE.print(done.stderr[-4000:], markup=False)
        raise typer.Exit(1)
    return Measured(**{**json.loads(done.stdout.splitlines()[-1]), "mode": mode})


def _figures(found: dict[Mode, list[Measured]]) -> dict[str, float]:
    """Medians, lowest and highest of each mode, and what they say together."""
    figures: dict[str, float] = {}
    for mode, runs in found.items():
        rates = [m.per_second for m in runs]
        figures[f"{mode}_events_per_s"] = round(statistics.median(rates))
        figures[f"{mode}_events_per_s_lowest"] = round(min(rates))
        figures[f"{mode}_events_per_s_highest"] = round(max(rates))
        figures[f"{mode}_cpu_us_per_event"] = round(statistics.median(1e6 * m.cpu_seconds / m.events for m in runs), 2)
    figures["faker_factor"] = round(figures["encode_and_produce_events_per_s"] / figures["faker_events_per_s"], 1)
    figures["faker_short_factor"] = round(figures["encode_and_produce_events_per_s"] / figures["faker_short_events_per_s"], 1)
    figures["share_of_raw_producer"] = round(figures["encode_and_produce_events_per_s"] / figures["raw_events_per_s"], 3)
    figures["events"] = found[Mode.ENCODE][0].events
    figures["runs"] = len(found[Mode.ENCODE])
    return figures


def _missed(figures: dict[str, float]) -> list[str]:
    """Promises that were not kept, in words."""
    missed = []
    if figures["encode_and_produce_events_per_s"] < EVENTS_PER_SECOND:
        missed.append(f"below {EVENTS_PER_SECOND:,} events/s")
    if figures["faker_factor"] < FAKER_FACTOR:
        missed.append(f"less than {FAKER_FACTOR} times the code that calls Faker for each event")
    return missed


def _show(found: dict[Mode, list[Measured]], missed: list[str]) -> None:
    table = Table("mode", "events/s", "lowest", "highest", "CPU µs per event", title="bench-generator")
    for mode, runs in found.items():
        rates = [m.per_second for m in runs]
        cpu = statistics.median(1e6 * m.cpu_seconds / m.events for m in runs)
        table.add_row(mode, f"{statistics.median(rates):,.0f}", f"{min(rates):,.0f}", f"{max(rates):,.0f}", f"{cpu:.1f}")
    CONSOLE.print(table)
    for line in missed:
        CONSOLE.print(f"[red]missed:[/red] {line}")


if __name__ == "__main__":
    typer.run(main)

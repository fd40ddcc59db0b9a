"""`make bench-rates`: whether the generator keeps the rates of a ladder, and how late its records are.

Runs the same code as `python -m generator run` against a broker of the benchmark's own: a phase for each rate. Shows the rates and the
lateness, writes `.crm/reports/bench-rates.json`, and ends with 1 when an achieved rate is more than 2 % off.
"""

from __future__ import annotations

import logging
from datetime import UTC, datetime
from typing import Annotated

import typer
from rich.console import Console

from crm_resources.kafka import client_log
from crm_resources.report import Verdict, write_report
from crm_resources.settings import load_settings
from generator.meter import Second
from generator.scenario import LiveScenario, Mix, Phase
from generator.scenario_report import figures_of, phase_table
from generator.scenario_run import RunOptions, ScenarioRun
from tests.own_stack import own_stack

ALLOWED = 0.02

CONSOLE = Console()


def main(
    rates: Annotated[str, typer.Option(help="Records a second, separated by commas.")] = "10,100,1000,3000,10000",
    seconds: Annotated[float, typer.Option(help="How long each rate is held.")] = 60,
) -> None:
    """Measure the rates that are achieved."""
    started = datetime.now(UTC)
    client_log.setLevel(logging.CRITICAL)
    wanted = [float(r) for r in rates.split(",")]
    phases = tuple(Phase(name=f"{rate:g} per s", duration=seconds, rate=rate) for rate in wanted)
    mix = Mix(events=0.93, orders=0.04, products=0.005, profiles=0.025)
    scenario = LiveScenario(description="A ladder of rates.", seed=4, customers=5_000, mix=mix, phases=phases)
    with own_stack("bench-rates") as environ, CONSOLE.status("starting") as status:

        def show(over: Second) -> None:
            status.update(f"{over.phase}: achieved {over.achieved:,}/s, late p99 {1000 * over.lateness.p99_seconds:,.1f} ms")

        run = ScenarioRun(load_settings(environ), "bench-rates", scenario, RunOptions(), show)
        introduction = run.introduce(lambda: False)
        outcome = run.send(lambda: False)
    found = list(run.meter.by_phase.values())
    CONSOLE.print(phase_table("bench-rates", found))
    off = {p.name: p.achieved / p.seconds / rate - 1 for p, rate in zip(found, wanted, strict=True)}
    figures = figures_of(run, introduction, outcome)
    figures |= {"rate_seconds": seconds, "largest_deviation_share": round(max(map(abs, off.values())), 5)}
    missed = [f"{name}: achieved {100 * share:+.2f} %" for name, share in off.items() if abs(share) > ALLOWED]
    if outcome.acked + outcome.refused != outcome.offered:
        missed.append(f"{outcome.offered - outcome.acked} records were not acknowledged")
    for line in missed:
        CONSOLE.print(f"[red]missed:[/red] {line}")
    verdict = Verdict.FAIL if missed else Verdict.PASS
    path = write_report(load_settings().reports_dir, "bench-rates", verdict, figures, started=started)
    CONSOLE.print(f"report: {path}")
    if missed:
        raise typer.Exit(1)


if __name__ == "__main__":
    typer.run(main)

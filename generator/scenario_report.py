"""What a scenario's run leaves behind: a line of JSON for each second, a table of its phases, flat figures, a plot.

Belongs here: the forms. Not here: the figures themselves (`meter`), or when they are asked for (`scenario_cli`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from rich.table import Table

from generator.delivery import Outcome
from generator.meter import PhaseFigures, Second

if TYPE_CHECKING:
    from generator.scenario_run import ScenarioRun


class SecondsFile:
    """The seconds of a run as JSON lines, written while it lasts; the first line says what was run.

    Args:
        path: file to write; an earlier one is replaced.
        run: what is run.
    """

    def __init__(self, path: Path, run: ScenarioRun) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self.path = path
        self._file = path.open("w", buffering=1)
        scenario = run.scenario
        self._write(
            {
                "run_id": run.run_id,
                "description": scenario.description,
                "seed": scenario.seed,
                "truth": scenario.truth.model_dump(),
                "clock_speed_up": scenario.clock_speed_up,
                "start": run.start.isoformat(),
                "expected_records": run.schedule.expected,
                "phases": [{"name": p.name, "start_seconds": p.start_seconds, "end_seconds": p.end_seconds} for p in run.stretches],
            }
        )

    def add(self, second: Second) -> None:
        """Write a second that is over."""
        self._write(
            {
                "second": second.second,
                "phase": second.phase,
                "offered": second.offered,
                "achieved": second.achieved,
                "acked": second.acked,
                "refused": second.refused,
                "shed": second.shed,
                "queue_records": second.queue,
                "lateness_p50_seconds": second.lateness.p50_seconds,
                "lateness_p99_seconds": second.lateness.p99_seconds,
                "lateness_max_seconds": second.lateness.max_seconds,
                "latency_p50_seconds": second.latency.p50_seconds,
                "latency_p99_seconds": second.latency.p99_seconds,
                "latency_max_seconds": second.latency.max_seconds,
            }
        )

    def _write(self, line: dict[str, Any]) -> None:
        self._file.write(json.dumps(line) + "\n")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._file.close()


def phase_table(title: str, phases: Iterable[PhaseFigures]) -> Table:
    """A row for each phase: rates, lateness, what was shed."""
    table = Table(title=title, padding=(0, 0))
    table.add_column("phase", no_wrap=True)
    headings = ("s", "offered/s", "achieved/s", "acked/s", "late ms\np99", "late ms\nmax", "acked ms\np99", "shed")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    for p in phases:
        late, answered = p.lateness.spread(), p.latency.spread()
        table.add_row(
            p.name,
            f"{p.seconds:,.0f}",
            *(f"{count / p.seconds:,.1f}" for count in (p.offered, p.achieved, p.acked)),
            *(f"{1000 * s:,.1f}" for s in (late.p99_seconds, late.max_seconds, answered.p99_seconds)),
            f"{p.shed:,}",
        )
    return table


def figures_of(run: ScenarioRun, introduction: Outcome, outcome: Outcome | None) -> dict[str, float]:
    """Flat figures of a run for its report; `truth_bgnbd` is 1 where purchase times follow BG/NBD."""
    outcomes = [introduction, *([outcome] if outcome else [])]
    late, answered = run.meter.lateness.spread(), run.meter.latency.spread()
    figures: dict[str, float] = {
        "truth_bgnbd": int(run.scenario.truth.bgnbd),
        "expected_rows": round(run.schedule.expected, 3),
        "introduction_rows": introduction.offered,
        "offered_rows": sum(o.offered for o in outcomes),
        "acked_rows": sum(o.acked for o in outcomes),
        "refused_rows": sum(o.refused for o in outcomes),
        "shed_rows": sum(o.shed for o in outcomes),
        "unknown_rows": sum(o.unknown for o in outcomes),
        "traffic_seconds": round(outcome.seconds if outcome else 0.0, 3),
        "lateness_p50_seconds": late.p50_seconds,
        "lateness_p99_seconds": late.p99_seconds,
        "lateness_max_seconds": late.max_seconds,
        "latency_p50_seconds": answered.p50_seconds,
        "latency_p99_seconds": answered.p99_seconds,
        "latency_max_seconds": answered.max_seconds,
    }
    for phase in run.meter.by_phase.values():
        name = re.sub(r"\W+", "_", phase.name.lower()).strip("_")
        figures[f"{name}_offered_per_s"] = round(phase.offered / phase.seconds, 3)
        figures[f"{name}_achieved_per_s"] = round(phase.achieved / phase.seconds, 3)
        figures[f"{name}_acked_per_s"] = round(phase.acked / phase.seconds, 3)
        figures[f"{name}_lateness_p99_seconds"] = phase.lateness.at(0.99)
    return figures


def plot(seconds: Path, picture: Path) -> None:
    """Draw the rates and the lateness of a run.

    Args:
        seconds: file of a `SecondsFile`.
        picture: PNG to write.
    """
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot

    lines = [json.loads(line) for line in seconds.read_text().splitlines()]
    head, rows = lines[0], lines[1:]
    at = [r["second"] for r in rows]
    figure, (rates, late) = pyplot.subplots(2, 1, sharex=True, figsize=(10, 6), layout="constrained")
    for name in ("offered", "achieved", "acked"):
        rates.plot(at, [r[name] for r in rows], label=name, linewidth=1)
    rates.set_ylabel("records a second")
    rates.legend(loc="upper left")
    rates.set_title(head["run_id"])
    for name, label in (("lateness_p99_seconds", "hand-over, p99"), ("latency_p99_seconds", "acknowledgement, p99")):
        late.plot(at, [1000 * r[name] for r in rows], label=label, linewidth=1)
    late.set_yscale("symlog", linthresh=1)
    late.set_ylabel("ms behind the schedule")
    late.set_xlabel("seconds")
    late.legend(loc="upper left")
    for phase in head["phases"][1:]:
        for axes in (rates, late):
            axes.axvline(phase["start_seconds"], color="grey", linewidth=0.5)
    figure.savefig(picture, dpi=110)
    pyplot.close(figure)

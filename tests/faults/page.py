"""How a fault run is shown: the table at its end, the flat figures of its report, and the page to read.

Belongs here: the forms; pure. Not here: the values (`trial`).
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import datetime

from rich.table import Table

from crm_resources.report import Verdict
from tests.faults.trial import Control, Invariant, Trial


def table_of(trials: Sequence[Trial]) -> Table:
    """A line for each trial."""
    table = Table("", "fault", *Invariant, "control", "seconds", title="faults-stream", title_justify="left")
    for trial in trials:
        cells = [_cell(trial, invariant) for invariant in Invariant]
        table.add_row(trial.experiment, trial.fault, *cells, _controls_cell(trial), f"{trial.seconds:,.0f}")
    return table


def _cell(trial: Trial, invariant: Invariant) -> str:
    finding = trial.findings.get(invariant)
    if finding is None:
        return "[dim]–[/]"
    return "[green]ok[/]" if finding.held else "[red]BROKEN[/]"


def _controls_cell(trial: Trial) -> str:
    if trial.skipped:
        return "[yellow]skipped[/]"
    if not trial.controls:
        return "[red]none[/]"
    return "\n".join(f"[green]broke {', '.join(c.broke)}[/]" if c.worked else "[red]did not break[/]" for c in trial.controls)


def figures_of(trials: Sequence[Trial]) -> dict[str, float]:
    """The figures of all trials, each name with its trial in front."""
    found: dict[str, float] = {
        "trials": len(trials),
        "trials_passed": sum(t.passed for t in trials),
        "trials_skipped": sum(bool(t.skipped) for t in trials),
        "controls_broken": sum(c.worked for t in trials for c in t.controls),
    }
    for trial in trials:
        if trial.skipped:
            continue
        found[f"{trial.name}_invariants_held"] = sum(f.held for f in trial.findings.values())
        found[f"{trial.name}_invariants_broken"] = sum(not f.held for f in trial.findings.values())
        found[f"{trial.name}_controls_broken"] = sum(c.worked for c in trial.controls)
        found[f"{trial.name}_seconds"] = round(trial.seconds, 1)
        found |= {f"{trial.name}_{name}": value for name, value in trial.figures.items()}
    return found


def page_of(trials: Sequence[Trial], verdict: Verdict, started: datetime, seconds: float) -> str:
    """The page, in Markdown."""
    parts = [
        "# Faults thrown at the stream",
        f"{started:%Y-%m-%d %H:%M} UTC, {seconds / 60:.0f} minutes, verdict: **{verdict}**.",
        "Each fault was thrown at a driver that runs as a process, fed by the generator through Kafka. Then the audit compared what the "
        "producers got acknowledged with bronze, silver, dead letters and PostgreSQL. A *control* is the same fault with a protection "
        "taken away: it must break what the protection is there for, else the trial proves nothing.",
        "| | fault | "
        + " | ".join(Invariant)
        + " | controls | seconds |\n|---|---|"
        + "---|" * (len(Invariant) + 2)
        + "\n"
        + _rows(trials),
        "Invariants: " + ", ".join(f"{i} {i.meaning}" for i in Invariant) + ".",
        *(_section(trial) for trial in trials),
    ]
    return "\n\n".join(parts) + "\n"


def _rows(trials: Sequence[Trial]) -> str:
    lines = []
    for t in trials:
        words = ("–" if i not in t.findings else "ok" if t.findings[i].held else "**BROKEN**" for i in Invariant)
        lines.append(f"| {t.experiment} | {t.fault} | {' | '.join(words)} | {_controls_text(t)} | {t.seconds:,.0f} |")
    return "\n".join(lines)


def _controls_text(trial: Trial) -> str:
    if trial.skipped:
        return "**skipped**"
    return "; ".join(f"broke {', '.join(c.broke)}" if c.worked else "**did not break**" for c in trial.controls) or "**none**"


def _section(trial: Trial) -> str:
    lines = [f"## {trial.experiment}: {trial.fault}", ""]
    if trial.skipped:
        return "\n".join([*lines, f"**Skipped:** {trial.skipped}"])
    lines += [f"- {i} {i.meaning}: {'held' if f.held else '**BROKEN**'}. {f.said}" for i, f in sorted(trial.findings.items())]
    lines += [f"- {seen}" for seen in trial.seen]
    lines += [f"- **{what}**" for what in trial.not_done]
    lines += [f"- {name.replace('_', ' ')}: {value:,}" for name, value in trial.figures.items()]
    for control in trial.controls:
        lines += ["", _control_text(control)]
    return "\n".join(lines)


def _control_text(control: Control) -> str:
    if not control.broke:
        return f"**Control**, without {control.without}: nothing broke."
    broke = "\n".join(f"- {i} {i.meaning}: {f.said}" for i, f in sorted(control.broke.items()))
    unbroken = control.must_break - set(control.broke)
    missing = "" if control.worked else f" It should have broken {', '.join(sorted(unbroken))}."
    return f"**Control**, without {control.without}, broke:{missing}\n\n{broke}"

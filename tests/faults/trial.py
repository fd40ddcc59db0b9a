"""What a fault comes to: which invariants held, and what broke without the protection.

Belongs here: the values and the pure judgement of an audit. Not here: making faults (`experiments_*`), or showing (`page`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum

from crm_assets.monitoring.audit_result import AuditResult


class Invariant(StrEnum):
    """What must hold whatever happens."""

    I1 = "I1"
    I2 = "I2"
    I3 = "I3"
    I4 = "I4"
    I5 = "I5"
    I6 = "I6"
    I7 = "I7"

    @property
    def meaning(self) -> str:
        """In words."""
        return _MEANINGS[self]


_MEANINGS = {
    Invariant.I1: "no loss",
    Invariant.I2: "no duplicate",
    Invariant.I3: "content unchanged",
    Invariant.I4: "order of a key",
    Invariant.I5: "books close",
    Invariant.I6: "heals by itself",
    Invariant.I7: "loud",
}


@dataclass(frozen=True)
class Finding:
    """Whether an invariant held, and what says so."""

    held: bool
    said: str


@dataclass(frozen=True)
class Control:
    """The same fault with a protection switched off.

    Args:
        without: what was switched off, in words.
        must_break: invariants that protection is there for.
        findings: what was found.
    """

    without: str
    must_break: frozenset[Invariant]
    findings: Mapping[Invariant, Finding]

    @property
    def broke(self) -> dict[Invariant, Finding]:
        """Invariants that did not hold."""
        return {i: f for i, f in self.findings.items() if not f.held}

    @property
    def worked(self) -> bool:
        """Whether everything broke that the protection is there for; otherwise the trial proves nothing."""
        return bool(self.must_break) and self.must_break <= set(self.broke)


@dataclass(frozen=True)
class Trial:
    """One fault and what became of it.

    Args:
        experiment: its number in the list of experiments, e.g. `F9`.
        name: short name, unique among the trials; names the figures.
        fault: what was done.
        findings: what held; an invariant the fault does not touch is absent.
        controls: the failing controls.
        seconds: how long all of it took.
        figures: numbers worth keeping, by names with units.
        seen: what else was seen, a line each.
        not_done: what belongs to the fault and did not happen, a line each; the trial has failed then.
        skipped: why the trial could not be made; empty when it was.
    """

    experiment: str
    name: str
    fault: str
    findings: Mapping[Invariant, Finding] = field(default_factory=dict)
    controls: tuple[Control, ...] = ()
    seconds: float = 0.0
    figures: Mapping[str, float] = field(default_factory=dict)
    seen: tuple[str, ...] = ()
    not_done: tuple[str, ...] = ()
    skipped: str = ""

    @property
    def passed(self) -> bool:
        """Whether the fault happened, every invariant held and every control failed."""
        whole = bool(self.findings) and bool(self.controls) and not self.not_done
        return whole and all(f.held for f in self.findings.values()) and all(c.worked for c in self.controls)

    def complaints(self) -> list[str]:
        """What is wrong with it, in words."""
        if self.skipped:
            return []
        wrong = [f"{self.name}: {i} {i.meaning} is broken: {f.said}" for i, f in self.findings.items() if not f.held]
        wrong += [f"{self.name}: {what}" for what in self.not_done]
        for control in self.controls:
            unbroken = sorted(control.must_break - set(control.broke))
            if unbroken or not control.must_break:
                wrong.append(f"{self.name}: without {control.without} nothing broke {', '.join(unbroken)}, so the trial proves nothing")
        if not self.controls:
            wrong.append(f"{self.name}: it has no control")
        return wrong


def judged(result: AuditResult) -> dict[Invariant, Finding]:
    """Verdict of the audit on each invariant it checks; pure."""
    found: dict[Invariant, Finding] = {}
    for invariant in (Invariant.I1, Invariant.I2, Invariant.I3, Invariant.I4, Invariant.I5):
        checks = [c for c in result.checks if c.invariant == invariant]
        broken = [c for c in checks if not c.passed]
        if broken:
            said = "; ".join(f"{c.name}: {c.detail}" for c in broken)
        else:
            left = sum(bool(c.unchecked) for c in checks)
            said = f"{len(checks) - left} checks" + (f", {left} not made" if left else "")
        found[invariant] = Finding(bool(checks) and not broken, said)
    return found


def counted(result: AuditResult) -> dict[str, float]:
    """The audit's counts, as figures of a trial; pure."""
    c = result.counts
    return {
        "acked_records": c.acked,
        "bronze_rows": c.bronze,
        "silver_rows": c.silver,
        "dead_letter_rows": c.dead_letters,
        "duplicate_rows": c.duplicates,
        "missing_rows": result.missing_rows,
        "doubled_rows": result.doubled_rows,
    }


def with_finding(findings: Mapping[Invariant, Finding], invariant: Invariant, *more: Finding) -> dict[Invariant, Finding]:
    """The findings with more said about one invariant, which holds only if everything said about it does; pure."""
    every = [*([findings[invariant]] if invariant in findings else []), *more]
    return {**findings, invariant: Finding(all(f.held for f in every), "; ".join(f.said for f in every))}

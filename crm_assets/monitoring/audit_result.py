"""What an audit comes to: checks, counts, checksums, and the verdict in words and numbers.

Belongs here: the values and how they read. Not here: how they are found (`audit_reading`, `audit_checks`) or shown (`audit`).
"""

from __future__ import annotations

from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from pathlib import Path

from crm_assets.monitoring.checksums import Checksum
from crm_resources.report import Verdict


class Outcome(StrEnum):
    """What a check came to."""

    OK = "ok"
    BROKEN = "BROKEN"
    NOT_CHECKED = "not checked"


@dataclass(frozen=True)
class CheckResult:
    """One thing the audit looked at: what was compared with what, the figures, and `examples` of what broke it.

    `unchecked` says why (some of) it could not be checked; a check that found nothing broken is then not `ok` but `not checked`.
    """

    invariant: str
    name: str
    broken: int
    detail: str
    examples: tuple[str, ...] = ()
    unchecked: str = ""

    @property
    def passed(self) -> bool:
        """Whether nothing broke it."""
        return self.broken == 0

    @property
    def outcome(self) -> Outcome:
        """What it came to."""
        if self.broken:
            return Outcome.BROKEN
        return Outcome.NOT_CHECKED if self.unchecked else Outcome.OK


@dataclass(frozen=True)
class AuditCounts:
    """Rows by place. `in_flight` are bronze rows too young to be judged, `unledgered` come from another producer.

    `dead_letters` are the open ones, `replayed` the attempts that were tried again.
    `typed` are accepted records whose typed checksum was compared, `untyped` those whose ledger row has none. `disordered` were
    ordered to stand behind later records of their key.
    """

    acked: int
    refused: int
    bronze: int
    silver: int
    dead_letters: int
    replayed: int
    duplicates: int
    warehouse: int
    in_flight: int
    unledgered: int
    typed: int
    untyped: int
    disordered: int


@dataclass(frozen=True)
class Checksums:
    """Order-free checksums: raw over the bytes, typed over the canonical text; the last two over everything, ledgered or not."""

    ledger_raw: Checksum
    bronze_raw: Checksum
    ledger_typed: Checksum
    silver_typed: Checksum
    silver_all: Checksum
    warehouse_all: Checksum


@dataclass(frozen=True)
class AuditResult:
    """Outcome of an audit. Amounts are exact; `missing` and `doubled` are the first event ids, all are in the lists."""

    run_id: str | None
    counts: AuditCounts
    checks: tuple[CheckResult, ...]
    missing_rows: int
    missing: tuple[str, ...]
    doubled_rows: int
    doubled: tuple[str, ...]
    checksums: Checksums
    ledger_revenue: Decimal
    warehouse_revenue: Decimal
    mart_revenue: Decimal | None
    dead_letter_reasons: dict[str, int]
    lists: Path | None

    @property
    def passed(self) -> bool:
        """Whether nothing is broken; what could not be checked is told in `verdict_text`."""
        return all(c.passed for c in self.checks)

    @property
    def verdict(self) -> Verdict:
        """The same for a report."""
        return Verdict.PASS if self.passed else Verdict.FAIL

    def verdict_text(self) -> str:
        """The verdict in words: what holds, or each broken check with what broke it; and what was not checked."""
        lines = []
        if self.passed:
            lines.append("missing 0, duplicated 0, content equal, order kept, books closed")
        else:
            lines.append(f"missing {self.missing_rows:,}, duplicated {self.doubled_rows:,}")
        for check in self.checks:
            if not check.passed:
                named = f" ({', '.join(check.examples[:3])}{', …' if check.broken > 3 else ''})" if check.examples else ""
                lines.append(f"{check.invariant} {check.name}: {check.detail}{named}")
        lines += [f"NOT CHECKED {c.invariant} {c.name}: {c.unchecked}" for c in self.checks if c.unchecked]
        return "\n".join(lines)

    def figures(self) -> dict[str, float]:
        """Flat numbers for a report or for metadata."""
        return {
            "acked_rows": self.counts.acked,
            "refused_rows": self.counts.refused,
            "bronze_rows": self.counts.bronze,
            "silver_rows": self.counts.silver,
            "dead_letter_rows": self.counts.dead_letters,
            "replayed_rows": self.counts.replayed,
            "duplicate_rows_dropped": self.counts.duplicates,
            "warehouse_rows": self.counts.warehouse,
            "in_flight_rows": self.counts.in_flight,
            "unledgered_rows": self.counts.unledgered,
            "typed_compared_rows": self.counts.typed,
            "typed_not_compared_rows": self.counts.untyped,
            "ordered_out_of_order_rows": self.counts.disordered,
            "missing_rows": self.missing_rows,
            "duplicated_rows": self.doubled_rows,
            "broken_checks": sum(not c.passed for c in self.checks),
            "unchecked_checks": sum(bool(c.unchecked) for c in self.checks),
            "ledger_revenue_amount": float(self.ledger_revenue),
            "warehouse_revenue_amount": float(self.warehouse_revenue),
        } | ({} if self.mart_revenue is None else {"mart_revenue_amount": float(self.mart_revenue)})

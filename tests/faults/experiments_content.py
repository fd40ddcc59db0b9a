"""Faults in what is sent: poison (F8), duplicates and conflicts (F9), late, early and out of order (F10).

Belongs here: what is sent, and what must come of it. Not here: the audit, which judges most of it.
"""

from __future__ import annotations

import json
import random
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from datetime import UTC, date, datetime, timedelta
from decimal import Decimal
from pathlib import Path

from crm_resources import warehouse
from crm_resources.contracts import Reason
from crm_resources.lake import files_of, open_table, read_columns
from crm_resources.layout import DEAD_LETTERS, SILVER
from crm_resources.ledger import ledger_dir, ledger_files, read_ledger
from crm_resources.ordered_defects import Defect
from generator.delivery import deliver
from generator.records import Outgoing
from generator.send import check_file, check_record
from tests.faults.data_set import DataSet, Ground
from tests.faults.trial import Control, Finding, Invariant, Trial, counted, judged, with_finding
from tests.faults.unprotected import Protection
from tests.oracle.refresh import WITHOUT_TESTS, run_dbt
from tests.process_usage import ProcessUsage

SECONDS = 12.0
"""How long the traffic of an experiment lasts."""

POISON = (
    Defect.CORRUPT_JSON,
    Defect.BAD_UTF8,
    Defect.OVERSIZED,
    Defect.NULL_VALUE,
    Defect.DEEP_NESTING,
    Defect.NAN_AMOUNT,
    Defect.UNKNOWN_ENTITY,
    Defect.UNKNOWN_VERSION,
)
POISON_SHARE = 0.01
MEMORY_BOUND_MIB = 2.5 * 1024
"""Most memory of Spark and Python together, with a heap of 1 GiB."""

BATCH_RECORDS = 1_000


def poison(ground: Ground) -> Trial:
    """F8."""
    begun = time.monotonic()
    defects = {d.value: POISON_SHARE / len(POISON) for d in POISON}
    with ground.data_set("f8") as data:
        data.driver.start()
        with ProcessUsage(data.driver.running.pid) as usage:
            data.traffic(SECONDS, defects=defects).finish()
            healed = data.wait(data.settled, "every record has its place")
        status = data.driver.stop()
        ordered, found = _ordered_reasons(data), _reasons(data)
        absent = tuple(f"{d.value} was not sent" for d in POISON if not _ordered(data)[d.value])
        result = data.audit()
        findings = with_finding(
            judged(result),
            Invariant.I7,
            Finding(ordered == found, f"dead letters by reason: {_listed(found)}; ordered: {_listed(ordered)}"),
        )
        findings |= {
            Invariant.I6: Finding(
                status == 0 and usage.peak_mib <= MEMORY_BOUND_MIB,
                f"the driver never stopped, at most {usage.peak_mib:,.0f} MiB of {MEMORY_BOUND_MIB:,.0f}, lag 0 after {healed:.0f} s",
            )
        }
        figures = counted(result) | {"peak_rss_mib": round(usage.peak_mib), "lag_seconds": round(healed, 1)}
    control = _control(ground, "f8control", Protection.QUARANTINE, {Invariant.I5}, {"defects": defects})
    fault = f"{len(POISON)} kinds of poison, together {POISON_SHARE:.0%} of {ground.rate:,} records a second"
    return Trial("F8", "f8", fault, findings, (control,), time.monotonic() - begun, figures, not_done=absent)


def duplicates(ground: Ground) -> Trial:
    """F9."""
    begun = time.monotonic()
    defects = {Defect.DUPLICATE.value: 0.05, Defect.CONFLICTING_DUPLICATE.value: 0.01}
    with ground.data_set("f9") as data:
        data.driver.start()
        file = _batch_file(data, BATCH_RECORDS)
        _send_batch(data, file)
        data.traffic(SECONDS, defects=defects).finish()
        _send_batch(data, file)
        data.wait(data.settled, "every record has its place")
        data.driver.stop()
        result = data.audit()
        ordered, reasons = _ordered(data), _reasons(data)
        dropped = ordered[Defect.DUPLICATE.value] + BATCH_RECORDS
        conflicts = ordered[Defect.CONFLICTING_DUPLICATE.value]
        kept = reasons[Reason.CONFLICTING_DUPLICATE.value]
        findings = with_finding(
            judged(result),
            Invariant.I7,
            Finding(result.counts.duplicates == dropped, f"{result.counts.duplicates:,} duplicates counted, {dropped:,} were sent"),
            Finding(kept == conflicts and conflicts > 0, f"{kept:,} conflicting kept aside, {conflicts:,} were sent"),
        )
        figures = counted(result) | {"conflicting_rows": kept}
    control = _control(ground, "f9control", Protection.DUPLICATES, {Invariant.I2}, {"defects": defects})
    fault = f"5 % sent twice, 1 % with another payload, and a whole batch of {BATCH_RECORDS:,} sent again"
    return Trial("F9", "f9", fault, findings, (control,), time.monotonic() - begun, figures)


SHIFTS = {
    "2 min late": timedelta(minutes=-2),
    "2 min early": timedelta(minutes=2),
    "1 h late": timedelta(hours=-1),
    "1 h early": timedelta(hours=1),
    "1 day late": timedelta(days=-1),
    "1 year early": timedelta(days=365),
}
IN_TIME, SHIFTED = 600, 50


def late(ground: Ground) -> Trial:
    """F10."""
    begun = time.monotonic()
    with ground.data_set("f10") as data:
        data.driver.start()
        in_time, shifted = _orders(ground.seed)
        send(data, "in-time", in_time)
        data.wait(data.settled, "the orders in time have their place")
        send(data, "shifted", shifted)
        data.wait(data.settled, "the shifted orders have their place")
        data.driver.stop()
        result = data.audit()
        run_dbt(data.settings, *WITHOUT_TESTS)
        truth, daily = _truth([*in_time, *shifted], datetime.now(UTC).date()), _daily_sales(data)
        differing = sorted(d.isoformat() for d in truth.keys() | daily.keys() if truth.get(d) != daily.get(d))
        behind = _late_rows(data)
        future = _reasons(data)[Reason.FUTURE_EVENT.value]
        expected_late = sum(SHIFTED for name in SHIFTS if "late" in name)
        said = f"days that differ: {', '.join(differing)}" if differing else f"{len(truth)} days equal the truth table"
        findings = with_finding(judged(result), Invariant.I5, Finding(not differing, said))
        findings = with_finding(
            findings,
            Invariant.I7,
            Finding(
                behind == expected_late, f"{behind:,} late orders kept with event time and time of capture, {expected_late:,} were sent"
            ),
            Finding(future == SHIFTED, f"{future:,} quarantined from the future, {SHIFTED:,} were sent"),
        )
        figures = counted(result) | {
            "late_rows": behind,
            "future_rows": future,
            "days_compared": len(truth),
            "days_differing": len(differing),
        }
    controls = _late_controls(ground)
    fault = f"{SHIFTED} orders each {', '.join(SHIFTS)}, shuffled, behind {IN_TIME} in time"
    return Trial("F10", "f10", fault, findings, controls, time.monotonic() - begun, figures)


def _late_controls(ground: Ground) -> tuple[Control, Control]:
    """The same orders, late and future ones treated as plain code treats them; each protection has its own finding."""
    late_sent = sum(SHIFTED for name in SHIFTS if "late" in name)
    with ground.data_set("f10control", without=[Protection.LATE_EVENTS, Protection.FUTURE_EVENTS]) as data:
        data.driver.launch()
        send(data, "all", [record for part in _orders(ground.seed) for record in part])
        data.wait(data.quiet, "the control is done")
        data.driver.kill()
        kept, future = _late_rows(data), _future_rows(data)
    return (
        Control(
            Protection.LATE_EVENTS.meaning,
            frozenset({Invariant.I1}),
            {Invariant.I1: Finding(kept == late_sent, f"{late_sent - kept:,} of {late_sent:,} late orders are gone")},
        ),
        Control(
            Protection.FUTURE_EVENTS.meaning,
            frozenset({Invariant.I5}),
            {Invariant.I5: Finding(future == 0, f"{future:,} orders of next year are among the accepted ones")},
        ),
    )


# -- what is sent ----------------------------------------------------------------------------------------------------------


def _control(ground: Ground, name: str, protection: Protection, must_break: set[Invariant], scenario: dict[str, object]) -> Control:
    """The same traffic, a protection taken away."""
    with ground.data_set(name, without=[protection]) as data:
        data.driver.launch()
        data.traffic(SECONDS / 2, **scenario).finish()
        data.wait(data.quiet, "the control is done")
        data.driver.kill()
        return Control(protection.meaning, frozenset(must_break), data.verdict())


def _batch_file(data: DataSet, count: int) -> Path:
    """Browsing events of as many visitors, as a shop would send them in one batch."""
    file = data.settings.home / f"{data.settings.env}-batch.jsonl"
    at = datetime.now(UTC).replace(microsecond=0)
    lines = (
        {
            "entity": "event",
            "sequence": 1,
            "event_time": _spelled(at + timedelta(milliseconds=n)),
            "event_type": "view",
            "visitor_id": f"batch-{n}",
            "product_id": f"P{n % 50:05d}",
        }
        for n in range(count)
    )
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return file


def _send_batch(data: DataSet, file: Path) -> None:
    checked = check_file(file)
    outcome = deliver(data.settings, checked.run_id, checked.records)
    assert outcome.acked == len(checked.records), outcome


def _orders(seed: int) -> tuple[list[Outgoing], list[Outgoing]]:
    """Orders in the order of their event times, and shuffled ones with shifted times."""
    chooser = random.Random(seed)
    base = datetime.now(UTC).replace(microsecond=0) - timedelta(minutes=3)
    in_time = [_order(n, base + timedelta(milliseconds=n), chooser) for n in range(IN_TIME)]
    shifted = [
        _order(IN_TIME + SHIFTED * kind + n, base + shift, chooser, Defect.FAR_FUTURE if shift.days > 1 else None)
        for kind, shift in enumerate(SHIFTS.values())
        for n in range(SHIFTED)
    ]
    chooser.shuffle(shifted)
    return in_time, shifted


def _order(number: int, at: datetime, chooser: random.Random, defect: Defect | None = None) -> Outgoing:
    quantity, price = chooser.randint(1, 5), Decimal(chooser.randint(100, 9_999)) / 100
    record = {
        "entity": "order",
        "sequence": 1,
        "event_time": _spelled(at),
        "order_id": f"O-{number:06d}",
        "customer_id": f"C-{number % 97:03d}",
        "status": "placed",
        "currency": "GBP",
        "channel": "web",
        "amount": str(quantity * price),
        "lines": [{"line_number": 1, "product_id": "P00001", "quantity": quantity, "unit_price": str(price)}],
    }
    checked = check_record(json.dumps(record).encode(), number, None, "orders")
    assert isinstance(checked, Outgoing), checked
    checked.defect = defect
    return checked


def orders_at(count: int, at: datetime) -> list[Outgoing]:
    """Orders of different numbers, a millisecond apart."""
    chooser = random.Random(count)
    return [_order(n, at + timedelta(milliseconds=n), chooser) for n in range(count)]


def send(data: DataSet, run: str, records: Sequence[Outgoing]) -> None:
    """Send records and wait until they are acknowledged; the ledger is written."""
    outcome = deliver(data.settings, f"{run}-{data.settings.env}", records)
    assert outcome.acked == len(records), outcome


def _spelled(at: datetime) -> str:
    return at.strftime("%Y-%m-%dT%H:%M:%S.%fZ")


# -- what must come of it --------------------------------------------------------------------------------------------------


def _ledgered(data: DataSet) -> Iterator[str | None]:
    for file in ledger_files(ledger_dir(data.settings.environment_dir)):
        for batch in read_ledger(file, ["defect"]):
            yield from batch["defect"].to_pylist()


def _ordered(data: DataSet) -> Counter[str]:
    """Records by ordered defect, from the ledger."""
    return Counter(d for d in _ledgered(data) if d)


def _ordered_reasons(data: DataSet) -> Counter[str]:
    """Reasons the ledger says the dead letters must have."""
    expected: Counter[str] = Counter()
    for defect, count in _ordered(data).items():
        reason = Defect(defect).reason
        if reason is not None:
            expected[reason.value] += count
    return expected


def _reasons(data: DataSet) -> Counter[str]:
    """Dead letters by reason."""
    table = open_table(data.settings, DEAD_LETTERS.path)
    assert table is not None, "there is no table of dead letters"
    return Counter(read_columns(data.settings, DEAD_LETTERS.path, files_of(table), ["reason"])["reason"].to_pylist())


def _late_rows(data: DataSet) -> int:
    """Accepted orders whose event time lies at least a minute and a half before that of the orders in time."""
    times = _event_times(data)
    usual = times[len(times) // 2]
    return sum(usual - t > timedelta(seconds=90) for t in times)


def _future_rows(data: DataSet) -> int:
    """Accepted orders more than a day ahead."""
    return sum(t > datetime.now(UTC) + timedelta(days=1) for t in _event_times(data))


def _event_times(data: DataSet) -> list[datetime]:
    """Event times of the accepted orders, earliest first."""
    path = SILVER["orders"].path
    table = open_table(data.settings, path)
    assert table is not None, "there is no silver table of orders"
    return sorted(read_columns(data.settings, path, files_of(table), ["event_time"])["event_time"].to_pylist())


def _truth(records: Sequence[Outgoing], as_of: date) -> dict[date, Decimal]:
    """Amount by business date of the orders that must count."""
    found: dict[date, Decimal] = {}
    for record in records:
        day = datetime.fromtimestamp(record.event_us / 1_000_000, UTC).date()
        if record.defect is None and day <= as_of:
            found[day] = found.get(day, Decimal(0)) + (record.amount or 0)
    return found


def _daily_sales(data: DataSet) -> dict[date, Decimal]:
    """Amount by business date as the mart has it."""
    rows = warehouse.fetch_rows(data.settings, "select business_date, sum(gross_amount)::text from marts.daily_sales group by 1")
    return {day: Decimal(amount) for day, amount in rows if Decimal(amount)}


def _listed(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {n:,}" for name, n in sorted(counts.items())) or "none"

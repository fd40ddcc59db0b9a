"""The audit: whether everything that was acknowledged stands exactly once, unchanged, in the lake and the warehouse.

Belongs here: the invariants, their verdict, and the command `python -m crm_assets.monitoring.audit`. Not here: reading
(`audit_sources`), marking coordinates (`coordinates`), or the asset check around it.

Invariants: I1 no loss (an acked coordinate is in bronze), I2 no duplicate (event ids are unique in silver and the warehouse),
I3 content (md5 of the raw bytes, ledger against bronze), I5 books (each bronze coordinate in exactly one of silver, dead letters
and duplicates; silver in the warehouse; offsets without gaps; revenue equal to the last digit). Records that carry no ledger row,
because another producer sent them, are counted and take part in the books.
"""

from __future__ import annotations

import sys
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Annotated
from zlib import crc32

import typer

from crm_assets.monitoring.audit_sources import AuditSources, open_sources
from crm_assets.monitoring.coordinates import PLACES, Coordinate, CoordinateBook, Seen
from crm_resources.kafka import KafkaUnavailableError, TopicError
from crm_resources.lake import LakeError
from crm_resources.ledger import LedgerError, payload_md5
from crm_resources.ordered_defects import Defect, Expected
from crm_resources.report import Verdict, write_report
from crm_resources.settings import Settings, load_settings
from crm_resources.warehouse import WarehouseError

if TYPE_CHECKING:
    import pyarrow as pa
    from rich.console import Console

_MODULUS = 2**64
_SHOWN = 20
_NAMED = 10_000
"""Most examples a check names; the count is always exact."""


@dataclass(frozen=True)
class RawChecksum:
    """Order-free checksum of raw bytes: the md5 halves as unsigned 64-bit numbers, each summed modulo 2^64, over `rows`.

    `bound` sums the first halves weighted by their coordinates, so that two records that changed places show as well.
    """

    rows: int = 0
    high: int = 0
    low: int = 0
    bound: int = 0

    def plus(self, topic: str, partition: int, records: list[tuple[int, bytes]]) -> RawChecksum:
        """With further records of a partition, each as (offset, digest of 16 bytes)."""
        halves = array("Q")
        halves.frombytes(b"".join(digest for _, digest in records))
        if sys.byteorder == "little":
            halves.byteswap()
        high = halves[0::2]
        salt = crc32(topic.encode()) + partition * 2_654_435_761
        return RawChecksum(
            self.rows + len(records),
            (self.high + sum(high)) % _MODULUS,
            (self.low + sum(halves[1::2])) % _MODULUS,
            (self.bound + sum(h * (2 * (offset + salt) + 1) for h, (offset, _) in zip(high, records, strict=True))) % _MODULUS,
        )

    def __str__(self) -> str:
        """The two sums as 32 hexadecimal digits."""
        return f"{self.high:016x}{self.low:016x}"


@dataclass(frozen=True)
class CheckResult:
    """One thing the audit looked at; `examples` names what broke it, at most 10,000 of `broken`."""

    invariant: str
    name: str
    broken: int
    detail: str
    examples: tuple[str, ...] = ()

    @property
    def passed(self) -> bool:
        """Whether nothing broke it."""
        return self.broken == 0


@dataclass(frozen=True)
class AuditCounts:
    """Rows by place. `in_flight` are bronze rows too young to be judged, `unledgered` come from another producer."""

    acked: int
    refused: int
    bronze: int
    silver: int
    dead_letters: int
    duplicates: int
    warehouse: int
    in_flight: int
    unledgered: int


@dataclass(frozen=True)
class AuditResult:
    """Outcome of an audit. Amounts are exact; `missing` and `doubled` are event ids, capped at 10,000 each."""

    counts: AuditCounts
    checks: tuple[CheckResult, ...]
    missing_rows: int
    missing: tuple[str, ...]
    doubled_rows: int
    doubled: tuple[str, ...]
    ledger_checksum: RawChecksum
    bronze_checksum: RawChecksum
    ledger_revenue: Decimal
    warehouse_revenue: Decimal
    dead_letter_reasons: dict[str, int]

    @property
    def passed(self) -> bool:
        """Whether every check did."""
        return all(c.passed for c in self.checks)

    @property
    def verdict(self) -> Verdict:
        """The same for a report."""
        return Verdict.PASS if self.passed else Verdict.FAIL

    def verdict_text(self) -> str:
        """The verdict in words: what holds, or each broken check with what broke it."""
        if self.passed:
            return "missing 0, duplicated 0, content equal, books closed"
        lines = [f"missing {self.missing_rows:,}, duplicated {self.doubled_rows:,}"]
        for check in self.checks:
            if not check.passed:
                named = f" ({', '.join(check.examples[:3])}{', …' if check.broken > 3 else ''})" if check.examples else ""
                lines.append(f"{check.invariant} {check.name}: {check.detail}{named}")
        return "\n".join(lines)

    def figures(self) -> dict[str, float]:
        """Flat numbers for a report or for metadata."""
        return {
            "acked_rows": self.counts.acked,
            "refused_rows": self.counts.refused,
            "bronze_rows": self.counts.bronze,
            "silver_rows": self.counts.silver,
            "dead_letter_rows": self.counts.dead_letters,
            "duplicate_rows_dropped": self.counts.duplicates,
            "warehouse_rows": self.counts.warehouse,
            "in_flight_rows": self.counts.in_flight,
            "unledgered_rows": self.counts.unledgered,
            "missing_rows": self.missing_rows,
            "duplicated_rows": self.doubled_rows,
            "broken_checks": sum(not c.passed for c in self.checks),
            "ledger_revenue_amount": float(self.ledger_revenue),
            "warehouse_revenue_amount": float(self.warehouse_revenue),
        }


def run_audit(
    settings: Settings, *, run_id: str | None = None, grace_seconds: float = 0, with_kafka: bool = True, now: datetime | None = None
) -> AuditResult:
    """Audit an environment.

    Args:
        settings: which environment, and where everything is.
        run_id: look only at the ledger of this run; the books still cover everything.
        grace_seconds: records acked or captured within this time before `now` are not judged; 0 when nothing is under way.
        with_kafka: compare bronze with the topics' offsets as well.
        now: end of the judged time; the current time when omitted.

    Raises:
        KafkaUnavailableError: Kafka does not answer.
        WarehouseError: PostgreSQL does not answer.
        LedgerError: a ledger file is none.
    """
    cutoff = (now or datetime.now(UTC)) - timedelta(seconds=grace_seconds) if grace_seconds > 0 else None
    return audit(open_sources(settings, run_id=run_id, with_kafka=with_kafka), cutoff=cutoff)


def audit(sources: AuditSources, *, cutoff: datetime | None = None) -> AuditResult:
    """Audit what the sources give.

    Args:
        sources: readers.
        cutoff: what was acked or captured after it is not judged.
    """
    return _Audit(sources, cutoff).result()


@dataclass
class _Audit:
    """One audit under way: read everything once, mark, then judge."""

    sources: AuditSources
    cutoff: datetime | None
    book: CoordinateBook = field(default_factory=CoordinateBook)
    rows: Counter[str] = field(default_factory=Counter)
    reasons: Counter[str] = field(default_factory=Counter)
    checks: list[CheckResult] = field(default_factory=list)
    warehouse_revenue: Decimal = Decimal(0)

    def result(self) -> AuditResult:
        self._read_ledger()
        bronze_sum = self._read_bronze()
        doubled_silver = self._read_unique(self.sources.silver, Seen.SILVER, "silver")
        for batch in self.sources.dead_letters():
            self._place(batch, Seen.DEAD_LETTERS, "dead_letters")
            self.reasons.update(batch.column("reason").to_pylist())
        for batch in self.sources.duplicates():
            self._place(batch, Seen.DUPLICATES, "duplicates")
        doubled_warehouse = self._read_unique(self.sources.warehouse, Seen.WAREHOUSE, "warehouse")
        ledger = self._follow_ledger()

        self._check("I1", "every acked record is in bronze", _acked_not_in_bronze)
        self._check("I1", "every bronze record was placed", _unplaced)
        self._check("I1", "every silver row is in the warehouse", _not_in_warehouse)
        self._add("I2", "event ids are unique in silver", sum(doubled_silver.values()), sorted(doubled_silver), "rows too many")
        self._add(
            "I2", "event ids are unique in the warehouse", sum(doubled_warehouse.values()), sorted(doubled_warehouse), "rows too many"
        )
        self._check_doubled()
        self._check_content(ledger.checksum, bronze_sum)
        self._check("I5", "no record is in two places", _in_two_places)
        self._check("I5", "nothing is placed that is not in bronze", _placed_without_bronze)
        self._check("I5", "the warehouse holds nothing that silver lacks", _only_in_warehouse)
        self._check_offsets()
        self._add("I5", "each record ended where its ledger row says", len(ledger.misplaced), ledger.misplaced, "elsewhere")
        self._check_revenue(ledger.revenue)

        doubled = doubled_silver + doubled_warehouse
        return AuditResult(
            counts=self._counts(),
            checks=tuple(self.checks),
            missing_rows=self.book.count(_missing),
            missing=tuple(ledger.missing[:_NAMED]),
            doubled_rows=sum(doubled.values()),
            doubled=tuple(sorted(doubled)[:_NAMED]),
            ledger_checksum=ledger.checksum,
            bronze_checksum=bronze_sum,
            ledger_revenue=ledger.revenue,
            warehouse_revenue=self.warehouse_revenue,
            dead_letter_reasons=dict(sorted(self.reasons.items())),
        )

    # reading and marking

    def _read_ledger(self) -> None:
        for batch in self.sources.ledger(("topic", "partition", "offset", "acked_at", "refused")):
            refused = sum(batch.column("refused").to_pylist())
            self.rows["refused"] += refused
            self.rows["acked"] += batch.num_rows - refused
            for group in _by_partition(batch, "topic", "partition"):
                offsets = group.column("offset").to_pylist()
                self.book.mark(group.topic, group.partition, offsets, Seen.LEDGER)
                self._mark_late(group, "acked_at", offsets)

    def _read_bronze(self) -> RawChecksum:
        total = RawChecksum()
        for batch in self.sources.bronze(True):
            self.rows["bronze"] += batch.num_rows
            for group in _by_partition(batch):
                offsets = group.column("kafka_offset").to_pylist()
                self.book.mark(group.topic, group.partition, offsets, Seen.BRONZE)
                self._mark_late(group, "ingested_at", offsets)
                values = group.column("value").to_pylist()
                states = self.book.states(group.topic, group.partition, offsets)
                judged = [(o, payload_md5(v)) for o, v, s in zip(offsets, values, states, strict=True) if _judged(s)]
                total = total.plus(group.topic, group.partition, judged)
        return total

    def _read_unique(self, tables: Mapping[str, Callable[[], Iterator[pa.RecordBatch]]], seen: Seen, name: str) -> Counter[str]:
        """Read tables that must hold each event id once; gives the ids that are there too often, and how many rows too many."""
        import pyarrow as pa
        import pyarrow.compute as pc

        doubled: Counter[str] = Counter()
        for read in tables.values():
            ids: list[pa.Array] = []
            for batch in read():
                self._place(batch, seen, name)
                ids.append(batch.column("event_id").cast(pa.string()))
                if "amount" in batch.schema.names:
                    self._add_warehouse_amounts(batch)
            if ids:
                counted = pa.chunked_array(ids).value_counts()
                for entry in counted.filter(pc.greater(counted.field("counts"), 1)).to_pylist():
                    doubled[entry["values"]] += entry["counts"] - 1
        return doubled

    def _place(self, batch: pa.RecordBatch, seen: Seen, name: str) -> None:
        self.rows[name] += batch.num_rows
        for group in _by_partition(batch):
            offsets = group.column("kafka_offset").to_pylist()
            self.book.mark(group.topic, group.partition, offsets, seen)
            self._mark_late(group, "ingested_at", offsets)

    def _add_warehouse_amounts(self, batch: pa.RecordBatch) -> None:
        for group in _by_partition(batch):
            states = self.book.states(group.topic, group.partition, group.column("kafka_offset").to_pylist())
            amounts = group.column("amount").to_pylist()
            self.warehouse_revenue += sum((Decimal(a) for a, s in zip(amounts, states, strict=True) if _judged(s)), Decimal(0))

    def _mark_late(self, group: _Group, column: str, offsets: list[int]) -> None:
        """Mark the offsets that are too young to be judged."""
        if self.cutoff is None:
            return
        times = group.column(column).to_pylist()
        late = [o for o, t in zip(offsets, times, strict=True) if t is not None and _aware(t) > self.cutoff]
        self.book.mark(group.topic, group.partition, late, Seen.IN_FLIGHT)

    def _follow_ledger(self) -> _LedgerFindings:
        """Read the ledger again, now that each coordinate's places are known."""
        found = _LedgerFindings()
        for batch in self.sources.ledger(("event_id", "amount", "payload_md5", "topic", "partition", "offset", "defect")):
            for group in _by_partition(batch, "topic", "partition"):
                offsets = group.column("offset").to_pylist()
                states = list(self.book.states(group.topic, group.partition, offsets))
                digests = group.column("payload_md5").to_pylist()
                judged = [(o, d) for o, d, s in zip(offsets, digests, states, strict=True) if _judged(s)]
                found.checksum = found.checksum.plus(group.topic, group.partition, judged)
                rows = zip(*(group.column(c).to_pylist() for c in ("event_id", "amount", "defect")), states, strict=True)
                for event_id, amount, defect, state in rows:
                    if not _judged(state):
                        continue
                    if amount is not None and state & Seen.SILVER:
                        found.revenue += amount
                    if _missing(state):
                        found.missing.append(event_id)
                    elif bool(state & Seen.DEAD_LETTERS) is not (defect is not None and defect not in _HARMLESS):
                        found.misplaced.append(f"{event_id} (ordered defect: {defect or 'none'})")
        return found

    # judging

    def _check(self, invariant: str, name: str, broken: Callable[[int], bool]) -> None:
        count = self.book.count(broken)
        examples = [str(c) for c in self.book.find(broken)[:_NAMED]] if count else []
        self._add(invariant, name, count, examples, "records")

    def _add(self, invariant: str, name: str, broken: int, examples: Iterable[str], unit: str) -> None:
        detail = f"{broken:,} {unit}" if broken else ""
        self.checks.append(CheckResult(invariant, name, broken, detail, tuple(examples)[:_NAMED]))

    def _check_doubled(self) -> None:
        twice = [f"{coordinate} in {str(seen.name).lower()}" for seen, coordinate in self.book.doubled]
        self._add("I2", "each coordinate stands once in each place", len(twice), twice, "coordinates twice")
        if any(seen is Seen.LEDGER for seen, _ in self.book.doubled):
            self._explain("the ledger names coordinates twice: a topic was made anew while its ledger stayed; move the old ledger away")

    def _check_content(self, ledger: RawChecksum, bronze: RawChecksum) -> None:
        changed = self._changed() if ledger != bronze else []
        self._add("I3", "raw bytes in bronze are those that were sent", len(changed), changed, "records changed")
        if ledger != bronze and not changed:
            # Unequal without a changed record: the records that are absent from bronze make the difference.
            absent = ledger.rows - bronze.rows
            self.checks[-1] = CheckResult(
                "I3", self.checks[-1].name, max(1, abs(absent)), f"checksums over {ledger.rows:,} and {bronze.rows:,} rows"
            )

    def _changed(self) -> list[str]:
        """Coordinates whose bytes differ; reads ledger and bronze once more for each partition, so memory holds one partition."""
        changed: list[str] = []
        for topic, partition in sorted(self.book.ranges(Seen.LEDGER)):
            sent: dict[int, bytes] = {}
            for batch in self.sources.ledger(("topic", "partition", "offset", "payload_md5")):
                for group in _by_partition(batch, "topic", "partition"):
                    if (group.topic, group.partition) == (topic, partition):
                        sent.update(zip(group.column("offset").to_pylist(), group.column("payload_md5").to_pylist(), strict=True))
            for batch in self.sources.bronze(True):
                for group in _by_partition(batch):
                    if (group.topic, group.partition) == (topic, partition):
                        pairs = zip(group.column("kafka_offset").to_pylist(), group.column("value").to_pylist(), strict=True)
                        changed.extend(str(Coordinate(topic, partition, o)) for o, v in pairs if o in sent and sent[o] != payload_md5(v))
        return changed

    def _check_offsets(self) -> None:
        ranges = self.book.ranges(Seen.BRONZE)
        gaps = sum(r.gaps for r in ranges.values())
        self._add(
            "I5", "offsets in bronze have no gap", gaps, map(str, self.book.absent(Seen.BRONZE, _NAMED)) if gaps else (), "offsets absent"
        )
        if not self.sources.kafka_offsets:
            return
        behind = []
        count = 0
        for topic, partitions in self.sources.kafka_offsets.items():
            for partition, (low, high) in partitions.items():
                span = ranges.get((topic, partition))
                # Only records still in Kafka can be asked for; those that expired are judged by the gaps and the ledger.
                ahead = high - (span.last + 1) if span else high - low
                before = max(0, span.first - low) if span else 0
                if before or (ahead > 0 and self.cutoff is None):
                    count += before + max(0, ahead)
                    behind.append(
                        f"{topic}[{partition}]: Kafka holds {low}..{high - 1}, bronze {f'{span.first}..{span.last}' if span else 'nothing'}"
                    )
        self._add("I5", "bronze reaches from the first to the last offset of Kafka", count, behind, "records not captured")

    def _check_revenue(self, ledger: Decimal) -> None:
        same = ledger == self.warehouse_revenue
        self._add("I5", "revenue in the warehouse is that of the ledger", 0 if same else 1, (), "difference")
        self._explain(f"ledger {ledger:,}, warehouse {self.warehouse_revenue:,}")
        totals = self.sources.order_totals()
        if totals is not None:
            parent, lines = Decimal(totals.parent), Decimal(totals.lines)
            self._add("I5", "order lines add up to their orders", 0 if parent == lines else 1, (), "difference")
            self._explain(f"orders {parent:,}, lines {lines:,}")

    def _explain(self, text: str) -> None:
        self.checks[-1] = replace(self.checks[-1], detail=text)

    def _counts(self) -> AuditCounts:
        count = self.book.count
        return AuditCounts(
            acked=self.rows["acked"],
            refused=self.rows["refused"],
            bronze=self.rows["bronze"],
            silver=self.rows["silver"],
            dead_letters=self.rows["dead_letters"],
            duplicates=self.rows["duplicates"],
            warehouse=self.rows["warehouse"],
            in_flight=count(lambda s: bool(s & Seen.IN_FLIGHT)),
            unledgered=count(lambda s: s & (Seen.BRONZE | Seen.LEDGER) == Seen.BRONZE),
        )


_HARMLESS = frozenset(d.value for d in Defect if d.expected is not Expected.DEAD_LETTER)
"""Ordered defects that do not end as dead letters."""


@dataclass
class _LedgerFindings:
    checksum: RawChecksum = field(default_factory=RawChecksum)
    revenue: Decimal = Decimal(0)
    missing: list[str] = field(default_factory=list)
    misplaced: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Group:
    """Rows of one topic partition."""

    topic: str
    partition: int
    rows: pa.RecordBatch

    def column(self, name: str) -> pa.Array:
        return self.rows.column(name)


def _by_partition(batch: pa.RecordBatch, topic: str = "kafka_topic", partition: str = "kafka_partition") -> Iterator[_Group]:
    """Split a batch by topic partition; rows without coordinates (refused ones) are left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    topics = batch.column(topic).cast(pa.string())
    for name in pc.unique(topics).to_pylist():
        of_topic = batch.filter(pc.equal(topics, name))
        partitions = of_topic.column(partition)
        for number in pc.unique(partitions).to_pylist():
            if number is not None:
                yield _Group(name, number, of_topic.filter(pc.equal(partitions, number)))


def _aware(moment: datetime) -> datetime:
    """Delta's and PostgreSQL's times as aware ones; a naive one is UTC."""
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _settled(state: int) -> bool:
    return not state & Seen.IN_FLIGHT


def _judged(state: int) -> bool:
    """Acked, and old enough."""
    return state & (Seen.LEDGER | Seen.IN_FLIGHT) == Seen.LEDGER


def _acked_not_in_bronze(state: int) -> bool:
    return _judged(state) and not state & Seen.BRONZE


def _unplaced(state: int) -> bool:
    return _settled(state) and bool(state & Seen.BRONZE) and not state & PLACES


def _not_in_warehouse(state: int) -> bool:
    return _settled(state) and state & (Seen.SILVER | Seen.WAREHOUSE) == Seen.SILVER


def _only_in_warehouse(state: int) -> bool:
    return _settled(state) and state & (Seen.SILVER | Seen.WAREHOUSE) == Seen.WAREHOUSE


def _in_two_places(state: int) -> bool:
    return _settled(state) and (state & PLACES).bit_count() > 1


def _placed_without_bronze(state: int) -> bool:
    return _settled(state) and bool(state & PLACES) and not state & Seen.BRONZE


def _missing(state: int) -> bool:
    """Acked, but lost on the way to where it belongs."""
    return _judged(state) and (_acked_not_in_bronze(state) or _unplaced(state) or _not_in_warehouse(state))


def settle_counts(settings: Settings) -> dict[str, int]:
    """Row counts that agree once nothing is under way, cheaply: Kafka's offsets, and the statistics of the lake's files."""
    from crm_resources import kafka, lake
    from crm_resources.layout import BRONZE, DEAD_LETTERS, DUPLICATES, SILVER

    highs = sum(high for topic in kafka.observe(settings) for _, high in kafka.offsets(settings, topic).values())
    placed = [*(t.path for t in SILVER.values()), DEAD_LETTERS.path, DUPLICATES.path]
    silver = sum(lake.row_count(settings, t.path) for t in SILVER.values())
    return {
        "kafka": highs,
        "bronze": lake.row_count(settings, BRONZE.path),
        "placed": sum(lake.row_count(settings, path) for path in placed),
        "silver": silver,
        "warehouse": sum(b.num_rows for read in open_sources(settings, with_kafka=False).warehouse.values() for b in read()),
    }


def is_settled(counts: Mapping[str, int]) -> bool:
    """Whether everything Kafka holds went all the way."""
    return counts["kafka"] == counts["bronze"] == counts["placed"] and counts["silver"] == counts["warehouse"]


def print_result(result: AuditResult, console: Console, environment: str) -> None:
    """Show the counts, each check and what broke it."""
    from rich.table import Table

    c = result.counts
    counts = Table(title=f"audit of {environment}", title_justify="left", show_header=False)
    counts.add_column()
    counts.add_column(justify="right")
    for name, number in (
        ("acked", c.acked),
        ("refused by the producer or broker", c.refused),
        ("bronze", c.bronze),
        ("silver", c.silver),
        ("dead letters", c.dead_letters),
        ("exact duplicates dropped", c.duplicates),
        ("warehouse", c.warehouse),
        ("missing", result.missing_rows),
        ("doubled", result.doubled_rows),
    ):
        counts.add_row(name, f"{number:,}")
    console.print(counts)
    checks = Table(show_header=False)
    for _ in range(3):
        checks.add_column()
    for check in result.checks:
        text = f"{check.name}: {check.detail}" if check.detail else check.name
        checks.add_row(check.invariant, "[green]ok[/]" if check.passed else "[red]BROKEN[/]", text)
    console.print(checks)
    if result.dead_letter_reasons:
        console.print("dead letters by reason: " + ", ".join(f"{name} {n:,}" for name, n in result.dead_letter_reasons.items()))
    console.print(f"raw checksum: ledger {result.ledger_checksum}, bronze {result.bronze_checksum}", soft_wrap=True)
    if c.unledgered:
        console.print(f"{c.unledgered:,} bronze records come from producers without a ledger")
    if c.in_flight:
        console.print(f"{c.in_flight:,} records are too young to be judged")
    for name, ids in (("missing", result.missing), ("doubled", result.doubled)):
        for event_id in ids[:_SHOWN]:
            console.print(f"{name}: {event_id}", style="red")
    for check in result.checks:
        for example in () if check.passed else check.examples[:_SHOWN]:
            console.print(f"{check.name}: {example}", style="red", markup=False)
    console.print(result.verdict_text(), style="green" if result.passed else "red", markup=False)


app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    run_id: Annotated[str | None, typer.Option(help="Only the ledger of this run.")] = None,
    grace: Annotated[float, typer.Option(min=0, help="Do not judge what is younger than so many seconds.")] = 0,
    wait: Annotated[float, typer.Option(min=0, help="Wait up to so many seconds until nothing is under way.")] = 0,
    kafka: Annotated[bool, typer.Option("--kafka/--no-kafka", help="Compare bronze with the topics' offsets.")] = True,
) -> None:
    """Prove that nothing acknowledged was lost, doubled or changed. Exit code 1 when something was.

    Works on the data set CRM_ENV names. Writes `audit.json` into the reports folder.
    """
    from rich.console import Console
    from tenacity import RetryError, Retrying, retry_if_result, stop_after_delay, wait_fixed

    settings = load_settings()
    started = datetime.now(UTC)
    console = Console()
    errors = Console(stderr=True)
    try:
        if wait:
            waiting = Retrying(stop=stop_after_delay(wait), wait=wait_fixed(1), retry=retry_if_result(lambda c: not is_settled(c)))
            try:
                waiting(settle_counts, settings)
            except RetryError as error:
                errors.print(f"after {wait:.0f} s still under way: {error.last_attempt.result()}", style="yellow")
        result = run_audit(settings, run_id=run_id, grace_seconds=grace, with_kafka=kafka)
    except (KafkaUnavailableError, TopicError, LedgerError, LakeError, WarehouseError, OSError) as error:
        errors.print(f"the audit of {settings.env} could not run: {error}", style="red", markup=False, soft_wrap=True)
        raise typer.Exit(2) from error
    print_result(result, console, settings.env)
    write_report(settings.reports_dir, "audit", result.verdict, result.figures(), started=started)
    if not result.passed:
        raise typer.Exit(1)


if __name__ == "__main__":
    app()

"""The invariants: what a finished reading says about loss, duplicates, content, order and books.

Belongs here: each check, its figures and its verdict. Not here: reading (`audit_reading`), or finding the names behind a
difference (`audit_naming`).
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from decimal import Decimal
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np

from crm_assets.monitoring import audit_naming as naming
from crm_assets.monitoring.audit_lists import Finding
from crm_assets.monitoring.audit_reading import (
    MISSING,
    Reading,
    acked_not_in_bronze,
    has,
    is_missing,
    is_settled,
    judged,
    not_in_warehouse,
    numbers,
    split,
    unplaced,
)
from crm_assets.monitoring.audit_result import AuditCounts, CheckResult, Checksums
from crm_assets.monitoring.audit_sources import MartFindings
from crm_assets.monitoring.checksums import ChunkSums
from crm_assets.monitoring.coordinates import PLACES, Coordinate, OffsetRange, Seen
from crm_assets.monitoring.spill import Rows, inversions, repeated

if TYPE_CHECKING:
    import pyarrow as pa

DOUBLED = "doubled"
"""Name of the list of event ids that occur more than once."""


_RANGE = np.dtype([(name, np.int64) for name in ("begin", "end", "rows_in", "rows_bronze", "batch", "generation")])


def batch_ranges(batches: Iterable[pa.RecordBatch]) -> tuple[dict[tuple[str, int], Rows], list[str]]:
    """Ranges of the batch ledger by partition, in the order of their offsets, and the generations they name by number; pure.

    Args:
        batches: columns `BATCH`.
    """
    parts: defaultdict[tuple[str, int], list[Rows]] = defaultdict(list)
    generations: dict[str, int] = {}
    for batch in batches:
        rows = np.empty(batch.num_rows, _RANGE)
        columns = ("from_offset", "to_offset", "rows_in", "rows_bronze", "batch_id")
        for name, column in zip(_RANGE.names or (), columns, strict=False):
            rows[name] = numbers(batch, column)
        rows["generation"] = [generations.setdefault(g, len(generations)) for g in batch.column("generation").to_pylist()]
        for topic, partition, index in split(batch):
            parts[topic, partition].append(rows[index])
    return {key: np.sort(np.concatenate(of_key), order=["begin", "end"]) for key, of_key in parts.items()}, list(generations)


class Judge:
    """Makes the checks of a reading, in the order in which they are shown."""

    def __init__(self, reading: Reading) -> None:
        self.reading = reading
        self.checks: list[CheckResult] = []
        self.doubled: Counter[str] = Counter()
        self.mart_revenue: Decimal | None = None
        self._states = reading.book.totals()
        self._by_state: dict[str, Callable[[int], bool]] = {}

    def judge(self) -> None:
        """Make all checks and name everything that is broken."""
        book = self.reading.book
        for row in inversions(self.reading.ledger_order), inversions(self.reading.silver_order):
            for found in row:
                for place in set(found["place"].tolist()):
                    topic, partition = self.reading.partitions[place]
                    book.note(topic, partition, found["offset"][found["place"] == place], Seen.INVERTED)
        self._compare("BYTES", self.reading.ledger_raw, self.reading.bronze_raw)
        self._compare("SILVER", self.reading.ledger_typed, self.reading.silver_typed)
        self._compare("WAREHOUSE", self.reading.silver_all, self.reading.warehouse_all)
        self._states = book.totals()

        acked = self.reading.rows["acked"]
        self._by_mark("I1", "every acked record is in bronze", acked_not_in_bronze, f"{acked:,} acked records")
        self._by_mark("I1", "every bronze record was placed", unplaced, f"{self.reading.rows['bronze']:,} rows")
        self._by_mark("I1", "every silver row is in the warehouse", not_in_warehouse, f"{self.reading.rows['silver']:,} rows")
        self._unique()
        self._once()
        self._content()
        self._order()
        self._books()
        marts = self.reading.sources.marts()
        self._revenue(marts)
        self._name()

    @property
    def missing_rows(self) -> int:
        """Acked records that were lost on the way."""
        return self._count(is_missing)

    def counts(self) -> AuditCounts:
        """Rows by place."""
        rows = self.reading.rows
        return AuditCounts(
            acked=rows["acked"],
            refused=rows["refused"],
            bronze=rows["bronze"],
            silver=rows["silver"],
            dead_letters=rows["dead_letters"],
            replayed=self.reading.replays.replayed,
            duplicates=rows["duplicates"],
            warehouse=rows["warehouse"],
            in_flight=self._count(lambda s: bool(s & Seen.IN_FLIGHT)),
            unledgered=self._count(lambda s: s & (Seen.BRONZE | Seen.LEDGER) == Seen.BRONZE),
            typed=self._count(lambda s: judged(s) and s & (Seen.SILVER | Seen.TYPED) == Seen.SILVER | Seen.TYPED),
            untyped=rows["untyped"],
            disordered=self._count(lambda s: judged(s) and bool(s & Seen.DISORDERED)),
        )

    def checksums(self) -> Checksums:
        """The sums that were compared."""
        r = self.reading
        sums = (r.ledger_raw, r.bronze_raw, r.ledger_typed, r.silver_typed, r.silver_all, r.warehouse_all)
        return Checksums(*(s.total() for s in sums))

    # I2

    def _unique(self) -> None:
        sources = self.reading.sources
        for where, buckets, tables in (
            ("silver", self.reading.silver_ids, {p: partial(read, False) for p, read in sources.silver.items()}),
            ("the warehouse", self.reading.warehouse_ids, dict(sources.warehouse)),
        ):
            counted: Counter[str] = Counter()
            for plural, of_table in buckets.items():
                hashes = repeated(of_table)
                rows = list(naming.doubled_ids(tables[plural](), hashes)) if len(hashes) else []
                counted.update(event_id for event_id, _ in rows)
                self.reading.lists.add(DOUBLED, (Finding(event_id, coordinate, f"in {where}") for event_id, coordinate in rows))
            too_many = Counter({event_id: n - 1 for event_id, n in counted.items()})
            self.doubled += too_many
            rows_there = self.reading.rows["silver" if where == "silver" else "warehouse"]
            broken = sum(too_many.values())
            detail = f"{broken:,} rows too many" if broken else f"{rows_there:,} rows, as many ids"
            self._add("I2", f"event ids are unique in {where}", broken, detail, sorted(too_many))

    def _once(self) -> None:
        twice, coordinates = self.reading.book.twice, sum(self._states.values())
        wrong = "twice: " + ", ".join(f"{n:,} in {str(seen.name).lower()}" for seen, n in twice.items())
        if twice[Seen.LEDGER]:
            wrong += "; the ledger names coordinates twice: a topic was made anew while its ledger stayed; move the old ledger away"
        self._by_mark(
            "I2",
            "each coordinate stands once in each place",
            lambda s: bool(s & Seen.TWICE),
            f"{coordinates:,} coordinates",
            broken=sum(twice.values()),
            wrong=wrong,
        )

    # I3

    def _compare(self, what: str, one: ChunkSums, other: ChunkSums) -> None:
        """Note the coordinates behind a difference of sums."""
        readers: dict[str, tuple[naming.Digester, naming.Digester, Seen]] = {
            "BYTES": (naming.ledger_bytes, naming.bronze_bytes, Seen.BYTES_CHANGED),
            "SILVER": (naming.ledger_typed, naming.silver_typed, Seen.SILVER_CHANGED),
            "WAREHOUSE": (naming.silver_typed, naming.warehouse_typed, Seen.WAREHOUSE_CHANGED),
        }
        first, second, bit = readers[what]
        keys = one.differing(other)
        if keys:
            naming.note_changed(self.reading, keys, first, second, bit)

    def _content(self) -> None:
        r, untyped = self.reading, self.reading.rows["untyped"]
        self._same("raw bytes in bronze are those that were sent", r.ledger_raw, r.bronze_raw, Seen.BYTES_CHANGED)
        self._same(_IN_SILVER, r.ledger_typed, r.silver_typed, Seen.SILVER_CHANGED)
        if untyped:
            compared = r.ledger_typed.total().rows
            text = (
                f"{untyped:,} of {untyped + compared:,} accepted records have no typed checksum in the ledger: "
                "it was written by an older generator"
            )
            self.checks[-1] = replace(self.checks[-1], unchecked=text)
        self._same(_IN_WAREHOUSE, r.silver_all, r.warehouse_all, Seen.WAREHOUSE_CHANGED)

    def _same(self, name: str, one: ChunkSums, other: ChunkSums, bit: Seen) -> None:
        first, second = one.total(), other.total()
        changed = self._count(lambda s: bool(s & bit))
        rows = f"checksums over {first.rows:,} and {second.rows:,} rows"
        broken = changed
        if first != second and not changed:
            # Unequal without a changed record: the records that are absent on one side make the difference.
            broken = max(1, abs(first.rows - second.rows))
        self._by_mark(
            "I3", name, lambda s: bool(s & bit), rows, broken=broken, wrong=f"{changed:,} {_plural(changed)} changed" if changed else rows
        )

    # I4

    def _order(self) -> None:
        kept = self._count(lambda s: judged(s) and bool(s & Seen.SILVER) and not s & Seen.DISORDERED)
        left_out = self._count(lambda s: judged(s) and bool(s & Seen.DISORDERED))
        broken = self._count(_inverted)
        note = f"; {left_out:,} left out, ordered to be out of order" if left_out else ""
        self._by_mark(
            "I4",
            "sequences of a key rise along the offsets",
            _inverted,
            f"{kept:,} records in order of their keys{note}",
            wrong=f"{broken:,} {_plural(broken)} behind a later one of the same key{note}",
        )

    # I5

    def _books(self) -> None:
        rows = self.reading.rows
        sides = rows["silver"] + rows["dead_letters"] + rows["duplicates"]
        equation = (
            f"bronze {rows['bronze']:,} {'=' if rows['bronze'] == sides else '≠'} silver {rows['silver']:,} + open dead letters "
            f"{rows['dead_letters']:,} + duplicates {rows['duplicates']:,}"
        )
        under_way = self._count(lambda s: bool(s & Seen.IN_FLIGHT))
        equation += f"; {under_way:,} under way" if under_way else ""
        name = "each bronze record is in silver, dead letters or duplicates, and in one only"
        broken = self._count(_not_in_one_place)
        if not broken and self.reading.cutoff is None:
            broken = abs(rows["bronze"] - sides)  # rows that stand twice in one place
        self._by_mark("I5", name, _not_in_one_place, equation, broken=broken, wrong=equation)
        self._by_mark("I5", "nothing is placed that is not in bronze", _placed_without_bronze)
        self._by_mark("I5", "the warehouse holds nothing that silver lacks", _only_in_warehouse)
        ranges = self.reading.book.ranges(Seen.BRONZE)
        self._offsets(ranges)
        self._batches(ranges)
        self._replays()
        self._by_mark("I5", "each record ended where its ledger row says", lambda s: bool(s & Seen.MISPLACED))
        self._reasons()

    def _offsets(self, ranges: dict[tuple[str, int], OffsetRange]) -> None:
        name = "offsets in bronze have no gap"
        gaps = sum(r.gaps for r in ranges.values())
        self.reading.lists.add(
            name, (Finding("", str(Coordinate(t, p, int(o)))) for t, p, offsets in self.reading.book.absent(Seen.BRONZE) for o in offsets)
        )
        self._add("I5", name, gaps, f"{gaps:,} offsets absent" if gaps else f"{len(ranges)} partitions", self._listed(name))
        name = "bronze reaches from the first to the last offset of Kafka"
        if not self.reading.sources.kafka_offsets:
            self._add("I5", name, 0, "", unchecked="Kafka was not asked")
            return
        count, behind = 0, []
        for topic, partitions in self.reading.sources.kafka_offsets.items():
            for partition, (low, high) in partitions.items():
                span = ranges.get((topic, partition))
                # Only records still in Kafka can be asked for; those that expired are judged by the gaps and the ledger.
                ahead = high - (span.last + 1) if span else high - low
                before = max(0, span.first - low) if span else 0
                if before or (ahead > 0 and self.reading.cutoff is None):
                    count += before + max(0, ahead)
                    held = f"{span.first}..{span.last}" if span else "nothing"
                    behind.append(f"{topic}[{partition}]: Kafka holds {low}..{high - 1}, bronze {held}")
        self._add("I5", name, count, f"{count:,} records not captured" if count else "", behind)

    def _batches(self, ranges: dict[tuple[str, int], OffsetRange]) -> None:
        name = "ranges of the ingest batches join and hold as many rows in bronze"
        book = self.reading.book
        by_partition, generations = batch_ranges(self.reading.batches)
        compared, broken, older, wrong = 0, 0, 0, []
        for topic, partition in sorted({*ranges, *by_partition}):
            if partition < 0:
                continue  # written straight to bronze, not by a batch of the query
            batches, span = by_partition.get((topic, partition), np.empty(0, _RANGE)), ranges.get((topic, partition), OffsetRange(0, -1, 0))
            begin, end = batches["begin"], batches["end"]
            first, last = (int(begin[0]), int(end.max())) if len(batches) else (span.last + 1, span.last + 1)
            compared += len(batches)
            older += int(book.count_below(topic, partition, np.array([first]), Seen.BRONZE)[0])
            rows = book.count_below(topic, partition, end, Seen.BRONZE) - book.count_below(topic, partition, begin, Seen.BRONZE)
            apart = np.flatnonzero(begin[1:] != end[:-1]) + 1
            unequal = np.flatnonzero(~((batches["rows_in"] == rows) & (batches["rows_bronze"] == rows) & (end - begin == rows)))
            behind = np.arange(last, span.last + 1)
            states = book.states(topic, partition, behind)
            unknown = int(np.count_nonzero(has(states, Seen.BRONZE) & is_settled(states)))
            broken += len(apart) + len(unequal) + (unknown > 0)
            where = f"{topic}[{partition}]"
            wrong += [
                f"{where}: {_batch(batches[n], generations)} begins at {begin[n]}, the one before it ended at {end[n - 1]}" for n in apart
            ]
            wrong += [
                f"{where}: {_batch(batches[n], generations)} {begin[n]}..{end[n] - 1}: {batches['rows_in'][n]} rows read and "
                f"{batches['rows_bronze'][n]} written by the batch ledger, {rows[n]} rows in bronze, not {end[n] - begin[n]}"
                for n in unequal
            ]
            wrong += [f"{where}: {unknown} rows in bronze from offset {last} on are in no batch"] if unknown else []
        detail = f"{broken:,} differences" if broken else f"{compared:,} ranges"
        unchecked = f"{older:,} records were captured before the batch ledger began" if older else ""
        self._add("I5", name, broken, detail, wrong, unchecked=unchecked if compared or older else "there is no batch ledger")

    def _replays(self) -> None:
        name = "the replay ledger is complete, and replayed records are where it says"
        found = list(self.reading.replays.findings(self.reading.book))
        self.reading.lists.add(name, found)
        compared = f"{self.reading.replays.replayed:,} replayed dead letters"
        self._add("I5", name, len(found), f"{len(found):,} differences" if found else compared, self._listed(name))

    def _reasons(self) -> None:
        ordered, found = self.reading.reasons_ordered, self.reading.reasons_found
        wrong = [f"{reason}: ordered {ordered[reason]:,}, found {found[reason]:,}" for reason in sorted(ordered | found)]
        wrong = [text for text, reason in zip(wrong, sorted(ordered | found), strict=True) if ordered[reason] != found[reason]]
        total = sum(ordered.values())
        self._add("I5", "dead letters carry the reasons that were ordered", len(wrong), f"{total:,} ordered dead letters", wrong)

    def _revenue(self, marts: MartFindings) -> None:
        ledger, loaded = self.reading.ledger_revenue, self.reading.warehouse_revenue
        same = ledger == loaded
        self._add("I5", "revenue in the warehouse is that of the ledger", 0 if same else 1, f"ledger {ledger:,}, warehouse {loaded:,}")
        totals = self.reading.sources.order_totals()
        if totals is not None:
            parent, lines = Decimal(totals.parent), Decimal(totals.lines)
            self._add("I5", "order lines add up to their orders", 0 if parent == lines else 1, f"orders {parent:,}, lines {lines:,}")
        name = "revenue in the marts is that of the ledger"
        if marts.unavailable:
            self._add("I5", name, 0, "", unchecked=marts.unavailable)
            return
        self.mart_revenue, superseded, raw = (Decimal(t) for t in (marts.orders_amount, marts.superseded_amount, marts.raw_amount))
        others = raw - loaded  # of records that no ledger row was read for, or that are too young to be judged
        same = self.mart_revenue + superseded == ledger + others
        detail = f"marts {self.mart_revenue:,} + earlier states of their orders {superseded:,} = ledger {ledger:,}"
        detail = (detail if same else detail.replace(" = ", " ≠ ")) + (f" + records without a ledger row {others:,}" if others else "")
        self._add("I5", name, 0 if same else 1, detail)
        for check in marts.checks:
            self.reading.lists.add(check.name, (Finding("", "", row) for row in check.rows))
            self._add("I5", check.name, check.broken, f"{check.broken:,} figures differ" if check.broken else "", check.rows)

    # making checks

    def _add(self, invariant: str, name: str, broken: int, detail: str, examples: Iterable[str] = (), *, unchecked: str = "") -> None:
        self.checks.append(CheckResult(invariant, name, broken, detail, tuple(examples), unchecked))

    def _by_mark(
        self, invariant: str, name: str, wanted: Callable[[int], bool], compared: str = "", *, broken: int | None = None, wrong: str = ""
    ) -> None:
        """A check of single records; the broken ones are named later, all at once.

        Args:
            invariant: which it belongs to.
            name: what holds when none is broken.
            wanted: whether a record with these marks breaks it.
            compared: figures when none is broken.
            broken: how many are, where that is not the number of records with such marks.
            wrong: figures when some are.
        """
        count = self._count(wanted)
        broken = count if broken is None else broken
        if count:
            self._by_state[name] = wanted
        self._add(invariant, name, broken, (wrong or f"{broken:,} {_plural(broken)}") if broken else compared)

    def _count(self, wanted: Callable[[int], bool]) -> int:
        return sum(n for state, n in self._states.items() if wanted(state))

    def _listed(self, name: str) -> list[str]:
        return [str(finding) for finding in self.reading.lists.of(name)]

    def _name(self) -> None:
        """Name the broken records, and of changed ones the fields."""
        naming.name_coordinates(self.reading, self._by_state)
        for place, check in enumerate(self.checks):
            if check.name not in self._by_state:
                continue
            found = self.reading.lists.of(check.name)
            explain = _EXPLANATIONS.get(check.name)
            if explain is not None:
                fields = explain(self.reading)
                found = tuple(replace(f, detail=fields.get(f.coordinate, "")) for f in found)
                self.reading.lists.add(f"{check.name}: fields", (f for f in found if f.detail))
            self.checks[place] = replace(check, examples=tuple(str(f) for f in found))


_IN_SILVER = "typed content in silver is that which was sent"
_IN_WAREHOUSE = "typed content in the warehouse is that of silver"
_EXPLANATIONS = {_IN_SILVER: naming.explain_silver, _IN_WAREHOUSE: naming.explain_warehouse}


def _batch(row: Any, generations: Sequence[str]) -> str:  # noqa: ANN401 -- a row of a structured array
    return f"batch {row['batch']} of {generations[row['generation']][:8]}"


def _plural(count: int) -> str:
    return "record" if count == 1 else "records"


def _inverted(state: int) -> bool:
    return bool(state & Seen.INVERTED)


def _not_in_one_place(state: int) -> bool:
    return unplaced(state) or (not state & Seen.IN_FLIGHT and (state & PLACES).bit_count() > 1)


def _placed_without_bronze(state: int) -> bool:
    return not state & Seen.IN_FLIGHT and bool(state & PLACES) and not state & Seen.BRONZE


def _only_in_warehouse(state: int) -> bool:
    return not state & Seen.IN_FLIGHT and state & (Seen.SILVER | Seen.WAREHOUSE) == Seen.WAREHOUSE


__all__ = ["DOUBLED", "MISSING", "Judge"]

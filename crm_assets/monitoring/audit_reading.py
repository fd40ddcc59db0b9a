"""Going through everything once: marks each coordinate where it is seen, sums the digests, and puts aside what must be sorted.

Belongs here: the passes over ledger, lake and warehouse. Not here: what the marks and sums mean (`audit_checks`).

Memory: two bytes for each offset and one batch of rows; event ids and sequences go through files (`spill`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from crm_assets.monitoring.audit_lists import Finding, FindingLists
from crm_assets.monitoring.audit_replays import ReplayBook
from crm_assets.monitoring.audit_sources import TYPED, AuditSources
from crm_assets.monitoring.checksums import ChunkSums, Halves, halves_of
from crm_assets.monitoring.coordinates import Coordinate, CoordinateBook, Offsets, Seen, States, state_table
from crm_assets.monitoring.spill import SEQUENCE_ROW, Buckets, Hashes
from crm_resources.contracts import contract_for
from crm_resources.contracts.canonical import column_digests
from crm_resources.ledger import payload_md5
from crm_resources.ordered_defects import Defect, Expected

if TYPE_CHECKING:
    import pyarrow as pa

MISSING = "missing"
"""Name of the list of acked records that did not get to where they belong."""

Index = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_FOLLOWED = (
    *("event_id", "run_id", "entity_key", "sequence", "amount", "payload_md5", "typed_md5"),
    *("topic", "partition", "offset", "defect"),
)
"""Columns of the ledger that its second reading takes."""

_ODD = np.uint64(0x9E3779B97F4A7C15)


class Reading:
    """What an audit has read so far; `read_all` goes through the sources.

    Args:
        sources: readers.
        cutoff: what was acked or captured after it is not judged.
        folder: for files of its own; the owner deletes it.
        lists: takes the missing records.
    """

    def __init__(self, sources: AuditSources, cutoff: datetime | None, folder: Path, lists: FindingLists) -> None:
        self.sources = sources
        self.cutoff = cutoff
        self.lists = lists
        self.book = CoordinateBook()
        self.replays = ReplayBook()
        self.batches: list[pa.RecordBatch] = []
        self.rows: Counter[str] = Counter()
        self.reasons: Counter[str] = Counter()
        self.reasons_found: Counter[str] = Counter()
        self.reasons_ordered: Counter[str] = Counter()
        self.ledger_raw, self.bronze_raw = ChunkSums(), ChunkSums()
        self.ledger_typed, self.silver_typed = ChunkSums(), ChunkSums()
        self.silver_all, self.warehouse_all = ChunkSums(), ChunkSums()
        self.ledger_revenue = self.warehouse_revenue = Decimal(0)
        self.silver_ids = {plural: Buckets(folder, f"silver-{plural}", np.uint64) for plural in sources.silver}
        self.warehouse_ids = {plural: Buckets(folder, f"warehouse-{plural}", np.uint64) for plural in sources.warehouse}
        self.silver_order = Buckets(folder, "silver-order", SEQUENCE_ROW)
        self.ledger_order = Buckets(folder, "ledger-order", SEQUENCE_ROW)
        self.partitions: list[tuple[str, int]] = []
        self._partition_numbers: dict[tuple[str, int], int] = {}
        self._cutoff_us = None if cutoff is None else (cutoff - _EPOCH) // _MICROSECOND

    def read_all(self) -> None:
        """Go through the sources, the ledger twice: its rows are judged when each coordinate's places are known.

        The ledgers of batches and replays come before the tables that are written before them: what they tell is there.
        """
        self.batches = list(self.sources.batches())
        self._read_replays()
        self._read_ledger()
        self._read_bronze()
        for plural in self.sources.silver:
            self._read_silver(plural)
        self._read_dead_letters()
        for batch in self.sources.duplicates():
            self._place(batch, Seen.DUPLICATES, "duplicates")
        for plural in self.sources.warehouse:
            self._read_warehouse(plural)
        self._follow_ledger()

    def _read_ledger(self) -> None:
        import pyarrow.compute as pc

        for batch in self.sources.ledger(("topic", "partition", "offset", "acked_at", "refused", "defect", "typed_md5")):
            refused = int(pc.sum(batch.column("refused")).as_py() or 0)
            self.rows["refused"] += refused
            self.rows["acked"] += batch.num_rows - refused
            offsets, acked = numbers(batch, "offset"), microseconds(batch, "acked_at")
            typed = batch.column("typed_md5").is_valid().to_numpy(zero_copy_only=False)
            disordered = _by_defect(batch, _disorders)
            for topic, partition, index in split(batch, "topic", "partition"):
                here = offsets[index]
                self.book.mark(topic, partition, here, Seen.LEDGER)
                self.book.note(topic, partition, here[typed[index]], Seen.TYPED)
                self.book.note(topic, partition, here[disordered[index]], Seen.DISORDERED)
                self._note_late(topic, partition, here, acked[index])

    def _read_bronze(self) -> None:
        for batch in self.sources.bronze():
            halves = byte_halves(batch)
            for topic, partition, index, offsets in self._place(batch, Seen.BRONZE, "bronze"):
                judged = is_judged(self.book.states(topic, partition, offsets))
                self.bronze_raw.add(topic, partition, offsets[judged], halves[index][judged])

    def _read_silver(self, plural: str) -> None:
        contract = contract_for(plural)
        for batch in self.sources.silver[plural](True):
            halves = halves_of(column_digests(contract, batch))
            self.silver_ids[plural].add(hashes(batch, "event_id"))
            keys, sequences = _order_keys(batch), numbers(batch, "sequence")
            for topic, partition, index, offsets in self._place(batch, Seen.SILVER, "silver"):
                states = self.book.states(topic, partition, offsets)
                own = halves[index]
                settled, typed, ordered = is_settled(states), is_typed(states), is_ordered(states)
                self.silver_all.add(topic, partition, offsets[settled], own[settled])
                self.silver_typed.add(topic, partition, offsets[typed], own[typed])
                self._put_in_order(self.silver_order, topic, partition, keys[index][ordered], offsets[ordered], sequences[index][ordered])

    def _read_replays(self) -> None:
        for batch in self.sources.replays():
            offsets, attempts, replayed = numbers(batch, "kafka_offset"), numbers(batch, "attempt"), microseconds(batch, "replayed_at")
            outcomes = np.array(batch.column("outcome").to_pylist(), object)
            for topic, partition, index in split(batch):
                self.replays.add_replays(topic, partition, offsets[index], attempts[index], outcomes[index])
                self._note_late(topic, partition, offsets[index], replayed[index])

    def _read_dead_letters(self) -> None:
        for batch in self.sources.dead_letters():
            reasons = np.array(batch.column("reason").to_pylist(), object)
            offsets, attempts, ingested = numbers(batch, "kafka_offset"), numbers(batch, "attempt"), microseconds(batch, "ingested_at")
            for topic, partition, index in split(batch):
                here = offsets[index]
                self.replays.add_letters(topic, partition, here, attempts[index], reasons[index])
                self._note_late(topic, partition, here, ingested[index])
                first = attempts[index] == 1
                self.book.note(topic, partition, here[first], Seen.REFUSED)
                ordered = first & is_judged(self.book.states(topic, partition, here))
                self.reasons_found.update(reasons[index][ordered].tolist())
        for topic, partition, offsets, words in self.replays.open_letters():
            self.rows["dead_letters"] += len(offsets)
            self.reasons.update(words.tolist())
            self.book.mark(topic, partition, offsets, Seen.DEAD_LETTERS)

    def _read_warehouse(self, plural: str) -> None:
        for batch in self.sources.warehouse[plural]():
            halves = signed_halves(batch)
            self.warehouse_ids[plural].add(hashes(batch, "event_id"))
            judged = np.zeros(batch.num_rows, bool)
            for topic, partition, index, offsets in self._place(batch, Seen.WAREHOUSE, "warehouse"):
                states = self.book.states(topic, partition, offsets)
                settled = is_settled(states)
                self.warehouse_all.add(topic, partition, offsets[settled], halves[index][settled])
                judged[index] = is_judged(states)
            if "amount" in batch.schema.names:
                self.warehouse_revenue += _amount(batch, judged)

    def _follow_ledger(self) -> None:
        for batch in self.sources.ledger(_FOLLOWED):
            offsets, sequences, keys = numbers(batch, "offset"), numbers(batch, "sequence"), _order_keys(batch)
            raw, typed = fixed_halves(batch, "payload_md5"), fixed_halves(batch, "typed_md5")
            to_dead_letters = _by_defect(batch, _ends_as_dead_letter)
            accepted, dead = np.zeros(batch.num_rows, bool), np.zeros(batch.num_rows, bool)
            for topic, partition, index in split(batch, "topic", "partition"):
                here = offsets[index]
                states = self.book.states(topic, partition, here)
                judged, with_type, ordered = is_judged(states), is_typed(states), is_ordered(states)
                in_silver = judged & has(states, Seen.SILVER)
                self.ledger_raw.add(topic, partition, here[judged], raw[index][judged])
                with_type &= in_silver
                self.ledger_typed.add(topic, partition, here[with_type], typed[index][with_type])
                ordered &= in_silver
                self._put_in_order(self.ledger_order, topic, partition, keys[index][ordered], here[ordered], sequences[index][ordered])
                self.rows["untyped"] += int(np.count_nonzero(in_silver & ~with_type))
                missing = _MISSING[states]
                refused, is_open, ordered_dead = has(states, Seen.REFUSED), has(states, Seen.DEAD_LETTERS), to_dead_letters[index]
                # What was refused without an order, by a limit too tight, say, and came to silver by a replay, has ended as it should.
                elsewhere = judged & ~missing & np.where(ordered_dead, ~refused, is_open)
                self.book.note(topic, partition, here[elsewhere], Seen.MISPLACED)
                resolved = judged & refused & ~ordered_dead & ~is_open
                self.reasons_found.subtract(self.replays.first_reasons(topic, partition, here[resolved]))
                accepted[index], dead[index] = in_silver, judged & refused
                if missing.any():
                    ids = batch.column("event_id").take(_arrow(index[missing])).to_pylist()
                    lost = zip(ids, here[missing].tolist(), states[missing].tolist(), strict=True)
                    self.lists.add(MISSING, (Finding(i, str(Coordinate(topic, partition, o)), _lost_after(s)) for i, o, s in lost))
            self.ledger_revenue += _amount(batch, accepted)
            self.reasons_ordered.update(_ordered_reasons(batch, dead))

    def _place(self, batch: pa.RecordBatch, seen: Seen, name: str) -> list[tuple[str, int, Index, Offsets]]:
        """Mark the rows of a batch as seen in a place; gives them by partition."""
        self.rows[name] += batch.num_rows
        offsets, ingested = numbers(batch, "kafka_offset"), microseconds(batch, "ingested_at")
        groups = []
        for topic, partition, index in split(batch):
            here = offsets[index]
            self.book.mark(topic, partition, here, seen)
            self._note_late(topic, partition, here, ingested[index])
            groups.append((topic, partition, index, here))
        return groups

    def _note_late(self, topic: str, partition: int, offsets: Offsets, times_us: Index) -> None:
        """Note the offsets that are too young to be judged."""
        if self._cutoff_us is not None:
            self.book.note(topic, partition, offsets[times_us > self._cutoff_us], Seen.IN_FLIGHT)

    def _put_in_order(self, buckets: Buckets, topic: str, partition: int, keys: Hashes, offsets: Offsets, sequences: Index) -> None:
        place = self._partition_numbers.get((topic, partition))
        if place is None:
            place = self._partition_numbers[topic, partition] = len(self.partitions)
            self.partitions.append((topic, partition))
        rows = np.empty(len(keys), SEQUENCE_ROW)
        # Order is promised within a topic partition, so the same key in another one is another key.
        rows["key"] = (keys ^ np.uint64(place)) * _ODD
        rows["offset"], rows["sequence"], rows["place"] = offsets, sequences, place
        buckets.add(rows)


# -- marks -----------------------------------------------------------------------------------------------------------------


def has(states: States, seen: Seen) -> Flags:
    """Which carry any of the marks."""
    return np.asarray((states & np.uint16(int(seen))) != 0)


def is_settled(states: States) -> Flags:
    """Old enough to be judged."""
    return ~has(states, Seen.IN_FLIGHT)


def is_judged(states: States) -> Flags:
    """Acked, and old enough."""
    return has(states, Seen.LEDGER) & is_settled(states)


def is_typed(states: States) -> Flags:
    """Acked, old enough, and with a typed checksum in the ledger."""
    return is_judged(states) & has(states, Seen.TYPED)


def is_ordered(states: States) -> Flags:
    """Acked, old enough, and not ordered to be out of order."""
    return is_judged(states) & ~has(states, Seen.DISORDERED)


def judged(state: int) -> bool:
    """The same as `is_judged` for one state."""
    return state & (Seen.LEDGER | Seen.IN_FLIGHT) == Seen.LEDGER


def acked_not_in_bronze(state: int) -> bool:
    """Acked and not captured."""
    return judged(state) and not state & Seen.BRONZE


def unplaced(state: int) -> bool:
    """Captured, and neither in silver nor a dead letter nor a dropped duplicate."""
    return not state & Seen.IN_FLIGHT and bool(state & Seen.BRONZE) and not state & (Seen.SILVER | Seen.DEAD_LETTERS | Seen.DUPLICATES)


def not_in_warehouse(state: int) -> bool:
    """In silver and not in the warehouse."""
    return not state & Seen.IN_FLIGHT and state & (Seen.SILVER | Seen.WAREHOUSE) == Seen.SILVER


def is_missing(state: int) -> bool:
    """Acked, but lost on the way to where it belongs."""
    return judged(state) and (acked_not_in_bronze(state) or unplaced(state) or not_in_warehouse(state))


_MISSING = state_table(is_missing)


def _lost_after(state: int) -> str:
    if acked_not_in_bronze(state):
        return "not in bronze"
    return "in bronze, but in no table behind it" if unplaced(state) else "in silver, not in the warehouse"


# -- columns as numbers ----------------------------------------------------------------------------------------------------


def split(batch: pa.RecordBatch, topic: str = "kafka_topic", partition: str = "kafka_partition") -> Iterator[tuple[str, int, Index]]:
    """Rows of a batch by topic partition, as their places in it; rows without coordinates (refused ones) are left out."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not batch.num_rows:
        return
    topics = batch.column(topic).cast(pa.string()).dictionary_encode()
    names = topics.dictionary.to_pylist()
    partitions = pc.fill_null(batch.column(partition).cast(pa.int64()), _NO_PARTITION).to_numpy()
    combined = topics.indices.to_numpy().astype(np.int64) * 2**33 + (partitions - _NO_PARTITION)
    if (combined == combined[0]).all():
        groups = [(int(combined[0]), np.arange(batch.num_rows))]
    else:
        values, first = np.unique(combined, return_inverse=True)
        order = np.argsort(first, kind="stable")
        bounds = np.cumsum(np.bincount(first))[:-1]
        groups = list(zip(values.tolist(), np.split(order, bounds), strict=True))
    for value, index in groups:
        number = value % 2**33 + _NO_PARTITION
        if number != _NO_PARTITION:
            yield names[value // 2**33], number, index


_NO_PARTITION = -(2**31)
_MICROSECOND = datetime.resolution


def numbers(batch: pa.RecordBatch, column: str) -> Index:
    """A column of whole numbers; null is 0."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return np.asarray(pc.fill_null(batch.column(column).cast(pa.int64()), 0).to_numpy(zero_copy_only=False))


def microseconds(batch: pa.RecordBatch, column: str) -> Index:
    """A column of times as microseconds since 1970 UTC; null is the beginning of time."""
    import pyarrow as pa
    import pyarrow.compute as pc

    times = batch.column(column)
    exact = times.cast(pa.timestamp("us", times.type.tz), safe=False).cast(pa.int64())
    return np.asarray(pc.fill_null(exact, -(2**63)).to_numpy(zero_copy_only=False))


def hashes(batch: pa.RecordBatch, column: str) -> Hashes:
    """Hash of each value of a column, good within this process."""
    values = batch.column(column).to_pylist()
    return np.fromiter(map(hash, values), np.int64, len(values)).view(np.uint64) * _ODD


def byte_halves(batch: pa.RecordBatch) -> Halves:
    """Digests of the raw bytes."""
    return halves_of(b"".join([payload_md5(value) for value in batch.column("value").to_pylist()]))


def signed_halves(batch: pa.RecordBatch) -> Halves:
    """Digests as PostgreSQL gives them: signed numbers."""
    return np.stack([numbers(batch, name).view(np.uint64) for name in TYPED], axis=1)


def fixed_halves(batch: pa.RecordBatch, column: str) -> Halves:
    """Digests of a column of 16 bytes each; what stands for null means nothing."""
    values = batch.column(column)
    buffer = values.buffers()[1]
    if buffer is None:
        return np.zeros((len(values), 2), np.uint64)
    return halves_of(bytes(buffer[values.offset * 16 : (values.offset + len(values)) * 16]))


def _order_keys(batch: pa.RecordBatch) -> Hashes:
    """Hash of run and entity key: a run's records of a key rise, two runs at once promise nothing."""
    runs = batch.column("run_id").dictionary_encode()
    of_runs = np.array([hash(run) for run in runs.dictionary.to_pylist()] or [0], np.int64).view(np.uint64)
    return np.asarray(hashes(batch, "entity_key") ^ (of_runs[runs.indices.to_numpy()] * _ODD))


def _amount(batch: pa.RecordBatch, wanted: Flags) -> Decimal:
    """Exact sum of the wanted amounts."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not wanted.any():
        return Decimal(0)
    amounts = batch.column("amount").filter(_arrow(wanted)).cast(pa.decimal128(18, 4))
    return Decimal(pc.sum(amounts).as_py() or 0)


def _by_defect(batch: pa.RecordBatch, judge: Any) -> Flags:  # noqa: ANN401 -- a cached function
    """What a function says of the ordered defect of each row."""
    defects = batch.column("defect").dictionary_encode("encode")
    table = np.array([judge(name) for name in defects.dictionary.to_pylist()] or [False], bool)
    return np.asarray(table[defects.indices.to_numpy(zero_copy_only=False)])


@cache
def _disorders(name: str | None) -> bool:
    return name in _DEFECTS and _DEFECTS[name].breaks_order


@cache
def _ends_as_dead_letter(name: str | None) -> bool:
    return name in _DEFECTS and _DEFECTS[name].expected is Expected.DEAD_LETTER


def _ordered_reasons(batch: pa.RecordBatch, wanted: Flags) -> Counter[str]:
    """Reasons that the dead letters among the wanted rows are meant to carry."""
    counted: Counter[str] = Counter()
    for name, count in Counter(batch.column("defect").filter(_arrow(wanted)).to_pylist()).items():
        reason = _DEFECTS[name].reason if name in _DEFECTS else None
        if reason is not None:
            counted[str(reason)] += count
    return counted


_DEFECTS: dict[str | None, Defect] = {defect.value: defect for defect in Defect}


def _arrow(values: npt.NDArray[Any]) -> pa.Array:
    import pyarrow as pa

    return pa.array(values)

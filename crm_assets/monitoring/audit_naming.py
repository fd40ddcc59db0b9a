"""Finding and naming the records behind a difference: which coordinates, which event ids, which fields.

Belongs here: comparing digests one by one where sums differ, and reading again to name what is broken. Not here: the first reading
(`audit_reading`), or the checks (`audit_checks`). All of it runs only when something is broken.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

import numpy as np

from crm_assets.monitoring.audit_lists import Finding
from crm_assets.monitoring.audit_reading import (
    Reading,
    byte_halves,
    fixed_halves,
    has,
    hashes,
    is_judged,
    is_settled,
    is_typed,
    numbers,
    signed_halves,
    split,
)
from crm_assets.monitoring.checksums import ChunkKey, Halves, halves_of
from crm_assets.monitoring.coordinates import CHUNK, CHUNK_BITS, Coordinate, Offsets, Seen, States, state_table
from crm_assets.monitoring.spill import Hashes
from crm_resources.contracts import contract_for
from crm_resources.contracts.canonical import column_digests, column_tokens, message_tokens

if TYPE_CHECKING:
    import pyarrow as pa

EXPLAINED = 50
"""Changed records whose changed fields are worked out."""

_CHUNKS_AT_ONCE = 256
"""Chunks whose digests are compared one by one at a time: 4 million records, 67 MB."""

_SHOWN_CHARACTERS = 40

Digested = Iterator[tuple[str, int, Offsets, Halves]]
Wanted = frozenset[ChunkKey]
Digester = Callable[[Reading, Wanted], Digested]


def note_changed(reading: Reading, keys: Sequence[ChunkKey], one: Digester, other: Digester, bit: Seen) -> None:
    """Compare the digests of chunks one by one, and note the coordinates that both have and that differ."""
    for start in range(0, len(keys), _CHUNKS_AT_ONCE):
        wanted = frozenset(keys[start : start + _CHUNKS_AT_ONCE])
        digests = {key: np.zeros((CHUNK, 2), np.uint64) for key in wanted}
        present = {key: np.zeros(CHUNK, bool) for key in wanted}
        for key, places, halves in _by_chunk(one(reading, wanted), wanted):
            digests[key][places] = halves
            present[key][places] = True
        for (topic, partition, number), places, halves in _by_chunk(other(reading, wanted), wanted):
            key = (topic, partition, number)
            differs = present[key][places] & (digests[key][places] != halves).any(axis=1)
            reading.book.note(topic, partition, (number << CHUNK_BITS) + places[differs], bit)


def _by_chunk(digested: Digested, wanted: Wanted) -> Iterator[tuple[ChunkKey, Offsets, Halves]]:
    for topic, partition, offsets, halves in digested:
        of = offsets >> CHUNK_BITS
        for number in np.unique(of).tolist():
            if (topic, partition, number) in wanted:
                here = of == number
                yield (topic, partition, number), offsets[here] & (CHUNK - 1), halves[here]


def ledger_bytes(reading: Reading, wanted: Wanted) -> Digested:
    """Digests of the bytes by the ledger."""
    for batch in reading.sources.ledger(("topic", "partition", "offset", "payload_md5")):
        halves = fixed_halves(batch, "payload_md5")
        yield from _selected(reading, batch, halves, is_judged, "topic", "partition", "offset")


def ledger_typed(reading: Reading, wanted: Wanted) -> Digested:
    """Typed digests by the ledger."""
    for batch in reading.sources.ledger(("topic", "partition", "offset", "typed_md5")):
        halves = fixed_halves(batch, "typed_md5")
        yield from _selected(reading, batch, halves, is_typed, "topic", "partition", "offset")


def bronze_bytes(reading: Reading, wanted: Wanted) -> Digested:
    """Digests of the bytes in bronze."""
    for batch in _in_chunks(reading.sources.bronze(), wanted):
        yield from _selected(reading, batch, byte_halves(batch), is_judged)


def silver_typed(reading: Reading, wanted: Wanted) -> Digested:
    """Typed digests of silver's columns."""
    for plural, read in reading.sources.silver.items():
        for batch in _in_chunks(read(True), wanted):
            yield from _selected(reading, batch, halves_of(column_digests(contract_for(plural), batch)), is_settled)


def warehouse_typed(reading: Reading, wanted: Wanted) -> Digested:
    """Typed digests of the warehouse's rows."""
    for read in reading.sources.warehouse.values():
        for batch in read():
            yield from _selected(reading, batch, signed_halves(batch), is_settled)


def _selected(
    reading: Reading,
    batch: pa.RecordBatch,
    halves: Halves,
    select: Callable[[States], np.ndarray],
    topic_column: str = "kafka_topic",
    partition_column: str = "kafka_partition",
    offset_column: str = "kafka_offset",
) -> Digested:
    offsets = numbers(batch, offset_column)
    for topic, partition, index in split(batch, topic_column, partition_column):
        here = offsets[index]
        chosen = select(reading.book.states(topic, partition, here))
        yield topic, partition, here[chosen], halves[index][chosen]


def _in_chunks(batches: Iterable[pa.RecordBatch], wanted: Wanted) -> Iterator[pa.RecordBatch]:
    """Only the rows that lie in the wanted chunks, so that no others are digested."""
    import pyarrow as pa

    for batch in batches:
        offsets = numbers(batch, "kafka_offset")
        keep = np.zeros(batch.num_rows, bool)
        for topic, partition, index in split(batch):
            numbers_wanted = [n for t, p, n in wanted if (t, p) == (topic, partition)]
            keep[index] = np.isin(offsets[index] >> CHUNK_BITS, numbers_wanted)
        if keep.any():
            yield batch.filter(pa.array(keep))


def name_coordinates(reading: Reading, lists: Mapping[str, Callable[[int], bool]]) -> None:
    """Add every coordinate whose marks satisfy a condition to the list of that name, with its event id where that is known.

    The ledger knows the ids of its records, silver those of others.
    """
    tables = {name: state_table(wanted) for name, wanted in lists.items()}
    any_of = np.logical_or.reduce(list(tables.values())) if tables else np.zeros(1, bool)

    def add(topic: str, partition: int, offsets: Offsets, states: States, ids: Sequence[str | None]) -> None:
        for name, table in tables.items():
            for place in np.flatnonzero(table[states]).tolist():
                reading.lists.add(name, [Finding(ids[place] or "", str(Coordinate(topic, partition, int(offsets[place]))))])

    def add_from(batches: Iterable[pa.RecordBatch], columns: tuple[str, str, str], unknown: Callable[[States], np.ndarray]) -> None:
        import pyarrow as pa

        for batch in batches:
            offsets = numbers(batch, columns[2])
            for topic, partition, index in split(batch, *columns[:2]):
                states = reading.book.states(topic, partition, offsets[index])
                chosen = any_of[states] & unknown(states)
                if chosen.any():
                    rows = index[chosen]
                    add(topic, partition, offsets[rows], states[chosen], batch.column("event_id").take(pa.array(rows)).to_pylist())

    if not tables:
        return
    add_from(reading.sources.ledger(("event_id", "topic", "partition", "offset")), ("topic", "partition", "offset"), lambda s: s == s)
    placed = ("kafka_topic", "kafka_partition", "kafka_offset")
    for read in reading.sources.silver.values():
        add_from(read(False), placed, lambda s: ~has(s, Seen.LEDGER))
    known = Seen.LEDGER | Seen.SILVER
    for topic, partition, offsets in reading.book.find(lambda s: bool(any_of[s]) and not s & known):
        add(topic, partition, offsets, reading.book.states(topic, partition, offsets), [None] * len(offsets))


def doubled_ids(batches: Iterable[pa.RecordBatch], repeated: Hashes) -> Iterator[tuple[str, str]]:
    """Event id and coordinate of each row whose id occurs more than once.

    Args:
        batches: rows with `PLACED` and `event_id`.
        repeated: sorted hashes of the ids that may occur more than once; other ids may share a hash.
    """
    import pyarrow as pa

    found: list[tuple[str, str]] = []
    for batch in batches:
        chosen = np.isin(hashes(batch, "event_id"), repeated)
        if chosen.any():
            rows = batch.select(["event_id", "kafka_topic", "kafka_partition", "kafka_offset"]).filter(pa.array(chosen)).to_pylist()
            found += [(r["event_id"], str(Coordinate(r["kafka_topic"], r["kafka_partition"], r["kafka_offset"]))) for r in rows]
    counted = Counter(event_id for event_id, _ in found)
    return ((event_id, coordinate) for event_id, coordinate in sorted(found) if counted[event_id] > 1)


def explain_silver(reading: Reading) -> dict[str, str]:
    """Which fields of silver differ from the message in bronze, by coordinate; of the first changed records."""
    wanted = _first(reading, Seen.SILVER_CHANGED)
    messages: dict[Coordinate, bytes] = {}
    for coordinate, batch, place in _rows_at(reading.sources.bronze(), wanted):
        messages[coordinate] = batch.column("value")[place].as_py()
    explained = {}
    for plural, read in reading.sources.silver.items():
        contract = contract_for(plural)
        for coordinate, batch, place in _rows_at(read(True), wanted):
            (stored,) = column_tokens(contract, batch.slice(place, 1))
            try:
                sent = message_tokens(contract.entity, json.loads(messages[coordinate]))
            except (KeyError, ValueError, TypeError, ArithmeticError):
                continue  # bronze has other bytes there than were sent, which is told by itself
            explained[str(coordinate)] = _differences(sent, stored, "silver")
    return explained


def explain_warehouse(reading: Reading) -> dict[str, str]:
    """Which fields of the warehouse differ from silver, by coordinate; of the first changed records."""
    wanted = _first(reading, Seen.WAREHOUSE_CHANGED)
    explained = {}
    for plural, read in reading.sources.silver.items():
        contract = contract_for(plural)
        stored: dict[str, tuple[Coordinate, dict[str, str]]] = {}
        for coordinate, batch, place in _rows_at(read(True), wanted):
            (tokens,) = column_tokens(contract, batch.slice(place, 1))
            stored[batch.column("event_id")[place].as_py()] = (coordinate, tokens)
        for event_id, loaded in reading.sources.warehouse_tokens(plural, list(stored)).items():
            coordinate, tokens = stored[event_id]
            explained[str(coordinate)] = _differences(tokens, loaded, "warehouse")
    return explained


def _first(reading: Reading, bit: Seen) -> frozenset[Coordinate]:
    found = (Coordinate(t, p, int(o)) for t, p, offsets in reading.book.find(lambda s: bool(s & bit)) for o in offsets)
    return frozenset(islice(found, EXPLAINED))


def _rows_at(batches: Iterable[pa.RecordBatch], wanted: frozenset[Coordinate]) -> Iterator[tuple[Coordinate, pa.RecordBatch, int]]:
    for batch in batches if wanted else ():
        offsets = numbers(batch, "kafka_offset")
        for topic, partition, index in split(batch):
            sought = [c.offset for c in wanted if (c.topic, c.partition) == (topic, partition)]
            for place in index[np.isin(offsets[index], sought)].tolist():
                yield Coordinate(topic, partition, int(offsets[place])), batch, place


def _differences(expected: Mapping[str, str], found: Mapping[str, str], where: str) -> str:
    texts = []
    for name, text in expected.items():
        other = found.get(name, "")
        if text != other:
            begin = max(0, next((i for i, (a, b) in enumerate(zip(text, other, strict=False)) if a != b), 0) - _SHOWN_CHARACTERS // 2)
            end = begin + _SHOWN_CHARACTERS
            texts.append(f"{name} is {other[begin:end]} in {where}, not {text[begin:end]}")
    return "; ".join(texts)

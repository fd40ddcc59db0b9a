"""Which Kafka coordinates were seen where: two bytes per offset, so that tens of millions fit in memory.

Belongs here: marking, and telling from the marks which coordinates break the books. Not here: reading tables (`audit_sources`), or
what the verdict is (`audit`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import IntFlag
from itertools import pairwise

import numpy as np
import numpy.typing as npt

CHUNK_BITS = 14
"""Offsets of a partition are kept, and summed up, in chunks of 16,384."""

CHUNK = 1 << CHUNK_BITS
_MASK = CHUNK - 1

Offsets = npt.NDArray[np.int64]
States = npt.NDArray[np.uint16]


class Seen(IntFlag):
    """Where a coordinate was seen, and what was found out about it. `IN_FLIGHT` ones arrived too lately to be judged."""

    NOWHERE = 0
    LEDGER = 1
    BRONZE = 2
    SILVER = 4
    DEAD_LETTERS = 8
    DUPLICATES = 16
    WAREHOUSE = 32
    IN_FLIGHT = 64
    TYPED = 128
    """Its ledger row carries a typed checksum."""
    DISORDERED = 256
    """It was ordered to stand behind later records of its key."""
    BYTES_CHANGED = 512
    SILVER_CHANGED = 1024
    WAREHOUSE_CHANGED = 2048
    INVERTED = 4096
    """It stands behind a later record of its key, and nobody ordered that."""
    MISPLACED = 8192
    TWICE = 16384
    """It stands twice in one place."""
    REFUSED = 32768
    """It was refused when it was first judged, whatever a replay made of it later; `DEAD_LETTERS` are those that are open."""


PLACES = Seen.SILVER | Seen.DEAD_LETTERS | Seen.DUPLICATES
"""Every coordinate of bronze ends in exactly one of these."""

STATES = 1 << 16
"""Number of possible combinations of marks."""


@dataclass(frozen=True, order=True)
class Coordinate:
    """Name of one Kafka record."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        """`topic[partition]@offset`, as Kafka's tools write it."""
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass(frozen=True)
class OffsetRange:
    """Offsets from `first` to `last`, both included, of which `gaps` are absent."""

    first: int
    last: int
    gaps: int


class CoordinateBook:
    """Marks of all coordinates; `twice` counts by place those that were marked a second time there."""

    def __init__(self) -> None:
        self._partitions: dict[tuple[str, int], dict[int, States]] = {}
        self.twice: Counter[Seen] = Counter()

    def mark(self, topic: str, partition: int, offsets: Offsets, seen: Seen) -> None:
        """Mark offsets of a partition as seen in a place; a second mark in the same place is noted."""
        chunks = self._partitions.setdefault((topic, partition), {})
        bit = np.uint16(int(seen))
        for number, places in by_chunk(offsets):
            chunk = chunks.get(number)
            if chunk is None:
                chunk = chunks[number] = np.zeros(CHUNK, np.uint16)
            known = (chunk[places] & bit) != 0
            again, fresh = places[known], places[~known]
            chunk[fresh] |= bit
            if len(fresh) > 1 and not (fresh[1:] > fresh[:-1]).all():
                ordered = np.sort(fresh)
                again = np.concatenate((again, ordered[1:][ordered[1:] == ordered[:-1]]))
            if len(again):
                self.twice[seen] += len(again)
                chunk[again] |= np.uint16(int(Seen.TWICE))

    def note(self, topic: str, partition: int, offsets: Offsets, seen: Seen) -> None:
        """Note something about offsets; to note it again changes nothing."""
        chunks = self._partitions.setdefault((topic, partition), {})
        for number, places in by_chunk(offsets):
            chunks.setdefault(number, np.zeros(CHUNK, np.uint16))[places] |= np.uint16(int(seen))

    def states(self, topic: str, partition: int, offsets: Offsets) -> States:
        """Marks of offsets of one partition, in their order."""
        chunks = self._partitions.get((topic, partition), {})
        found = np.zeros(len(offsets), np.uint16)
        numbers = offsets >> CHUNK_BITS
        for number in np.unique(numbers).tolist():
            chunk = chunks.get(number)
            if chunk is not None:
                here = numbers == number
                found[here] = chunk[offsets[here] & _MASK]
        return found

    def totals(self) -> Counter[int]:
        """How many coordinates carry which marks; unseen ones are left out."""
        total = np.zeros(STATES, np.int64)
        for chunks in self._partitions.values():
            for chunk in chunks.values():
                total += np.bincount(chunk, minlength=STATES)
        return Counter({int(state): int(total[state]) for state in np.flatnonzero(total) if state})

    def find(self, wanted: Callable[[int], bool]) -> Iterator[tuple[str, int, Offsets]]:
        """Coordinates whose marks satisfy a condition, in order, as offsets of a partition; never empty ones."""
        table = state_table(wanted)
        for (topic, partition), chunks in sorted(self._partitions.items()):
            for number, chunk in sorted(chunks.items()):
                places = np.flatnonzero(table[chunk])
                if len(places):
                    yield topic, partition, (number << CHUNK_BITS) + places.astype(np.int64)

    def ranges(self, seen: Seen) -> dict[tuple[str, int], OffsetRange]:
        """First and last offset of each partition with a mark, and how many offsets between them lack it."""
        ranges = {}
        for key, chunks in sorted(self._partitions.items()):
            first = last = None
            count = 0
            for number, chunk in sorted(chunks.items()):
                places = np.flatnonzero(chunk & np.uint16(int(seen)))
                if len(places):
                    count += len(places)
                    last = (number << CHUNK_BITS) + int(places[-1])
                    first = (number << CHUNK_BITS) + int(places[0]) if first is None else first
            if first is not None and last is not None:
                ranges[key] = OffsetRange(first, last, last - first + 1 - count)
        return ranges

    def absent(self, seen: Seen) -> Iterator[tuple[str, int, Offsets]]:
        """Offsets between the first and the last of a partition that lack a mark."""
        for (topic, partition), span in self.ranges(seen).items():
            if not span.gaps:
                continue
            chunks = self._partitions[topic, partition]
            for number in range(span.first >> CHUNK_BITS, (span.last >> CHUNK_BITS) + 1):
                here = chunks.get(number)
                lacking = np.ones(CHUNK, bool) if here is None else (here & np.uint16(int(seen))) == 0
                offsets = (number << CHUNK_BITS) + np.flatnonzero(lacking).astype(np.int64)
                offsets = offsets[(offsets >= span.first) & (offsets <= span.last)]
                if len(offsets):
                    yield topic, partition, offsets

    def count_below(self, topic: str, partition: int, offsets: Offsets, seen: Seen) -> npt.NDArray[np.int64]:
        """How many offsets of a partition below each of the given ones carry a mark."""
        chunks = self._partitions.get((topic, partition), {})
        marked = {number: (chunk & np.uint16(int(seen))) != 0 for number, chunk in sorted(chunks.items())}
        numbers = np.array(list(marked), np.int64)
        totals = np.concatenate(([0], np.cumsum([np.count_nonzero(m) for m in marked.values()]))).astype(np.int64)
        below = totals[np.searchsorted(numbers, offsets >> CHUNK_BITS)]
        for number in np.unique(offsets >> CHUNK_BITS).tolist():
            if number in marked:
                here = (offsets >> CHUNK_BITS) == number
                below[here] += np.concatenate(([0], np.cumsum(marked[number])))[offsets[here] & _MASK]
        return np.asarray(below)


def by_chunk(offsets: Offsets) -> Iterator[tuple[int, npt.NDArray[np.int64]]]:
    """Offsets by their chunk, each with the places within it; the order within a chunk is kept."""
    if not len(offsets):
        return
    numbers = offsets >> CHUNK_BITS
    if (numbers[1:] < numbers[:-1]).any():
        order = np.argsort(numbers, kind="stable")
        offsets, numbers = offsets[order], numbers[order]
    bounds = [0, *(np.flatnonzero(numbers[1:] != numbers[:-1]) + 1).tolist(), len(numbers)]
    for start, end in pairwise(bounds):
        yield int(numbers[start]), offsets[start:end] & _MASK


def state_table(wanted: Callable[[int], bool]) -> npt.NDArray[np.bool_]:
    """The condition for each combination of marks, so that arrays of marks can be looked up in it."""
    return np.fromiter((state > 0 and wanted(state) for state in range(STATES)), bool, STATES)

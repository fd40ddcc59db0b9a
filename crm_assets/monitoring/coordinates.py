"""Which Kafka coordinates were seen where: one byte per offset, so that tens of millions fit in memory.

Belongs here: marking, and telling from the marks which coordinates break the books. Not here: reading tables (`audit_sources`), or
what the verdict is (`audit`).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from enum import IntFlag

_CHUNK_BITS = 16
_CHUNK = 1 << _CHUNK_BITS
_MASK = _CHUNK - 1


class Seen(IntFlag):
    """Where a coordinate was seen. `IN_FLIGHT` ones arrived too lately to be judged."""

    NOWHERE = 0
    LEDGER = 1
    BRONZE = 2
    SILVER = 4
    DEAD_LETTERS = 8
    DUPLICATES = 16
    WAREHOUSE = 32
    IN_FLIGHT = 64


PLACES = Seen.SILVER | Seen.DEAD_LETTERS | Seen.DUPLICATES
"""Every coordinate of bronze ends in exactly one of these."""


@dataclass(frozen=True, order=True)
class Coordinate:
    """Name of one Kafka record."""

    topic: str
    partition: int
    offset: int

    def __str__(self) -> str:
        """`topic[partition]@offset`, as Kafka's tools write it."""
        return f"{self.topic}[{self.partition}]@{self.offset}"


@dataclass
class _Partition:
    chunks: dict[int, bytearray] = field(default_factory=dict)


class CoordinateBook:
    """Marks of all coordinates; `doubled` holds those that were marked twice in the same place."""

    def __init__(self) -> None:
        self._partitions: dict[tuple[str, int], _Partition] = {}
        self.doubled: list[tuple[Seen, Coordinate]] = []

    def mark(self, topic: str, partition: int, offsets: Iterable[int], seen: Seen) -> None:
        """Mark offsets of a partition as seen; a second mark in the same place is noted as doubled."""
        chunks = self._partitions.setdefault((topic, partition), _Partition()).chunks
        bit = int(seen)
        current = -1
        chunk = bytearray()
        for offset in offsets:
            number = offset >> _CHUNK_BITS
            if number != current:
                found = chunks.get(number)
                if found is None:
                    found = chunks[number] = bytearray(_CHUNK)
                chunk, current = found, number
            place = offset & _MASK
            value = chunk[place]
            if value & bit and seen is not Seen.IN_FLIGHT:
                self.doubled.append((seen, Coordinate(topic, partition, offset)))
            chunk[place] = value | bit

    def at(self, topic: str, partition: int, offset: int) -> int:
        """Marks of one coordinate, as the integer of a `Seen`."""
        found = self._partitions.get((topic, partition))
        chunk = found.chunks.get(offset >> _CHUNK_BITS) if found else None
        return chunk[offset & _MASK] if chunk else 0

    def states(self, topic: str, partition: int, offsets: Iterable[int]) -> Iterator[int]:
        """Marks of several coordinates of one partition."""
        found = self._partitions.get((topic, partition))
        chunks = found.chunks if found else {}
        for offset in offsets:
            chunk = chunks.get(offset >> _CHUNK_BITS)
            yield chunk[offset & _MASK] if chunk else 0

    def totals(self) -> Counter[int]:
        """How many coordinates carry which marks; unseen ones are left out."""
        total: Counter[int] = Counter()
        for partition in self._partitions.values():
            for chunk in partition.chunks.values():
                total.update(chunk)
        del total[0]
        return total

    def count(self, wanted: Callable[[int], bool]) -> int:
        """Coordinates whose marks satisfy a condition."""
        return sum(n for state, n in self.totals().items() if wanted(state))

    def find(self, wanted: Callable[[int], bool]) -> list[Coordinate]:
        """Coordinates whose marks satisfy a condition, in order; looks only into chunks that hold one."""
        states = {state for state in range(1, 128) if wanted(state)}
        found: list[Coordinate] = []
        for (topic, partition), marks in sorted(self._partitions.items()):
            for number, chunk in sorted(marks.chunks.items()):
                if not states.isdisjoint(chunk):
                    found.extend(
                        Coordinate(topic, partition, (number << _CHUNK_BITS) + i) for i, value in enumerate(chunk) if value in states
                    )
        return found

    def ranges(self, seen: Seen) -> dict[tuple[str, int], OffsetRange]:
        """First and last offset of each partition with a mark, and how many offsets between them lack it."""
        ranges = {}
        bit = int(seen)
        with_bit = bytes(1 if value & bit else 0 for value in range(256))
        for key, marks in sorted(self._partitions.items()):
            first = last = None
            count = 0
            for number, chunk in sorted(marks.chunks.items()):
                flags = bytes(chunk).translate(with_bit)
                here = flags.count(1)
                if here:
                    count += here
                    first = (number << _CHUNK_BITS) + flags.index(1) if first is None else first
                    last = (number << _CHUNK_BITS) + flags.rindex(1)
            if first is not None and last is not None:
                ranges[key] = OffsetRange(first, last, last - first + 1 - count)
        return ranges

    def absent(self, seen: Seen, limit: int) -> list[Coordinate]:
        """Coordinates between the first and the last of a partition that lack a mark, at most `limit`."""
        found: list[Coordinate] = []
        for (topic, partition), span in self.ranges(seen).items():
            if not span.gaps:
                continue
            for offset in range(span.first, span.last + 1):
                if not self.at(topic, partition, offset) & seen:
                    found.append(Coordinate(topic, partition, offset))
                    if len(found) >= limit:
                        return found
        return found


@dataclass(frozen=True)
class OffsetRange:
    """Offsets from `first` to `last`, both included, of which `gaps` are absent."""

    first: int
    last: int
    gaps: int

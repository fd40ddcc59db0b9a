"""Order-free checksums of records, by chunk of offsets, so that a difference can be found without comparing everything.

Belongs here: summing digests and comparing the sums. Not here: what is digested (`crm_resources.ledger`, `contracts.canonical`), or
which records take part (`audit`).
"""

from __future__ import annotations

from dataclasses import dataclass
from zlib import crc32

import numpy as np
import numpy.typing as npt

from crm_assets.monitoring.coordinates import CHUNK_BITS, Offsets

Halves = npt.NDArray[np.uint64]
"""Digests as an array of shape (records, 2): the halves of each md5 as unsigned 64-bit numbers."""

_MODULUS = 2**64

ChunkKey = tuple[str, int, int]
"""Topic, partition, and the number of the chunk."""


@dataclass(frozen=True)
class Checksum:
    """Sums over `rows` digests: their halves modulo 2^64.

    `bound` sums the first halves weighted by their coordinates, so that two records that changed places show as well.
    """

    rows: int = 0
    high: int = 0
    low: int = 0
    bound: int = 0

    def __str__(self) -> str:
        """The two sums as 32 hexadecimal digits."""
        return f"{self.high:016x}{self.low:016x}"


def halves_of(digests: bytes) -> Halves:
    """Digests of 16 bytes each, one after the other, as numbers."""
    return np.frombuffer(digests, ">u8").astype(np.uint64).reshape(-1, 2)


class ChunkSums:
    """Checksum of each chunk of coordinates."""

    def __init__(self) -> None:
        self._sums: dict[ChunkKey, npt.NDArray[np.uint64]] = {}

    def add(self, topic: str, partition: int, offsets: Offsets, halves: Halves) -> None:
        """Add records of a partition."""
        if not len(offsets):
            return
        salt = crc32(topic.encode()) + partition * 2_654_435_761
        weights = (offsets + salt).astype(np.uint64) * np.uint64(2) + np.uint64(1)
        numbers, place = np.unique(offsets >> CHUNK_BITS, return_inverse=True)
        sums = np.zeros((len(numbers), 4), np.uint64)
        sums[:, 0] = np.bincount(place, minlength=len(numbers))
        for column, values in ((1, halves[:, 0]), (2, halves[:, 1]), (3, halves[:, 0] * weights)):
            np.add.at(sums[:, column], place, values)  # numbers of 64 bits wrap around, which is the modulus
        for number, row in zip(numbers.tolist(), sums, strict=True):
            key = (topic, partition, number)
            known = self._sums.get(key)
            self._sums[key] = row if known is None else known + row

    def total(self) -> Checksum:
        """Checksum of everything."""
        rows = high = low = bound = 0
        for one in self._sums.values():
            r, h, s, b = (int(value) for value in one)
            rows, high, low, bound = rows + r, high + h, low + s, bound + b
        return Checksum(rows, high % _MODULUS, low % _MODULUS, bound % _MODULUS)

    def differing(self, other: ChunkSums) -> list[ChunkKey]:
        """Chunks whose sums are not those of the other, in order."""
        nothing = np.zeros(4, np.uint64)
        keys = self._sums.keys() | other._sums.keys()
        return sorted(k for k in keys if (self._sums.get(k, nothing) != other._sums.get(k, nothing)).any())

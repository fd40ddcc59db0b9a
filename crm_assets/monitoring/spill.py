"""Tables larger than memory, worked off bucket by bucket: rows go to files by their hash, and equal ones meet in one bucket.

Belongs here: the files, finding what occurs twice, and finding what goes backwards. Not here: what the numbers stand for (`audit`).
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

_BUCKETS = 64
_BUFFERED_ROWS = 1_000_000
"""Rows that wait in memory before they go to their files."""

Hashes = npt.NDArray[np.uint64]

Rows = npt.NDArray[Any]
"""Rows of a structured type."""

SEQUENCE_ROW = np.dtype([("key", "<u8"), ("offset", "<i8"), ("sequence", "<i8"), ("place", "<i4")])
"""Hash of a key, and one record of it: where it stands, and its place in the key's history."""


class Buckets:
    """Rows of one kind, by the hash in their first (or only) field.

    Args:
        folder: where the files are made; the owner deletes it.
        name: of the files.
        dtype: of a row; a plain `uint64`, or a structure whose field `key` is the hash.
    """

    def __init__(self, folder: Path, name: str, dtype: npt.DTypeLike) -> None:
        self._folder = folder
        self._name = name
        self._dtype = np.dtype(dtype)
        self._waiting: list[Rows] = []
        self._rows = 0

    def add(self, rows: Rows) -> None:
        """Add rows of the kind."""
        self._waiting.append(rows)
        self._rows += len(rows)
        if self._rows >= _BUFFERED_ROWS:
            self._write()

    def read(self) -> Iterator[Rows]:
        """The rows of each bucket; rows of equal hash are in the same one."""
        self._write()
        for number in range(_BUCKETS):
            path = self._path(number)
            if path.exists():
                yield np.fromfile(path, self._dtype)

    def _write(self) -> None:
        if not self._rows:
            return
        rows = np.concatenate(self._waiting)
        self._waiting, self._rows = [], 0
        hashes = rows["key"] if self._dtype.names else rows
        numbers = (hashes % np.uint64(_BUCKETS)).astype(np.uint8)
        rows = rows[np.argsort(numbers, kind="stable")]
        bounds = np.concatenate(([0], np.cumsum(np.bincount(numbers, minlength=_BUCKETS)))).tolist()
        for number in range(_BUCKETS):
            if bounds[number] < bounds[number + 1]:
                with self._path(number).open("ab") as file:
                    rows[bounds[number] : bounds[number + 1]].tofile(file)

    def _path(self, number: int) -> Path:
        return self._folder / f"{self._name}-{number:02d}"


def repeated(buckets: Buckets) -> Hashes:
    """Hashes that occur more than once, each once, in order. The rows are plain hashes."""
    found = []
    for bucket in buckets.read():
        ordered = np.sort(bucket)
        found.append(np.unique(ordered[1:][ordered[1:] == ordered[:-1]]))
    return np.sort(np.concatenate(found)).astype(np.uint64) if found else np.empty(0, np.uint64)


def inversions(buckets: Buckets) -> Iterator[Rows]:
    """Rows (`SEQUENCE_ROW`) whose sequence is below that of the record of their key before them; never empty arrays."""
    for bucket in buckets.read():
        rows = bucket[np.lexsort((bucket["offset"], bucket["key"]))]
        backwards = (rows["key"][1:] == rows["key"][:-1]) & (rows["sequence"][1:] < rows["sequence"][:-1])
        if backwards.any():
            yield rows[1:][backwards]

"""Spells whole columns at once: ids, times, hex numbers, as Arrow text without a Python object per row.

Same spelling as `generator.ids` and `generator.encode`, which spell one record at a time; tests hold them together.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    import pyarrow as pa

Bytes = npt.NDArray[np.uint8]

_HEX = np.frombuffer(bytes(range(256)).hex().encode(), dtype=np.uint8).reshape(256, 2)
_DASHES = (8, 13, 18, 23)
_DIGITS = [place for place in range(36) if place not in _DASHES]


def uuid7_column(at_us: npt.NDArray[np.int64], random: np.random.Generator) -> pa.Array:
    """UUIDv7 of each time, the other 74 bits from the generator."""
    count = at_us.size
    raw = np.empty((count, 16), dtype=np.uint8)
    raw[:, :6] = (at_us // 1000).astype(">u8").view(np.uint8).reshape(count, 8)[:, 2:]
    raw[:, 6:] = np.frombuffer(random.bytes(count * 10), dtype=np.uint8).reshape(count, 10)
    raw[:, 6] = 0x70 | (raw[:, 6] & 0x0F)
    raw[:, 8] = 0x80 | (raw[:, 8] & 0x3F)
    text = np.full((count, 36), ord("-"), dtype=np.uint8)
    text[:, _DIGITS] = _HEX[raw].reshape(count, 32)
    return text_column(text)


def hex_column(numbers: npt.NDArray[np.uint64], prefix: str) -> pa.Array:
    """Each number as 16 hex digits after a prefix."""
    count = numbers.size
    head = np.frombuffer(prefix.encode(), dtype=np.uint8)
    text = np.empty((count, head.size + 16), dtype=np.uint8)
    text[:, : head.size] = head
    text[:, head.size :] = _HEX[numbers.astype(">u8").view(np.uint8).reshape(count, 8)].reshape(count, 16)
    return text_column(text)


def time_column(at_us: npt.NDArray[np.int64]) -> pa.Array:
    """Each time as the contracts spell it, e.g. `2011-12-09T12:50:00.000000Z`."""
    text = np.full((at_us.size, 27), ord("Z"), dtype=np.uint8)
    text[:, :26] = np.datetime_as_string(at_us.astype("datetime64[us]"), unit="us").astype("S26").view(np.uint8).reshape(at_us.size, 26)
    return text_column(text)


def text_column(text: Bytes) -> pa.Array:
    """Rows of ASCII of one width as an Arrow text column, without copying a row."""
    import pyarrow as pa

    count, width = text.shape
    offsets = np.arange(count + 1, dtype=np.int32) * np.int32(width)
    return pa.StringArray.from_buffers(count, pa.py_buffer(offsets), pa.py_buffer(np.ascontiguousarray(text)))


def taken(values: pa.Array, where: npt.NDArray[np.int64]) -> pa.Array:
    """The values at places that all exist."""
    import pyarrow as pa
    import pyarrow.compute as pc

    return pc.take(values, pa.array(where), boundscheck=False)


def joined(*parts: Any) -> pa.Array:  # noqa: ANN401 -- Arrow columns and plain strings side by side
    """Concatenate columns and constant strings row by row."""
    import pyarrow.compute as pc

    return pc.binary_join_element_wise(*parts, "")

"""When each record is meant to leave: an open loop, so that a slow system cannot slow its own clock.

Pure: a pace turns a record's place and event time into seconds after the start.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


class Pace(Protocol):
    """Schedule of a run."""

    def due_seconds(self, index: int, event_us: int) -> float | None:
        """Seconds after the start at which the record is meant to leave; None is at once.

        Args:
            index: place of the record in the run, from 0.
            event_us: its event time in microseconds since 1970 UTC.
        """
        ...


@dataclass(frozen=True)
class AsFastAsPossible:
    """Each record leaves when there is room for it."""

    def due_seconds(self, index: int, event_us: int) -> float | None:
        """Return None: at once."""
        return None


@dataclass(frozen=True)
class PerSecond:
    """A constant number of records a second."""

    rate: float

    def __post_init__(self) -> None:
        if self.rate <= 0:
            raise ValueError(f"the rate must be above 0 records a second, not {self.rate}")

    def due_seconds(self, index: int, event_us: int) -> float | None:
        """Place over rate."""
        return index / self.rate


@dataclass(frozen=True)
class Accelerated:
    """The rhythm of the event times, `factor` times as fast as they happened; the first happened at `first_us`."""

    factor: float
    first_us: int

    def __post_init__(self) -> None:
        if self.factor <= 0:
            raise ValueError(f"the speed must be above 0 times real time, not {self.factor}")

    def due_seconds(self, index: int, event_us: int) -> float | None:
        """Event time since the first one, over the factor; a record that happened before it is due at once."""
        return max(0.0, (event_us - self.first_us) / 1_000_000 / self.factor)

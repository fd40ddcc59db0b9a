"""What a run is doing, second by second: offered, achieved and acked rates, and lateness; in bounded memory.

Belongs here: counting, percentiles, the series. Not here: sending (`delivery`), showing it (`scenario_report`), or serving it to
Prometheus (`metrics`).

*Offered* records are due in a second by the schedule, *achieved* were handed to the producer in it, *acked* were acknowledged in it.
*Lateness* is the hand-over behind the intended time, *latency* the acknowledgement behind it. A second's values are kept one by one
until it is over; after that only its percentiles and the counts of a histogram (3 % wide bins) stay.
"""

from __future__ import annotations

from array import array
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

_EDGES_US = np.concatenate([[0.0], np.geomspace(1.0, 1e11, 858)])
"""Bins of the lateness in microseconds, each 3 % wider than the last, up to a day."""


@dataclass(frozen=True, slots=True)
class Spread:
    """Median, 99th percentile and maximum in seconds; zeros when nothing was measured."""

    p50_seconds: float = 0.0
    p99_seconds: float = 0.0
    max_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Stretch:
    """A phase of the run by the wall clock, in seconds after the start."""

    name: str
    start_seconds: float
    end_seconds: float


@dataclass(slots=True)
class Second:
    """One second of the run. `queue` records were with the producer when it ended."""

    second: int
    phase: str
    offered: int = 0
    achieved: int = 0
    acked: int = 0
    refused: int = 0
    shed: int = 0
    queue: int = 0
    lateness: Spread = field(default_factory=Spread)
    latency: Spread = field(default_factory=Spread)


class Tally:
    """Counts of an entity since the start."""

    __slots__ = ("acked", "offered", "refused", "shed", "unknown")

    def __init__(self) -> None:
        self.offered = self.acked = self.refused = self.shed = self.unknown = 0


class Histogram:
    """How many values fell between the edges, and the largest; percentiles are exact to the width of a bin."""

    def __init__(self) -> None:
        self.counts = np.zeros(len(_EDGES_US), dtype=np.int64)
        self.sum_us = 0
        self.max_us = 0

    def add(self, values_us: np.ndarray) -> None:
        """Count values in microseconds; negative ones count as 0."""
        if len(values_us):
            self.counts += np.bincount(np.searchsorted(_EDGES_US, np.maximum(values_us, 0), side="right") - 1, minlength=len(_EDGES_US))
            self.sum_us += int(values_us.sum())
            self.max_us = max(self.max_us, int(values_us.max()))

    @property
    def count(self) -> int:
        """Values seen."""
        return int(self.counts.sum())

    def at(self, share: float) -> float:
        """Seconds below which a share of the values lies, at most a bin too high."""
        total = self.count
        if not total:
            return 0.0
        place = int(np.searchsorted(np.cumsum(self.counts), share * total))
        upper = _EDGES_US[min(place + 1, len(_EDGES_US) - 1)]
        return float(min(upper, self.max_us)) / 1e6

    def up_to(self, seconds: float) -> int:
        """Values of at most so many seconds, to the width of a bin."""
        return int(self.counts[: np.searchsorted(_EDGES_US, seconds * 1e6, side="right")].sum())

    def spread(self) -> Spread:
        """Median, 99th percentile and maximum."""
        return Spread(self.at(0.5), self.at(0.99), self.max_us / 1e6)


@dataclass
class PhaseFigures:
    """What happened in the seconds of a phase."""

    name: str
    seconds: float
    offered: int = 0
    achieved: int = 0
    acked: int = 0
    refused: int = 0
    shed: int = 0
    lateness: Histogram = field(default_factory=Histogram)
    latency: Histogram = field(default_factory=Histogram)


class Meter:
    """Measures one run.

    The sender calls `begin`, then for each record sets `position_us` to its intended time, and when that has come calls `due` and
    `handed_over` with the lateness, or `shed`; for an acknowledgement `acked` with the latency, or `refused`; `tick` at least every few
    hundred records; `finish` at the end. All times are microseconds of one rising clock.

    Args:
        phases: stretches of the run in order; one without a name and an end when omitted.
        on_second: called with each second that is over.
    """

    def __init__(self, phases: Sequence[Stretch] = (), on_second: Callable[[Second], None] | None = None) -> None:
        self.tallies: defaultdict[str, Tally] = defaultdict(Tally)
        self.lateness = Histogram()
        self.latency = Histogram()
        self.queue = 0
        self.phase = ""
        self.position_us = 0
        self.by_phase: dict[str, PhaseFigures] = {p.name: PhaseFigures(p.name, p.end_seconds - p.start_seconds) for p in phases}
        self._phases = tuple(phases)
        self._on_second = on_second
        self._start_us = 0
        self._lateness_us = array("q")
        self._latency_us = array("q")
        self._refused = self._shed = 0
        self.handed_over = self._lateness_us.append
        """Takes the lateness in microseconds of a record that the producer took."""
        self.acked = self._latency_us.append
        """Takes the latency in microseconds of a record that Kafka acknowledged."""
        self._second = 0
        self._second_ends_us = 0
        self._due_second = 0
        self._due_ends_us = 0
        self._due = 0
        self._offered: dict[int, int] = {}
        self._waiting: list[Second] = []

    def begin(self, now_us: int) -> None:
        """The run begins."""
        self._start_us = now_us
        self.position_us = now_us
        self._second_ends_us = self._due_ends_us = now_us + 1_000_000
        self.phase = self._phase_at(0.0)

    def due(self, entity: str, intended_us: int) -> Tally:
        """A record's turn has come; gives the tally of its entity."""
        if intended_us >= self._due_ends_us:
            self._next_due(intended_us)
        self._due += 1
        tally = self.tallies[entity]
        tally.offered += 1
        return tally

    def shed(self) -> None:
        """A record was left out because the producer had no room."""
        self._shed += 1

    def refused(self) -> None:
        """A record was turned down for good."""
        self._refused += 1

    def tick(self, now_us: int, queue: int | None = None) -> None:
        """Close the seconds that are over."""
        if queue is not None:
            self.queue = queue
        while now_us >= self._second_ends_us:
            self._close()
        if self._waiting:
            # A second whose records are not all handed over yet has to wait: more may still fall due in it.
            self._tell((self.position_us - self._start_us) // 1_000_000)

    def finish(self, now_us: int) -> None:
        """The run is over: close every second."""
        self.queue = 0
        self.tick(now_us)
        self._close()
        self._tell(self._second + 1)
        self.phase = ""

    def _next_due(self, intended_us: int) -> None:
        self._count_due()
        self._due_second = (intended_us - self._start_us) // 1_000_000
        self._due_ends_us = self._start_us + (self._due_second + 1) * 1_000_000

    def _count_due(self) -> None:
        if self._due:
            self._offered[self._due_second] = self._offered.get(self._due_second, 0) + self._due
            self._due = 0

    def _close(self) -> None:
        """End the current second: keep its percentiles and counts, let its values go."""
        lateness, latency = np.array(self._lateness_us, dtype=np.int64), np.array(self._latency_us, dtype=np.int64)
        del self._lateness_us[:], self._latency_us[:]
        name = self._phase_at(self._second + 0.5)
        over = Second(
            self._second,
            name,
            achieved=len(lateness),
            acked=len(latency),
            refused=self._refused,
            shed=self._shed,
            queue=self.queue,
            lateness=_spread(lateness),
            latency=_spread(latency),
        )
        self._refused = self._shed = 0
        self.lateness.add(lateness)
        self.latency.add(latency)
        figures = self.by_phase.get(name)
        if figures is not None:
            figures.lateness.add(lateness)
            figures.latency.add(latency)
            figures.achieved += over.achieved
            figures.acked += over.acked
            figures.refused += over.refused
            figures.shed += over.shed
        self._waiting.append(over)
        self._second += 1
        self._second_ends_us += 1_000_000
        self.phase = self._phase_at(float(self._second))

    def _tell(self, before: int) -> None:
        """Give out the closed seconds before one, now that the records due in them are known."""
        self._count_due()
        told = 0
        for over in self._waiting:
            if over.second >= before:
                break
            over.offered = self._offered.pop(over.second, 0)
            if over.phase in self.by_phase:
                self.by_phase[over.phase].offered += over.offered
            if self._on_second:
                self._on_second(over)
            told += 1
        del self._waiting[:told]

    def _phase_at(self, seconds: float) -> str:
        return next((p.name for p in self._phases if p.start_seconds <= seconds < p.end_seconds), "")


def _spread(values_us: np.ndarray) -> Spread:
    if not len(values_us):
        return Spread()
    p50, p99 = np.percentile(values_us, (50, 99), method="higher")
    return Spread(float(p50) / 1e6, float(p99) / 1e6, float(values_us.max()) / 1e6)

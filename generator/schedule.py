"""From phases to moments: when each record of a scenario is meant to leave.

Pure. Every rate is made of pieces in which it changes steadily, so the records expected up to a time are known exactly (a
quadratic), and so is the time at which the n-th is due. Records leave at these times whatever the system does: an open loop.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import pairwise
from random import Random
from typing import NamedTuple

from generator.scenario import DAY_SECONDS, Arrivals, Curve, Daily, LiveScenario, Phase, Ramp

_HOUR_SECONDS = 3_600


@dataclass(frozen=True, slots=True)
class Piece:
    """A stretch with a steadily changing rate, in records a second of the wall clock.

    `start_seconds` counts from the beginning of the scenario; `count_before` is the number of records expected until then.
    """

    phase: int
    start_seconds: float
    seconds: float
    rate_start: float
    rate_end: float
    count_before: float

    @property
    def count(self) -> float:
        """Records expected in the piece."""
        return self.seconds * (self.rate_start + self.rate_end) / 2

    def rate_at(self, elapsed: float) -> float:
        """Rate after `elapsed` seconds of the piece."""
        return self.rate_start + (self.rate_end - self.rate_start) * elapsed / self.seconds

    def count_after(self, elapsed: float) -> float:
        """Records expected in the first `elapsed` seconds of the piece."""
        return elapsed * (self.rate_start + self.rate_at(elapsed)) / 2

    def seconds_at(self, count: float) -> float:
        """Seconds into the piece at which `count` of its records are due: the inverse of `count_after`."""
        if count <= 0:
            return 0.0
        if self.rate_start == self.rate_end:
            return min(self.seconds, count / self.rate_start)
        slope = (self.rate_end - self.rate_start) / self.seconds
        # The root of slope/2·t² + rate·t = count, in the form that loses no digits when the slope is small.
        root = math.sqrt(max(0.0, self.rate_start * self.rate_start + 2 * slope * count))
        return min(self.seconds, 2 * count / (self.rate_start + root))


class Moment(NamedTuple):
    """When a record is due, in seconds after the beginning by the wall clock, and the place of its phase in the scenario."""

    due_seconds: float
    phase: int


class Schedule:
    """The moments of a scenario.

    Args:
        scenario: phases and arrivals.
        second_of_day: time of day at the beginning by the scenario's clock, for daily curves.
        limit_seconds: end after so many seconds of the wall clock; None goes to the end of the last phase.
    """

    def __init__(self, scenario: LiveScenario, second_of_day: float = 0.0, limit_seconds: float | None = None) -> None:
        self.scenario = scenario
        self.seconds = min(scenario.seconds, limit_seconds or scenario.seconds)
        """Length by the wall clock."""
        self.pieces = tuple(_cut(_pieces(scenario, second_of_day), self.seconds))
        self._starts = [p.start_seconds for p in self.pieces]

    @property
    def expected(self) -> float:
        """Records expected in all: the integral of the rate."""
        last = self.pieces[-1]
        return last.count_before + last.count

    def expected_until(self, seconds: float) -> float:
        """Records expected in the first `seconds`: the integral of the rate."""
        if seconds <= 0:
            return 0.0
        piece = self.pieces[bisect_right(self._starts, seconds) - 1]
        return piece.count_before + piece.count_after(min(seconds - piece.start_seconds, piece.seconds))

    def rate_at(self, seconds: float) -> float:
        """Records a second at a time of the scenario."""
        piece = self.pieces[max(0, bisect_right(self._starts, seconds) - 1)]
        return piece.rate_at(min(max(0.0, seconds - piece.start_seconds), piece.seconds))

    def moments(self) -> Iterator[Moment]:
        """Every record's moment in order; the same each time it is called.

        Even arrivals are due whenever the expected number passes a whole one, across the borders of phases. Poisson arrivals are a
        Poisson process of rate 1 in the expected number, which is one of the scenario's rate in time.
        """
        draw = Random(f"{self.scenario.seed}/arrivals").expovariate
        at = 0.0
        fresh = True
        for piece in self.pieces:
            poisson = self.scenario.arrivals_of(self.scenario.phases[piece.phase]) is Arrivals.POISSON
            if poisson and fresh:
                at, fresh = at + draw(1.0), False
            begin, end = piece.count_before, piece.count_before + piece.count
            start, phase, seconds_at = piece.start_seconds, piece.phase, piece.seconds_at
            if not poisson and piece.rate_start == piece.rate_end:  # the common case, without a call for each record
                while at < end:
                    yield Moment(start + (at - begin) / piece.rate_start, phase)
                    at += 1.0
            while at < end:
                yield Moment(start + seconds_at(at - begin), phase)
                at += draw(1.0) if poisson else 1.0


@dataclass
class Scheduled:
    """A pace that follows a schedule: record by record the next moment."""

    moments: Iterator[Moment]

    def due_seconds(self, index: int, event_us: int) -> float | None:
        """The next moment; at once when there is none left."""
        moment = next(self.moments, None)
        return moment.due_seconds if moment else None


def _pieces(scenario: LiveScenario, second_of_day: float) -> Iterator[Piece]:
    begin = count = 0.0
    for place, phase in enumerate(scenario.phases):
        of_day = second_of_day + begin * scenario.clock_speed_up
        end = begin + phase.duration
        for seconds, first, last in _stretches(phase, of_day, scenario.clock_speed_up):
            piece = Piece(place, begin, seconds, first, last, count)
            yield piece
            begin += seconds
            count += piece.count
        begin = end  # what adding up the stretches lost


def _cut(pieces: Iterable[Piece], seconds: float) -> Iterator[Piece]:
    """The pieces up to a time."""
    for piece in pieces:
        left = seconds - piece.start_seconds
        if left <= 0:
            return
        yield piece if left >= piece.seconds else replace(piece, seconds=left, rate_end=piece.rate_at(left))


def _stretches(phase: Phase, second_of_day: float, speed_up: float) -> Iterator[tuple[float, float, float]]:
    """Length in wall-clock seconds, first and last rate of each stretch of a phase."""
    match phase.rate:
        case Ramp(start=first, to=last):
            yield phase.duration, first, last
        case Daily(daily=curve):
            yield from _by_the_hour(curve, phase.duration, second_of_day, speed_up)
        case rate:
            yield phase.duration, rate, rate


def _by_the_hour(curve: Curve, duration: float, second_of_day: float, speed_up: float) -> Iterator[tuple[float, float, float]]:
    hourly = curve.hourly
    end = second_of_day + duration * speed_up
    hours = range(math.floor(second_of_day / _HOUR_SECONDS) + 1, math.ceil(end / _HOUR_SECONDS))
    borders = [second_of_day, *(float(h * _HOUR_SECONDS) for h in hours), end]
    for first, last in pairwise(borders):
        if last > first:
            yield (last - first) / speed_up, _at(hourly, first), _at(hourly, last)


def _at(hourly: tuple[float, ...], second: float) -> float:
    """Rate at a time of day, on the line between its full hours."""
    hour, rest = divmod(second % DAY_SECONDS, _HOUR_SECONDS)
    here, there = hourly[int(hour) % 24], hourly[(int(hour) + 1) % 24]
    return here + (there - here) * rest / _HOUR_SECONDS

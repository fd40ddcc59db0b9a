"""The season s(t): how many times as busy an hour is as the average one, and the operational time Λ(t) = ∫s.

s is the product of a daily curve, a weekly curve and campaigns, constant within each UTC hour, and scaled so that its mean over each
365 days counted from the first day is 1. Being piecewise constant, Λ and its inverse are exact. A purchase process that is stationary
in Λ is one whose rates are multiplied by s(t); campaigns change s(t) and nothing else.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import numpy as np
import numpy.typing as npt

HOUR_US = 3_600_000_000
DAY_US = 24 * HOUR_US
WEEK_US = 7 * DAY_US
YEAR_DAYS = 365
_HOURS_A_WEEK = 168

Microseconds = npt.NDArray[np.int64]
Weeks = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Campaign:
    """A stretch of days in each year with another level of business.

    `first` and `last` are (month, day), both included; a stretch may pass the turn of the year. `factor` multiplies s(t), above 0.
    """

    name: str
    first: tuple[int, int]
    last: tuple[int, int]
    factor: float

    def __post_init__(self) -> None:
        if not 0 < self.factor < float("inf"):
            raise ValueError(f"the factor of campaign {self.name!r} must be above 0, not {self.factor}")

    def covers(self, day: date) -> bool:
        """Whether the day lies in the campaign."""
        place = (day.month, day.day)
        if self.first <= self.last:
            return self.first <= place <= self.last
        return place >= self.first or place <= self.last


@dataclass(frozen=True)
class SeasonShape:
    """The factors of s(t) before scaling: by UTC hour, by weekday (Monday first), and campaigns. All above 0."""

    hours: tuple[float, ...] = (2, 1, 1, 1, 1, 2, 4, 6, 8, 10, 12, 13, 14, 13, 12, 11, 11, 11, 12, 13, 13, 11, 8, 4)
    weekdays: tuple[float, ...] = (1.0, 0.95, 0.95, 1.0, 1.05, 1.1, 0.95)
    campaigns: tuple[Campaign, ...] = (
        Campaign("spring", (3, 15), (3, 28), 1.2),
        Campaign("summer sale", (7, 1), (7, 14), 1.35),
        Campaign("black week", (11, 20), (11, 30), 1.8),
        Campaign("christmas", (12, 1), (12, 20), 1.6),
        Campaign("turn of the year", (12, 25), (1, 6), 0.7),
    )

    def __post_init__(self) -> None:
        if len(self.hours) != 24 or len(self.weekdays) != 7:
            raise ValueError("a season needs 24 factors by hour and 7 by weekday")
        if min(*self.hours, *self.weekdays) <= 0:
            raise ValueError("the factors of a season must be above 0")

    @classmethod
    def flat(cls) -> SeasonShape:
        """No season: operational time is calendar time."""
        return cls(hours=(1.0,) * 24, weekdays=(1.0,) * 7, campaigns=())


class Season:
    """s(t) and Λ(t) over a stretch of days. Times are microseconds since 1970 UTC, operational time is in weeks.

    Args:
        shape: the factors.
        first: first day; Λ is 0 at its midnight.
        days: how many days are covered.

    Attributes:
        level: s by hour.
        passed_weeks: Λ at the begin of each hour and at the end of the last; one longer than `level`.
    """

    def __init__(self, shape: SeasonShape, first: date, days: int) -> None:
        self.first = first
        self.days = days
        self.start_us = midnight_us(first)
        years = -(-days // YEAR_DAYS)
        by_day = np.array([_day_factor(shape, first + timedelta(days=d)) for d in range(years * YEAR_DAYS)])
        raw = (by_day[:, None] * np.array(shape.hours, dtype=np.float64)).reshape(years, -1)
        scaled = raw / raw.mean(axis=1, keepdims=True)
        self.level: Weeks = scaled.reshape(-1)[: days * 24].copy()
        self.passed_weeks: Weeks = np.concatenate(([0.0], np.cumsum(self.level))) / _HOURS_A_WEEK

    @property
    def end_us(self) -> int:
        """Midnight after the last day."""
        return self.start_us + self.days * DAY_US

    def operational_weeks(self, at_us: Microseconds | int) -> Weeks:
        """Λ of calendar times.

        Raises:
            ValueError: a time lies outside the days covered.
        """
        since = np.asarray(at_us, dtype=np.int64) - self.start_us
        if since.size and (since.min() < 0 or since.max() > self.days * DAY_US):
            raise ValueError(f"a time lies outside the {self.days} days from {self.first}")
        hour = np.minimum(since // HOUR_US, self.level.size - 1)
        return np.asarray(self.passed_weeks[hour] + self.level[hour] * ((since - hour * HOUR_US) / WEEK_US))

    def calendar_us(self, weeks: Weeks) -> Microseconds:
        """The calendar times at which Λ has the given values, to the microsecond.

        Raises:
            ValueError: a value lies outside the days covered.
        """
        wanted = np.asarray(weeks, dtype=np.float64)
        if wanted.size and (wanted.min() < 0 or wanted.max() > self.passed_weeks[-1]):
            raise ValueError(f"an operational time lies outside the {self.days} days from {self.first}")
        hour = np.clip(np.searchsorted(self.passed_weeks, wanted, side="right") - 1, 0, self.level.size - 1)
        within = (wanted - self.passed_weeks[hour]) / self.level[hour] * WEEK_US
        return np.asarray(self.start_us + hour * HOUR_US + np.clip(within, 0, HOUR_US - 1).astype(np.int64))


def midnight_us(day: date) -> int:
    """UTC midnight at which a day begins, in microseconds since 1970."""
    return int(datetime(day.year, day.month, day.day, tzinfo=UTC).timestamp()) * 1_000_000


def _day_factor(shape: SeasonShape, day: date) -> float:
    factor = shape.weekdays[day.weekday()]
    for campaign in shape.campaigns:
        if campaign.covers(day):
            factor *= campaign.factor
    return factor

"""Who arrives when, and when they buy: Poisson cohorts and BG/NBD, both in operational time.

Fader, Hardie and Lee (2005): the first purchase is the birth; while alive a customer buys again at rate λ ~ Gamma(r, α); after each
repeat purchase the customer drops out with probability p ~ Beta(a, b); λ and p are independent. With `dropout_at_first` the coin is
flipped after the first purchase as well, which is MBG/NBD. Rates are per week of operational time: in calendar time λ is multiplied
by the season s(t).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from generator.population_model.season import DAY_US, Microseconds, Season, Weeks


@dataclass(frozen=True)
class BgNbd:
    """Parameters of the purchase model; `alpha` in weeks. The defaults are those published for the CDNOW sample."""

    r: float = 0.243
    alpha: float = 4.414
    a: float = 0.793
    b: float = 2.426
    dropout_at_first: bool = False

    def __post_init__(self) -> None:
        for name in ("r", "alpha", "a", "b"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be above 0, not {getattr(self, name)}")


@dataclass(frozen=True)
class Customers:
    """One entry per customer, in the order of their births.

    `rate_per_week` is λ and `dropout_probability` p; `dropout_us` is the purchase after which the customer left, -1 for one who had not
    left by the horizon.
    """

    birth_us: Microseconds
    rate_per_week: Weeks
    dropout_probability: npt.NDArray[np.float64]
    dropout_us: Microseconds

    @property
    def count(self) -> int:
        """How many customers."""
        return int(self.birth_us.size)


@dataclass(frozen=True)
class Purchases:
    """One entry per purchase, in the order of time. `ordinal` is 0 for a customer's first; `weeks` is Λ of `at_us`."""

    customer: npt.NDArray[np.int64]
    ordinal: npt.NDArray[np.int64]
    at_us: Microseconds
    weeks: Weeks

    @property
    def count(self) -> int:
        """How many purchases."""
        return int(self.at_us.size)


def arrivals(season: Season, opens_us: int, closes_us: int, expected: float, random: np.random.Generator) -> Weeks:
    """Births in operational weeks, rising: each day's cohort is Poisson with a mean in proportion to the day's share of Λ.

    Args:
        season: the clock.
        opens_us: when the first customer may arrive.
        closes_us: when the last one may.
        expected: mean number of customers over the whole stretch.
        random: generator of the purpose.
    """
    bounds_us = np.unique(np.append(np.arange(opens_us - opens_us % DAY_US, closes_us, DAY_US).clip(opens_us), closes_us))
    bounds = season.operational_weeks(bounds_us)
    shares = np.diff(bounds) / (bounds[-1] - bounds[0])
    counts = random.poisson(expected * shares)
    day = np.repeat(np.arange(counts.size), counts)
    return np.sort(bounds[day] + random.random(day.size) * np.diff(bounds)[day])


def buy(season: Season, births: Weeks, model: BgNbd, rates: np.random.Generator, times: np.random.Generator) -> tuple[Customers, Purchases]:
    """Draw each customer's rates and every purchase up to the season's end.

    Args:
        season: the clock; its last day is the horizon.
        births: first purchases in operational weeks, rising.
        model: parameters.
        rates: generator of λ and p.
        times: generator of purchase times and drop-outs.
    """
    count = births.size
    rate = rates.gamma(model.r, 1 / model.alpha, count)
    probability = rates.beta(model.a, model.b, count)
    horizon = season.passed_weeks[-1]
    now = births.copy()
    left_at = np.full(count, np.nan)
    alive = np.arange(count)
    who, when, place = [alive], [births], [np.zeros(count, dtype=np.int64)]
    if model.dropout_at_first:
        alive = _survivors(alive, now, probability, left_at, times)
    step = 0
    while alive.size:
        step += 1
        # A rate so small that the division overflows buys never again, which infinity says.
        with np.errstate(over="ignore", divide="ignore"):
            now[alive] += times.standard_exponential(alive.size) / rate[alive]
        alive = alive[now[alive] < horizon]
        who.append(alive)
        when.append(now[alive].copy())
        place.append(np.full(alive.size, step))
        alive = _survivors(alive, now, probability, left_at, times)
    customer, ordinal = np.concatenate(who), np.concatenate(place)
    at_us = _apart(customer, ordinal, season.calendar_us(np.concatenate(when)))
    left_us = np.where(np.isnan(left_at), -1, 0)
    last = np.zeros(count, dtype=np.int64)
    np.maximum.at(last, customer, at_us)
    left_us = np.where(left_us == 0, last, -1)
    order = np.lexsort((customer, at_us))
    customer, ordinal, at_us = customer[order], ordinal[order], at_us[order]
    birth_us = np.zeros(count, dtype=np.int64)
    birth_us[customer[ordinal == 0]] = at_us[ordinal == 0]
    return (
        Customers(birth_us, rate, probability, left_us),
        Purchases(customer, ordinal, at_us, season.operational_weeks(at_us)),
    )


def _survivors(
    alive: npt.NDArray[np.int64],
    now: Weeks,
    probability: npt.NDArray[np.float64],
    left_at: Weeks,
    random: np.random.Generator,
) -> npt.NDArray[np.int64]:
    """Flip the coin of each customer who has just bought; who drops out is noted in `left_at`."""
    drops = random.random(alive.size) < probability[alive]
    left_at[alive[drops]] = now[alive[drops]]
    return alive[~drops]


def _apart(customer: npt.NDArray[np.int64], ordinal: npt.NDArray[np.int64], at_us: Microseconds) -> Microseconds:
    """Purchases of a customer that fall into the same microsecond, one microsecond apart."""
    order = np.lexsort((ordinal, customer))
    who, when = customer[order], at_us[order]
    while (close := (who[1:] == who[:-1]) & (when[1:] <= when[:-1])).any():
        when[1:][close] = when[:-1][close] + 1
    apart = np.empty_like(at_us)
    apart[order] = when
    return apart

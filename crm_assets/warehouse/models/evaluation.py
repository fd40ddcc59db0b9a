"""Judges a purchase model on a time split: what it said at a date against who bought within the horizon after it; pure.

Belongs here: the split, and the comparison with recency only and frequency only. Not here: reading the split (`reading`), the results'
form (`evaluation_result`), or whether a refit is taken (`promotion`).

The baselines rank by days of silence, and by the number of purchases. To give probabilities as well they learn, from the window before
the split, which share of customers bought at each level; so they know no more than the model does.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date

import numpy as np

from crm_assets.warehouse.models.evaluation_result import Calibration, Evaluation, Population, Predictor, Score
from crm_assets.warehouse.models.formulas import PurchaseParameters, p_buy
from crm_assets.warehouse.models.histories import Floats, Histories, Integers
from crm_assets.warehouse.models.metrics import (
    DECILES,
    RESAMPLES,
    SEED,
    Interval,
    Ranking,
    Truths,
    brier,
    deciles,
    log_loss,
    weighted_mean,
    weightings,
)

HORIZON_DAYS = 90
_RECENCY_LEVELS = 20
_FREQUENCY_CLASSES = ((0, 0), (1, 1), (2, 2), (3, 3), (4, 4), (5, 9), (10, None))


@dataclass(frozen=True)
class HoldOut:
    """A time split: the customers born on or before a date, and whether each bought within the horizon after it; times in days.

    `season_ratio` is how many purchase days the hold-out had over the same length before the split, by customers who were there for
    both; NaN where it is not known. Customers leave, so without a season it lies below 1. The models know no season: it is the first
    thing to look at when a calibration is off.
    """

    as_of: date
    horizon_days: int
    seen: Histories
    bought: Truths
    season_ratio: float = math.nan


def evaluate(
    held: HoldOut, parameters: PurchaseParameters, earlier: HoldOut | None = None, *, resamples: int = RESAMPLES, seed: int = SEED
) -> Evaluation:
    """Judge a model's probabilities on a hold-out.

    Args:
        held: the split, with at least one customer.
        parameters: the model, with `alpha` in days.
        earlier: the split one horizon before, from which the baselines learn their probabilities; without it they only rank.
        resamples: of the bootstrap by customer.
        seed: of the bootstrap.

    Raises:
        ValueError: the split has no customer.
    """
    seen, bought = held.seen, held.bought
    if not bought.size:
        raise ValueError(f"nobody had bought by {held.as_of}: nothing to judge")
    probability = p_buy(parameters, seen.repeats, seen.last, seen.age, held.horizon_days)
    silence = seen.age - seen.last
    learnt = _learn(earlier) if earlier is not None and earlier.bought.size else {}
    ranks: Mapping[Predictor, Floats] = {
        Predictor.MODEL: probability,
        Predictor.RECENCY: -silence,
        Predictor.FREQUENCY: seen.repeats.astype(np.float64),
    }
    probabilities = {Predictor.MODEL: probability} | {name: table.look_up(ranks[name]) for name, table in learnt.items()}
    groups = {Population.ALL: np.ones(bought.size, bool), Population.ONE_TIME: seen.repeats == 0, Population.REPEAT: seen.repeats > 0}
    groups = {name: members for name, members in groups.items() if members.any()}

    tables = {
        (population, name): _Measured(
            ranks[name][members], probabilities[name][members] if name in probabilities else None, bought[members]
        )
        for population, members in groups.items()
        for name in Predictor
    }
    by_decile, by_frequency = deciles(probability), _frequency_class(seen.repeats)
    shares = _GroupShares(
        np.concatenate((_indicator(by_decile - 1, DECILES), _indicator(by_frequency, len(_FREQUENCY_CLASSES))), axis=1), bought
    )
    ratios = []
    for weights in weightings(bought.size, resamples, seed):
        for population, members in groups.items():
            drawn = weights if population is Population.ALL else weights[:, members]
            for name in Predictor:
                tables[population, name].add(drawn)
        shares.add(weights)
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios.append(weights @ probability / (weights @ bought.astype(np.float64)))

    def calibration(group: str, column: int, members: Truths) -> Calibration:
        return Calibration(
            group, int(members.sum()), float(probability[members].sum()), int(bought[members].sum()), shares.interval(column)
        )

    return Evaluation(
        as_of=held.as_of,
        horizon_days=held.horizon_days,
        method=parameters.method,
        scores=tuple(
            tables[population, name].score(population, name, tables[population, Predictor.MODEL])
            for population in groups
            for name in Predictor
        ),
        by_decile=tuple(calibration(str(d), d - 1, by_decile == d) for d in range(1, DECILES + 1) if (by_decile == d).any()),
        by_frequency=tuple(
            calibration(_class_name(n), DECILES + n, by_frequency == n) for n in range(len(_FREQUENCY_CLASSES)) if (by_frequency == n).any()
        ),
        predicted_over_observed=Interval.of(np.concatenate(ratios)),
        season_ratio=held.season_ratio,
    )


class _Measured:
    """One predictor on one population, with its figures of each resample as they come."""

    def __init__(self, rank: Floats, probability: Floats | None, bought: Truths) -> None:
        self.bought, self.probability = bought, probability
        self._ranking = Ranking(rank, bought)
        self._losses = None if probability is None else (brier(probability, bought), log_loss(probability, bought))
        self._auc: list[Floats] = []
        self._lift: list[Floats] = []
        self._means: tuple[list[Floats], list[Floats]] = ([], [])

    def add(self, weights: Floats) -> None:
        auc, lift = self._ranking.auc_and_lift(weights)
        self._auc.append(auc)
        self._lift.append(lift)
        for into, losses in zip(self._means, self._losses or (), strict=False):
            into.append(weighted_mean(weights, losses))

    def auc(self) -> Floats:
        return np.concatenate(self._auc)

    def score(self, population: Population, name: Predictor, model: _Measured) -> Score:
        mean_brier, mean_log_loss = (Interval.of(np.concatenate(values)) if values else None for values in self._means)
        return Score(
            population=population,
            predictor=name,
            customers=int(self.bought.size),
            buyers=int(self.bought.sum()),
            expected_buyers=None if self.probability is None else float(self.probability.sum()),
            auc=Interval.of(self.auc()),
            top_decile_lift=Interval.of(np.concatenate(self._lift)),
            brier=mean_brier,
            log_loss=mean_log_loss,
            model_auc_above=None if self is model else Interval.of(model.auc() - self.auc()),
        )


class _GroupShares:
    """Observed share of buyers in groups of customers, of each resample."""

    def __init__(self, members: Floats, bought: Truths) -> None:
        self._columns = np.concatenate((members * bought[:, None], members), axis=1)
        self._shares: list[Floats] = []

    def add(self, weights: Floats) -> None:
        buyers, everybody = np.split(weights @ self._columns, 2, axis=1)
        with np.errstate(divide="ignore", invalid="ignore"):
            self._shares.append(buyers / everybody)

    def interval(self, column: int) -> Interval:
        return Interval.of(np.concatenate([share[:, column] for share in self._shares]))


@dataclass(frozen=True)
class _Levels:
    """Share of buyers by level of a single figure, learnt earlier. `bounds` divide the levels."""

    bounds: Floats
    shares: Floats

    @classmethod
    def learn(cls, figure: Floats, bounds: Floats, bought: Truths) -> _Levels:
        level = np.searchsorted(bounds, figure, side="right")
        number = np.bincount(level, minlength=bounds.size + 1)
        buyers = np.bincount(level, weights=bought, minlength=bounds.size + 1)
        # One customer's worth of the mean keeps an empty level, or one where all did the same, off 0 and 1.
        return cls(bounds, (buyers + bought.mean()) / (number + 1))

    def look_up(self, figure: Floats) -> Floats:
        return np.asarray(self.shares[np.searchsorted(self.bounds, figure, side="right")], np.float64)


def _learn(earlier: HoldOut) -> dict[Predictor, _Levels]:
    recency = earlier.seen.last - earlier.seen.age
    recency_bounds = np.unique(np.quantile(recency, np.linspace(0, 1, _RECENCY_LEVELS + 1)[1:-1]))
    frequency_bounds = np.array([low for low, _ in _FREQUENCY_CLASSES[1:]], np.float64)
    return {
        Predictor.RECENCY: _Levels.learn(recency, recency_bounds, earlier.bought),
        Predictor.FREQUENCY: _Levels.learn(earlier.seen.repeats.astype(np.float64), frequency_bounds, earlier.bought),
    }


def _indicator(column: Integers, columns: int) -> Floats:
    return np.asarray(np.eye(columns)[column], np.float64)


def _frequency_class(repeats: Integers) -> Integers:
    return np.searchsorted([low for low, _ in _FREQUENCY_CLASSES[1:]], repeats, side="right")


def _class_name(number: int) -> str:
    low, high = _FREQUENCY_CLASSES[number]
    return f"x = {low}" if low == high else f"x >= {low}" if high is None else f"x = {low} to {high}"

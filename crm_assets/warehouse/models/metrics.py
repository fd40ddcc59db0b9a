"""How well a prediction of buyers was, over many weightings of the same customers at once; pure.

Belongs here: AUC, Brier score, log-loss, lift, deciles, and the bootstrap by customer that gives them intervals. Not here: what is
predicted (`evaluation`).

A resample of customers is a row of weights: how often each customer was drawn. The customers as they are, all weights 1, are the first row
of each block, so point value and interval come from the same code. Everything is tie-safe: equal predictions share ranks and deciles.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from crm_assets.warehouse.models.histories import Floats, Integers

RESAMPLES = 1000
SEED = 20260131
"""Of the bootstrap: the same data give the same intervals."""
DECILES = 10
_CELLS_AT_ONCE = 2_000_000
_SMALLEST_PROBABILITY = 1e-12

Truths = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval and standard error over the resamples; NaN where it is not defined."""

    value: float
    low: float
    high: float
    standard_error: float

    @classmethod
    def of(cls, values: Floats) -> Interval:
        """From the figure of the customers as they are, first, and of each resample."""
        drawn = values[1:][np.isfinite(values[1:])]
        if not drawn.size:
            return cls(float(values[0]), float("nan"), float("nan"), float("nan"))
        low, high = np.quantile(drawn, (0.025, 0.975))
        return cls(float(values[0]), float(low), float(high), float(drawn.std()))


def weightings(customers: int, resamples: int, seed: int = SEED) -> Iterator[Floats]:
    """Blocks of weights, a row per resample and a column per customer; the very first row is all ones."""
    random = np.random.default_rng(seed)
    yield np.ones((1, customers))
    at_once = max(1, _CELLS_AT_ONCE // max(customers, 1))
    for begin in range(0, resamples, at_once):
        rows = min(at_once, resamples - begin)
        drawn = random.integers(0, customers, (rows, customers)) + np.arange(rows)[:, None] * customers
        yield np.bincount(drawn.ravel(), minlength=rows * customers).reshape(rows, customers).astype(np.float64)


class Ranking:
    """Customers from the highest score to the lowest, equal scores together."""

    def __init__(self, scores: Floats, bought: Truths) -> None:
        self._order = np.argsort(-scores, kind="stable")
        ranked = scores[self._order]
        self._begins = np.flatnonzero(np.append(True, ranked[1:] != ranked[:-1])) if ranked.size else np.zeros(0, np.int64)
        self._bought = bought[self._order].astype(np.float64)

    def auc_and_lift(self, weights: Floats) -> tuple[Floats, Floats]:
        """By row of weights: the area under the ROC curve, and the lift of the best tenth.

        AUC is the chance that a buyer is ranked above one who did not buy, ties counting half. Lift is the share of buyers in the top tenth
        over the share in all; where the tenth cuts through equal scores it takes that part of them.
        """
        ranked = weights[:, self._order]
        everybody = np.add.reduceat(ranked, self._begins, axis=1)
        buyers = np.add.reduceat(ranked * self._bought, self._begins, axis=1)
        others = everybody - buyers
        all_buyers, all_others = buyers.sum(axis=1), others.sum(axis=1)
        below = all_others[:, None] - np.cumsum(others, axis=1) + others / 2
        tenth = weights.sum(axis=1) / DECILES
        reached = np.cumsum(everybody, axis=1)
        cut = (reached >= tenth[:, None] * (1 - 1e-12)).argmax(axis=1)
        rows = np.arange(weights.shape[0])
        before = reached[rows, cut] - everybody[rows, cut]
        buyers_before = np.cumsum(buyers, axis=1)[rows, cut] - buyers[rows, cut]
        with np.errstate(divide="ignore", invalid="ignore"):
            auc = (buyers * below).sum(axis=1) / (all_buyers * all_others)
            in_top = buyers_before + (tenth - before) / everybody[rows, cut] * buyers[rows, cut]
            lift = in_top / tenth / (all_buyers / weights.sum(axis=1))
        return auc, lift


def brier(probability: Floats, bought: Truths) -> Floats:
    """Squared error of each customer's probability."""
    return np.asarray((probability - bought) ** 2, np.float64)


def log_loss(probability: Floats, bought: Truths) -> Floats:
    """Negative logarithm of the probability given to what each customer did, in nats; probabilities of 0 and 1 are taken a hair off."""
    p = np.clip(probability, _SMALLEST_PROBABILITY, 1 - _SMALLEST_PROBABILITY)
    return np.asarray(-np.where(bought, np.log(p), np.log1p(-p)), np.float64)


def weighted_mean(weights: Floats, values: Floats) -> Floats:
    """Mean of a figure of each customer, by row of weights; NaN where a row has no weight."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.asarray(weights @ values / weights.sum(axis=1), np.float64)


def deciles(probability: Floats) -> Integers:
    """Decile of each customer by probability, 1 the lowest: 1 + (number below × 10) div n, so equal probabilities share one."""
    ranked = np.sort(probability)
    return 1 + np.searchsorted(ranked, probability, side="left") * DECILES // max(probability.size, 1)

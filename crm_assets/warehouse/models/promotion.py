"""Whether a refit takes the place of the model that scores, and how far the two drifted apart; pure.

Belongs here: the rule and the measures of drift. Not here: storing the decision (`storage`).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crm_assets.warehouse.models.evaluation import HoldOut
from crm_assets.warehouse.models.formulas import PurchaseParameters, p_buy
from crm_assets.warehouse.models.histories import Floats, Histories
from crm_assets.warehouse.models.metrics import RESAMPLES, SEED, Interval, log_loss, weighted_mean, weightings

LARGEST_STABILITY_INDEX = 0.2
"""Of the scores' distribution; the usual bound above which two populations count as different."""
LARGEST_SCORE_CHANGE = 0.05
"""Mean change of a customer's probability from one model to the next."""
LARGEST_PARAMETER_FACTOR = 1.5
_SCORE_BINS = 10


@dataclass(frozen=True)
class Promotion:
    """The decision and what it rests on: `worse_by` is the refit's hold-out log-loss less the current model's, in nats per customer.

    `worse_by` is `None` where there is no model yet, or no hold-out to compare on.
    """

    promote: bool
    reason: str
    worse_by: Interval | None


@dataclass(frozen=True)
class Drift:
    """How a refit differs from the current model, on the customers of today.

    `parameter_factors` holds new over old by name, only where both models identified drop-out: otherwise the parameters mean nothing by
    themselves. `stability_index` (PSI) compares the distributions of the two models' probabilities.
    """

    parameter_factors: dict[str, float]
    mean_score_change: float
    stability_index: float

    @property
    def warnings(self) -> tuple[str, ...]:
        """What drifted further than is usual between two fits; empty where nothing did."""
        found = [
            f"{name} is {factor:.2f} times what it was"
            for name, factor in self.parameter_factors.items()
            if not 1 / LARGEST_PARAMETER_FACTOR <= factor <= LARGEST_PARAMETER_FACTOR
        ]
        if self.mean_score_change > LARGEST_SCORE_CHANGE:
            found.append(f"probabilities changed by {self.mean_score_change:.3f} on average")
        if self.stability_index > LARGEST_STABILITY_INDEX:
            found.append(f"the scores' stability index is {self.stability_index:.2f}")
        return tuple(found)


def decide_promotion(
    refit: PurchaseParameters,
    current: PurchaseParameters | None,
    held: HoldOut | None,
    *,
    resamples: int = RESAMPLES,
    seed: int = SEED,
) -> Promotion:
    """A refit is promoted when its hold-out log-loss is not worse than the current model's by more than one bootstrap standard error.

    Both are judged on the same customers and window, and the standard error is that of their paired difference.

    Args:
        refit: fitted on nothing after the split.
        current: the model that scores now; `None` when there is none.
        held: the split; `None` when the shop is too young for one.
        resamples: of the bootstrap by customer.
        seed: of the bootstrap.
    """
    if current is None:
        return Promotion(True, "there is no model in days yet", None)
    if held is None or not held.bought.size:
        return Promotion(False, "there is no hold-out to compare with the current model on", None)
    seen, bought = held.seen, held.bought
    losses = [log_loss(p_buy(model, seen.repeats, seen.last, seen.age, held.horizon_days), bought) for model in (refit, current)]
    difference = losses[0] - losses[1]
    rows = [weighted_mean(weights, difference) for weights in weightings(bought.size, resamples, seed)]
    worse = Interval.of(np.concatenate(rows))
    promote = worse.value <= worse.standard_error
    reason = (
        f"hold-out log-loss of the refit is {worse.value:+.6f} against the current model's, "
        f"{'within' if promote else 'more than'} one standard error ({worse.standard_error:.6f})"
    )
    return Promotion(promote, reason, worse)


def measure_drift(refit: PurchaseParameters, current: PurchaseParameters, today: Histories, horizon_days: int) -> Drift:
    """Differences of two models in parameters and in the probabilities they give the same customers.

    Args:
        refit: the newer model.
        current: the one that scores now.
        today: histories as of now, in days.
        horizon_days: of the probabilities.
    """
    scores = [p_buy(model, today.repeats, today.last, today.age, horizon_days) for model in (refit, current)]
    factors = {}
    if refit.dropout_identified and current.dropout_identified and refit.family is current.family:
        factors = {name: getattr(refit, name) / getattr(current, name) for name in ("r", "alpha", "a", "b")}
    change = float(np.average(np.abs(scores[0] - scores[1]), weights=today.customers))
    return Drift(factors, change, stability_index(scores[1], scores[0], today.customers.astype(np.float64)))


def stability_index(before: Floats, after: Floats, weights: Floats) -> float:
    """Population stability index: Σ (after - before)·ln(after/before) over the shares in ten bins, bounded by deciles of `before`."""
    bounds = np.unique(np.quantile(before, np.linspace(0, 1, _SCORE_BINS + 1)[1:-1]))
    shares = []
    for values in (before, after):
        number = np.bincount(np.searchsorted(bounds, values, side="right"), weights=weights, minlength=bounds.size + 1)
        # Half a customer in each bin: an empty one has no logarithm.
        shares.append((number + 0.5) / (number.sum() + 0.5 * number.size))
    return float(np.sum((shares[1] - shares[0]) * np.log(shares[1] / shares[0])))

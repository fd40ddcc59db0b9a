"""Finds the parameters of the highest likelihood, and says whether drop-out can be told from the data.

Belongs here: the search, and judging its result. Not here: likelihoods, or which histories are fitted.

The search runs in the parameters' logarithms, with exact derivatives, from fixed starts.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from crm_assets.warehouse.models.formulas import PurchaseParameters, SpendParameters
from crm_assets.warehouse.models.histories import Family, Floats, Histories, Integers
from crm_assets.warehouse.models.likelihoods import Spendings, purchase_log_likelihood, spend_log_likelihood

LOWEST, HIGHEST = 1e-4, 1e4
SMALLEST_DROPOUT = 0.005
"""Mean drop-out probability a/(a+b) below which the data do not tell drop-out from silence."""
LARGEST_CORRELATION = 0.1
"""Of frequency and value; above it Gamma-Gamma's independence is in doubt and a warning is due."""

_NAMES = ("r", "alpha", "a", "b")
_STARTS = ((0.25, 0.15, 0.8, 2.5), (1.0, 1.0, 1.0, 1.0), (0.5, 0.3, 0.2, 4.0), (2.0, 0.5, 0.1, 10.0))
"""r, alpha over the mean age, a, b."""
_SPEND_STARTS = ((5.0, 3.0, 0.5), (1.0, 2.0, 1.0), (2.0, 10.0, 5.0))
"""p, q, v over the mean amount."""
_SINGULAR = 1e-8
_ON_BOUND = 1e-3
_STEP = 1e-4

Objective = Callable[[Floats], tuple[float, Floats]]


class FitError(RuntimeError):
    """No maximum was found; the message says why and what to do."""


@dataclass(frozen=True)
class Maximum:
    """A maximum of a likelihood: parameters, the likelihood's logarithm, and what its surroundings look like.

    `on_bound` holds the positions of parameters that the bounds hold; `singular` is whether some direction is flat.
    """

    parameters: Floats
    log_likelihood: float
    on_bound: tuple[int, ...]
    singular: bool


@dataclass(frozen=True)
class PurchaseFit:
    """A fitted purchase model. `why_unidentified` is empty where drop-out is identified."""

    parameters: PurchaseParameters
    log_likelihood: float
    customers: int
    why_unidentified: str
    data_hash: str


@dataclass(frozen=True)
class SpendFit:
    """A fitted Gamma-Gamma, or why there is none.

    `correlation` is Pearson's, of the number of purchase days and their mean amount; NaN where one of them does not vary.
    """

    parameters: SpendParameters | None
    log_likelihood: float
    customers: int
    correlation: float
    refusal: str = ""

    @property
    def correlated(self) -> bool:
        """Whether frequency and value go together more than the model allows for."""
        return self.correlation > LARGEST_CORRELATION


def fit_purchases(seen: Histories, family: Family) -> PurchaseFit:
    """The purchase model of the highest likelihood.

    Args:
        seen: histories of all customers, one-time buyers included.
        family: BG/NBD or MBG/NBD.

    Raises:
        FitError: there is nothing to fit, or no start led to a maximum.
    """
    grouped = seen.grouped()
    count = grouped.count
    if not count or not grouped.age.any():
        raise FitError("no history has any length: there is nothing to fit")
    mean_age = float(np.average(grouped.age, weights=grouped.customers))
    starts = [np.array((r, share * mean_age, a, b)) for r, share, a, b in _STARTS]
    found = maximize(lambda parameters: purchase_log_likelihood(family, parameters, grouped), starts, count)
    r, alpha, a, b = (float(value) for value in found.parameters)
    why = _why_unidentified(found, a / (a + b))
    return PurchaseFit(PurchaseParameters(family, r, alpha, a, b, not why), found.log_likelihood, count, why, seen.data_hash())


def fit_spend(number: Integers, total: Floats) -> SpendFit:
    """Gamma-Gamma of the highest likelihood, over customers with at least one amount.

    Amounts are divided by their mean for the search, so that its bounds fit any currency.

    Args:
        number: by customer, purchase days that count: without the first day, with an amount above 0.
        total: their restated amounts' sum.

    Raises:
        FitError: no start led to a maximum.
    """
    counts = (number > 0) & (total > 0)
    n, amount = number[counts], total[counts]
    if n.size < 2:
        return SpendFit(None, float("nan"), int(n.size), float("nan"), f"{n.size} customers with an amount after the first day: too few")
    correlation = _correlation(n.astype(np.float64), amount / n)
    scale = float(np.mean(amount / n))
    seen = Spendings(n, amount / scale)
    found = maximize(lambda parameters: spend_log_likelihood(parameters, seen), [np.array(start) for start in _SPEND_STARTS], n.size)
    p, q, v = (float(value) for value in found.parameters)
    log_likelihood = found.log_likelihood - n.size * float(np.log(scale))
    if q <= 1:
        refusal = f"q = {q:.4g} is not above 1: the expected amount of a customer has no bound"
        return SpendFit(None, log_likelihood, int(n.size), correlation, refusal)
    return SpendFit(SpendParameters(p, q, v * scale), log_likelihood, int(n.size), correlation)


def maximize(log_likelihood: Objective, starts: list[Floats], observations: int) -> Maximum:
    """The highest likelihood within the bounds, from several starts.

    Args:
        log_likelihood: value and derivatives at parameters above 0.
        starts: parameters to begin from.
        observations: how many there are; the search looks at the mean, so that its tolerances mean the same for any size.

    Raises:
        FitError: no start led to a finite value.
    """
    from scipy.optimize import minimize

    lowest, highest = np.log(LOWEST), np.log(HIGHEST)

    def objective(logs: Floats) -> tuple[float, Floats]:
        parameters = np.exp(logs)
        value, gradient = log_likelihood(parameters)
        return -value / observations, -gradient * parameters / observations

    logs: Floats | None = None
    best_value = np.inf
    for start in starts:
        first = np.log(np.clip(start, LOWEST, HIGHEST))
        found = minimize(
            objective,
            first,
            jac=True,
            method="L-BFGS-B",
            bounds=[(lowest, highest)] * first.size,
            options={"maxiter": 1000, "ftol": 1e-14, "gtol": 1e-10},
        )
        if np.isfinite(found.fun) and found.fun < best_value:
            logs, best_value = np.asarray(found.x, np.float64), float(found.fun)
    if logs is None:
        raise FitError("the likelihood is not finite from any start; look at the histories for extreme values")
    free = (logs > lowest + _ON_BOUND) & (logs < highest - _ON_BOUND)
    curvature = np.linalg.eigvalsh(_hessian(objective, logs)[np.ix_(free, free)]) if free.any() else np.zeros(1)
    return Maximum(
        np.exp(logs),
        -objective(logs)[0] * observations,
        tuple(int(place) for place in np.flatnonzero(~free)),
        bool(curvature[0] <= _SINGULAR * max(curvature[-1], _SINGULAR)),
    )


def _hessian(objective: Objective, logs: Floats) -> Floats:
    """Second derivatives, by central differences of the exact first ones."""
    rows = []
    for place in range(logs.size):
        step = np.zeros(logs.size)
        step[place] = _STEP
        rows.append((objective(logs + step)[1] - objective(logs - step)[1]) / (2 * _STEP))
    hessian = np.array(rows)
    return np.asarray((hessian + hessian.T) / 2, np.float64)


def _why_unidentified(found: Maximum, mean_dropout: float) -> str:
    if mean_dropout < SMALLEST_DROPOUT:
        return f"a/(a+b) = {mean_dropout:.2g} is below {SMALLEST_DROPOUT}"
    if found.on_bound:
        return f"{', '.join(_NAMES[place] for place in found.on_bound)} at the bound of the search ({LOWEST:g} to {HIGHEST:g})"
    return "the Hessian is singular: the likelihood is flat in some direction" if found.singular else ""


def _correlation(one: Floats, other: Floats) -> float:
    if one.std() == 0 or other.std() == 0:
        return float("nan")
    return float(np.corrcoef(one, other)[0, 1])

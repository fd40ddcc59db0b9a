"""Log-likelihoods of the purchase and spend models and their maximum, written from the papers, apart from the product's own fit.

Fader, Hardie and Lee (2005), "Counting Your Customers the Easy Way", equation 6, for BG/NBD; Fader and Hardie (2013), "The Gamma-Gamma
Model of Monetary Value", for the totals, here of the single orders instead of their mean.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Numbers = npt.NDArray[np.float64]
LOWEST, HIGHEST = 1e-4, 1e4


@dataclass(frozen=True)
class Histories:
    """What BG/NBD sees of each customer: repeat purchases, time of the last, length of the history; times in one unit."""

    repeats: npt.NDArray[np.int64]
    last: Numbers
    length: Numbers


@dataclass(frozen=True)
class Spendings:
    """What Gamma-Gamma sees: orders and their sum by customer, and the sum of the logarithms of all totals."""

    orders: npt.NDArray[np.int64]
    total: Numbers
    sum_of_logs: float


@dataclass(frozen=True)
class Fit:
    """The parameters of the highest likelihood, and its logarithm."""

    parameters: Numbers
    log_likelihood: float


def bgnbd(parameters: Sequence[float] | Numbers, seen: Histories) -> float:
    """Log-likelihood of (r, alpha, a, b); `alpha` in the histories' unit."""
    from scipy.special import gammaln

    r, alpha, a, b = parameters
    x = seen.repeats
    # Gamma functions depend on the number of repeats alone, of which there are few different ones.
    n = np.arange(x.max() + 1)
    by_repeats = gammaln(r + n) - gammaln(r) + r * np.log(alpha) + gammaln(a + b) + gammaln(b + n) - gammaln(b) - gammaln(a + b + n)
    still = -(r + x) * np.log(alpha + seen.length)
    again = x > 0
    left = np.log(a) - np.log(b + x[again] - 1) - (r + x[again]) * np.log(alpha + seen.last[again])
    still[again] = np.logaddexp(still[again], left)
    return float(np.sum(by_repeats[x] + still))


def gamma_gamma(parameters: Sequence[float] | Numbers, seen: Spendings) -> float:
    """Log-likelihood of (p, q, v) given every single total, `v` in the totals' unit."""
    from scipy.special import gammaln

    p, q, v = parameters
    pn = p * seen.orders
    by_customer = gammaln(pn + q) - gammaln(q) + q * np.log(v) - (pn + q) * np.log(v + seen.total) - seen.orders * gammaln(p)
    return float(np.sum(by_customer) + (p - 1) * seen.sum_of_logs)


def maximum(log_likelihood: Callable[[Numbers], float], starts: Sequence[Sequence[float]]) -> Fit:
    """The highest likelihood found from several starts, searched in the parameters' logarithms within bounds."""
    from scipy.optimize import minimize

    def negative(logs: Numbers) -> float:
        return -log_likelihood(np.exp(logs))

    bounds = [(np.log(LOWEST), np.log(HIGHEST))] * len(starts[0])
    found = [minimize(negative, np.log(start), method="L-BFGS-B", bounds=bounds) for start in starts]
    best = min(found, key=lambda f: float(f.fun))
    return Fit(np.exp(best.x), -float(best.fun))

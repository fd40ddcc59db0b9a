"""What each order amounts to: Gamma-Gamma, independent of how often a customer buys and when they leave.

Fader and Hardie (2013): an order of customer i is Gamma(p, ν_i), with ν_i ~ Gamma(q, v); the mean over all customers is p·v/(q-1). Totals
are rounded to whole cents, never below one.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

Cents = npt.NDArray[np.int64]


@dataclass(frozen=True)
class GammaGamma:
    """Parameters of the spend model; `v` in whole units of the currency. The defaults are those published for the CDNOW sample."""

    p: float = 6.25
    q: float = 3.74
    v: float = 15.44

    def __post_init__(self) -> None:
        if min(self.p, self.v) <= 0 or self.q <= 1:
            raise ValueError("p and v must be above 0 and q above 1, else the mean order has no bound")


def draw_totals(
    model: GammaGamma, customers: int, customer: npt.NDArray[np.int64], ordinal: npt.NDArray[np.int64], random: np.random.Generator
) -> tuple[npt.NDArray[np.float64], Cents]:
    """The ν of each customer, and the total of each purchase in cents.

    Args:
        model: parameters.
        customers: how many customers.
        customer: whose purchase it is.
        ordinal: which of the customer's purchases it is; with `customer` it fixes which draw the purchase gets.
        random: generator of the purpose.
    """
    nu = random.gamma(model.q, 1 / model.v, customers)
    by_customer = np.lexsort((ordinal, customer))
    totals = np.empty(customer.size)
    totals[by_customer] = random.standard_gamma(model.p, customer.size) / nu[customer[by_customer]]
    return nu, np.maximum(1, np.rint(totals * 100)).astype(np.int64)

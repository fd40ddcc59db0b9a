"""What the models predict of a customer with a given history; pure, and the same as the SQL of the marts.

Belongs here: closed forms, safe at any size. Not here: how parameters are found (`fitting`), or the scoring of customers (dbt macros).

x is the number of repeat purchases, t_x the time of the last, age T; times in the unit of the parameters. Powers are taken as clamped
logarithms, so that a customer with 2,000 purchases in 5,000 days neither overflows nor underflows.

Sources: Fader, Hardie and Lee (2005), equations 8 and 10; for MBG/NBD Batislam, Denizel and Filiztekin (2007); Fader and Hardie (2013).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crm_assets.warehouse.models.histories import Family, Floats, Integers

LARGEST_LOG = 700.0
"""exp(700) is still a double; whatever lies beyond is 0 or 1 to the last digit."""

_NEAR_ONE = 1e-4


@dataclass(frozen=True)
class PurchaseParameters:
    """Parameters of a purchase model; `alpha` in the unit of the histories.

    Where drop-out is not identified, customers are scored by the NBD limit: everybody is taken to be alive.
    """

    family: Family
    r: float
    alpha: float
    a: float
    b: float
    dropout_identified: bool = True

    @property
    def method(self) -> str:
        """What a score by these parameters is called: the model, or `nbd` for its limit without drop-out."""
        return self.family.value if self.dropout_identified else "nbd"


@dataclass(frozen=True)
class SpendParameters:
    """Parameters of Gamma-Gamma; `v` in the currency."""

    p: float
    q: float
    v: float


def p_alive(parameters: PurchaseParameters, repeats: Integers, last: Floats, age: Floats) -> Floats:
    """Probability that a customer has not dropped out, as the model's formula gives it, identified or not."""
    m = parameters
    coins = m.family.coins(repeats)
    silence = (m.r + repeats) * np.log((m.alpha + age) / (m.alpha + last))
    log_odds = np.log(m.a) - np.log(m.b + np.maximum(coins, 1) - 1.0) + silence
    alive: Floats = 1.0 / (1.0 + np.exp(np.clip(log_odds, -LARGEST_LOG, LARGEST_LOG)))
    return np.where(coins > 0, alive, 1.0)


def p_buy(parameters: PurchaseParameters, repeats: Integers, last: Floats, age: Floats, horizon: float) -> Floats:
    """Probability of at least one purchase within the horizon after the as-of date; 1 less it is the churn risk."""
    return _alive(parameters, repeats, last, age) * _buys_if_alive(parameters, repeats, age, horizon)


def risk_after_one_more_order(parameters: PurchaseParameters, repeats: Integers, age: Floats, horizon: float) -> Floats:
    """Churn risk the customer would have after an order on the as-of date: that of the history (x + 1, T, T)."""
    m = parameters
    coins = m.family.coins(repeats)
    survives = (m.b + coins) / (m.a + m.b + coins) if m.dropout_identified else 1.0
    return 1.0 - survives * _buys_if_alive(m, repeats + 1, age, horizon)


def expected_orders(parameters: PurchaseParameters, repeats: Integers, last: Floats, age: Floats, horizon: float) -> Floats:
    """Expected number of purchases within the horizon.

    While alive a customer buys at λ and leaves at λp, so λ and p given the expectation is (1 - e^(-λph))/p. Over λ ~ Gamma(r+x, α+T) and
    p ~ Beta(a, b+k) this is c/(a-1) · [1 - (1+h/(α+T))^(1-a) · ₂F₁(c-r-x, a-1; c; h/(α+T+h))] with c = a+b+k-1: equation 10 of Fader,
    Hardie and Lee after Euler's transformation, which takes x out of all but c and so keeps it in range. The NBD limit has (r+x)·h/(α+T).
    """
    from scipy.special import hyp2f1

    m = parameters
    rate, passed = m.r + repeats, horizon / (m.alpha + age)
    if not m.dropout_identified:
        return np.asarray(rate * passed, np.float64)
    k = m.family.coins(repeats)

    def at(a: float) -> Floats:
        c = a + m.b + k - 1.0
        left = (1.0 + passed) ** (1.0 - a) * hyp2f1(c - rate, a - 1.0, c, passed / (1.0 + passed))
        return np.asarray(c / (a - 1.0) * (1.0 - left), np.float64)

    # At a = 1 the two factors are 0 and infinite; around it the function is smooth, so the mean of both sides serves.
    if_alive = at(m.a) if abs(m.a - 1.0) > _NEAR_ONE else (at(1.0 - _NEAR_ONE) + at(1.0 + _NEAR_ONE)) / 2
    return p_alive(m, repeats, last, age) * if_alive


def expected_amount(parameters: SpendParameters, number: Integers, total: Floats) -> Floats:
    """Expected amount of a further purchase day: p·(v + n·z̄)/(p·n + q - 1); without any amount seen p·v/(q - 1).

    Args:
        parameters: with q above 1, else there is no mean.
        number: n, purchase days that count (see `Spendings`), 0 or above.
        total: n·z̄, their sum.
    """
    m = parameters
    return np.asarray(m.p * (m.v + total) / (m.p * number + m.q - 1.0), np.float64)


def _alive(parameters: PurchaseParameters, repeats: Integers, last: Floats, age: Floats) -> Floats:
    return p_alive(parameters, repeats, last, age) if parameters.dropout_identified else np.ones(np.shape(age))


def _buys_if_alive(parameters: PurchaseParameters, repeats: Integers, age: Floats, horizon: float) -> Floats:
    logarithm = (parameters.r + repeats) * np.log1p(horizon / (parameters.alpha + age))
    return np.asarray(-np.expm1(-np.minimum(logarithm, LARGEST_LOG)), np.float64)

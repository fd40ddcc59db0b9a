"""Log-likelihoods of the models with their gradients; pure.

Belongs here: the formulas of the papers. Not here: searching for a maximum (`fitting`), or predictions (`formulas`).

Sources: Fader, Hardie and Lee (2005), "Counting Your Customers the Easy Way", equation 6, for BG/NBD; Batislam, Denizel and Filiztekin
(2007), "Empirical validation and comparison of models for customer base analysis", for MBG/NBD; Fader and Hardie (2013), "The
Gamma-Gamma Model of Monetary Value", equation 1a, for the mean of a customer's amounts.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crm_assets.warehouse.models.histories import Family, Floats, Histories, Integers


@dataclass(frozen=True)
class Spendings:
    """What Gamma-Gamma sees: by customer, how many amounts there are, and their sum; all above 0."""

    number: Integers
    total: Floats


def purchase_log_likelihood(family: Family, parameters: Floats, seen: Histories) -> tuple[float, Floats]:
    """Log-likelihood of (r, alpha, a, b) given histories, and its four derivatives.

    A customer who has survived k coins was alive at the end, or dropped out at the last of them:
    L = Γ(r+x)·α^r/Γ(r) · B(a, b+k)/B(a, b) · [(α+T)^-(r+x) + {k>0}·a/(b+k-1)·(α+t_x)^-(r+x)], with k = x for BG/NBD and x + 1 for MBG/NBD.

    Args:
        family: BG/NBD or MBG/NBD.
        parameters: r, alpha (in the histories' unit), a, b; all above 0.
        seen: histories, equal ones grouped or not.
    """
    from scipy.special import digamma, gammaln

    r, alpha, a, b = parameters
    x, k = seen.repeats, family.coins(seen.repeats)
    # Gamma functions depend on small whole numbers alone, of which there are few different ones.
    steps = np.arange(int(k.max(initial=0)) + 1, dtype=np.float64)
    by_rate = gammaln(r + steps) - gammaln(r)
    by_coin = gammaln(b + steps) - gammaln(b) + gammaln(a + b) - gammaln(a + b + steps)
    log_age, log_last = np.log(alpha + seen.age), np.log(alpha + seen.last)
    exponent = r + x
    alive = -exponent * log_age
    coin_before = b + np.maximum(k, 1) - 1.0
    left = np.where(k > 0, np.log(a) - np.log(coin_before) - exponent * log_last, -np.inf)
    either = np.logaddexp(alive, left)
    value = by_rate[x] + r * np.log(alpha) + by_coin[k] + either

    share_alive, share_left = np.exp(alive - either), np.exp(left - either)
    digamma_a_b = digamma(a + b) - digamma(a + b + steps)
    gradient = (
        (digamma(r + steps) - digamma(r))[x] + np.log(alpha) - share_alive * log_age - share_left * log_last,
        r / alpha - exponent * (share_alive / (alpha + seen.age) + share_left / (alpha + seen.last)),
        digamma_a_b[k] + share_left / a,
        (digamma(b + steps) - digamma(b) + digamma_a_b)[k] - share_left / coin_before,
    )
    weights = seen.customers
    return float(weights @ value), np.array([weights @ part for part in gradient])


def spend_log_likelihood(parameters: Floats, seen: Spendings) -> tuple[float, Floats]:
    """Log-likelihood of (p, q, v) given the mean amount of each customer, and its three derivatives.

    f(z̄ | n) = Γ(pn+q)/(Γ(pn)Γ(q)) · v^q · z̄^(pn-1) · n^(pn) / (v + n·z̄)^(pn+q).

    Args:
        parameters: p, q, v (in the amounts' unit); all above 0.
        seen: number and sum of amounts by customer.
    """
    from scipy.special import digamma, gammaln

    p, q, v = parameters
    n, total = seen.number, seen.total
    pn = p * n
    log_total, log_all = np.log(total), np.log(v + total)
    # z̄^(pn-1)·n^(pn) = total^(pn) / z̄
    value = gammaln(pn + q) - gammaln(pn) - gammaln(q) + q * np.log(v) + pn * log_total - (log_total - np.log(n)) - (pn + q) * log_all
    gradient = (
        n * (digamma(pn + q) - digamma(pn) + log_total - log_all),
        digamma(pn + q) - digamma(q) + np.log(v) - log_all,
        q / v - (pn + q) / (v + total),
    )
    return float(value.sum()), np.array([part.sum() for part in gradient])

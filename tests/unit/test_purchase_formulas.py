"""Likelihoods and predictions of the purchase models, against numerical integration over what customers hide, and at extremes."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from scipy import integrate  # noqa: TID253 -- tests need not start fast

from crm_assets.warehouse.models.formulas import (
    PurchaseParameters,
    SpendParameters,
    expected_amount,
    expected_orders,
    p_alive,
    p_buy,
    risk_after_one_more_order,
)
from crm_assets.warehouse.models.histories import Family, Histories
from crm_assets.warehouse.models.likelihoods import Spendings, purchase_log_likelihood, spend_log_likelihood

PARAMETERS = (0.8, 20.0, 1.4, 3.0)
HORIZON = 90.0

positive = st.floats(1e-3, 1e3)
parameters = st.builds(PurchaseParameters, st.sampled_from(Family), positive, positive, positive, positive, st.booleans())


@st.composite
def histories(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    x = draw(st.integers(0, 2000))
    age = draw(st.floats(0, 5000))
    last = draw(st.floats(0, 1)) * age if x else 0.0
    return np.array([x]), np.array([last]), np.array([age])


def joint(family: Family, x: int, last: float, age: float) -> tuple[float, float, float, float]:
    """By integration over λ and p: likelihood, of those alive, of those alive who buy within the horizon, their orders."""
    r, alpha, a, b = PARAMETERS
    k = x + (family is Family.MBGNBD)

    def inside(p: float, rate: float) -> tuple[float, float]:
        of_rate = alpha**r / math.gamma(r) * rate ** (r - 1) * math.exp(-alpha * rate)
        of_coin = math.gamma(a + b) / math.gamma(a) / math.gamma(b) * p ** (a - 1) * (1 - p) ** (b - 1)
        weight = of_rate * of_coin * rate**x
        alive = weight * (1 - p) ** k * math.exp(-rate * age)
        left = weight * p * (1 - p) ** (k - 1) * math.exp(-rate * last) if k else 0.0
        return alive, left

    def over(figure) -> float:
        return integrate.dblquad(lambda p, rate: figure(p, rate), 0, 3, 0, 1, epsabs=1e-13, epsrel=1e-7)[0]

    alive = over(lambda p, rate: inside(p, rate)[0])
    return (
        alive + over(lambda p, rate: inside(p, rate)[1]),
        alive,
        over(lambda p, rate: inside(p, rate)[0] * -math.expm1(-rate * HORIZON)),
        over(lambda p, rate: inside(p, rate)[0] * -math.expm1(-rate * p * HORIZON) / max(p, 1e-300)),
    )


@pytest.mark.parametrize("family", Family)
@pytest.mark.parametrize(("x", "last", "age"), [(0, 0.0, 40.0), (3, 25.0, 60.0)])
def test_closed_forms_are_the_integrals_over_what_customers_hide(family: Family, x: int, last: float, age: float):
    likelihood, alive, buys, orders = joint(family, x, last, age)
    columns = (np.array([x]), np.array([last]), np.array([age]))
    m = PurchaseParameters(family, *PARAMETERS)
    value, _ = purchase_log_likelihood(family, np.array(PARAMETERS), Histories.of(*columns))
    assert math.exp(value) == pytest.approx(likelihood, rel=1e-5)
    assert p_alive(m, *columns)[0] == pytest.approx(alive / likelihood, rel=1e-5)
    assert p_buy(m, *columns, HORIZON)[0] == pytest.approx(buys / likelihood, rel=1e-5)
    assert expected_orders(m, *columns, HORIZON)[0] == pytest.approx(orders / likelihood, rel=1e-5)


@pytest.mark.parametrize("family", Family)
def test_derivatives_of_the_purchase_likelihood(family: Family):
    seen = Histories.of([0, 0, 1, 5, 40], [0, 0, 3.0, 30.0, 350.0], [10.0, 0, 50.0, 200.0, 360.0])
    at = np.array(PARAMETERS)
    _, gradient = purchase_log_likelihood(family, at, seen)
    for place in range(4):
        step = np.zeros(4)
        step[place] = 1e-5 * at[place]
        rise = purchase_log_likelihood(family, at + step, seen)[0] - purchase_log_likelihood(family, at - step, seen)[0]
        assert gradient[place] == pytest.approx(rise / (2 * step[place]), rel=1e-6, abs=1e-7)


def test_spend_likelihood_is_a_density_of_the_mean_with_these_derivatives():
    at = np.array((5.0, 3.0, 12.0))
    n = 3

    def density(mean: float) -> float:
        return math.exp(spend_log_likelihood(at, Spendings(np.array([n]), np.array([n * mean])))[0])

    assert integrate.quad(density, 0, np.inf)[0] == pytest.approx(1, rel=1e-6)
    # The mean of a purchase day over all customers is p·v/(q - 1), whatever their number.
    assert integrate.quad(lambda mean: mean * density(mean), 0, np.inf)[0] == pytest.approx(5 * 12 / 2, rel=1e-5)
    seen = Spendings(np.array([1, 4]), np.array([20.0, 300.0]))
    _, gradient = spend_log_likelihood(at, seen)
    for place in range(3):
        step = np.zeros(3)
        step[place] = 1e-5 * at[place]
        rise = spend_log_likelihood(at + step, seen)[0] - spend_log_likelihood(at - step, seen)[0]
        assert gradient[place] == pytest.approx(rise / (2 * step[place]), rel=1e-6)


@given(parameters, histories(), st.floats(1, 365))
def test_probabilities_are_probabilities_at_any_size(m: PurchaseParameters, columns: tuple[np.ndarray, ...], horizon: float):
    x, _, age = columns
    found = (p_alive(m, *columns), p_buy(m, *columns, horizon), risk_after_one_more_order(m, x, age, horizon))
    for probability in found:
        assert 0 <= probability[0] <= 1
    assert p_buy(m, *columns, horizon)[0] <= p_buy(m, *columns, 2 * horizon)[0]


@given(parameters, histories(), st.floats(0, 1000))
def test_silence_makes_nobody_more_likely_to_be_alive(m: PurchaseParameters, columns: tuple[np.ndarray, ...], silence: float):
    x, last, age = columns
    assert p_alive(m, x, last, age + silence)[0] <= p_alive(m, x, last, age)[0]


@given(parameters, histories())
def test_the_risk_after_one_more_order_is_the_risk_of_who_has_just_ordered(m: PurchaseParameters, columns: tuple[np.ndarray, ...]):
    x, _, age = columns
    after = 1 - p_buy(m, x + 1, age, age, HORIZON)
    assert risk_after_one_more_order(m, x, age, HORIZON)[0] == pytest.approx(after[0], rel=1e-9, abs=1e-12)


@given(positive, positive, positive, positive, histories())
def test_one_time_buyers_are_alive_in_bgnbd_and_everybody_scores_alive_in_the_limit(
    r: float, alpha: float, a: float, b: float, columns: tuple[np.ndarray, ...]
):
    x, _, age = columns
    assert p_alive(PurchaseParameters(Family.BGNBD, r, alpha, a, b), np.array([0]), np.array([0.0]), age)[0] == 1
    limit = PurchaseParameters(Family.BGNBD, r, alpha, a, b, dropout_identified=False)
    never_left = 1 - (1 + HORIZON / (alpha + age[0])) ** -min(r + x[0], 300.0)
    if r + x[0] <= 300:
        assert p_buy(limit, *columns, HORIZON)[0] == pytest.approx(never_left, rel=1e-9, abs=1e-12)
    assert expected_orders(limit, *columns, HORIZON)[0] == pytest.approx((r + x[0]) * HORIZON / (alpha + age[0]))


def test_two_thousand_orders_in_five_thousand_days_stop_nothing():
    columns = (np.array([2000, 2000]), np.array([4990.0, 10.0]), np.array([5000.0, 5000.0]))
    for family in Family:
        m = PurchaseParameters(family, 0.24, 30.9, 0.79, 2.43)
        with np.errstate(all="raise"):
            alive, buys = p_alive(m, *columns), p_buy(m, *columns, HORIZON)
        assert alive[0] > 0.9
        assert buys[0] > 0.9
        assert alive[1] == buys[1] == 0 or alive[1] < 1e-300
        assert np.isfinite(expected_orders(m, *columns, 365)).all()


@pytest.mark.parametrize("a", [0.3, 0.999, 0.99999, 1.0, 1.00001, 1.2, 3.0])
@settings(max_examples=20)
@given(histories())
def test_expected_orders_pass_smoothly_through_a_of_one(a: float, columns: tuple[np.ndarray, ...]):
    x, _, age = columns
    assume(x[0] < 500)
    found, near = (expected_orders(PurchaseParameters(Family.BGNBD, 0.5, 20.0, at, 2.0), *columns, 365.0)[0] for at in (a, a * 1.001))
    assert 0 <= found <= (0.5 + x[0]) * 365 / (20 + age[0]) * (1 + 1e-9)
    assert found == pytest.approx(near, rel=0.02, abs=1e-9)


def test_expected_amount_of_a_customer_without_and_with_amounts():
    m = SpendParameters(6.25, 3.74, 15.44)
    without, few, many = expected_amount(m, np.array([0, 1, 1000]), np.array([0.0, 100.0, 100_000.0]))
    assert without == pytest.approx(6.25 * 15.44 / 2.74)
    assert without < few < many == pytest.approx(100, rel=0.01)

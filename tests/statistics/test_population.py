"""A year of 20,000 customers is what its models say, for five fixed seeds; and the test would notice if it were not.

Error rate: each bound is missed by one right population in a thousand. The seeds are fixed, so a failure is a change of the generator.
"""

from __future__ import annotations

from functools import cache

import pytest

from generator.population_model import PopulationShop
from tests.statistics import judgement, samples
from tests.statistics.judgement import NORMAL_BOUND, PURCHASE_BOUND, SEEDS, SMALLEST_P, SPEND_BOUND

pytestmark = pytest.mark.parametrize("seed", SEEDS)


@cache
def population(seed: int) -> PopulationShop:
    return judgement.population(seed)


def test_purchase_times_through_the_season_are_bgnbd(seed: int) -> None:
    assert 0 <= judgement.purchase_excess(samples.exact(population(seed))).value <= PURCHASE_BOUND


def test_order_totals_are_gamma_gamma(seed: int) -> None:
    assert 0 <= judgement.spend_excess(population(seed)).value <= SPEND_BOUND


def test_control_drop_outs_after_the_first_purchase_are_noticed(seed: int) -> None:
    assert judgement.purchase_excess(samples.exact(judgement.population(seed, dropout_at_first=True))).value > PURCHASE_BOUND


def test_control_a_christmas_taken_for_calendar_time_is_noticed(seed: int) -> None:
    shop = judgement.population(seed, season=judgement.CHRISTMAS)
    assert judgement.purchase_excess(samples.calendar(shop)).value > PURCHASE_BOUND
    assert judgement.purchase_excess(samples.exact(shop)).value <= PURCHASE_BOUND


def test_the_day_merged_fit_is_reported_with_its_bias(seed: int, record_property: pytest.RecordProperty) -> None:
    """No pass mark: merging days loses purchases, which biases the fit the marts can make."""
    merged = judgement.day_merged_fit(population(seed)).parameters
    for name, truth, estimate in zip(("r", "alpha", "a", "b"), judgement.TRUE_PURCHASES, merged, strict=True):
        record_property(f"{name}_over_truth", round(float(estimate / truth), 4))
        assert 0 < estimate < float("inf")


def test_customers_arrive_as_a_poisson_process(seed: int) -> None:
    assert judgement.arrivals_p(population(seed)) > SMALLEST_P
    assert judgement.arrivals_by_hour_p(population(seed)) > SMALLEST_P


def test_times_between_purchases_are_exponential(seed: int) -> None:
    assert judgement.gaps_p(population(seed)) > SMALLEST_P


def test_the_coin_falls_as_often_as_its_probability_says(seed: int) -> None:
    assert abs(judgement.dropout_z(population(seed))) < NORMAL_BOUND


def test_spend_and_returns_know_nothing_of_rates_and_drop_outs(seed: int) -> None:
    assert {name: z for name, z in judgement.independence_z(population(seed)).items() if abs(z) >= NORMAL_BOUND} == {}

"""The purchase models on customers whose future is known, and on the real file.

Error rates: the generator is right (see test_population), the seed is fixed, so a failure is a change of generator, fit or formulas.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from crm_assets.warehouse.models.evaluation import HORIZON_DAYS
from crm_assets.warehouse.models.evaluation_result import Evaluation, Population, Predictor
from crm_assets.warehouse.models.fitting import fit_purchases
from crm_assets.warehouse.models.formulas import p_buy
from crm_assets.warehouse.models.histories import Family
from tests.oracle.online_retail import FILE
from tests.statistics import likelihoods
from tests.statistics.models_judgement import (
    CHRISTMAS_AS_OF,
    LARGEST_DROPOUT_MISS,
    REAL_AS_OF,
    TRUTH_AS_OF,
    DropOut,
    judge_days,
    judge_population,
    population,
)
from tests.statistics.purchase_splits import PurchaseDays, of_population, of_real_file


@pytest.fixture(scope="module")
def truth() -> tuple[Evaluation, DropOut]:
    return judge_population(population(1, TRUTH_AS_OF))


class TestOnTheGeneratorsTruth:
    def test_churn_risk_ranks_better_than_recency_alone(self, truth: tuple[Evaluation, DropOut]):
        evaluation, _ = truth
        assert evaluation.score(Predictor.MODEL).customers >= 20_000
        assert evaluation.auc_above_recency.low > 0

    def test_predicted_buyers_are_the_observed_ones_overall_and_in_each_large_decile(self, truth: tuple[Evaluation, DropOut]):
        evaluation, _ = truth
        assert evaluation.predicted_over_observed.value == pytest.approx(1, abs=0.1)
        large = [group for group in evaluation.by_decile if group.expected_buyers >= 200]
        assert large
        for group in large:
            assert group.ratio == pytest.approx(1, abs=0.1), group
        assert evaluation.miscalibrated == ()

    def test_one_time_buyers_have_their_own_figures(self, truth: tuple[Evaluation, DropOut]):
        evaluation, _ = truth
        one_time, repeat = (evaluation.score(Predictor.MODEL, p) for p in (Population.ONE_TIME, Population.REPEAT))
        assert one_time.customers + repeat.customers == evaluation.score(Predictor.MODEL).customers
        assert evaluation.by_frequency[0].group == "x = 0"
        assert evaluation.by_frequency[0].customers == one_time.customers

    def test_hidden_drop_out_is_what_the_diagnostic_says(self, truth: tuple[Evaluation, DropOut]):
        _, drop_out = truth
        assert drop_out.predicted == pytest.approx(drop_out.hidden, abs=LARGEST_DROPOUT_MISS)
        assert drop_out.auc > 0.7

    def test_a_christmas_after_the_split_shows_as_a_miscalibration_with_its_reason(self, truth: tuple[Evaluation, DropOut]):
        evaluation, _ = judge_population(population(1, CHRISTMAS_AS_OF))
        assert evaluation.auc_above_recency.low > 0
        assert evaluation.miscalibrated
        assert evaluation.season_ratio > truth[0].season_ratio + 0.1
        assert f"{evaluation.season_ratio:.2f} times the purchase days" in evaluation.calibration_reason

    def test_the_fit_agrees_with_an_independent_one(self):
        held, _ = of_population(population(2, TRUTH_AS_OF)).split(TRUTH_AS_OF, HORIZON_DAYS)
        seen = held.seen
        own = fit_purchases(seen, Family.BGNBD)
        histories = likelihoods.Histories(seen.repeats, seen.last, seen.age)
        other = likelihoods.maximum(lambda p: likelihoods.bgnbd(p, histories), [(1.0, 70.0, 1.0, 1.0), (0.3, 20.0, 0.5, 3.0)])
        m = own.parameters
        assert m.dropout_identified
        assert own.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-6)
        # The other search stops as soon as the likelihood stands still; whoever is higher is nearer the maximum.
        assert own.log_likelihood >= other.log_likelihood - 1e-6
        assert np.array((m.r, m.alpha, m.a, m.b)) == pytest.approx(other.parameters, rel=1e-3)
        theirs = type(m)(Family.BGNBD, *other.parameters)
        columns = (seen.repeats, seen.last, seen.age, HORIZON_DAYS)
        assert np.abs(p_buy(m, *columns) - p_buy(theirs, *columns)).max() < 1e-3


@pytest.fixture(scope="module")
def days(shared_data: Path) -> PurchaseDays:
    return of_real_file(shared_data / "online-retail" / FILE.name)


@pytest.mark.real_data
class TestOnTheRealFile:
    def test_the_hold_out_of_autumn(self, days: PurchaseDays):
        evaluation = judge_days(days, REAL_AS_OF, Family.BGNBD)
        model = evaluation.score(Predictor.MODEL)
        assert model.customers == 3370
        assert round(100 * model.buyers / model.customers, 1) == 57.0
        assert evaluation.auc_above_recency.value > 0
        assert evaluation.method == "nbd"
        assert "the model knows no season" in evaluation.calibration_reason

    @pytest.mark.parametrize("family", Family)
    def test_drop_out_is_not_identified_and_an_independent_fit_finds_the_same(self, days: PurchaseDays, family: Family):
        seen = days.split(REAL_AS_OF, HORIZON_DAYS)[0].seen
        own = fit_purchases(seen, family)
        assert not own.parameters.dropout_identified
        if family is Family.MBGNBD:
            return
        histories = likelihoods.Histories(seen.repeats, seen.last, seen.age)
        other = likelihoods.maximum(lambda p: likelihoods.bgnbd(p, histories), [(1.0, 70.0, 1.0, 1.0), (0.3, 20.0, 0.5, 3.0)])
        assert own.log_likelihood == pytest.approx(other.log_likelihood, rel=1e-6)
        limit = type(own.parameters)(Family.BGNBD, *other.parameters, dropout_identified=False)
        columns = (seen.repeats, seen.last, seen.age, HORIZON_DAYS)
        assert np.abs(p_buy(own.parameters, *columns) - p_buy(limit, *columns)).max() < 1e-3

"""Judging predictions: metrics against their plain definitions, the gate, the promotion rule and drift."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_assets.warehouse.models.assets import check_results
from crm_assets.warehouse.models.evaluation import HoldOut, evaluate
from crm_assets.warehouse.models.evaluation_result import Evaluation, Population, Predictor
from crm_assets.warehouse.models.fitting import PurchaseFit, SpendFit
from crm_assets.warehouse.models.formulas import PurchaseParameters
from crm_assets.warehouse.models.gate import decide_gate
from crm_assets.warehouse.models.histories import Family, Histories
from crm_assets.warehouse.models.metrics import Interval, Ranking, deciles, log_loss, weightings
from crm_assets.warehouse.models.page import markdown, page
from crm_assets.warehouse.models.promotion import decide_promotion, measure_drift, stability_index
from crm_assets.warehouse.models.refit import FittedVersion, Refit, decide
from crm_assets.warehouse.models.storage import ServingModel

GOOD = PurchaseParameters(Family.BGNBD, 0.25, 30.0, 0.8, 2.4)
BAD = PurchaseParameters(Family.BGNBD, 3.0, 30.0, 0.8, 2.4)
SPLIT = date(2026, 3, 1)


def held_out(customers: int = 3000, seed: int = 1) -> HoldOut:
    """A population that buys as GOOD says."""
    from crm_assets.warehouse.models.formulas import p_buy

    random = np.random.default_rng(seed)
    repeats = random.poisson(0.7, customers)
    age = random.integers(100, 400, customers).astype(float)
    last = np.where(repeats > 0, np.floor(age * random.random(customers)), 0.0)
    seen = Histories.of(repeats, last, age)
    return HoldOut(SPLIT, 90, seen, random.random(customers) < p_buy(GOOD, repeats, last, age, 90), 0.8)


@pytest.fixture(scope="module")
def found() -> Evaluation:
    return evaluate(held_out(), GOOD, held_out(seed=2), resamples=200)


class TestMetrics:
    @given(st.lists(st.tuples(st.integers(0, 5), st.booleans(), st.integers(0, 3)), min_size=2, max_size=30))
    def test_auc_and_lift_of_any_weights_are_those_of_customers_written_out(self, rows: list[tuple[int, bool, int]]):
        score, bought, weight = (np.array(column) for column in zip(*rows, strict=True))
        auc, lift = Ranking(score.astype(float), bought).auc_and_lift(weight[None].astype(float))
        scores, buys = np.repeat(score, weight), np.repeat(bought, weight)
        pairs = [(s > t) + (s == t) / 2 for s in scores[buys] for t in scores[~buys]]
        if not pairs:
            assert not np.isfinite(auc[0])
            return
        assert auc[0] == pytest.approx(np.mean(pairs))
        # The top tenth, of equal scores that part which belongs to it: the chance of each to be in.
        left, share = scores.size / 10, 0.0
        for value in sorted(set(scores), reverse=True):
            among = scores == value
            part = min(1.0, left / among.sum())
            share += part * buys[among].sum()
            left -= part * among.sum()
        assert lift[0] == pytest.approx(share / (scores.size / 10) / buys.mean())

    def test_equal_probabilities_share_a_decile(self):
        assert deciles(np.array([0.1] * 5 + [0.2] * 5)).tolist() == [1] * 5 + [6] * 5
        assert deciles(np.arange(20.0)).tolist() == [1 + n // 2 for n in range(20)]

    def test_certain_and_wrong_costs_much_but_not_everything(self):
        assert np.isfinite(log_loss(np.array([0.0, 1.0]), np.array([True, False]))).all()

    def test_resamples_draw_as_many_customers_as_there_are_and_the_same_ones_each_time(self):
        first, second = (np.concatenate(list(weightings(50, 20))) for _ in range(2))
        assert first.shape == (21, 50)
        assert (first.sum(axis=1) == 50).all()
        assert (first[0] == 1).all()
        assert (first == second).all()

    def test_the_bootstrap_finds_the_standard_error_of_a_mean(self):
        values = np.random.default_rng(3).normal(size=4000)
        rows = np.concatenate([w @ values / w.sum(axis=1) for w in weightings(values.size, 1000)])
        assert Interval.of(rows).standard_error == pytest.approx(values.std() / np.sqrt(values.size), rel=0.1)


class TestEvaluation:
    def test_the_model_that_made_the_data_is_calibrated_and_ranks_best(self, found: Evaluation):
        assert found.miscalibrated == ()
        assert found.auc_above_recency.low > 0
        assert found.score(Predictor.MODEL).log_loss is not None
        assert found.score(Predictor.MODEL).log_loss.value < found.score(Predictor.RECENCY).log_loss.value

    def test_a_wrong_model_is_found_miscalibrated(self):
        wrong = evaluate(held_out(), BAD, resamples=50)
        assert "overall" in wrong.miscalibrated
        assert "0.80 times the purchase days" in wrong.calibration_reason
        assert wrong.score(Predictor.RECENCY).brier is None

    def test_groups_hold_everybody_once(self, found: Evaluation):
        everybody = found.score(Predictor.MODEL)
        for groups in (found.by_decile, found.by_frequency):
            assert sum(g.customers for g in groups) == everybody.customers
            assert sum(g.buyers for g in groups) == everybody.buyers
            assert sum(g.expected_buyers for g in groups) == pytest.approx(everybody.expected_buyers)
        assert {s.population for s in found.scores} == set(Population)

    def test_a_hold_out_in_which_nobody_bought_is_shown_not_crashed_on(self):
        nobody = replace(held_out(300), bought=np.zeros(300, bool))
        shown = evaluate(nobody, GOOD, resamples=20)
        assert "overall" in shown.miscalibrated
        assert json.loads(json.dumps(shown.document(), allow_nan=False))["scores"][0]["auc"]["value"] is None
        assert "calibration and lift" in page("nobody", {"bgnbd": shown})

    def test_it_reads_the_same_as_json_markdown_and_page(self, found: Evaluation):
        auc = f"{found.score(Predictor.MODEL).auc.value:.4f}"
        assert json.loads(json.dumps(found.document(), allow_nan=False))["scores"][0]["auc"]["value"] == found.scores[0].auc.value
        assert auc in markdown(found)
        assert auc in page("t", {"bgnbd": found})


class TestTheGate:
    def shop(self, customers: int = 500, days: int = 180, silence: int = 30, repeaters: int = 50) -> Histories:
        repeats = np.zeros(customers, np.int64)
        repeats[:repeaters] = 2
        last = np.where(repeats > 0, float(days - silence), 0.0)
        return Histories.of(repeats, last, np.full(customers, float(days)))

    def test_it_opens_at_its_bounds(self):
        assert decide_gate(self.shop()).open

    @pytest.mark.parametrize(
        ("lacking", "reason"),
        [
            ({"customers": 499}, "499 customers"),
            ({"days": 179}, "179 days of history"),
            ({"silence": 31}, "31 days old"),
            ({"repeaters": 49}, "49 customers with two"),
        ],
    )
    def test_below_a_bound_it_is_closed_and_says_why(self, lacking: dict[str, int], reason: str):
        gate = decide_gate(self.shop(**lacking))
        assert not gate.open
        assert reason in "; ".join(gate.closed)

    def test_an_empty_shop(self):
        assert decide_gate(Histories.of([], [], [])).closed == ("no customer has bought yet",)


class TestPromotion:
    def test_the_first_model_is_promoted(self):
        assert decide_promotion(GOOD, None, None).promote

    def test_a_refit_that_is_as_good_is_promoted_and_one_that_is_worse_is_not(self):
        held = held_out()
        assert decide_promotion(GOOD, GOOD, held, resamples=100).promote
        assert decide_promotion(replace(GOOD, r=0.2501), GOOD, held, resamples=100).promote
        worse = decide_promotion(BAD, GOOD, held, resamples=100)
        assert not worse.promote
        assert worse.worse_by is not None
        assert worse.worse_by.value > worse.worse_by.standard_error

    def test_without_a_hold_out_the_current_model_stays(self):
        assert not decide_promotion(GOOD, BAD, None).promote

    def test_parameters_that_would_score_must_keep_the_rule_as_well_as_their_twin(self):
        def fit(parameters: PurchaseParameters) -> PurchaseFit:
            return PurchaseFit(parameters, -1.0, 1, "", "")

        before = ServingModel("before", GOOD, SPLIT, None)  # type: ignore[arg-type]
        assert decide(fit(GOOD), fit(GOOD), before, held_out()).promote
        broken = decide(fit(BAD), fit(GOOD), before, held_out())
        assert not broken.promote
        assert "everything up to now" in broken.reason

    def test_drift_is_measured_on_parameters_and_scores(self):
        today = held_out().seen
        assert measure_drift(GOOD, GOOD, today, 90).warnings == ()
        moved = measure_drift(BAD, GOOD, today, 90)
        assert moved.parameter_factors["r"] == pytest.approx(12)
        assert len(moved.warnings) == 3
        assert measure_drift(replace(BAD, dropout_identified=False), GOOD, today, 90).parameter_factors == {}

    def test_the_stability_index_of_two_halves(self):
        before = np.repeat([0.1, 0.9], 1000)
        after = np.repeat([0.1, 0.9], [500, 1500])
        assert stability_index(before, after, np.ones(2000)) == pytest.approx(
            (0.75 - 0.5) * np.log(1.5) + (0.25 - 0.5) * np.log(0.5), rel=0.01
        )


class TestChecks:
    def test_each_can_fail(self, found: Evaluation):
        seen = held_out().seen
        bad = evaluate(replace(held_out(), bought=seen.age - seen.last < 50), BAD, resamples=50)
        version = FittedVersion("v", PurchaseFit(BAD, -1.0, 1, "", ""), bad)
        spend = SpendFit(None, -1.0, 10, 0.3, "q = 0.5")
        drift = measure_drift(BAD, GOOD, seen, 90)
        failing = check_results(Refit(SPLIT, decide_gate(TestTheGate().shop(customers=499)), (version,), spend, None, drift))
        assert {r.check_name: r.passed for r in failing} == dict.fromkeys(
            ("gate_open", "frequency_and_value_independent", "no_drift", "ranks_better_than_recency", "calibrated"), False
        )
        fine = replace(version, evaluation=found)
        passing = check_results(
            Refit(SPLIT, decide_gate(TestTheGate().shop()), (fine,), replace(spend, correlation=0.0, parameters=object()))  # type: ignore[arg-type]
        )
        assert all(r.passed for r in passing)

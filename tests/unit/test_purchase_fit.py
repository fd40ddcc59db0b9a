"""Fitting purchase histories: the maximum is found, what the data cannot tell is said, and the command does it for a file."""

from __future__ import annotations

import json
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from scipy.optimize import minimize  # noqa: TID253 -- tests need not start fast
from scipy.special import betaln, gammaln  # noqa: TID253 -- tests need not start fast

from crm_assets.warehouse.models.fitting import fit_purchases, fit_spend
from crm_assets.warehouse.models.formulas import p_buy
from crm_assets.warehouse.models.histories import Family, Histories, HistoryError
from crm_resources.settings import REPOSITORY
from tests.statistics import likelihoods

CUSTOMERS = 2357


@cache
def sample(dropout: float | None = None, seed: int = 1) -> Histories:
    """Histories of a shop like the published one, in weeks; `dropout` of 0 makes a shop that nobody leaves."""
    random = np.random.default_rng(seed)
    ages = random.uniform(27, 39, CUSTOMERS).round(2)
    rates = random.gamma(0.243, 1 / 4.414, CUSTOMERS)
    coins = random.beta(0.793, 2.426, CUSTOMERS) if dropout is None else np.full(CUSTOMERS, dropout)
    repeats, last = np.zeros(CUSTOMERS, np.int64), np.zeros(CUSTOMERS)
    for n, (age, rate, coin) in enumerate(zip(ages, rates, coins, strict=True)):
        at = 0.0
        while (at := at + random.standard_exponential() / max(rate, 1e-12)) <= age:
            repeats[n] += 1
            last[n] = at
            if random.random() < coin:
                break
    return Histories.of(repeats, last, ages)


def independent_mbgnbd(parameters: np.ndarray, seen: Histories) -> float:
    """Log-likelihood as Batislam, Denizel and Filiztekin (2007) write it, customer by customer."""
    r, alpha, a, b = parameters
    x, t_x, age = seen.repeats, seen.last, seen.age
    both = np.log(
        np.exp(betaln(a, b + x + 1) - (r + x) * np.log(alpha + age)) + np.exp(betaln(a + 1, b + x) - (r + x) * np.log(alpha + t_x))
    )
    return float(np.sum(gammaln(r + x) - gammaln(r) + r * np.log(alpha) - betaln(a, b) + both))


class TestTheMaximum:
    def test_bgnbd_agrees_with_an_independent_implementation(self):
        seen = sample()
        own = fit_purchases(seen, Family.BGNBD)
        histories = likelihoods.Histories(seen.repeats, seen.last, seen.age)
        other = likelihoods.maximum(lambda p: likelihoods.bgnbd(p, histories), [(1.0, 10.0, 1.0, 1.0), (0.5, 2.0, 0.3, 3.0)])
        assert own.parameters.dropout_identified
        self.agree(seen, Family.BGNBD, other.parameters, other.log_likelihood)

    def test_mbgnbd_agrees_with_an_independent_implementation(self):
        seen = sample()
        found = minimize(
            lambda logs: -independent_mbgnbd(np.exp(logs), seen), np.log((0.5, 5.0, 1.0, 1.5)), method="Nelder-Mead",
            options={"xatol": 1e-7, "fatol": 1e-7, "maxiter": 5000},
        )  # fmt: skip
        self.agree(seen, Family.MBGNBD, np.exp(found.x), -found.fun)

    @staticmethod
    def agree(seen: Histories, family: Family, parameters: np.ndarray, log_likelihood: float) -> None:
        own = fit_purchases(seen, family)
        m = own.parameters
        assert own.log_likelihood == pytest.approx(log_likelihood, rel=1e-6)
        assert (m.r, m.alpha, m.a, m.b) == pytest.approx(parameters, rel=1e-3)
        theirs = type(m)(family, *parameters)
        columns = (seen.repeats, seen.last, seen.age, 13.0)
        assert np.abs(p_buy(m, *columns) - p_buy(theirs, *columns)).max() < 1e-3

    def test_parameters_follow_the_unit_of_time(self):
        weeks = sample()
        days = Histories.of(weeks.repeats, weeks.last * 7, weeks.age * 7)
        by_week, by_day = (fit_purchases(seen, Family.BGNBD).parameters for seen in (weeks, days))
        assert by_day.alpha == pytest.approx(7 * by_week.alpha, rel=1e-6)
        assert (by_day.r, by_day.a, by_day.b) == pytest.approx((by_week.r, by_week.a, by_week.b), rel=1e-6)

    def test_gamma_gamma_finds_what_amounts_were_drawn_from(self):
        random = np.random.default_rng(7)
        number = random.poisson(2, 30_000)
        nu = random.gamma(3.74, 1 / 15.44, number.size)
        total = np.where(number > 0, random.gamma(6.25 * np.maximum(number, 1)) / nu, 0)
        found = fit_spend(number, total * 1_000_000)
        assert found.customers == (number > 0).sum()
        assert found.parameters is not None
        assert (found.parameters.p, found.parameters.q, found.parameters.v / 1e6) == pytest.approx((6.25, 3.74, 15.44), rel=0.05)
        assert not found.correlated

    def test_gamma_gamma_refuses_amounts_without_a_mean_and_warns_of_a_correlation(self):
        random = np.random.default_rng(7)
        number = random.poisson(2, 5_000) + 1
        wild = fit_spend(number, random.gamma(6.25 * number) / random.gamma(0.6, 1, number.size))
        assert wild.parameters is None
        assert "q = " in wild.refusal
        assert fit_spend(number, number**1.5 * random.uniform(9, 11, number.size)).correlated
        assert "too few" in fit_spend(np.array([0, 1]), np.array([0.0, 5.0])).refusal


class TestWhatTheDataCannotTell:
    def test_a_shop_that_nobody_leaves(self):
        found = fit_purchases(sample(dropout=0.0), Family.BGNBD)
        assert not found.parameters.dropout_identified
        assert "a/(a+b)" in found.why_unidentified
        assert found.parameters.method == "nbd"

    def test_a_drop_out_that_does_not_differ_between_customers_sits_on_a_bound(self):
        found = fit_purchases(sample(dropout=0.4, seed=2), Family.BGNBD)
        assert not found.parameters.dropout_identified
        assert "b at the bound" in found.why_unidentified


class TestHistories:
    def test_grouping_changes_nothing_and_the_hash_knows_no_order(self):
        seen = Histories.of([0, 2, 0, 2], [0, 5, 0, 5], [9, 9, 9, 9])
        grouped = seen.grouped()
        assert grouped.customers.tolist() == [2, 2]
        assert grouped.grouped().customers.tolist() == [2, 2]
        assert seen.data_hash() == grouped.data_hash() == Histories.of([2, 0, 2, 0], [5, 0, 5, 0], [9, 9, 9, 9]).data_hash()
        assert seen.data_hash() != Histories.of([2, 0, 2], [5, 0, 5], [9, 9, 9]).data_hash()

    def test_what_cannot_be_is_refused(self):
        with pytest.raises(HistoryError, match=r"history 1: .*t_x <= T"):
            Histories.of([0, 1], [0, 9], [5, 5])


def run(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "crm_assets.warehouse.models", *map(str, arguments)]
    return subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    seen = sample()
    lines = [f"{x},{t_x!r},{age!r}" for x, t_x, age in zip(seen.repeats, seen.last.tolist(), seen.age.tolist(), strict=True)]
    path = tmp_path_factory.mktemp("csv") / "weeks.csv"
    path.write_text("\n".join(["x,t_x,T", *lines]) + "\n")
    return path


class TestTheCommand:
    @pytest.mark.parametrize("model", Family)
    def test_one_json_object_with_the_parameters_in_the_files_unit(self, file: Path, model: Family):
        done = run("fit", "--model", model, file, "--json")
        assert done.returncode == 0, done.stderr
        printed = json.loads(done.stdout)
        fit = fit_purchases(sample(), model)
        assert (printed["model"], printed["n"], printed["dropout_identified"]) == (model, CUSTOMERS, True)
        assert printed["log_likelihood"] == pytest.approx(fit.log_likelihood)
        expected = (fit.parameters.r, fit.parameters.alpha, fit.parameters.a, fit.parameters.b)
        assert [printed[name] for name in ("r", "alpha", "a", "b")] == pytest.approx(expected)

    def test_a_table_for_people(self, file: Path):
        done = run("fit", file)
        assert done.returncode == 0, done.stderr
        assert "alpha" in done.stdout

    def test_a_file_that_is_not_there(self, tmp_path: Path):
        done = run("fit", tmp_path / "none.csv", "--json")
        assert done.returncode == 2
        assert "none.csv" in done.stderr
        assert done.stdout == ""

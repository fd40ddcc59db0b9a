"""The formulas of the purchase models as PostgreSQL computes them, against scipy, from everyday customers to the parameters' bounds."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable
from typing import Any

import jinja2
import numpy as np
import pytest
from scipy import special  # noqa: TID253 -- tests need not start fast

from crm_resources import warehouse
from crm_resources.settings import REPOSITORY, Settings
from deploy.local.stack import Stack
from tests.oracle.refresh import data_set

Case = dict[str, Any]

CDNOW = {"r": 0.243, "alpha": 4.414 * 7, "a": 0.793, "b": 2.426}
EVERYDAY = [CDNOW, {"r": 0.05, "alpha": 90.0, "a": 1.7, "b": 50.0}, {"r": 3.0, "alpha": 31.0, "a": 20.0, "b": 0.2}]
BOUNDS = [
    dict(zip(("r", "alpha", "a", "b"), values, strict=True))
    for values in [(1e-4,) * 4, (1e4,) * 4, (1e4, 1e-4, 1e4, 1e-4), (1e-4, 1e4, 1e-4, 1e4), (1.0, 1e-4, 1e-4, 1.0)]
]


def histories() -> list[dict[str, int]]:
    found = [
        {"x": x, "t_x": round(age * share) if x else 0, "age": age}
        for x, age, share in itertools.product((0, 1, 2, 10, 200, 2000), (0, 1, 30, 400, 5000), (0.1, 0.7, 1.0))
        if x <= round(age * share)
    ]
    return [dict(pairs) for pairs in sorted({tuple(history.items()) for history in found})]


def cases(parameters: list[dict[str, float]], horizon: int) -> list[Case]:
    return [
        {"method": method, "horizon": horizon, **history, **chosen}
        for method, history, chosen in itertools.product(("bgnbd", "mbgnbd", "nbd"), histories(), parameters)
    ]


def p_alive(case: Case) -> float:
    coins = case["x"] + (case["method"] == "mbgnbd")
    if case["method"] == "nbd" or coins == 0:
        return 1.0
    silence = (case["r"] + case["x"]) * (math.log(case["alpha"] + case["age"]) - math.log(case["alpha"] + case["t_x"]))
    return float(special.expit(-(math.log(case["a"]) - math.log(case["b"] + coins - 1) + silence)))


def p_any(case: Case, x: int) -> float:
    return -math.expm1(-(case["r"] + x) * math.log1p(case["horizon"] / (case["alpha"] + case["age"])))


def p_buy(case: Case) -> float:
    return p_alive(case) * p_any(case, case["x"])


def risk_after_one_more(case: Case) -> float:
    """Of the history with one more purchase today."""
    after = {**case, "x": case["x"] + 1, "t_x": case["age"]}
    return 1 - p_buy(after)


def expected_if_alive(case: Case) -> float:
    """Equation 10 of Fader, Hardie and Lee (2005), without the division by 1/p_alive; a = 1 is a removable singularity."""
    if case["method"] == "nbd":
        return (case["r"] + case["x"]) / (case["alpha"] + case["age"]) * case["horizon"]
    if case["a"] == 1:
        return (expected_if_alive({**case, "a": 1 - 1e-5}) + expected_if_alive({**case, "a": 1 + 1e-5})) / 2
    a, stays, rate = case["a"], case["b"] + case["x"] + (case["method"] == "mbgnbd"), case["r"] + case["x"]
    passed = case["alpha"] + case["age"]
    z = case["horizon"] / (passed + case["horizon"])
    share = math.exp(rate * math.log(1 - z)) * special.hyp2f1(rate, stays, a + stays - 1, z)
    return float((a + stays - 1) / (a - 1) * (1 - share))


@pytest.fixture(scope="module")
def database(stack_services: Stack) -> Settings:
    settings = data_set(stack_services.settings, "formulas")
    warehouse.create_database(settings)
    return settings


@pytest.fixture(scope="module")
def in_sql(database: Settings) -> Callable[[list[Case], str, tuple[str, ...]], np.ndarray]:
    macros = jinja2.Environment(autoescape=False).from_string((REPOSITORY / "dbt/macros/purchase_models.sql").read_text()).module  # noqa: S701 -- SQL

    def evaluate(rows: list[Case], macro: str, columns: tuple[str, ...]) -> np.ndarray:
        expression = getattr(macros, macro)(*columns)
        sql = (
            f"select cast({expression} as double precision) from rows from (jsonb_to_recordset($1::text::jsonb) as (method text, "
            "x integer, t_x integer, age integer, horizon integer, r float8, alpha float8, a float8, b float8)) with ordinality as g "
            "(method, x, t_x, age, horizon, r, alpha, a, b, position) order by position"
        )
        return np.array([value for (value,) in warehouse.fetch_rows(database, sql, (json.dumps(rows),))], float)

    return evaluate


PARAMETERS = ("r", "alpha", "a", "b")


@pytest.mark.parametrize("parameters", [EVERYDAY, BOUNDS], ids=["everyday", "bounds"])
def test_chances_agree_with_scipy_and_no_size_stops_them(in_sql, parameters: list[dict[str, float]]):
    rows = cases(parameters, 90)
    assert any(row["x"] == 2000 and row["age"] == 5000 for row in rows)

    alive = in_sql(rows, "p_alive", ("method", "x", "t_x", "age", *PARAMETERS))
    buys = in_sql(rows, "p_buy", ("method", "x", "t_x", "age", "horizon", *PARAMETERS))
    after = in_sql(rows, "risk_after_one_more_order", ("method", "x", "age", "horizon", *PARAMETERS))

    np.testing.assert_allclose(alive, [p_alive(row) for row in rows], rtol=1e-9, atol=1e-200)
    np.testing.assert_allclose(buys, [p_buy(row) for row in rows], rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(after, [risk_after_one_more(row) for row in rows], rtol=1e-9, atol=1e-12)


def test_expected_orders_agree_with_the_published_equation(in_sql):
    rows = [*cases([*EVERYDAY, {**CDNOW, "a": 1.0}], 365), *cases([CDNOW], 90)]
    found = in_sql(rows, "expected_orders_if_alive", ("method", "x", "age", "horizon", *PARAMETERS))
    np.testing.assert_allclose(found, [expected_if_alive(row) for row in rows], rtol=1e-6)


def test_expected_orders_of_any_parameters_are_found_and_not_more_than_without_drop_out(in_sql):
    rows = [row for row in cases(BOUNDS, 365) if row["x"] in (0, 2000) and row["age"] in (0, 5000)]
    found = in_sql(rows, "expected_orders_if_alive", ("method", "x", "age", "horizon", *PARAMETERS))
    without = np.array([expected_if_alive({**row, "method": "nbd"}) for row in rows])
    assert np.all(found > 0)
    assert np.all(found <= without * (1 + 1e-9))


def test_a_method_without_probabilities_has_none(in_sql):
    rows = [{**row, "method": "recency_rule"} for row in cases([CDNOW], 90)[:5]]
    assert np.isnan(in_sql(rows, "p_buy", ("method", "x", "t_x", "age", "horizon", *PARAMETERS))).all()
    assert np.isnan(in_sql(rows, "expected_orders_if_alive", ("method", "x", "age", "horizon", *PARAMETERS))).all()

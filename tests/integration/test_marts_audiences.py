"""Scores and audiences from silver to members: who joins and leaves over several refreshes, and who is never let in."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from scipy import special  # noqa: TID253 -- tests need not start fast

from crm_assets.warehouse.load import load_all
from crm_resources import warehouse
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from tests.oracle.lake_writer import append, order, profile
from tests.oracle.refresh import data_set, refresh, run_dbt

FIRST_AS_OF = date(2026, 3, 31)
LATER = date(2026, 7, 31)
PARAMETERS = {"r": 0.9, "alpha": 60.0, "a": 0.8, "b": 2.4, "gg_p": 6.25, "gg_q": 3.74, "gg_v": 15.4}
BUILD = ("build", "--exclude-resource-type", "seed", "unit_test", "--indirect-selection", "cautious", "--select")
WITHOUT_SEEDS = (*BUILD, "+audience_members")
AUDIENCES_ALONE = (*BUILD, "int_audience_suppressions", "int_audience_eligible", "audience_changes", "audience_members")

AGREED = {"consent_email": True, "consent_ads": True}
Change = tuple[str, str, str]


def on(day: date, hour: int = 12) -> datetime:
    return datetime(day.year, day.month, day.day, hour, tzinfo=UTC)


def bought(customer: str, *days: date) -> list[dict[str, Any]]:
    return [order(f"{customer}-{day}", on(day), [("A", 2, "10.00")], customer_id=customer) for day in days]


def every_month(customer: str, last: date, times: int = 8) -> list[dict[str, Any]]:
    return bought(customer, *(last - timedelta(days=30 * back) for back in range(times)))


QUIET = date(2025, 10, 1)
"""After eight monthly orders, nothing for half a year: the risk is high, and one more order takes it away."""


def crowd() -> list[dict[str, Any]]:
    """Enough customers for the gate to open; none has a profile, so their consent is unknown."""
    rows = []
    for number in range(500):
        born = date(2025, 9, 15) + timedelta(days=number % 190)
        days = [born, born + timedelta(days=3), born + timedelta(days=6)] if number < 60 else [born]
        rows += bought(f"crowd{number}", *days)
    return rows


def model_row(version: str, **fields: object) -> str:
    row: dict[str, object] = {
        "model_version": version, "model": "bgnbd", "unit": "day", "as_of": FIRST_AS_OF, "window_from": QUIET, "window_to": FIRST_AS_OF,
        "customers": 500, "log_likelihood": -1.0, "dropout_identified": True, "data_hash": "none", "fitted_at": "2026-03-31",
        "promoted_at": "2026-03-31", **PARAMETERS, **fields,
    }  # fmt: skip
    return f"insert into models.purchase_models ({', '.join(row)}) values ({', '.join(repr(str(v)) for v in row.values())})"


@pytest.fixture(scope="module")
def shop(stack_services: Stack) -> Settings:
    """Refreshed once, with two audiences: `risky` by mail, `everybody` on ad platforms."""
    settings = data_set(stack_services.settings, "audiences", as_of=FIRST_AS_OF)
    refused = {
        "silent-on-consent": {},
        "said-no": {"consent_email": False},
        "opted-out": {**AGREED, "opted_out": True},
        "erased": {**AGREED, "erased": True},
    }
    agreed = ("wins-back", "will-object", "will-be-erased")
    append(settings, [
        *crowd(),
        *(row for name in (*agreed, "without-profile", *refused) for row in every_month(name, QUIET)),
        *every_month("regular", date(2026, 3, 25)),
        *(profile(name, on(QUIET), email=f"{name}@example.com", **AGREED) for name in (*agreed, "regular")),
        *(profile(name, on(QUIET), email=f"{name}@example.com", **fields) for name, fields in refused.items()),
    ])  # fmt: skip
    warehouse.prepare(settings)
    execute(settings, model_row("served"))
    refresh(settings, "build", "--exclude-resource-type", "test", "unit_test", "--select", "+audience_members")
    execute(
        settings,
        "truncate marts.audience_rules, marts.audience_changes",
        "insert into marts.audience_rules (audience, consent, min_risk) values ('risky', 'email', 0.5)",
        "insert into marts.audience_rules (audience, consent, max_risk) values ('everybody', 'ads', 1)",
    )
    run_dbt(settings, *WITHOUT_SEEDS)
    return settings


def execute(settings: Settings, *statements: str) -> None:
    with warehouse.connect(settings) as connection, connection.cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)
        connection.commit()


def changes(settings: Settings, audience: str, version: int) -> set[Change]:
    sql = "select customer_key, action, reason from marts.audience_changes where audience = $1::text and version = $2::integer"
    return {(key.removeprefix("id:"), action, reason) for key, action, reason in warehouse.fetch_rows(settings, sql, (audience, version))}


def members(settings: Settings, audience: str) -> set[str]:
    sql = "select customer_key from marts.audience_members where audience = $1::text"
    return {key.removeprefix("id:") for (key,) in warehouse.fetch_rows(settings, sql, (audience,))}


def test_the_first_refresh_brings_in_who_agreed_and_nobody_else(shop: Settings):
    assert members(shop, "risky") == {"wins-back", "will-object", "will-be-erased"}
    assert changes(shop, "risky", 1) == {(name, "join", "conditions met") for name in members(shop, "risky")}
    assert members(shop, "everybody") == {"wins-back", "will-object", "will-be-erased", "regular"}
    because = dict(
        warehouse.fetch_rows(shop, "select customer_key, reason from intermediate.int_audience_suppressions where purpose = 'email'")
    )
    named = {name: because[f"id:{name}"] for name in ("silent-on-consent", "said-no", "opted-out", "erased", "without-profile", "crowd0")}
    assert named == {
        "silent-on-consent": "consent unknown",
        "said-no": "no consent",
        "opted-out": "opted out",
        "erased": "erased",
        "without-profile": "consent unknown",
        "crowd0": "consent unknown",
    }


def test_scores_are_those_of_the_model(shop: Settings):
    """p_buy and expected revenue of every customer, computed once more from the customers' orders."""
    sql = (
        "select r.x, r.t_x_days, r.age_days, r.p_buy, v.expected_orders, v.expected_revenue, a.repeat_value_days, "
        "cast(a.repeat_value_amount as double precision) from marts.churn_risk r join marts.customer_value v using (customer_key) "
        "join intermediate.int_customer_activity a using (customer_key)"
    )
    x, t_x, age, buys, orders, revenue, n, amount = np.array(warehouse.fetch_rows(shop, sql), float).T
    p = PARAMETERS
    odds = np.log(p["a"]) - np.log(p["b"] + np.maximum(x, 1) - 1) + (p["r"] + x) * np.log((p["alpha"] + age) / (p["alpha"] + t_x))
    alive = np.where(x == 0, 1, special.expit(-odds))
    np.testing.assert_allclose(buys, alive * -np.expm1(-(p["r"] + x) * np.log1p(90 / (p["alpha"] + age))), rtol=1e-9)
    z = 365 / (p["alpha"] + age + 365)
    c = p["a"] + p["b"] + x - 1
    if_alive = c / (p["a"] - 1) * (1 - (1 - z) ** (p["r"] + x) * special.hyp2f1(p["r"] + x, p["b"] + x, c, z))
    np.testing.assert_allclose(orders, alive * if_alive, rtol=1e-6)
    worth = p["gg_p"] * (p["gg_v"] + amount) / (p["gg_p"] * n + p["gg_q"] - 1)
    np.testing.assert_allclose(revenue, orders * worth, rtol=1e-12)
    assert set(n[x == 0]) == {0}
    assert {row[0] for row in warehouse.fetch_rows(shop, "select distinct method from marts.churn_risk")} == {"bgnbd"}


def test_a_repeated_refresh_changes_nothing(shop: Settings):
    before = warehouse.fetch_rows(shop, "select * from marts.audience_changes order by 1, 2, 3")
    run_dbt(shop, *AUDIENCES_ALONE)
    assert warehouse.fetch_rows(shop, "select * from marts.audience_changes order by 1, 2, 3") == before


@pytest.fixture(scope="module")
def second(shop: Settings) -> Settings:
    """One buys again, one objects, one asks to be forgotten, one agrees after all."""
    append(shop, [
        *bought("wins-back", date(2026, 3, 31)),
        profile("will-object", on(FIRST_AS_OF), email="will-object@example.com", **AGREED, opted_out=True, sequence=2),
        profile("will-be-erased", on(FIRST_AS_OF), erased=True, **AGREED, sequence=2),
        profile("silent-on-consent", on(FIRST_AS_OF), consent_email=True, sequence=2),
    ])  # fmt: skip
    refresh(shop, *WITHOUT_SEEDS)
    return shop


def test_the_second_refresh_lets_go_who_no_longer_belongs(second: Settings):
    assert changes(second, "risky", 2) == {
        ("wins-back", "leave", "conditions no longer met"),
        ("will-object", "leave", "opted out"),
        ("will-be-erased", "leave", "erased"),
        ("silent-on-consent", "join", "conditions met"),
    }
    assert members(second, "risky") == {"silent-on-consent"}
    assert members(second, "everybody") == {"wins-back", "regular"}


@pytest.fixture(scope="module")
def third(second: Settings) -> Settings:
    """Four months later, most are quiet again."""
    append(second, bought("crowd0", date(2026, 7, 20)))
    later = second.model_copy(update={"as_of": LATER})
    refresh(later, *WITHOUT_SEEDS)
    return later


def test_the_third_refresh_takes_back_who_is_quiet_again(third: Settings):
    assert changes(third, "risky", 3) == {("wins-back", "join", "conditions met"), ("regular", "join", "conditions met")}
    assert members(third, "risky") == {"silent-on-consent", "wins-back", "regular"}


def test_who_ordered_since_the_score_leaves_until_the_next_one(third: Settings):
    """An order has come and only the audiences are built; then everything is."""
    append(third, bought("regular", date(2026, 7, 30)))
    load_all(third)
    run_dbt(third, *AUDIENCES_ALONE)
    assert changes(third, "risky", 4) == {("regular", "leave", "score out of date")}
    assert changes(third, "everybody", 3) == {("regular", "leave", "score out of date")}

    run_dbt(third, *WITHOUT_SEEDS)
    assert members(third, "risky") == {"silent-on-consent", "wins-back"}
    assert changes(third, "everybody", 4) == {("regular", "join", "conditions met")}


def test_a_withdrawn_audience_is_left_by_all(third: Settings):
    execute(third, "delete from marts.audience_rules where audience = 'risky'")
    run_dbt(third, *AUDIENCES_ALONE)
    assert members(third, "risky") == set()
    (version,) = warehouse.fetch_rows(third, "select max(version) from marts.audience_changes where audience = 'risky'")[0]
    assert {reason for _, _, reason in changes(third, "risky", version)} == {"audience withdrawn"}


def test_a_model_in_another_unit_scores_nobody_and_says_so(shop: Settings):
    execute(shop, model_row("weekly", unit="week", promoted_at="2026-12-31"))
    before = warehouse.fetch_rows(shop, "select count(*), max(scored_at) from marts.churn_risk")
    message = "purchase model weekly has its parameters per week, the marts count in days: no customer is scored"
    with pytest.raises(AssertionError, match=message):
        run_dbt(shop, *BUILD, "int_scoring_basis", "churn_risk", "customer_value")
    assert warehouse.fetch_rows(shop, "select count(*), max(scored_at) from marts.churn_risk") == before

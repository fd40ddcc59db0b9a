"""A refit on a real PostgreSQL: what it reads, what it stores, what it shows, and that nothing stored is ever changed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import UTC, date, datetime, timedelta

import dagster as dg
import numpy as np
import polars as pl
import pytest
from adbc_driver_postgresql import dbapi  # noqa: TID253 -- tests need not start fast
from click.testing import Result
from typer.testing import CliRunner

from crm_assets.build import build_defs
from crm_assets.warehouse.models.cli import app
from crm_assets.warehouse.models.evaluation import HORIZON_DAYS
from crm_assets.warehouse.models.fitting import fit_purchases
from crm_assets.warehouse.models.formulas import expected_amount, expected_orders, p_alive, p_buy, risk_after_one_more_order
from crm_assets.warehouse.models.histories import Family
from crm_assets.warehouse.models.reading import read_hold_out
from crm_assets.warehouse.models.refit import Refit, evaluate_past, refit
from crm_assets.warehouse.models.storage import UnitMismatch, copy_models, serving_model
from crm_resources import warehouse
from crm_resources.model_tables import MODEL_TABLES
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from generator.population_model import PopulationOptions, PopulationShop
from tests.oracle.refresh import data_set, run_dbt
from tests.statistics.purchase_splits import EPOCH, PurchaseDays, of_population

AS_OF = date(2026, 7, 31)
NOW = datetime(2026, 8, 1, 4, 20, tzinfo=UTC)


@dataclass(frozen=True)
class Shop:
    """A data set with a year of customers, and their purchase days; those after the as-of date are in the future."""

    settings: Settings
    days: PurchaseDays


@pytest.fixture(scope="module")
def shop(stack_services: Stack) -> Shop:
    return open_shop(data_set(stack_services.settings, "models", as_of=AS_OF))


def open_shop(settings: Settings) -> Shop:
    """The tables a refit reads, as dbt would leave them, with the columns it looks at."""
    warehouse.prepare(settings)
    days = of_population(PopulationShop(PopulationOptions(end=AS_OF, seed=4, customers=3_000)))
    at = (AS_OF - EPOCH).days
    orders = pl.DataFrame({"customer": days.customer, "day": days.day}).select(
        customer_key="id:" + pl.col("customer").cast(pl.String),
        business_date=pl.col("day").cast(pl.Int32).cast(pl.Date),
        customer_known=pl.lit(True),
        is_within_as_of=pl.col("day") <= at,
        is_base_currency=pl.lit(True),
        sale_lines=pl.lit(1),
    )
    noise = orders.head(300).with_columns(business_date=pl.col("business_date") + pl.duration(days=1))
    # None of these is a purchase: unknown customer, foreign currency, nothing sold.
    no_purchases = [
        noise.with_columns(customer_known=pl.lit(False)),
        noise.with_columns(is_base_currency=pl.lit(False)),
        noise.with_columns(sale_lines=pl.lit(0)),
    ]
    random = np.random.default_rng(1)
    activity = (
        orders.filter("is_within_as_of")
        .group_by("customer_key", maintain_order=True)
        .agg(
            first_purchase_date=pl.col("business_date").min(),
            last_purchase_date=pl.col("business_date").max(),
            purchase_days=pl.len().cast(pl.Int32),
        )
        .with_columns(repeat_value_days=pl.col("purchase_days") - 1, usual_gap_days=pl.lit(None, pl.Float64))
    )
    number = activity["repeat_value_days"].to_numpy()
    amounts = np.where(number > 0, random.gamma(6.25 * np.maximum(number, 1)) / random.gamma(3.74, 1 / 15.44, number.size), 0)
    with warehouse.connect(settings) as connection, connection.cursor() as cursor:
        cursor.adbc_ingest("fct_orders", pl.concat([orders, *no_purchases]).to_arrow(), mode="create", db_schema_name="marts")
        columns = activity.with_columns(repeat_value_amount=pl.Series(amounts)).to_arrow()
        cursor.adbc_ingest("int_customer_activity", columns, mode="create", db_schema_name="intermediate")
        connection.commit()
    return Shop(settings, days)


@pytest.fixture(scope="module")
def done(shop: Shop) -> Refit:
    return refit(shop.settings, as_of=AS_OF, now=NOW)


def stored(settings: Settings, columns: str, table: str = "purchase_models") -> list[tuple[object, ...]]:
    return warehouse.fetch_rows(settings, f"select {columns} from models.{table} order by model_version")


def test_a_time_split_is_what_the_purchase_days_say(shop: Shop):
    split = AS_OF - timedelta(days=HORIZON_DAYS)
    found, (expected, _) = read_hold_out(shop.settings, split, HORIZON_DAYS), shop.days.split(split, HORIZON_DAYS)
    assert found is not None

    def customers(held) -> list[tuple[object, ...]]:
        columns = (held.seen.repeats, held.seen.last, held.seen.age, held.bought)
        return sorted(zip(*(c.tolist() for c in columns), strict=True))

    assert customers(found) == customers(expected)
    assert found.season_ratio == pytest.approx(expected.season_ratio)


def test_both_families_are_stored_and_the_serving_one_is_promoted(shop: Shop, done: Refit):
    seen = shop.days.split(AS_OF, HORIZON_DAYS)[0].seen
    fits = {family: fit_purchases(seen, family) for family in Family}
    rows = stored(
        shop.settings, "model, r, alpha, a, b, log_likelihood, data_hash, customers, unit, promoted_at, as_of::text, window_to::text"
    )
    assert [row[0] for row in rows] == ["bgnbd", "mbgnbd"]
    for row in rows:
        fit = fits[Family(row[0])]
        m = fit.parameters
        assert row[1:6] == (m.r, m.alpha, m.a, m.b, fit.log_likelihood)
        assert row[6:9] == (seen.data_hash(), seen.count, "day")
        assert row[9] == (NOW if row[0] == "bgnbd" else None)
        assert row[10:] == (str(AS_OF), str(AS_OF))
    first_day = EPOCH + timedelta(days=int(shop.days.day.min()))
    assert set(stored(shop.settings, "window_from::text, gg_q > 1, gg_p > 0 and gg_v > 0")) == {(str(first_day), True, True)}
    serving = serving_model(shop.settings)
    assert serving is not None
    assert serving.model_version == done.versions[0].model_version
    assert serving.parameters == fits[Family.BGNBD].parameters


def test_the_marts_score_as_the_fitted_parameters_say(shop: Shop, done: Refit):
    assert done.spend is not None
    assert done.spend.parameters is not None
    scoring = ("stg_models__purchase_models", "int_scoring_basis", "int_expected_orders", "churn_risk", "customer_value")
    run_dbt(shop.settings, "run", "--select", *scoring)
    rows = pl.DataFrame(
        warehouse.fetch_arrow(
            shop.settings,
            "select risk.x, t_x_days, age_days, p_alive, p_buy, churn_risk, risk_after_one_more_order, risk.model_version, risk.method, "
            "expected_orders, expected_amount_per_order, activity.repeat_value_days as n, activity.repeat_value_amount as total "
            "from marts.churn_risk as risk join marts.customer_value using (customer_key) "
            "join intermediate.int_customer_activity as activity using (customer_key)",
        )
    )
    m = done.versions[0].fit.parameters
    assert rows.select("model_version", "method").unique().rows() == [(done.versions[0].model_version, m.method)]
    columns = (rows["x"].to_numpy(), *(rows[name].cast(pl.Float64).to_numpy() for name in ("t_x_days", "age_days")))
    within = {"rtol": 1e-9, "atol": 1e-9}
    np.testing.assert_allclose(rows["p_alive"], p_alive(m, *columns), **within)
    np.testing.assert_allclose(rows["p_buy"], p_buy(m, *columns, HORIZON_DAYS), **within)
    np.testing.assert_allclose(rows["churn_risk"], 1 - p_buy(m, *columns, HORIZON_DAYS), **within)
    after = risk_after_one_more_order(m, columns[0], columns[2], HORIZON_DAYS)
    np.testing.assert_allclose(rows["risk_after_one_more_order"], after, **within)
    np.testing.assert_allclose(rows["expected_orders"], expected_orders(m, *columns, 365), rtol=1e-7)
    amount = expected_amount(done.spend.parameters, rows["n"].to_numpy(), rows["total"].to_numpy())
    np.testing.assert_allclose(rows["expected_amount_per_order"], amount, rtol=1e-9)


def test_evaluations_are_stored_whole(shop: Shop, done: Refit):
    rows = stored(shop.settings, "model_version, auc, auc_above_recency_low, report->'scores'->0->'auc'->>'value'", "evaluations")
    evaluations = {v.model_version: v.evaluation for v in done.versions}
    assert [row[0] for row in rows] == sorted(evaluations)
    for version, auc, low, in_report in rows:
        evaluation = evaluations[version]
        assert evaluation is not None
        assert auc == evaluation.scores[0].auc.value == float(in_report)
        assert low == evaluation.auc_above_recency.low


def test_the_same_data_give_the_same_version_which_is_stored_once(shop: Shop, done: Refit):
    again = refit(shop.settings, as_of=AS_OF, now=NOW + timedelta(days=1))
    assert [v.model_version for v in again.versions] == [v.model_version for v in done.versions]
    assert again.stored_versions == 0
    assert again.drift is not None
    assert again.drift.warnings == ()
    assert len(stored(shop.settings, "model_version")) == 2


@pytest.mark.parametrize("statement", ["update models.{} set model_version = 'mine'", "delete from models.{}"])
@pytest.mark.parametrize("table", [t.name for t in MODEL_TABLES])
def test_what_is_stored_stays_as_it_is(shop: Shop, done: Refit, statement: str, table: str):
    assert done.stored_versions == 2
    with (
        warehouse.connect(shop.settings) as connection,
        connection.cursor() as cursor,
        pytest.raises(dbapi.Error, match=f"models.{table} only grows"),
    ):
        cursor.execute(statement.format(table))


def test_a_model_in_another_unit_does_not_serve_and_gives_way_to_a_refit(stack_services: Stack):
    elsewhere = open_shop(data_set(stack_services.settings, "models_weeks", as_of=AS_OF)).settings
    with warehouse.connect(elsewhere, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(
            "insert into models.purchase_models (model_version, model, unit, as_of, window_from, window_to, customers, r, alpha, a, b, "
            "log_likelihood, dropout_identified, data_hash, fitted_at, promoted_at) "
            "values ('w', 'bgnbd', 'week', '2026-01-01', '2025-01-01', '2026-01-01', 9, 1, 1, 1, 1, -1, true, '', now(), '2026-01-02')"
        )
    with pytest.raises(UnitMismatch, match="'week'"):
        serving_model(elsewhere)
    promotion = refit(elsewhere, as_of=AS_OF, now=NOW).promotion
    assert promotion is not None
    assert promotion.promote
    assert serving_model(elsewhere) is not None


def test_time_travel_takes_the_versions_of_its_time(shop: Shop, done: Refit):
    assert done.stored_versions == 2
    place = data_set(shop.settings, "models_then")
    warehouse.prepare(place)
    assert copy_models(shop.settings, place, NOW - timedelta(seconds=1)) == 0
    assert copy_models(shop.settings, place, NOW) == 2
    assert serving_model(place) == serving_model(shop.settings)
    assert copy_models(data_set(shop.settings, "models_never"), place, None) == 0


def evaluate_command(settings: Settings, *arguments: str) -> Result:
    """`make evaluate-models`, in this process."""
    variables = {"CRM_HOME": str(settings.home), "CRM_ENV": settings.env, "CRM_AS_OF": str(settings.as_of or "")}
    return CliRunner().invoke(app, ["evaluate", *arguments], env=variables)


def test_the_command_judges_a_time_split_and_stores_nothing(shop: Shop):
    before = stored(shop.settings, "model_version")
    split = AS_OF - timedelta(days=HORIZON_DAYS)

    shown = evaluate_command(shop.settings)

    assert shown.exit_code == 0, shown.output
    assert "NOT BETTER" not in shown.output
    assert stored(shop.settings, "model_version") == before
    report = json.loads((shop.settings.reports_dir / "evaluate-models.json").read_text())
    assert report["verdict"] == "pass"
    judged = evaluate_past(shop.settings, split, HORIZON_DAYS, shown=AS_OF)
    assert report["figures"] == {f"{name}_{figure}": v for name, e in judged.items() for figure, v in e.headline().items()}
    page = (shop.settings.reports_dir / f"purchase-models-{shop.settings.env}.html").read_text()
    assert page.count("data:image/png;base64,") >= len(Family)


@pytest.mark.parametrize(
    ("split", "complaint"),
    [
        ("2026-07-01", "are not over: the marts show 2026-07-31"),
        ("2019-01-01", "nobody had bought by 2019-01-01"),
        ("yesterday", "yesterday"),
    ],
)
def test_a_split_that_cannot_be_judged_is_refused(shop: Shop, split: str, complaint: str):
    shown = evaluate_command(shop.settings, "--as-of", split)

    assert shown.exit_code == 2
    assert complaint in shown.output.replace("\n", " ")


def run_job(settings: Settings) -> dg.ExecuteInProcessResult:
    """The nightly job, in this process."""
    with pytest.MonkeyPatch.context() as patch:
        for name in ("home", "env", "as_of"):
            patch.setenv(f"CRM_{name.upper()}", str(getattr(settings, name) or ""))
        return build_defs().resolve_job_def("fit_models").execute_in_process()


def test_the_job_shows_the_evaluation_and_its_checks(shop: Shop, done: Refit):
    assert done.stored_versions == 2
    result = run_job(shop.settings)
    metadata = {
        m.asset_key.path[-1]: m.step_materialization_data.materialization.metadata for m in result.get_asset_materialization_events()
    }
    assert metadata["purchase_models"]["dagster/row_count"].value == 2
    assert "predicted / observed" in metadata["evaluations"]["bgnbd"].value
    assert "data:image/png;base64," in metadata["evaluations"]["bgnbd_plots"].value
    checks = {check.check_name: check.passed for check in result.get_asset_check_evaluations()}
    assert checks["gate_open"]
    assert checks["no_drift"]
    assert set(checks) == {"gate_open", "frequency_and_value_independent", "no_drift", "ranks_better_than_recency", "calibrated"}


def test_behind_a_closed_gate_nothing_is_stored_and_the_check_says_why(stack_services: Stack):
    settings = data_set(stack_services.settings, "models_young")
    result = run_job(settings)
    assert result.success
    gate = next(check for check in result.get_asset_check_evaluations() if check.check_name == "gate_open")
    assert not gate.passed
    assert gate.metadata["closed"].value == "no customer has bought yet"
    assert stored(settings, "model_version") == []

"""The purchase models as assets: each materialization is one refit, with its evaluation as checks.

Belongs here: keys, metadata, checks, when it runs. Not here: the refit itself (`refit`).

The marts that score read the model table, and the refit reads the dbt models before them, so the assets stand between dbt models of one
multi-asset. Dagster splits that multi-asset only in jobs that hold both; the job of the refresh leaves the models out and stays one dbt
invocation, and a refit has a job of its own. What is promoted at night scores from the next refresh on.
"""

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import dagster as dg

from crm_assets.conventions import OWNERS, Group
from crm_assets.warehouse.models.refit import Refit, refit
from crm_resources.dagster_resources import SettingsResource
from crm_resources.model_tables import EVALUATIONS, MODELS_SCHEMA, PURCHASE_MODELS, ModelTable

PURCHASE_MODELS_KEY = dg.AssetKey([MODELS_SCHEMA, PURCHASE_MODELS.name])
EVALUATIONS_KEY = dg.AssetKey([MODELS_SCHEMA, EVALUATIONS.name])
_FRESH = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=50), warn_window=timedelta(hours=26))
"""A night may fail; a second one should be looked at."""
_READ = [dg.AssetKey(["intermediate", "int_customer_activity"]), dg.AssetKey(["marts", "fct_orders"])]

_CHECKS = {
    "gate_open": (PURCHASE_MODELS_KEY, "There is enough history for a model; until then the recency rule scores."),
    "frequency_and_value_independent": (PURCHASE_MODELS_KEY, "Correlation of frequency and value at most .1, and Gamma-Gamma has a mean."),
    "no_drift": (PURCHASE_MODELS_KEY, "Parameters and scores of the refit are near those of the model before."),
    "ranks_better_than_recency": (EVALUATIONS_KEY, "AUC on the hold-out above that of recency alone, with its 95 % interval above 0."),
    "calibrated": (EVALUATIONS_KEY, "Predicted over observed buyers within 10 %, overall and in each decile with 200 expected buyers."),
}


def _spec(table: ModelTable, key: dg.AssetKey, deps: list[dg.AssetKey]) -> dg.AssetSpec:
    columns = [
        dg.TableColumn(c.name, c.data_type, c.description, dg.TableColumnConstraints(nullable=not c.required)) for c in table.columns
    ]
    return dg.AssetSpec(
        key,
        deps=deps,
        description=table.description,
        group_name=Group.MODELS.value,
        kinds={"postgres", "scipy"},
        owners=OWNERS,
        freshness_policy=_FRESH,
        metadata={"dagster/column_schema": dg.TableSchema(columns=columns), "dagster/table_name": f"{MODELS_SCHEMA}.{table.name}"},
    )


@dg.multi_asset(
    name="fit_purchase_models",
    specs=[_spec(PURCHASE_MODELS, PURCHASE_MODELS_KEY, _READ), _spec(EVALUATIONS, EVALUATIONS_KEY, [*_READ, PURCHASE_MODELS_KEY])],
    check_specs=[dg.AssetCheckSpec(name, asset=key, description=text) for name, (key, text) in _CHECKS.items()],
)
def fit_purchase_models(context: dg.AssetExecutionContext, settings: SettingsResource) -> Iterator[dg.MaterializeResult[None]]:
    """Fit BG/NBD, MBG/NBD and Gamma-Gamma to the customers of the marts, judge them on a time split, promote by the rule."""
    from crm_assets.warehouse.models.reading import models_as_of
    from crm_resources import warehouse

    loaded, now = settings.load(), datetime.now(UTC)
    done = refit(loaded, as_of=models_as_of(loaded, now), now=now)
    if done.promotion is not None:
        context.log.info("%s", done.promotion.reason)
    results = check_results(done)
    for key, metadata in ((PURCHASE_MODELS_KEY, _models_metadata(done)), (EVALUATIONS_KEY, _evaluations_metadata(done))):
        rows = warehouse.count_rows(loaded, *key.path)
        checks = [result for result in results if result.asset_key == key]
        yield dg.MaterializeResult(asset_key=key, metadata={"dagster/row_count": rows, **metadata}, check_results=checks)


def check_results(done: Refit) -> list[dg.AssetCheckResult]:
    """Every check of a refit; pure. What a young shop gives nothing to judge of passes, and says so."""
    serving = done.serving
    evaluation = serving.evaluation if serving else None
    found = [
        _result(
            "gate_open", done.gate.open, {"customers": done.gate.customers, "days": done.gate.days, "closed": "; ".join(done.gate.closed)}
        )
    ]
    if done.spend is None:
        found.append(_result("frequency_and_value_independent", True, {"why": "the gate is closed"}))
    else:
        fine = not done.spend.correlated and done.spend.parameters is not None
        found.append(
            _result(
                "frequency_and_value_independent",
                fine,
                {"correlation": done.spend.correlation, "customers": done.spend.customers, "refusal": done.spend.refusal},
            )
        )
    if done.drift is None:
        found.append(_result("no_drift", True, {"why": "there was no model before"}))
    else:
        drift = {"mean_score_change": done.drift.mean_score_change, "stability_index": done.drift.stability_index}
        factors = {f"{name}_factor": factor for name, factor in done.drift.parameter_factors.items()}
        found.append(_result("no_drift", not done.drift.warnings, {**drift, **factors, "warnings": "; ".join(done.drift.warnings)}))
    if evaluation is None:
        nothing = {"why": "there is no hold-out to judge by"}
        return [*found, _result("ranks_better_than_recency", True, nothing), _result("calibrated", True, nothing)]
    above = evaluation.auc_above_recency
    return [
        *found,
        # Behind recency alone the model is of no use; ahead, but not for certain, is worth a look.
        _result(
            "ranks_better_than_recency",
            above.low > 0,
            {"auc_above_recency": above.value, "low": above.low, "high": above.high},
            serious=not above.value > 0,
        ),
        _result(
            "calibrated",
            not evaluation.miscalibrated,
            {"predicted_over_observed": evaluation.predicted_over_observed.value, "reason": evaluation.calibration_reason},
        ),
    ]


def _result(name: str, passed: bool, metadata: dict[str, Any], *, serious: bool = False) -> dg.AssetCheckResult:
    return dg.AssetCheckResult(
        asset_key=_CHECKS[name][0],
        check_name=name,
        passed=bool(passed),
        severity=dg.AssetCheckSeverity.ERROR if serious else dg.AssetCheckSeverity.WARN,
        metadata={key: "not defined" if value != value else value for key, value in metadata.items()},
    )


def _models_metadata(done: Refit) -> dict[str, Any]:
    if not done.gate.open:
        return {"gate_closed": "; ".join(done.gate.closed)}
    figures: dict[str, Any] = {"as_of": done.as_of.isoformat(), "stored_versions": done.stored_versions}
    for version in done.versions:
        m = version.fit.parameters
        values = {"r": m.r, "alpha_days": m.alpha, "a": m.a, "b": m.b, "log_likelihood": version.fit.log_likelihood}
        figures |= {f"{m.family}_{name}": value for name, value in values.items()}
        figures[f"{m.family}_dropout"] = version.fit.why_unidentified or "identified"
    if done.promotion is not None:
        figures |= {"promoted": done.promotion.promote, "promotion": done.promotion.reason}
    return figures


def _evaluations_metadata(done: Refit) -> dict[str, Any]:
    import base64

    from crm_assets.warehouse.models.page import markdown, plot

    figures: dict[str, Any] = {}
    for version in done.versions:
        if version.evaluation is not None:
            name = version.fit.parameters.family.value
            picture = base64.b64encode(plot(version.evaluation, name)).decode()
            figures[name] = dg.MetadataValue.md(markdown(version.evaluation))
            figures[f"{name}_plots"] = dg.MetadataValue.md(f"![calibration and lift](data:image/png;base64,{picture})")
    return figures or {"evaluated": "nothing: no hold-out yet"}


fit_models_job = dg.define_asset_job(
    "fit_models",
    selection=dg.AssetSelection.assets(fit_purchase_models),
    executor_def=dg.in_process_executor,
    description="Fits the purchase models anew, judges them on a time split, and promotes by the rule.",
)

fit_models_schedule = dg.ScheduleDefinition(
    name="fit_models_daily",
    job=fit_models_job,
    cron_schedule="20 4 * * *",
    default_status=dg.DefaultScheduleStatus.RUNNING,
    description="Every night at 04:20 UTC; the same data give the same version, which is stored once.",
)

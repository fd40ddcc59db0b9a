"""The model tables: fitted versions and their evaluations go in, the model that scores comes out. Rows are never changed.

Belongs here: rows. Not here: the tables' columns (`crm_resources.model_tables`), or which version is promoted (`promotion`).
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import dataclass
from datetime import date, datetime
from typing import Any

from crm_assets.warehouse.models.evaluation_result import Evaluation, Predictor
from crm_assets.warehouse.models.fitting import PurchaseFit, SpendFit
from crm_assets.warehouse.models.formulas import PurchaseParameters
from crm_assets.warehouse.models.histories import Family
from crm_assets.warehouse.models.reading import UNIT, Activity
from crm_resources import warehouse
from crm_resources.model_tables import EVALUATIONS, MODELS_SCHEMA, PURCHASE_MODELS, ModelTable
from crm_resources.settings import Settings


class UnitMismatch(RuntimeError):
    """A stored model counts time in another unit than the marts do."""


@dataclass(frozen=True)
class ServingModel:
    """The version that scores."""

    model_version: str
    parameters: PurchaseParameters
    as_of: date
    promoted_at: datetime


def model_version(fit: PurchaseFit, spend: SpendFit, as_of: date) -> str:
    """Name of a version: the same data at the same date give the same one."""
    digest = hashlib.sha256(f"{fit.data_hash}/{spend.parameters}".encode()).hexdigest()
    return f"{fit.parameters.family}-{as_of:%Y%m%d}-{digest[:8]}"


def serving_model(settings: Settings) -> ServingModel | None:
    """The newest promoted version; `None` before the first.

    Raises:
        UnitMismatch: its parameters are not in days.
    """
    rows = warehouse.rows_if_prepared(
        settings,
        "select model_version, model, unit, r, alpha, a, b, dropout_identified, as_of::text, promoted_at from models.purchase_models "
        "where promoted_at is not null order by promoted_at desc, model_version desc limit 1",
    )
    if not rows:
        return None
    version, model, unit, r, alpha, a, b, identified, as_of, promoted_at = rows[0]
    if unit != UNIT:
        raise UnitMismatch(f"model {version} is in the unit {unit!r}, the marts count in {UNIT}s; fit a new version with `make fit-models`")
    return ServingModel(version, PurchaseParameters(Family(model), r, alpha, a, b, identified), date.fromisoformat(as_of), promoted_at)


def model_row(
    version: str, fit: PurchaseFit, spend: SpendFit, activity: Activity, fitted_at: datetime, promoted_at: datetime | None
) -> dict[str, Any]:
    """A row of `models.purchase_models`."""
    m, g = fit.parameters, spend.parameters
    return {
        "model_version": version,
        "model": m.family.value,
        "unit": UNIT,
        "as_of": activity.as_of.isoformat(),
        "window_from": activity.window_from.isoformat(),
        "window_to": activity.as_of.isoformat(),
        "customers": fit.customers,
        "r": m.r,
        "alpha": m.alpha,
        "a": m.a,
        "b": m.b,
        "log_likelihood": fit.log_likelihood,
        "dropout_identified": m.dropout_identified,
        "data_hash": fit.data_hash,
        "gg_p": g.p if g else None,
        "gg_q": g.q if g else None,
        "gg_v": g.v if g else None,
        "gg_customers": spend.customers,
        "gg_log_likelihood": spend.log_likelihood if g else None,
        "frequency_value_correlation": spend.correlation if math.isfinite(spend.correlation) else None,
        "fitted_at": fitted_at.isoformat(),
        "promoted_at": promoted_at.isoformat() if promoted_at else None,
    }


def evaluation_row(version: str, found: Evaluation, evaluated_at: datetime) -> dict[str, Any]:
    """A row of `models.evaluations`."""
    document = found.document()
    model, recency, frequency = (found.score(name) for name in Predictor)
    above = found.auc_above_recency
    row = {
        "model_version": version,
        "as_of": found.as_of.isoformat(),
        "horizon_days": found.horizon_days,
        "method": found.method,
        "customers": model.customers,
        "buyers": model.buyers,
        "expected_buyers": model.expected_buyers,
        "auc": model.auc.value,
        "auc_recency": recency.auc.value,
        "auc_frequency": frequency.auc.value,
        "auc_above_recency": above.value,
        "auc_above_recency_low": above.low,
        "auc_above_recency_high": above.high,
        "brier": model.brier.value if model.brier else None,
        "log_loss": model.log_loss.value if model.log_loss else None,
        "top_decile_lift": model.top_decile_lift.value,
        "is_calibrated": not found.miscalibrated,
        "calibration_reason": found.calibration_reason,
        "report": document,
        "evaluated_at": evaluated_at.isoformat(),
    }
    return {name: None if isinstance(value, float) and not math.isfinite(value) else value for name, value in row.items()}


def store(settings: Settings, models: list[dict[str, Any]], evaluations: list[dict[str, Any]]) -> int:
    """Add versions and evaluations in one transaction; what is there already stays as it is.

    Returns:
        How many versions are new.
    """
    added = 0
    with warehouse.connect(settings) as connection, connection.cursor() as cursor:
        for table, rows in ((PURCHASE_MODELS, models), (EVALUATIONS, evaluations)):
            for row in rows:
                cursor.execute(_insert_sql(table), (json.dumps(row, allow_nan=False),))
                added += len(cursor.fetchall()) if table is PURCHASE_MODELS else 0
        connection.commit()
    return added


def copy_models(source: Settings, target: Settings, by: datetime | None) -> int:
    """Give a data set's database the versions another one held at a time, for scoring what was scored then.

    Args:
        source: data set to copy from.
        target: data set to copy to, prepared.
        by: versions fitted later are left out; `None` takes all.

    Returns:
        How many versions were copied.
    """
    rows = warehouse.rows_if_prepared(
        source,
        "select to_jsonb(versions)::text from models.purchase_models as versions where fitted_at <= coalesce($1::timestamptz, 'infinity')",
        (by,),
    )
    return store(target, [json.loads(row) for (row,) in rows], [])


def _insert_sql(table: ModelTable) -> str:
    name = f"{MODELS_SCHEMA}.{table.name}"
    return (
        f"insert into {name} select * from jsonb_populate_record(null::{name}, cast($1::text as jsonb)) "  # noqa: S608 -- own names
        f"on conflict do nothing returning model_version"
    )

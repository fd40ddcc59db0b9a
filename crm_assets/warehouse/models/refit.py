"""One refit of the purchase models of a data set: read, gate, fit, judge on a time split, decide, store.

Belongs here: the order of these steps. Not here: any of them.

Each family is fitted twice. Once on everything up to the as-of date: these parameters are stored, and score when promoted. And once on
what was known a horizon earlier: these have not seen the hold-out, so they are what is evaluated and compared with the current model.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, datetime, timedelta

from crm_assets.warehouse.models.evaluation import HORIZON_DAYS, HoldOut, evaluate
from crm_assets.warehouse.models.evaluation_result import Evaluation
from crm_assets.warehouse.models.fitting import FitError, PurchaseFit, SpendFit, fit_purchases, fit_spend
from crm_assets.warehouse.models.gate import Gate, decide_gate
from crm_assets.warehouse.models.histories import Family, Histories
from crm_assets.warehouse.models.promotion import Drift, Promotion, decide_promotion, measure_drift
from crm_assets.warehouse.models.reading import Activity, read_activity, read_hold_out
from crm_assets.warehouse.models.storage import ServingModel, UnitMismatch, evaluation_row, model_row, model_version, serving_model, store
from crm_resources import warehouse
from crm_resources.settings import Settings

SERVING_FAMILY = Family.BGNBD
"""The family that is promoted; the other is fitted and judged beside it."""


@dataclass(frozen=True)
class FittedVersion:
    """A family's fit on everything, and the evaluation of its twin that did not see the hold-out (`None`: too young for one)."""

    model_version: str
    fit: PurchaseFit
    evaluation: Evaluation | None


@dataclass(frozen=True)
class Refit:
    """What a refit found and did. Behind a closed gate nothing is fitted and `versions` is empty.

    `promotion` is of the serving family's version; `drift` its distance from the model that scored before, `None` at the first.
    """

    as_of: date
    gate: Gate
    versions: tuple[FittedVersion, ...] = ()
    spend: SpendFit | None = None
    promotion: Promotion | None = None
    drift: Drift | None = None
    before: ServingModel | None = None
    stored_versions: int = 0

    @property
    def serving(self) -> FittedVersion | None:
        """The serving family's version of this refit."""
        return next((v for v in self.versions if v.fit.parameters.family is SERVING_FAMILY), None)


def refit(settings: Settings, *, as_of: date, now: datetime) -> Refit:
    """Fit, judge and store the models of a data set; behind a closed gate nothing is stored.

    Args:
        settings: which data set.
        as_of: date the histories are aged to.
        now: current time.

    Raises:
        WarehouseError: no connection, or a right is missing.
        FitError: no maximum was found.
    """
    warehouse.prepare(settings)
    activity = read_activity(settings, as_of)
    gate = decide_gate(activity.seen if activity else Histories.of([], [], []))
    if activity is None or not gate.open:
        return Refit(as_of, gate)
    split = as_of - timedelta(days=HORIZON_DAYS)
    held = read_hold_out(settings, split, HORIZON_DAYS)
    earlier = read_hold_out(settings, split - timedelta(days=HORIZON_DAYS), HORIZON_DAYS)
    spend = fit_spend(activity.value_days, activity.value_amount)
    versions, twins = [], {}
    for family in Family:
        fit = fit_purchases(activity.seen, family)
        evaluation = None
        twin = fit_twin(held, family)
        if held is not None and twin is not None:
            twins[family] = twin
            evaluation = evaluate(held, twin.parameters, earlier)
        versions.append(FittedVersion(model_version(fit, spend, as_of), fit, evaluation))

    before = _comparable(settings)
    own = next(v for v in versions if v.fit.parameters.family is SERVING_FAMILY)
    promotion = decide(own.fit, twins.get(SERVING_FAMILY), before, held)
    rows = [_row(version, spend, activity, now, promoted=version is own and promotion.promote) for version in versions]
    judged = [evaluation_row(v.model_version, v.evaluation, now) for v in versions if v.evaluation is not None]
    return Refit(
        as_of=as_of,
        gate=gate,
        versions=tuple(versions),
        spend=spend,
        promotion=promotion,
        drift=measure_drift(own.fit.parameters, before.parameters, activity.seen, HORIZON_DAYS) if before else None,
        before=before,
        stored_versions=store(settings, rows, judged),
    )


def evaluate_past(settings: Settings, split: date, horizon_days: int, *, shown: date) -> dict[str, Evaluation]:
    """Every family, fitted on what was known at a split and judged by what came after; nothing is stored.

    Args:
        settings: which data set.
        split: last date of the histories.
        horizon_days: days of the hold-out.
        shown: the date up to which the marts know everything.

    Raises:
        WarehouseError: no connection.
        FitError: the hold-out is not over, nobody had bought by the split, or no maximum was found.
    """
    if split + timedelta(days=horizon_days) > shown:
        raise FitError(f"the {horizon_days} days after {split} are not over: the marts show {shown}. Choose an earlier date")
    held = read_hold_out(settings, split, horizon_days)
    if held is None:
        raise FitError(f"nobody had bought by {split}: nothing to judge. Choose a later date")
    earlier = read_hold_out(settings, split - timedelta(days=horizon_days), horizon_days)
    return {family.value: evaluate(held, fit_purchases(held.seen, family).parameters, earlier) for family in Family}


def fit_twin(held: HoldOut | None, family: Family) -> PurchaseFit | None:
    """The family's fit on what was known at the split; `None` where that is nothing."""
    if held is None:
        return None
    try:
        return fit_purchases(held.seen, family)
    except FitError:
        return None  # everybody arrived on the day of the split


def decide(fit: PurchaseFit, twin: PurchaseFit | None, before: ServingModel | None, held: HoldOut | None) -> Promotion:
    """Promote when the twin, which has not seen the hold-out, keeps the rule, and the parameters that would score do so as well.

    The second can only fail when the latest days changed the fit for the worse, e.g. by a broken import.
    """
    current = before.parameters if before else None
    if twin is None:
        return decide_promotion(fit.parameters, current, None)
    honest = decide_promotion(twin.parameters, current, held)
    if not honest.promote or current is None:
        return honest
    whole = decide_promotion(fit.parameters, current, held)
    return honest if whole.promote else Promotion(False, f"fitted on everything up to now: {whole.reason}", whole.worse_by)


def _comparable(settings: Settings) -> ServingModel | None:
    """The model that scores, unless it counts in another unit: then it scores nobody, and any refit may take its place."""
    try:
        return serving_model(settings)
    except UnitMismatch:
        return None


def _row(version: FittedVersion, spend: SpendFit, activity: Activity, now: datetime, *, promoted: bool) -> dict[str, object]:
    return model_row(version.model_version, version.fit, spend, activity, now, now if promoted else None)

"""What an evaluation found: scores of each predictor with intervals, calibration, and what follows from them; pure.

Belongs here: the results and how they read. Not here: computing them (`evaluation`), or pictures of them (`page`).
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from datetime import date
from enum import StrEnum
from typing import Any

from crm_assets.warehouse.models.metrics import Interval

FEWEST_EXPECTED_BUYERS = 200
"""A decile with fewer is too small for its ratio to be judged."""
LARGEST_MISS = 0.10
"""How far predicted over observed buyers may lie from 1."""


class Population(StrEnum):
    """Whose predictions are judged."""

    ALL = "all"
    ONE_TIME = "one_time"
    """x = 0: bought on one day only."""
    REPEAT = "repeat"


class Predictor(StrEnum):
    """What predicts."""

    MODEL = "model"
    RECENCY = "recency"
    FREQUENCY = "frequency"


@dataclass(frozen=True)
class Score:
    """How one predictor did on one population. Figures of probabilities are `None` where it has none to give.

    `model_auc_above` is the model's AUC less this predictor's, paired by resample.
    """

    population: Population
    predictor: Predictor
    customers: int
    buyers: int
    expected_buyers: float | None
    auc: Interval
    top_decile_lift: Interval
    brier: Interval | None
    log_loss: Interval | None
    model_auc_above: Interval | None


@dataclass(frozen=True)
class Calibration:
    """Predicted and observed buyers of a group: a decile of the model's probability, or a class of frequency."""

    group: str
    customers: int
    expected_buyers: float
    buyers: int
    observed_share: Interval

    @property
    def ratio(self) -> float:
        """Predicted over observed buyers."""
        return self.expected_buyers / self.buyers if self.buyers else math.inf

    @property
    def off(self) -> bool:
        """Whether the group is large enough to be judged, and misses by more than is allowed."""
        return self.expected_buyers >= FEWEST_EXPECTED_BUYERS and abs(self.ratio - 1) > LARGEST_MISS


@dataclass(frozen=True)
class Evaluation:
    """A model's evaluation on one hold-out."""

    as_of: date
    horizon_days: int
    method: str
    scores: tuple[Score, ...]
    by_decile: tuple[Calibration, ...]
    by_frequency: tuple[Calibration, ...]
    predicted_over_observed: Interval
    season_ratio: float

    def score(self, predictor: Predictor, population: Population = Population.ALL) -> Score:
        """One of the scores.

        Raises:
            KeyError: the population has no customer.
        """
        for score in self.scores:
            if (score.predictor, score.population) == (predictor, population):
                return score
        raise KeyError(f"no customers in population {population}")

    @property
    def auc_above_recency(self) -> Interval:
        """The model's AUC less that of recency alone, over all customers."""
        found = self.score(Predictor.RECENCY).model_auc_above
        assert found is not None  # noqa: S101 -- every baseline is compared
        return found

    @property
    def miscalibrated(self) -> tuple[str, ...]:
        """What is off by more than 10 %: `overall`, or deciles with at least 200 expected buyers; empty where all is well."""
        overall = ["overall"] if abs(self.predicted_over_observed.value - 1) > LARGEST_MISS else []
        return (*overall, *(f"decile {c.group}" for c in self.by_decile if c.off))

    @property
    def calibration_reason(self) -> str:
        """Why the calibration may be off, in a sentence."""
        if not self.miscalibrated:
            return "predicted and observed buyers agree within 10 %"
        text = f"predicted over observed is off by more than 10 % in: {', '.join(self.miscalibrated)}"
        if math.isfinite(self.season_ratio):
            text += (
                f"; customers who were there for both had {self.season_ratio:.2f} times the purchase days in the {self.horizon_days} days "
                f"after {self.as_of} as in the {self.horizon_days} before (without a season fewer, as customers leave); the model knows no "
                "season"
            )
        return text

    def headline(self) -> dict[str, float]:
        """The figures it is known by, flat; those that are not defined are left out."""
        model, above = self.score(Predictor.MODEL), self.auc_above_recency
        figures = {
            "customers": model.customers,
            "buyers": model.buyers,
            "expected_buyers": model.expected_buyers,
            "auc": model.auc.value,
            "auc_above_recency": above.value,
            "auc_above_recency_low": above.low,
            "auc_above_recency_high": above.high,
            "brier": model.brier.value if model.brier else None,
            "log_loss": model.log_loss.value if model.log_loss else None,
            "top_decile_lift": model.top_decile_lift.value,
            "predicted_over_observed": self.predicted_over_observed.value,
        }
        return {name: float(value) for name, value in figures.items() if value is not None and math.isfinite(value)}

    def document(self) -> dict[str, Any]:
        """The evaluation as JSON holds it; what is not defined is null."""
        found: dict[str, Any] = _plain(asdict(self))
        for name in ("by_decile", "by_frequency"):
            for row, group in zip(found[name], getattr(self, name), strict=True):
                row["predicted_over_observed"] = _plain(group.ratio)
        return found


def _plain(value: Any) -> Any:  # noqa: ANN401 -- whatever an evaluation is made of
    """A value as JSON takes it: no NaN, no dates, no tuples."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, date):
        return value.isoformat()
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

"""How evaluations are shown: markdown for the UI, a page with plots for a browser.

Belongs here: tables and pictures of an `Evaluation`. Not here: computing any of it.
"""

from __future__ import annotations

import html
import math
from collections.abc import Mapping, Sequence

from crm_assets.warehouse.models.evaluation_result import Calibration, Evaluation, Score
from crm_assets.warehouse.models.metrics import Interval
from crm_assets.warehouse.plotted_page import html_page, image, png_of

Rows = Sequence[Sequence[str]]

SCORE_HEADINGS = (
    "customers",
    "predictor",
    "number",
    "buyers",
    "predicted",
    "AUC",
    "model's AUC above",
    "Brier",
    "log-loss",
    "top-decile lift",
)
CALIBRATION_HEADINGS = ("group", "customers", "predicted buyers", "observed buyers", "predicted / observed", "observed share")


def score_rows(found: Evaluation) -> Rows:
    """A row per population and predictor."""
    return [_score_row(score) for score in found.scores]


def calibration_rows(groups: Sequence[Calibration]) -> Rows:
    """A row per group of customers."""
    return [
        (g.group, f"{g.customers:,}", f"{g.expected_buyers:,.1f}", f"{g.buyers:,}", _number(g.ratio, 3), _interval(g.observed_share, 3))
        for g in groups
    ]


def markdown(found: Evaluation) -> str:
    """The evaluation as markdown tables."""
    parts = [
        f"As of {found.as_of}, {found.horizon_days} days ahead, by `{found.method}`. Predicted over observed buyers "
        f"{_interval(found.predicted_over_observed, 3)}: {found.calibration_reason}.",
        _markdown_table(SCORE_HEADINGS, score_rows(found)),
        _markdown_table(CALIBRATION_HEADINGS, calibration_rows(found.by_decile)),
        _markdown_table(CALIBRATION_HEADINGS, calibration_rows(found.by_frequency)),
    ]
    return "\n\n".join(parts)


def page(title: str, evaluations: Mapping[str, Evaluation]) -> str:
    """The evaluations by name as one HTML page, which needs nothing besides itself."""
    sections = []
    for name, found in evaluations.items():
        lead = f"As of {found.as_of}, purchases of the {found.horizon_days} days after; probabilities by {found.method}."
        sections.append(
            f"<h2>{html.escape(name)}</h2><p>{html.escape(lead)}</p><p>Predicted over observed buyers "
            f"{_interval(found.predicted_over_observed, 3)}: {html.escape(found.calibration_reason)}.</p>"
            f"{image(f'calibration and lift of {name}', plot(found, name))}"
            f"<h3>Against recency only and frequency only</h3>{_html_table(SCORE_HEADINGS, score_rows(found))}"
            f"<h3>By decile of probability</h3>{_html_table(CALIBRATION_HEADINGS, calibration_rows(found.by_decile))}"
            f"<h3>By repeat purchases</h3>{_html_table(CALIBRATION_HEADINGS, calibration_rows(found.by_frequency))}"
        )
    note = "<p>Intervals are 95 %, from 1,000 resamples by customer.</p>"
    return html_page(title, note + "".join(sections))


def plot(found: Evaluation, title: str) -> bytes:
    """Calibration by decile, and lift by decile of probability, as PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11, 4.5), layout="constrained")
    curve, bars = figure.subplots(1, 2)
    figure.suptitle(f"{title}: {found.as_of} + {found.horizon_days} days")
    predicted = [g.expected_buyers / g.customers for g in found.by_decile]
    observed = [g.observed_share.value for g in found.by_decile]
    spread = [
        [max(0.0, g.observed_share.value - g.observed_share.low) for g in found.by_decile],
        [max(0.0, g.observed_share.high - g.observed_share.value) for g in found.by_decile],
    ]
    top = max([*predicted, *(g.observed_share.high for g in found.by_decile)]) * 1.05
    curve.plot([0, top], [0, top], color="black", linewidth=1, linestyle="--", label="as predicted")
    curve.errorbar(predicted, observed, yerr=spread, marker="o", capsize=3, color="tab:blue", label="deciles, with 95 % interval")
    curve.set(xlabel="predicted share of buyers", ylabel="observed share of buyers", title="calibration", xlim=(0, top), ylim=(0, top))
    customers = sum(g.customers for g in found.by_decile)
    share = sum(g.buyers for g in found.by_decile) / customers
    names = [g.group for g in reversed(found.by_decile)]
    bars.bar(names, [g.buyers / g.customers / share if share else 0.0 for g in reversed(found.by_decile)], color="tab:blue")
    bars.axhline(1, color="black", linewidth=1, linestyle="--")
    bars.set(xlabel="decile of probability, highest first", ylabel="share of buyers over that of all", title="lift")
    for axes in (curve, bars):
        axes.grid(alpha=0.3)
    curve.legend(loc="upper left")
    return png_of(figure)


def _score_row(score: Score) -> Sequence[str]:
    return (
        {"all": "all", "one_time": "one-time buyers (x = 0)", "repeat": "repeat buyers (x > 0)"}[score.population],
        score.predictor.value,
        f"{score.customers:,}",
        f"{score.buyers:,}",
        "" if score.expected_buyers is None else f"{score.expected_buyers:,.1f}",
        _interval(score.auc, 4),
        _interval(score.model_auc_above, 4),
        _interval(score.brier, 4),
        _interval(score.log_loss, 4),
        _interval(score.top_decile_lift, 2),
    )


def _interval(found: Interval | None, digits: int) -> str:
    if found is None or not math.isfinite(found.value):
        return ""
    if not math.isfinite(found.low):
        return _number(found.value, digits)
    return f"{_number(found.value, digits)} ({_number(found.low, digits)} to {_number(found.high, digits)})"


def _number(value: float, digits: int) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"


def _markdown_table(headings: Sequence[str], rows: Rows) -> str:
    lines = [headings, ["---"] * len(headings), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _html_table(headings: Sequence[str], rows: Rows) -> str:
    head = "".join(f"<th>{html.escape(name)}</th>" for name in headings)
    body = "".join(f"<tr>{''.join(f'<td>{html.escape(cell)}</td>' for cell in row)}</tr>" for row in rows)
    return f"<table><tr>{head}</tr>{body}</table>"

"""Tables of the schema `models`: fitted purchase models, and their evaluations. Both only grow.

Belongs here: columns with their meaning, and the SQL that makes the tables. Not here: what is written into them
(`crm_assets.warehouse.models`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

MODELS_SCHEMA = "models"


@dataclass(frozen=True)
class ModelColumn:
    """A column as PostgreSQL spells its type."""

    name: str
    data_type: str
    description: str
    required: bool = False


@dataclass(frozen=True)
class ModelTable:
    """A table of the schema `models`."""

    name: str
    description: str
    key: tuple[str, ...]
    columns: tuple[ModelColumn, ...]


PURCHASE_MODELS = ModelTable(
    "purchase_models",
    "Grain: one row per fitted version of a purchase model. The newest `promoted_at` scores; of equal ones the last `model_version`.",
    ("model_version",),
    (
        ModelColumn("model_version", "text", "Version: model, as-of date, and the beginning of the data's hash.", True),
        ModelColumn("model", "text", "`bgnbd` or `mbgnbd`.", True),
        ModelColumn("unit", "text", "Unit of time of alpha and of the histories; scoring in another unit must fail.", True),
        ModelColumn("as_of", "date", "Business date to which the histories were aged.", True),
        ModelColumn("window_from", "date", "First purchase date among the histories.", True),
        ModelColumn("window_to", "date", "Last date whose purchases were seen.", True),
        ModelColumn("customers", "integer", "Customers whose histories were fitted, one-time buyers included.", True),
        ModelColumn("r", "double precision", "Shape of the purchase rates.", True),
        ModelColumn("alpha", "double precision", "Rate of the purchase rates, in the unit.", True),
        ModelColumn("a", "double precision", "First shape of the drop-out probabilities.", True),
        ModelColumn("b", "double precision", "Second shape of the drop-out probabilities.", True),
        ModelColumn("log_likelihood", "double precision", "Of the parameters given the histories.", True),
        ModelColumn(
            "dropout_identified",
            "boolean",
            "Whether drop-out can be told from the data; if not, the NBD limit (everybody alive) scores.",
            True,
        ),
        ModelColumn("data_hash", "text", "Hash of the histories in any order: of each (x, t_x, T) with its number of customers.", True),
        ModelColumn("gg_p", "double precision", "Gamma-Gamma: shape of a purchase day's amount; null where it refused."),
        ModelColumn("gg_q", "double precision", "Gamma-Gamma: shape of the customers' rates; null where it refused."),
        ModelColumn("gg_v", "double precision", "Gamma-Gamma: rate of the customers' rates, in the currency; null where it refused."),
        ModelColumn("gg_customers", "integer", "Customers with an amount after their first purchase day."),
        ModelColumn("gg_log_likelihood", "double precision", "Of the Gamma-Gamma parameters; null where it refused."),
        ModelColumn(
            "frequency_value_correlation",
            "double precision",
            "Pearson's, of purchase days and their mean amount; Gamma-Gamma takes it for 0.",
        ),
        ModelColumn("fitted_at", "timestamp with time zone", "When the fit was made.", True),
        ModelColumn("promoted_at", "timestamp with time zone", "When the version was taken for scoring; null where it was not."),
    ),
)

EVALUATIONS = ModelTable(
    "evaluations",
    "Grain: one row per model version and hold-out window: who was said to buy within the horizon, against who did.",
    ("model_version", "as_of", "horizon_days"),
    (
        ModelColumn("model_version", "text", "Version that was judged, by parameters fitted on nothing after `as_of`.", True),
        ModelColumn("as_of", "date", "The split: histories end here, the hold-out begins the day after.", True),
        ModelColumn("horizon_days", "integer", "Days of the hold-out.", True),
        ModelColumn("method", "text", "What gave the probabilities: `bgnbd`, `mbgnbd` or `nbd`.", True),
        ModelColumn("customers", "integer", "Customers born on or before the split.", True),
        ModelColumn("buyers", "integer", "Those who bought in the hold-out.", True),
        ModelColumn("expected_buyers", "double precision", "Sum of the probabilities.", True),
        ModelColumn("auc", "double precision", "Area under the ROC curve of the model."),
        ModelColumn("auc_recency", "double precision", "The same of recency alone."),
        ModelColumn("auc_frequency", "double precision", "The same of frequency alone."),
        ModelColumn("auc_above_recency", "double precision", "Model less recency alone."),
        ModelColumn("auc_above_recency_low", "double precision", "Lower end of its 95 % interval (paired bootstrap by customer)."),
        ModelColumn("auc_above_recency_high", "double precision", "Upper end of its 95 % interval."),
        ModelColumn("brier", "double precision", "Mean squared error of the probabilities.", True),
        ModelColumn("log_loss", "double precision", "Mean negative log-probability of what customers did, in nats.", True),
        ModelColumn("top_decile_lift", "double precision", "Share of buyers among the best tenth over the share among all."),
        ModelColumn("is_calibrated", "boolean", "Predicted over observed buyers within 10 %, overall and in each large decile.", True),
        ModelColumn("calibration_reason", "text", "Why it may be off.", True),
        ModelColumn("report", "jsonb", "The whole evaluation: scores by population with intervals, deciles, frequency classes.", True),
        ModelColumn("evaluated_at", "timestamp with time zone", "When it was made.", True),
    ),
)

MODEL_TABLES = (PURCHASE_MODELS, EVALUATIONS)


def model_tables_sql() -> Iterator[str]:
    """Statements that make the schema and its tables; a second run changes nothing.

    Rows are never changed: a score names its version, and what that version was must be there to read. A trigger keeps it so.
    """
    yield f"create schema if not exists {MODELS_SCHEMA}"
    yield (
        f"create or replace function {MODELS_SCHEMA}.refuse_change() returns trigger language plpgsql as $$ begin "
        f"raise exception '{MODELS_SCHEMA}.% only grows; insert a new version instead', tg_table_name; end $$"
    )
    for table in MODEL_TABLES:
        columns = [f"    {c.name} {c.data_type}{' not null' if c.required else ''}" for c in table.columns]
        body = ",\n".join([*columns, f"    primary key ({', '.join(table.key)})"])
        name = f"{MODELS_SCHEMA}.{table.name}"
        yield f"create table if not exists {name} (\n{body}\n)"
        yield (
            f"create or replace trigger only_grows before update or delete on {name} "
            f"for each statement execute function {MODELS_SCHEMA}.refuse_change()"
        )

-- Grain: one row per fitted version of the purchase model.

select
    model_version,
    model,
    unit,
    as_of,
    r,
    alpha,
    a,
    b,
    dropout_identified,
    gg_p,
    gg_q,
    gg_v,
    fitted_at,
    promoted_at
from {{ source('models', 'purchase_models') }}

-- Grain: one row per audience and customer who is in it now.

with latest as (

    select distinct on (audience, customer_key)
        audience,
        customer_key,
        version,
        action,
        modified_at
    from {{ ref('audience_changes') }}
    order by audience asc, customer_key asc, version desc

)

select
    latest.audience,
    latest.customer_key,
    latest.version,
    latest.modified_at,
    eligible.segment,
    eligible.churn_risk,
    eligible.risk_band,
    eligible.value_tier,
    eligible.expected_revenue,
    eligible.as_of,
    eligible.scored_at,
    eligible.model_version,
    eligible.method
from latest
inner join {{ ref('int_audience_eligible') }} as eligible
    on latest.audience = eligible.audience and latest.customer_key = eligible.customer_key
where latest.action = 'join'

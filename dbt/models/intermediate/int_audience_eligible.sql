-- Grain: one row per audience and customer who meets all its conditions and is not suppressed.
--
-- Risk is the churn risk; whether the customer is still alive by the model is no condition.

with rules as (

    select * from {{ ref('audience_rules') }}

),

customers as (

    select
        risks.customer_key,
        segments.segment,
        risks.churn_risk,
        risks.risk_band,
        worth.value_tier,
        worth.expected_revenue,
        risks.as_of,
        risks.scored_at,
        risks.model_version,
        risks.method
    from {{ ref('churn_risk') }} as risks
    left join {{ ref('customer_value') }} as worth on risks.customer_key = worth.customer_key
    left join {{ ref('rfm_segments') }} as segments on risks.customer_key = segments.customer_key and segments.basis = 'restated'

)

select
    rules.audience,
    customers.customer_key,
    customers.segment,
    customers.churn_risk,
    customers.risk_band,
    customers.value_tier,
    customers.expected_revenue,
    customers.as_of,
    customers.scored_at,
    customers.model_version,
    customers.method
from rules
-- A score that is null meets no condition on it.
inner join customers
    on
        (rules.segments is null or customers.segment = any(string_to_array(rules.segments, '|')))
        and (rules.risk_bands is null or customers.risk_band = any(string_to_array(rules.risk_bands, '|')))
        and (rules.min_risk is null or rules.min_risk <= customers.churn_risk)
        and (rules.max_risk is null or rules.max_risk >= customers.churn_risk)
        and (rules.value_tiers is null or customers.value_tier = any(string_to_array(rules.value_tiers, '|')))
        and (rules.min_revenue is null or rules.min_revenue <= customers.expected_revenue)
left join {{ ref('int_audience_suppressions') }} as suppressions
    on customers.customer_key = suppressions.customer_key and rules.consent = suppressions.purpose
where suppressions.customer_key is null

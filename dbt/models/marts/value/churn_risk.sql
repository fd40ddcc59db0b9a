-- Grain: one row per known customer with a booked order: the chance of no purchase within the horizon, and why.
--
-- One row of int_customer_activity makes one row here; no line or order is read.

with activity as (

    select
        customer_key,
        usual_gap_days,
        purchase_days - 1 as x,
        last_purchase_date - first_purchase_date as t_x_days,
        {{ as_of() }} - first_purchase_date as age_days,
        {{ as_of() }} - last_purchase_date as days_silent
    from {{ ref('int_customer_activity') }}

),

measured as (

    select
        activity.customer_key,
        activity.x,
        activity.t_x_days,
        activity.age_days,
        activity.days_silent,
        activity.x = 0 as is_one_time_buyer,
        case when activity.x = 0 then basis.usual_gap_days else activity.usual_gap_days end as usual_gap_days,
        {{ var('churn_horizon_days') }} as horizon_days,
        basis.method,
        basis.model_version,
        basis.r,
        basis.alpha,
        basis.a,
        basis.b
    from activity
    cross join {{ ref('int_scoring_basis') }} as basis

),

chances as (

    select
        *,
        {{ p_alive('method', 'x', 't_x_days', 'age_days', 'r', 'alpha', 'a', 'b') }} as p_alive,
        {{ p_buy('method', 'x', 't_x_days', 'age_days', 'horizon_days', 'r', 'alpha', 'a', 'b') }} as p_buy,
        {{ risk_after_one_more_order('method', 'x', 'age_days', 'horizon_days', 'r', 'alpha', 'a', 'b') }} as risk_after_one_more_order
    from measured

),

risks as (

    select
        *,
        1 - p_buy as churn_risk,
        case
            when method = 'recency_rule' and days_silent < 60 then 'active'
            when method = 'recency_rule' and days_silent < 120 then 'cooling'
            when method = 'recency_rule' and days_silent < 180 then 'at risk'
            when method = 'recency_rule' and days_silent < 240 then 'highly at risk'
            when method = 'recency_rule' then 'lost'
            when 1 - p_buy < 0.25 then 'low'
            when 1 - p_buy < 0.5 then 'medium'
            when 1 - p_buy < 0.75 then 'high'
            else 'very high'
        end as risk_band
    from chances

)

select
    customer_key,
    {{ as_of() }} as as_of,
    x,
    t_x_days,
    age_days,
    days_silent,
    cast(usual_gap_days as double precision) as usual_gap_days,
    p_alive,
    p_buy,
    churn_risk,
    risk_after_one_more_order,
    risk_band,
    method,
    is_one_time_buyer,
    method in ('bgnbd', 'mbgnbd') as p_alive_usable,
    concat(
        {{ counted_days('days_silent') }},
        ' silent; ',
        case
            when usual_gap_days is null then 'no usual gap known yet'
            when is_one_time_buyer then 'usual gap ' || {{ counted_days('usual_gap_days') }} || ' (median over all)'
            else 'usual gap ' || {{ counted_days('usual_gap_days') }} || ' (median of own)'
        end,
        '; risk ' || {{ percent('churn_risk') }} || ', after one more order ' || {{ percent('risk_after_one_more_order') }}
    ) as reason,
    model_version,
    {{ run_time() }} as scored_at,
    horizon_days
from risks

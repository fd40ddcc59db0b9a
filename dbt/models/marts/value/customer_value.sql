-- Grain: one row per known customer with a booked order: orders and revenue expected within the horizon.
--
-- No discount, and a margin of 1: the value is expected revenue.

with risks as (

    select * from {{ ref('churn_risk') }}

),

activity as (

    select
        customer_key,
        repeat_value_days,
        repeat_value_amount
    from {{ ref('int_customer_activity') }}

),

expected as (

    select
        risks.customer_key,
        risks.method,
        risks.model_version,
        risks.p_alive * orders.expected_orders_if_alive as expected_orders,
        -- The rule has no model behind it, so no amount either, whatever an earlier fit has left.
        case
            when risks.method <> 'recency_rule'
                then {{ expected_amount(
                    'activity.repeat_value_days', 'cast(activity.repeat_value_amount as double precision)', 'basis.gg_p', 'basis.gg_q', 'basis.gg_v'
                ) }}
        end as expected_amount_per_order
    from risks
    inner join activity on risks.customer_key = activity.customer_key
    inner join {{ ref('int_expected_orders') }} as orders on risks.x = orders.x and risks.age_days = orders.age_days
    cross join {{ ref('int_scoring_basis') }} as basis

),

ranked as (

    select
        *,
        expected_orders * expected_amount_per_order as expected_revenue,
        count(*) over () as scored,
        rank() over (order by expected_orders * expected_amount_per_order desc nulls last) - 1 as customers_above
    from expected

)

select
    customer_key,
    {{ as_of() }} as as_of,
    {{ var('value_horizon_days') }} as horizon_days,
    expected_orders,
    expected_amount_per_order,
    expected_revenue,
    case
        when expected_revenue is null then null
        when customers_above * 100 < scored * 1 then 'top 1 %'
        when customers_above * 100 < scored * 5 then 'top 5 %'
        when customers_above * 100 < scored * 10 then 'top 10 %'
        when customers_above * 100 < scored * 25 then 'top 25 %'
        when customers_above * 100 < scored * 50 then 'top 50 %'
        else 'rest'
    end as value_tier,
    method,
    model_version,
    {{ run_time() }} as scored_at
from ranked

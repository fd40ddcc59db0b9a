-- Grain: one row per run: the model that serves, whether the history is enough for it, and so the method of all scores of the run.

{{ config(pre_hook="{{ refuse_model_in_other_unit() }}") }}

with serving as (

    select *
    from {{ ref('stg_models__purchase_models') }}
    where promoted_at is not null
    order by promoted_at desc, model_version desc
    limit 1

),

history as (

    select
        count(customer_key) as customers,
        count(customer_key) filter (where purchase_days >= 3) as customers_with_two_repeats,
        {{ as_of() }} - min(first_purchase_date) as history_days,
        {{ as_of() }} - max(last_purchase_date) as days_since_last_order,
        percentile_cont(0.5) within group (order by usual_gap_days) as usual_gap_days
    from {{ ref('int_customer_activity') }}

),

gate as (

    select
        *,
        concat_ws(
            '; ',
            case when customers < 500 then customers || ' customers, 500 needed' end,
            case when coalesce(history_days, 0) < 180 then coalesce(history_days, 0) || ' days of history, 180 needed' end,
            case when days_since_last_order > 30 then 'last order ' || days_since_last_order || ' days ago, at most 30 allowed' end,
            case
                when customers_with_two_repeats < 50
                    then customers_with_two_repeats || ' customers with two or more repeat purchase days, 50 needed'
            end
        ) as shortcomings
    from history

)

select
    {{ as_of() }} as as_of,
    cast(gate.customers as integer) as customers,
    cast(gate.customers_with_two_repeats as integer) as customers_with_two_repeats,
    gate.history_days,
    gate.days_since_last_order,
    cast(gate.usual_gap_days as double precision) as usual_gap_days,
    gate.shortcomings = '' as is_gate_open,
    case
        when gate.shortcomings <> '' then gate.shortcomings
        when serving.model_version is null then 'no purchase model is promoted'
    end as rule_because,
    case
        when gate.shortcomings <> '' or serving.model_version is null then 'recency_rule'
        when serving.dropout_identified then serving.model
        else 'nbd'
    end as method,
    case when gate.shortcomings <> '' or serving.model_version is null then 'recency-1' else serving.model_version end as model_version,
    serving.r,
    serving.alpha,
    serving.a,
    serving.b,
    serving.gg_p,
    serving.gg_q,
    serving.gg_v
from gate
left join serving on true

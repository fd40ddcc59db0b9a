-- Grain: one row per as-of date, basis, measure and score: between which values a score lies.
--
-- Computed from all customers once per business day and kept: what a customer buys during the day is scored against them. The score
-- is 1 + (n_below × bands) div n: n scored customers, n_below those strictly worse. Equal values get equal scores, so a score may
-- have no row. Fewer customers than bands have no cut points.

{{ config(
    materialized='incremental', incremental_strategy='append', full_refresh=false, on_schema_change='append_new_columns',
    pre_hook="{{ forget_stale_cut_points() }}"
) }}

with customers as (

    select * from {{ ref('int_rfm_measures') }}
    {% if adds_to_earlier_runs() %}
        where
            basis not in (
                select stored.basis
                from {{ this }} as stored
                where stored.as_of = {{ as_of() }}
            )
    {% endif %}

),

measures as (

    select
        basis,
        'recency' as measure,
        cast(recency_days as numeric) as measured_value,
        -cast(recency_days as numeric) as goodness
    from customers
    union all
    select
        basis,
        'frequency' as measure,
        cast(frequency as numeric) as measured_value,
        cast(frequency as numeric) as goodness
    from customers
    union all
    select
        basis,
        'monetary' as measure,
        monetary as measured_value,
        monetary as goodness
    from customers

),

ranked as (

    select
        basis,
        measure,
        measured_value,
        count(*) over (partition by basis, measure) as scored_customers,
        rank() over (partition by basis, measure order by goodness) - 1 as customers_below
    from measures

),

scored as (

    select
        *,
        1 + customers_below * {{ rfm_bands() }} / scored_customers as score
    from ranked
    where scored_customers >= {{ rfm_bands() }}

),

from_customers as (

    select
        basis,
        measure,
        score,
        min(measured_value) as lowest_value,
        max(measured_value) as highest_value,
        count(*) as customers,
        min(scored_customers) as scored_customers
    from scored
    group by basis, measure, score

),

populations as (

    select distinct
        basis,
        scored_customers
    from from_customers

),

fixed as (

    select
        populations.basis,
        overrides.measure,
        overrides.score,
        case when overrides.measure <> 'recency' then overrides.worst_value end as lowest_value,
        case when overrides.measure = 'recency' then overrides.worst_value end as highest_value,
        populations.scored_customers
    from {{ ref('rfm_cut_points_override') }} as overrides
    cross join populations

),

combined as (

    select
        basis,
        measure,
        score,
        lowest_value,
        highest_value,
        customers,
        scored_customers,
        false as is_fixed
    from from_customers
    where measure not in (select measure from fixed)
    union all
    select
        basis,
        measure,
        score,
        lowest_value,
        highest_value,
        null as customers,
        scored_customers,
        true as is_fixed
    from fixed

)

select
    {{ as_of() }} || '/' || basis || '/' || measure || '/' || score as rfm_cut_point_key,
    basis,
    measure,
    cast(score as integer) as score,
    cast(lowest_value as numeric(18, 4)) as lowest_value,
    cast(highest_value as numeric(18, 4)) as highest_value,
    cast(customers as integer) as customers,
    cast(scored_customers as integer) as scored_customers,
    is_fixed,
    {{ rfm_bands() }} as bands,
    {{ as_of() }} as as_of,
    {{ run_time() }} as computed_at
from combined

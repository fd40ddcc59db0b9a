-- Grain: one row per customer, basis and stay in a segment: the segments as published at the end of each business day.
--
-- A stay begins with the business day that first ended with the segment and ends with the day before another one was published. Days
-- on which nothing ran belong to the stay before them: that is what the marts showed. Late data changes the current day and no other.

{{ config(
    materialized='incremental', incremental_strategy='delete+insert', unique_key='segment_history_key', full_refresh=false,
    on_schema_change='append_new_columns',
    pre_hook="{{ take_back_movements_of_the_date() }}", post_hook="{{ see_open_stays() }}"
) }}

with published as (

    select * from {{ ref('rfm_published') }}

),

dates as (

    select
        {{ as_of() }} as business_date,
        max(business_date) filter (where business_date < {{ as_of() }}) as date_before
    from published
    having max(business_date) = {{ as_of() }}

),

current_rows as (

    select published.*
    from published
    inner join dates on published.business_date = dates.business_date
    where published.segment is not null

),

rows_before as (

    select published.*
    from published
    inner join dates on published.business_date = dates.date_before

),

stays as (

    {{ earlier_rows() }}

),

open_stays as (

    select * from stays
    where valid_to is null

),

-- Of customers who come back after a time without a score, the stay before it.
left_stays as (

    select distinct on (stays.customer_key, stays.basis) stays.*
    from stays
    inner join current_rows on stays.customer_key = current_rows.customer_key and stays.basis = current_rows.basis
    left join open_stays on stays.customer_key = open_stays.customer_key and stays.basis = open_stays.basis
    where open_stays.customer_key is null
    order by stays.customer_key asc, stays.basis asc, stays.valid_from desc

),

last_stays as (

    select * from open_stays
    union all
    select * from left_stays

),

-- A stay that ends: the customer has another segment now, or none.
ended as (

    select
        open_stays.*,
        dates.business_date,
        dates.date_before
    from open_stays
    cross join dates
    left join current_rows on open_stays.customer_key = current_rows.customer_key and open_stays.basis = current_rows.basis
    where current_rows.segment is distinct from open_stays.segment

),

begun as (

    select current_rows.*
    from current_rows
    left join last_stays on current_rows.customer_key = last_stays.customer_key and current_rows.basis = last_stays.basis
    where last_stays.customer_key is null or last_stays.valid_to is not null or last_stays.segment <> current_rows.segment

),

cut_points as (

    select * from {{ ref('rfm_cut_points') }}
    where as_of in (select date_before from dates)

),

-- The cut points that the segment before was named with.
scales as (

    {{ rfm_scales('cut_points') }}

),

-- What the customer would measure if only the orders had come, and not the cancellations.
alternatives as (

    select
        begun.*,
        rows_before.business_date as business_date_before,
        rows_before.rfm_code as code_before,
        rows_before.amount_booked - rows_before.monetary <> begun.amount_booked - begun.monetary
        or rows_before.orders_booked - rows_before.frequency <> begun.orders_booked - begun.frequency as has_new_cancellation,
        case
            when begun.last_purchase_date_booked > rows_before.last_purchase_date_booked then begun.last_purchase_date_booked
            else rows_before.last_purchase_date
        end as last_purchase_date_with_orders,
        rows_before.frequency + begun.orders_booked - rows_before.orders_booked as frequency_with_orders,
        rows_before.monetary + begun.amount_booked - rows_before.amount_booked as monetary_with_orders
    from begun
    inner join rows_before on begun.customer_key = rows_before.customer_key and begun.basis = rows_before.basis
    where rows_before.segment is not null

),

-- The causes one after the other: orders, cancellations, the days that went by. What is left are the cut points.
steps as (

    select
        moved.customer_key,
        moved.basis,
        moved.code_before,
        moved.has_new_cancellation,
        {{ rfm_code(
            rfm_score('moved.last_purchase_date_with_orders - moved.business_date_before', 'recency', 'scales'),
            rfm_score('moved.frequency_with_orders', 'frequency', 'scales'),
            rfm_score('moved.monetary_with_orders', 'monetary', 'scales')
        ) }} as code_with_orders,
        {{ rfm_code(
            rfm_score('moved.last_purchase_date - moved.business_date_before', 'recency', 'scales'),
            rfm_score('moved.frequency', 'frequency', 'scales'),
            rfm_score('moved.monetary', 'monetary', 'scales')
        ) }} as code_with_cancellations,
        {{ rfm_code(
            rfm_score('moved.last_purchase_date - moved.business_date', 'recency', 'scales'),
            rfm_score('moved.frequency', 'frequency', 'scales'),
            rfm_score('moved.monetary', 'monetary', 'scales')
        ) }} as code_with_time
    from alternatives as moved
    inner join scales on moved.basis = scales.basis

),

-- By today's map, so that a change of the map looks like one of the cut points and not like something the customer did.
causes as (

    select
        steps.customer_key,
        steps.basis,
        case
            when
                with_cancellations.segment <> before.segment
                and (with_orders.segment <> before.segment or not steps.has_new_cancellation)
                then 'own order'
            when with_cancellations.segment <> before.segment then 'own cancellation'
            when with_time.segment <> before.segment then 'time'
            else 'cut points'
        end as moved_by
    from steps
    inner join {{ ref('rfm_segment_map') }} as before on steps.code_before = before.rfm_code
    inner join {{ ref('rfm_segment_map') }} as with_orders on steps.code_with_orders = with_orders.rfm_code
    inner join {{ ref('rfm_segment_map') }} as with_cancellations on steps.code_with_cancellations = with_cancellations.rfm_code
    inner join {{ ref('rfm_segment_map') }} as with_time on steps.code_with_time = with_time.rfm_code

),

new_stays as (

    select
        begun.*,
        last_stays.segment as previous_segment,
        last_stays.segment_rank as previous_segment_rank,
        coalesce(last_stays.first_seen, begun.business_date) as first_seen,
        {{ segment_change('last_stays', 'begun') }} as change,
        case
            -- On the first date of all there is nothing to have moved from.
            when dates.date_before is null then null
            when causes.moved_by is not null then causes.moved_by
            -- Had orders and no score: there were fewer customers than bands.
            when rows_before.customer_key is not null then 'cut points'
            else 'own order'
        end as moved_by
    from begun
    cross join dates
    left join last_stays on begun.customer_key = last_stays.customer_key and begun.basis = last_stays.basis
    left join rows_before on begun.customer_key = rows_before.customer_key and begun.basis = rows_before.basis
    left join causes on begun.customer_key = causes.customer_key and begun.basis = causes.basis

)

select
    segment_history_key,
    customer_key,
    basis,
    segment,
    segment_rank,
    is_lapsed,
    valid_from,
    business_date - 1 as valid_to,
    entered_segment_at,
    previous_segment,
    previous_segment_rank,
    change,
    moved_by,
    first_seen,
    coalesce(date_before, valid_from) as last_seen
from ended
union all
select
    customer_key || '/' || basis || '/' || business_date as segment_history_key,
    customer_key,
    basis,
    segment,
    segment_rank,
    is_lapsed,
    business_date as valid_from,
    null as valid_to,
    published_at as entered_segment_at,
    previous_segment,
    previous_segment_rank,
    change,
    moved_by,
    first_seen,
    business_date as last_seen
from new_stays

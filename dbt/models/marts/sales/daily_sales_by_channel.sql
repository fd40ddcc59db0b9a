-- Grain: one row per business date up to the as-of date and channel.
--
-- What is taken back counts under the channel of its own document as booked, and under that of the order as restated.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'business_date', 'changes': 'int_changed_dates'},
    indexes=[{'columns': ['business_date']}],
) }}

with movements as (

    select * from {{ ref('int_sales_movements') }}
    where {{ only_changed_by_index('business_date', 'int_changed_dates') }}

),

sums as (

    select
        business_date,
        channel,
        {{ sums_of_movements() }}
    from movements
    group by business_date, channel

),

orders as (

    select
        business_date,
        channel,
        count(order_id) as orders_booked,
        count(order_id) filter (where not is_wholly_cancelled) as orders_restated
    from {{ ref('fct_orders') }}
    where
        is_within_as_of
        and is_base_currency
        and sale_lines > 0
        and {{ only_changed('business_date', 'int_changed_dates') }}
    group by business_date, channel

),

joined as (

    select
        sums.*,
        coalesce(orders.orders_booked, 0) as orders_booked,
        coalesce(orders.orders_restated, 0) as orders_restated
    from sums
    left join orders on sums.business_date = orders.business_date and sums.channel = orders.channel

)

select
    business_date || '/' || channel as daily_sales_key,
    business_date,
    channel,
    cast(orders_booked as integer) as orders_booked,
    cast(orders_restated as integer) as orders_restated,
    {{ sales_columns() }},
    {{ average_order_values() }}
from joined

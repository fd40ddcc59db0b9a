-- Grain: one row per business date and customer (guests together) with sales or credits; what the sales by customer are summed from.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'business_date', 'changes': 'int_changed_dates'},
    indexes=[{'columns': ['business_date']}, {'columns': ['customer_key']}],
) }}

with movements as (

    select * from {{ ref('int_sales_movements') }}
    where {{ only_changed_by_index('business_date', 'int_changed_dates') }}

),

orders as (

    select
        orders.business_date,
        {{ member_key('orders.customer_id') }} as customer_key,
        count(*) as orders_booked,
        count(*) filter (where coalesce(cancelled.cancelled_quantity, 0) < totals.sale_quantity) as orders_restated
    from {{ ref('int_orders_current') }} as orders
    inner join {{ ref('int_order_totals') }} as totals on orders.order_id = totals.order_id
    left join {{ ref('int_cancelled_orders') }} as cancelled on orders.order_id = cancelled.order_id
    where
        orders.is_within_as_of
        and orders.is_base_currency
        and totals.sale_lines > 0
        and {{ only_changed_by_index('orders.business_date', 'int_changed_dates', 'business_date') }}
    group by orders.business_date, orders.customer_id

),

sums as (

    select
        business_date,
        customer_id,
        {{ member_key('customer_id') }} as customer_key,
        {{ sums_of_movements() }}
    from movements
    group by business_date, customer_id

)

select
    sums.business_date || '/' || sums.customer_key as daily_customer_key,
    sums.business_date,
    sums.customer_key,
    sums.customer_id is not null as customer_known,
    coalesce(orders.orders_booked, 0) as orders_booked,
    coalesce(orders.orders_restated, 0) as orders_restated,
    sums.sale_quantity,
    sums.gross_amount,
    sums.cancelled_amount_booked,
    sums.cancelled_amount_restated,
    sums.adjustment_amount,
    sums.other_amount
from sums
left join orders on sums.business_date = orders.business_date and sums.customer_key = orders.customer_key

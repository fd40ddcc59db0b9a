-- Grain: one row per business date up to the as-of date and whether the customer is known; guests are in it.
--
-- As booked, a cancellation counts on its own date. Restated, what was taken back from an order goes to the order's date, and a
-- credit that finds no order stays on its own date.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'business_date', 'changes': 'int_changed_dates'},
    indexes=[{'columns': ['business_date']}],
) }}

with orders as (

    select * from {{ ref('fct_orders') }}
    where is_within_as_of and {{ only_changed('business_date', 'int_changed_dates') }}

),

order_movements as (

    select
        business_date,
        customer_known,
        sum(case when is_base_currency then sale_amount else 0 end) as sale_amount,
        sum(case when is_base_currency then adjustment_amount else 0 end) as adjustment_amount,
        sum(case when is_base_currency then other_amount else 0 end) as other_amount,
        0 as cancelled_amount_booked,
        -sum(case when is_base_currency then cancelled_amount else 0 end) as cancelled_amount_restated,
        count(*) filter (where is_base_currency and sale_lines > 0) as orders_booked,
        count(*) filter (where is_base_currency and sale_lines > 0 and not is_wholly_cancelled) as orders_restated,
        sum(case when is_base_currency then sale_lines else 0 end) as sale_lines,
        sum(case when is_base_currency then sale_quantity else 0 end) as sale_quantity,
        0 as cancellation_lines,
        sum(refund_excess) as refund_excess,
        sum(repeated_cancellations) as repeated_cancellations,
        0 as held_cancellation_lines,
        count(*) filter (where not is_base_currency) as foreign_currency_documents
    from orders
    group by business_date, customer_known

),

cancellation_movements as (

    select
        business_date,
        customer_id is not null as customer_known,
        0 as sale_amount,
        0 as adjustment_amount,
        0 as other_amount,
        -sum(applied_amount + unmatched_amount) as cancelled_amount_booked,
        -sum(unmatched_amount) as cancelled_amount_restated,
        0 as orders_booked,
        0 as orders_restated,
        0 as sale_lines,
        0 as sale_quantity,
        count(cancellation_key) as cancellation_lines,
        0 as refund_excess,
        0 as repeated_cancellations,
        count(*) filter (where is_held) as held_cancellation_lines,
        0 as foreign_currency_documents
    from {{ ref('int_cancellations') }}
    where business_date <= {{ as_of() }} and {{ only_changed('business_date', 'int_changed_dates') }}
    group by business_date, customer_id is not null

),

movements as (

    select * from order_movements
    union all
    select * from cancellation_movements

),

days as (

    select
        business_date,
        customer_known,
        sum(sale_amount) as gross_amount,
        sum(adjustment_amount) as adjustment_amount,
        sum(other_amount) as other_amount,
        sum(cancelled_amount_booked) as cancelled_amount_booked,
        sum(cancelled_amount_restated) as cancelled_amount_restated,
        sum(orders_booked) as orders_booked,
        sum(orders_restated) as orders_restated,
        sum(sale_lines) as sale_lines,
        sum(sale_quantity) as sale_quantity,
        sum(cancellation_lines) as cancellation_lines,
        sum(refund_excess) as refund_excess,
        sum(repeated_cancellations) as repeated_cancellations,
        sum(held_cancellation_lines) as held_cancellation_lines,
        sum(foreign_currency_documents) as foreign_currency_documents
    from movements
    group by business_date, customer_known

)

select
    business_date || case when customer_known then '/known' else '/guest' end as daily_sales_key,
    business_date,
    customer_known,
    cast({{ base_currency() }} as text) as currency,
    cast(orders_booked as integer) as orders_booked,
    cast(orders_restated as integer) as orders_restated,
    cast(sale_lines as integer) as sale_lines,
    cast(sale_quantity as bigint) as sale_quantity,
    cast(cancellation_lines as integer) as cancellation_lines,
    cast(gross_amount as numeric(18, 4)) as gross_amount,
    cast(cancelled_amount_booked as numeric(18, 4)) as cancelled_amount_booked,
    cast(cancelled_amount_restated as numeric(18, 4)) as cancelled_amount_restated,
    cast(gross_amount + cancelled_amount_booked as numeric(18, 4)) as net_amount_booked,
    cast(gross_amount + cancelled_amount_restated as numeric(18, 4)) as net_amount_restated,
    cast(adjustment_amount as numeric(18, 4)) as adjustment_amount,
    cast(other_amount as numeric(18, 4)) as other_amount,
    cast(gross_amount + cancelled_amount_booked + adjustment_amount + other_amount as numeric(18, 4)) as total_amount_booked,
    cast(gross_amount + cancelled_amount_restated + adjustment_amount + other_amount as numeric(18, 4)) as total_amount_restated,
    cast(refund_excess as numeric(18, 4)) as refund_excess,
    cast(repeated_cancellations as integer) as repeated_cancellations,
    cast(held_cancellation_lines as integer) as held_cancellation_lines,
    cast(foreign_currency_documents as integer) as foreign_currency_documents
from days

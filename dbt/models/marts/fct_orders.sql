-- Grain: one row per order or document (cancellation, adjustment), its current state.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'order_id', 'changes': 'int_changed_facts'},
    indexes=[{'columns': ['order_id'], 'unique': true}, {'columns': ['business_date']}, {'columns': ['customer_key']}],
) }}

with orders as (

    select * from {{ ref('int_orders_current') }}
    where {{ only_changed('order_id', 'int_changed_facts') }}

),

totals as (

    select * from {{ ref('int_order_totals') }}
    where {{ only_changed('order_id', 'int_changed_facts') }}

),

cancelled as (

    select * from {{ ref('int_cancelled_orders') }}
    where {{ only_changed('order_id', 'int_changed_facts') }}

)

select
    orders.order_id,
    {{ member_key('orders.customer_id') }} as customer_key,
    orders.customer_id is not null as customer_known,
    orders.document_kind,
    orders.status,
    orders.cancels_order_id,
    orders.channel,
    orders.country,
    orders.currency,
    orders.is_base_currency,
    orders.ordered_at,
    orders.business_date,
    orders.is_within_as_of,
    orders.messages,
    cast(coalesce(totals.lines, 0) as integer) as lines,
    cast(coalesce(totals.sale_lines, 0) as integer) as sale_lines,
    cast(coalesce(totals.sale_quantity, 0) as bigint) as sale_quantity,
    cast(coalesce(totals.sale_amount, 0) as numeric(18, 4)) as sale_amount,
    cast(coalesce(totals.cancellation_amount, 0) as numeric(18, 4)) as cancellation_amount,
    cast(coalesce(totals.adjustment_amount, 0) as numeric(18, 4)) as adjustment_amount,
    cast(coalesce(totals.other_amount, 0) as numeric(18, 4)) as other_amount,
    orders.amount,
    cast(coalesce(cancelled.cancelled_quantity, 0) as bigint) as cancelled_quantity,
    cast(coalesce(cancelled.cancelled_amount, 0) as numeric(18, 4)) as cancelled_amount,
    cast(coalesce(totals.sale_amount, 0) - coalesce(cancelled.cancelled_amount, 0) as numeric(18, 4)) as restated_amount,
    coalesce(totals.sale_quantity > 0 and cancelled.cancelled_quantity >= totals.sale_quantity, false) as is_wholly_cancelled,
    cancelled.first_cancelled_at,
    cast(coalesce(cancelled.refund_excess, 0) as numeric(18, 4)) as refund_excess,
    cast(coalesce(cancelled.repeated_cancellations, 0) + greatest(orders.take_backs - 1, 0) as integer) as repeated_cancellations
from orders
left join totals on orders.order_id = totals.order_id
left join cancelled on orders.order_id = cancelled.order_id

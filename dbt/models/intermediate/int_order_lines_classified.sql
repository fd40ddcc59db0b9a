-- Grain: one row per line of an order's or document's current state.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'order_id', 'changes': 'int_changed_orders'},
    post_hook="{{ index_if_built(\"(product_code, (line_class = 'sale') desc, line_at desc) where description is not null\") }}",
    indexes=[{'columns': ['order_id']}, {'columns': ['customer_id', 'product_code', 'line_at']}, {'columns': ['product_code']}],
) }}

with orders as (

    select * from {{ ref('int_orders_current') }}
    where {{ only_changed('order_id', 'int_changed_orders') }}

),

lines as (

    select * from {{ ref('stg_crm__order_lines') }}

)

select
    {{ order_line_key('orders.order_id', 'lines.line_number') }} as order_line_key,
    orders.order_id,
    lines.line_number,
    orders.customer_id,
    lines.product_id,
    lines.product_code,
    lines.description,
    lines.quantity,
    lines.unit_price,
    lines.amount,
    case
        when orders.document_kind <> 'sale' then orders.document_kind
        when lines.quantity > 0 and lines.unit_price > 0 then 'sale'
        else 'other'
    end as line_class,
    coalesce(lines.line_time, orders.ordered_at) as line_at,
    orders.business_date,
    orders.is_within_as_of,
    orders.is_base_currency,
    lines.source_line
from orders
inner join lines on orders.event_id = lines.event_id

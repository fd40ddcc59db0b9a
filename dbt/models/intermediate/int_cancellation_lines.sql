-- Grain: one row per line that takes something back, up to the as-of date and in the base currency.
--
-- Three forms: a document that names the order (`referenced`), a document that names none (`unreferenced`), and a later message of
-- the order itself (`status`), which takes back each of its sale lines. A row whose order is not known is held: it has no effect yet.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'order_id', 'changes': 'int_changed_orders'},
    indexes=[{'columns': ['order_id']}, {'columns': ['target_order_id']}, {'columns': ['customer_id', 'product_code']}],
) }}

with lines as (

    select * from {{ ref('int_order_lines_classified') }}
    where is_within_as_of and is_base_currency and {{ only_changed('order_id', 'int_changed_orders') }}

),

orders as (

    select * from {{ ref('int_orders_current') }}
    where is_within_as_of and is_base_currency and {{ only_changed('order_id', 'int_changed_orders') }}

),

-- The order that a document names now need not have changed: the document may be here for one that an earlier message of it named.
sales as (

    select
        order_id,
        customer_id
    from {{ ref('int_orders_current') }}
    where
        is_within_as_of
        and is_base_currency
        and document_kind = 'sale'
        and order_id in (select cancels_order_id from orders)

),

documents as (

    select
        lines.order_line_key as cancellation_key,
        case
            when orders.cancels_order_id is not null then 'referenced'
            when totals.has_negative_quantity then 'unreferenced'
            -- Positive quantities only: the order's own last state, whose sale has not arrived.
            else 'status'
        end as form,
        lines.order_id,
        lines.line_number,
        sales.order_id as target_order_id,
        coalesce(orders.customer_id, sales.customer_id) as customer_id,
        lines.product_code,
        lines.unit_price,
        -lines.quantity as requested_quantity,
        -lines.amount as requested_amount,
        lines.line_at as cancelled_at,
        lines.business_date,
        lines.source_line
    from lines
    inner join orders on lines.order_id = orders.order_id
    inner join {{ ref('int_order_totals') }} as totals on lines.order_id = totals.order_id
    left join sales on orders.cancels_order_id = sales.order_id
    where lines.line_class = 'cancellation'

),

states as (

    select
        lines.order_line_key || '/status' as cancellation_key,
        'status' as form,
        lines.order_id,
        lines.line_number,
        lines.order_id as target_order_id,
        orders.customer_id,
        lines.product_code,
        lines.unit_price,
        lines.quantity as requested_quantity,
        lines.amount as requested_amount,
        orders.taken_back_at as cancelled_at,
        {{ business_date('orders.taken_back_at') }} as business_date,
        lines.source_line
    from lines
    inner join orders on lines.order_id = orders.order_id
    where orders.taken_back_at is not null and lines.line_class = 'sale'

),

unioned as (

    select * from documents
    union all
    select * from states

)

select
    cancellation_key,
    form,
    order_id,
    line_number,
    target_order_id,
    customer_id,
    product_code,
    unit_price,
    cast(requested_quantity as bigint) as requested_quantity,
    requested_amount,
    cancelled_at,
    business_date,
    source_line,
    form <> 'unreferenced' and target_order_id is null as is_held
from unioned

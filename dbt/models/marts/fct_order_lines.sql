-- Grain: one row per line of an order's or document's current state; of a replayed file, one row per row of the file.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'order_id', 'changes': 'int_changed_facts'},
    indexes=[{'columns': ['order_id']}, {'columns': ['business_date']}],
) }}

with lines as (

    select * from {{ ref('int_order_lines_classified') }}
    where {{ only_changed('order_id', 'int_changed_facts') }}

),

matched as (

    select
        order_line_key,
        sum(quantity) as quantity
    from {{ ref('int_cancellation_matches') }}
    where {{ only_changed('order_id', 'int_changed_facts') }}
    group by order_line_key

),

taken as (

    select * from {{ ref('int_sale_lines_taken_back') }}
    where {{ only_changed('order_id', 'int_changed_facts') }}

),

cancellations as (

    select * from {{ ref('int_cancellations') }}
    where {{ only_changed('order_id', 'int_changed_facts') }}

)

select
    lines.order_line_key,
    lines.order_id,
    lines.line_number,
    {{ member_key('lines.customer_id') }} as customer_key,
    {{ member_key('lines.product_code') }} as product_key,
    lines.product_id,
    lines.product_code,
    lines.description,
    lines.line_class,
    lines.quantity,
    lines.unit_price,
    lines.amount,
    cast(coalesce(matched.quantity, 0) + coalesce(taken.quantity, 0) as bigint) as cancelled_quantity,
    cancellations.outcome as cancellation_outcome,
    cast(cancellations.applied_amount as numeric(18, 4)) as applied_amount,
    cast(cancellations.unmatched_amount as numeric(18, 4)) as unmatched_amount,
    cast(cancellations.refund_excess as numeric(18, 4)) as refund_excess,
    lines.line_at,
    lines.business_date,
    lines.is_within_as_of,
    lines.is_base_currency,
    lines.source_line
from lines
left join matched on lines.order_line_key = matched.order_line_key
left join taken on lines.order_line_key = taken.order_line_key
left join cancellations on lines.order_line_key = cancellations.cancellation_key

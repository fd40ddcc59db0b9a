-- Grain: one row per order of which something was taken back.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'order_id', 'changes': 'int_changed_facts'},
    indexes=[{'columns': ['order_id'], 'unique': true}],
) }}

with by_document as (

    select
        target_order_id as order_id,
        sum(applied_amount) as cancelled_amount,
        sum(refund_excess) as refund_excess,
        count(distinct order_id || '/' || form) filter (where is_repeated) as repeated_cancellations,
        min(cancelled_at) as first_cancelled_at
    from {{ ref('int_cancellations') }}
    where target_order_id is not null and {{ only_changed_by_index('target_order_id', 'int_changed_facts', 'order_id') }}
    group by target_order_id

),

by_match as (

    select
        matches.order_id,
        sum(matches.amount) as cancelled_amount,
        sum(matches.quantity) as cancelled_quantity,
        min(cancellations.cancelled_at) as first_cancelled_at
    from {{ ref('int_cancellation_matches') }} as matches
    inner join {{ ref('int_cancellations') }} as cancellations on matches.cancellation_key = cancellations.cancellation_key
    where {{ only_changed_by_index('matches.order_id', 'int_changed_facts', 'order_id') }}
    group by matches.order_id

),

by_reference as (

    select
        order_id,
        sum(quantity) as cancelled_quantity
    from {{ ref('int_sale_lines_taken_back') }}
    where {{ only_changed('order_id', 'int_changed_facts') }}
    group by order_id

),

orders as (

    select order_id from by_document
    union distinct
    select order_id from by_match

)

select
    orders.order_id,
    coalesce(by_document.cancelled_amount, 0) + coalesce(by_match.cancelled_amount, 0) as cancelled_amount,
    coalesce(by_reference.cancelled_quantity, 0) + coalesce(by_match.cancelled_quantity, 0) as cancelled_quantity,
    coalesce(by_document.refund_excess, 0) as refund_excess,
    coalesce(by_document.repeated_cancellations, 0) as repeated_cancellations,
    least(by_document.first_cancelled_at, by_match.first_cancelled_at) as first_cancelled_at
from orders
left join by_document on orders.order_id = by_document.order_id
left join by_match on orders.order_id = by_match.order_id
left join by_reference on orders.order_id = by_reference.order_id

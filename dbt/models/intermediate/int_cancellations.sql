-- Grain: one row per line that takes something back, with what became of it.
--
-- requested = applied + unmatched + refund_excess + without effect (held or repeated).

{{ config(
    materialized='incremental',
    meta={'changed_key': 'order_id', 'changes': 'int_changed_facts'},
    indexes=[{'columns': ['order_id']}, {'columns': ['target_order_id']}, {'columns': ['cancellation_key'], 'unique': true}, {'columns': ['business_date']}],
) }}

with lines as (

    select * from {{ ref('int_cancellation_lines') }}
    where {{ only_changed('order_id', 'int_changed_facts') }}

),

matched as (

    select
        cancellation_key,
        sum(quantity) as quantity,
        sum(amount) as amount
    from {{ ref('int_cancellation_matches') }}
    where cancellation_key in (select cancellation_key from lines)
    group by cancellation_key

),

targeted as (

    select * from {{ ref('int_cancellations_targeted') }}
    where {{ only_changed('order_id', 'int_changed_facts') }}

),

resolved as (

    select
        lines.*,
        case
            when lines.is_held then 0
            when lines.form = 'unreferenced' then coalesce(matched.amount, 0)
            else targeted.applied_amount
        end as applied_amount,
        case when lines.form = 'unreferenced' then coalesce(matched.quantity, 0) end as matched_quantity,
        case when lines.form = 'unreferenced' then lines.requested_amount - coalesce(matched.amount, 0) else 0 end as unmatched_amount,
        coalesce(targeted.refund_excess, 0) as refund_excess,
        coalesce(targeted.is_repeated, false) as is_repeated
    from lines
    left join matched on lines.cancellation_key = matched.cancellation_key
    left join targeted on lines.cancellation_key = targeted.cancellation_key

)

select
    cancellation_key,
    form,
    order_id,
    line_number,
    target_order_id,
    customer_id,
    product_code,
    cancelled_at,
    business_date,
    requested_quantity,
    requested_amount,
    cast(matched_quantity as bigint) as matched_quantity,
    applied_amount,
    unmatched_amount,
    refund_excess,
    is_repeated,
    is_held,
    case
        when is_held then 'held'
        when is_repeated then 'repeated'
        when form <> 'unreferenced' then 'by order'
        when matched_quantity = 0 then 'unmatched'
        when matched_quantity < requested_quantity then 'matched in part'
        else 'matched in full'
    end as outcome
from resolved

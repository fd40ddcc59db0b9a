-- Grain: one row per line that takes back from a known order, with how much of it takes effect.
--
-- Requests eat up the order's amount in the order of their time; what goes beyond it is the excess. A document that finds nothing
-- left is a repetition and has no effect at all.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'target_order_id', 'changes': 'int_changed_orders', 'key_of_changes': 'order_id'},
    indexes=[{'columns': ['target_order_id']}, {'columns': ['order_id']}],
) }}

with requests as (

    select * from {{ ref('int_cancellation_lines') }}
    where form <> 'unreferenced' and not is_held and {{ only_changed('target_order_id', 'int_changed_orders', 'order_id') }}

),

orders as (

    select
        order_id,
        sale_amount
    from {{ ref('int_order_totals') }}
    where {{ only_changed('order_id', 'int_changed_orders') }}

),

running as (

    select
        requests.*,
        orders.sale_amount,
        greatest(requests.requested_amount, 0) as claim,
        sum(greatest(requests.requested_amount, 0)) over (
            partition by requests.target_order_id
            order by requests.cancelled_at, requests.order_id, requests.line_number, requests.cancellation_key
        ) as claimed
    from requests
    inner join orders on requests.target_order_id = orders.order_id

),

capped as (

    select
        *,
        least(claimed, sale_amount) - least(claimed - claim, sale_amount) as applied_claim,
        -- What earlier documents had claimed when this one came.
        min(claimed - claim) over (partition by target_order_id, order_id, form) as claimed_before
    from running

),

judged as (

    select
        *,
        claim > 0 and claimed_before > 0 and claimed_before >= sale_amount as is_repeated
    from capped

)

select
    cancellation_key,
    form,
    order_id,
    line_number,
    target_order_id,
    product_code,
    unit_price,
    requested_quantity,
    requested_amount,
    case when requested_amount > 0 then applied_claim else requested_amount end as applied_amount,
    case when form = 'referenced' and not is_repeated then claim - applied_claim else 0 end as refund_excess,
    is_repeated
from judged

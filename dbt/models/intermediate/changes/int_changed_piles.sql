-- Grain: one row per pile (customer, product, unit price) in which cancellations may find other sales than at the last refresh.
--
-- Piles of all lines that a changed order has or had, where something takes from the pile or did.
--
-- A pile is worked out again from its first changed move. One from which nothing took before that has no moves worked out yet, or has lost
-- the only thing that took: it is worked out from the beginning.

with messages as (

    select
        event_id,
        customer_id,
        cancels_order_id,
        min(message_at) over (partition by order_id) as first_message_at
    from {{ ref('stg_crm__orders') }}
    where order_id in (select order_id from {{ ref('int_changed_orders') }})

),

touched as (

    select
        messages.customer_id,
        lines.product_code,
        lines.unit_price,
        bool_or(lines.quantity < 0) as has_taken_back,
        min(least(lines.line_time, messages.first_message_at)) as changed_from,
        -sum(least(lines.quantity, 0)) filter (where messages.cancels_order_id is null) as taken_back_quantity
    from messages
    inner join {{ ref('stg_crm__order_lines') }} as lines on messages.event_id = lines.event_id
    where messages.customer_id is not null
    group by messages.customer_id, lines.product_code, lines.unit_price

)

select
    {{ pile_key('touched') }} as pile_key,
    touched.customer_id,
    touched.product_code,
    touched.unit_price,
    touched.changed_from,
    case when credits.first_cancelled_at < touched.changed_from then touched.changed_from else '-infinity' end as built_from,
    cast(coalesce(touched.taken_back_quantity, 0) as bigint) as taken_back_quantity
from touched
cross join
    lateral (
        select min(takers.cancelled_at) as first_cancelled_at
        from {{ ref('int_cancellation_lines') }} as takers
        where
            takers.form = 'unreferenced'
            and takers.requested_quantity > 0
            and takers.customer_id = touched.customer_id
            and takers.product_code = touched.product_code
            and takers.unit_price = touched.unit_price
    ) as credits
where touched.has_taken_back or credits.first_cancelled_at is not null

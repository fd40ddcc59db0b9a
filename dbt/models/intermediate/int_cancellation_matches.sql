-- Grain: one row per cancellation line that names no order and sale line it takes back from.
--
-- A sale holds the levels (sold_base, sold_top] of its pile, a cancellation empties the levels (taking_bottom, taking_top]; a level
-- belongs to the latest earlier sale that holds it.

with levels as (

    select * from {{ ref('int_cancellation_levels') }}

),

candidates as (

    select
        taking.move_key as cancellation_key,
        taking.unit_price,
        taking.height_after as taking_bottom,
        taking.height_before as taking_top,
        sold.move_key as order_line_key,
        sold.order_id,
        sold.height_before as sold_base,
        sold.height_after as sold_top,
        -- Levels above the base of a newer sale are that sale's, or were emptied before it came.
        min(sold.height_before) over (
            partition by taking.move_key
            order by sold.place desc
            rows between unbounded preceding and 1 preceding
        ) as newer_base
    from levels as taking
    inner join levels as sold
        on
            taking.customer_id = sold.customer_id
            and taking.product_code = sold.product_code
            and taking.unit_price = sold.unit_price
            and taking.place > sold.place
            and taking.height_before > sold.height_before
            and taking.height_after < sold.height_after
    where taking.takes_back and not sold.takes_back

),

shared as (

    select
        cancellation_key,
        order_line_key,
        order_id,
        unit_price,
        least(sold_top, coalesce(newer_base, taking_top), taking_top) - greatest(sold_base, taking_bottom) as quantity
    from candidates

)

select
    cancellation_key || '>' || order_line_key as match_key,
    cancellation_key,
    order_line_key,
    order_id,
    cast(quantity as bigint) as quantity,
    cast(quantity * unit_price as numeric(18, 4)) as amount
from shared
where quantity > 0

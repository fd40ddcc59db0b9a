-- Grain: one row per sale line or cancellation line of a pile that a cancellation without an order takes from.
--
-- A pile is a customer, a product and a unit price. Sales pile up and a cancellation takes from the top: newest first, splitting as
-- needed, and what finds nothing is lost. The height of the pile is the running sum less its lowest point so far below zero.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'pile_key', 'changes': 'int_changed_piles'},
    indexes=[{'columns': ['pile_key']}],
) }}

with credits as (

    select * from {{ ref('int_cancellation_lines') }}
    where
        form = 'unreferenced'
        and customer_id is not null
        and requested_quantity > 0
        and unit_price > 0
        and {{ only_changed('customer_id, product_code, unit_price', 'int_changed_piles') }}

),

piles as (

    select distinct
        customer_id,
        product_code,
        unit_price
    from credits

),

-- What cancellations that name their order have left.
supply as (

    select
        sales.order_line_key,
        sales.customer_id,
        sales.product_code,
        sales.unit_price,
        sales.quantity - coalesce(taken.quantity, 0) as left_quantity,
        sales.line_at,
        sales.source_line,
        sales.order_id,
        sales.line_number
    from {{ ref('int_order_lines_classified') }} as sales
    inner join piles
        on
            sales.customer_id = piles.customer_id
            and sales.product_code = piles.product_code
            and sales.unit_price = piles.unit_price
    left join {{ ref('int_sale_lines_taken_back') }} as taken on sales.order_line_key = taken.order_line_key
    where sales.line_class = 'sale' and sales.is_within_as_of and sales.is_base_currency

),

moves as (

    select
        order_line_key as move_key,
        customer_id,
        product_code,
        unit_price,
        left_quantity as change,
        line_at as moved_at,
        0 as turn,
        source_line,
        order_id,
        line_number
    from supply
    where left_quantity > 0
    union all
    -- At the same time the sale comes first: a cancellation takes from sales up to and including its own time.
    select
        cancellation_key as move_key,
        customer_id,
        product_code,
        unit_price,
        -requested_quantity as change,
        cancelled_at as moved_at,
        1 as turn,
        source_line,
        order_id,
        line_number
    from credits

),

ordered as (

    select
        *,
        row_number() over pile as place,
        sum(change) over pile as running_sum
    from moves
    window
        pile as (
            partition by customer_id, product_code, unit_price
            order by moved_at, turn, source_line, order_id, line_number
        )

),

heights as (

    select
        *,
        running_sum - least(0, min(running_sum) over (partition by customer_id, product_code, unit_price order by place)) as height_after
    from ordered

)

select
    move_key,
    {{ pile_key() }} as pile_key,
    customer_id,
    product_code,
    unit_price,
    order_id,
    turn = 1 as takes_back,
    cast(case when turn = 1 then -change else 0 end as bigint) as requested_quantity,
    moved_at,
    place,
    coalesce(lag(height_after) over (partition by customer_id, product_code, unit_price order by place), 0) as height_before,
    height_after
from heights

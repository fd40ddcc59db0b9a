-- Grain: one row per sale line or cancellation line of a pile that a cancellation without an order takes from.
--
-- A pile is a customer, a product and a unit price. Sales pile up and a cancellation takes from the top: newest first, splitting as
-- needed, and what finds nothing is lost. The height of the pile is the running sum less its lowest point so far below zero.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'pile_key', 'changes': 'int_changed_piles', 'changed_from': 'moved_at'},
    indexes=[{'columns': ['pile_key', 'place']}, {'columns': ['pile_key', 'moved_at']}],
) }}

-- A changed pile keeps the moves before the first one that may have changed, and goes on from the height there.
with {% if not execute or changes_only() -%}
    changed as (

        select
            piles.customer_id,
            piles.product_code,
            piles.unit_price,
            piles.built_from,
            coalesce(kept.place, 0) as kept_place,
            coalesce(kept.height_after, 0) as kept_height
        from {{ ref('int_changed_piles') }} as piles
        left join lateral (
            select
                moves.place,
                moves.height_after
            from {{ this }} as moves
            where moves.pile_key = piles.pile_key
            order by moves.place desc
            limit 1
        ) as kept on true

    ),

{% endif -%}
credits as (

    select credits.*
    from {{ ref('int_cancellation_lines') }} as credits
    {% if not execute or changes_only() -%}
        inner join changed
            on
                credits.customer_id = changed.customer_id
                and credits.product_code = changed.product_code
                and credits.unit_price = changed.unit_price
                and credits.cancelled_at >= changed.built_from
    {% endif -%}
    where
        credits.form = 'unreferenced'
        and credits.customer_id is not null
        and credits.requested_quantity > 0
        and credits.unit_price > 0

),

piles as (

    {% if not execute or changes_only() -%}
        select * from changed
        where
            kept_place > 0
            or exists (
                select 1
                from credits
                where
                    credits.customer_id = changed.customer_id
                    and credits.product_code = changed.product_code
                    and credits.unit_price = changed.unit_price
            )
    {%- else -%}
        select distinct
            customer_id,
            product_code,
            unit_price,
            cast('-infinity' as timestamp with time zone) as built_from,
            cast(0 as bigint) as kept_place,
            cast(0 as numeric) as kept_height
        from credits
    {%- endif %}

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
            and sales.line_at >= piles.built_from
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
        moves.*,
        piles.kept_height,
        piles.kept_place + row_number() over pile as place,
        piles.kept_height + sum(moves.change) over pile as running_sum
    from moves
    inner join piles
        on moves.customer_id = piles.customer_id and moves.product_code = piles.product_code and moves.unit_price = piles.unit_price
    window
        pile as (
            partition by moves.customer_id, moves.product_code, moves.unit_price
            order by moves.moved_at, moves.turn, moves.source_line, moves.order_id, moves.line_number
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
    coalesce(lag(height_after) over (partition by customer_id, product_code, unit_price order by place), kept_height) as height_before,
    height_after
from heights

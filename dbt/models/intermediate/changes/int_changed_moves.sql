-- Grain: one row per move of a changed pile that its cancellations, from the first one that is matched again, can reach.
--
-- The pile never falls below its lowest height behind that place. What lies above was put there after the pile was last as low before.

{{ config(indexes=[{'columns': ['pile_key', 'place']}]) }}

with moves as not materialized (

    select * from {{ ref('int_cancellation_levels') }}

),

built as (

    select
        piles.pile_key,
        piles.built_from,
        spans.first_place,
        spans.lowest_height
    from {{ ref('int_changed_piles') }} as piles
    cross join
        lateral (
            select
                min(moves.place) as first_place,
                min(least(moves.height_before, moves.height_after)) as lowest_height
            from moves
            where moves.pile_key = piles.pile_key and moves.moved_at >= piles.built_from
        ) as spans
    where spans.first_place is not null

),

reached as (

    select
        built.pile_key,
        built.built_from,
        coalesce(bottoms.place, 1) as from_place
    from built
    left join lateral (
        select moves.place
        from moves
        where
            moves.pile_key = built.pile_key
            and moves.place <= built.first_place
            and moves.height_before <= built.lowest_height
        order by moves.place desc
        limit 1
    ) as bottoms on true

)

select
    moves.move_key,
    moves.pile_key,
    moves.customer_id,
    moves.product_code,
    moves.unit_price,
    moves.order_id,
    moves.takes_back,
    moves.requested_quantity,
    moves.moved_at,
    moves.place,
    moves.height_before,
    moves.height_after,
    moves.moved_at >= reached.built_from as is_built
from reached
inner join moves on reached.pile_key = moves.pile_key and reached.from_place <= moves.place

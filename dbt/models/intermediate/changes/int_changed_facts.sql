-- Grain: one row per order or document whose facts may differ from the last refresh: changed itself, or with a line that cancellations of a
-- changed pile reach now or reached before.
--
-- A pile is filled and emptied at its top. Before the first changed move it is what it was. Behind it all cancellations together, with
-- those that changed orders have or had, take it down to a certain height at most: what lies below was, and is, out of their reach.

with piles as (

    select * from {{ ref('int_changed_piles') }}

),

moves as (

    select * from {{ ref('int_cancellation_levels') }}
    where pile_key in (select pile_key from piles)

),

firsts as (

    select
        piles.pile_key,
        piles.taken_back_quantity,
        coalesce(min(moves.place) filter (where moves.moved_at >= piles.changed_from), max(moves.place) + 1) as first_place
    from piles
    inner join moves on piles.pile_key = moves.pile_key
    group by piles.pile_key, piles.taken_back_quantity

),

-- The lowest height that the pile can have had behind the first changed move.
depths as (

    select
        firsts.pile_key,
        firsts.first_place,
        coalesce(max(moves.height_after) filter (where moves.place = firsts.first_place - 1), 0)
        - firsts.taken_back_quantity
        - coalesce(sum(moves.requested_quantity) filter (where moves.place >= firsts.first_place), 0) as lowest_height
    from firsts
    inner join moves on firsts.pile_key = moves.pile_key
    group by firsts.pile_key, firsts.first_place, firsts.taken_back_quantity

),

-- What lies above that height at the first changed move was put there after the pile was last as low.
reached as (

    select
        depths.pile_key,
        coalesce(max(moves.place) filter (where moves.height_before <= greatest(depths.lowest_height, 0)), 1) as from_place
    from depths
    inner join moves on depths.pile_key = moves.pile_key and depths.first_place >= moves.place
    group by depths.pile_key

)

select order_id from {{ ref('int_changed_orders') }}
union distinct
select moves.order_id
from moves
inner join reached on moves.pile_key = reached.pile_key and moves.place >= reached.from_place
union distinct
-- Nothing takes from the pile any more: what did, and where, is not to be seen.
select lines.order_id
from piles
inner join {{ ref('int_order_lines_classified') }} as lines
    on
        piles.customer_id = lines.customer_id
        and piles.product_code = lines.product_code
        and piles.unit_price = lines.unit_price
where piles.taken_back_quantity > 0 and piles.pile_key not in (select pile_key from moves)

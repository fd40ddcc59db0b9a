-- Grain: one row per order or document whose facts may differ from the last refresh: changed itself, or with a line in a changed pile.

select order_id from {{ ref('int_changed_orders') }}
union distinct
select lines.order_id
from {{ ref('int_changed_piles') }} as piles
inner join {{ ref('int_order_lines_classified') }} as lines
    on
        piles.customer_id = lines.customer_id
        and piles.product_code = lines.product_code
        and piles.unit_price = lines.unit_price

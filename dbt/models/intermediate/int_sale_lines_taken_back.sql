-- Grain: one row per sale line of which cancellations that name its order took pieces.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'order_id', 'changes': 'int_changed_orders'},
    indexes=[{'columns': ['order_id']}, {'columns': ['order_line_key'], 'unique': true}],
) }}

with sale_lines as (

    select * from {{ ref('int_order_lines_classified') }}
    where
        line_class = 'sale'
        and order_id in (select target_order_id from {{ ref('int_cancellations_targeted') }})
        and {{ only_changed('order_id', 'int_changed_orders') }}

),

cheapest as (

    select
        order_id,
        product_code,
        min(unit_price) as unit_price
    from sale_lines
    group by order_id, product_code

),

requested as (

    -- A refund below the price is money back for goods that stay; it takes back no pieces.
    select
        cancellations.target_order_id,
        cancellations.product_code,
        sum(cancellations.requested_quantity) as quantity
    from {{ ref('int_cancellations_targeted') }} as cancellations
    inner join cheapest
        on cancellations.target_order_id = cheapest.order_id and cancellations.product_code = cheapest.product_code
    where
        cancellations.requested_quantity > 0
        and cancellations.unit_price >= cheapest.unit_price
    group by cancellations.target_order_id, cancellations.product_code

),

running as (

    select
        sale_lines.order_line_key,
        sale_lines.order_id,
        sale_lines.quantity,
        requested.quantity as requested_quantity,
        sum(sale_lines.quantity) over (
            partition by sale_lines.order_id, sale_lines.product_code order by sale_lines.line_number
        ) as quantity_to_here
    from sale_lines
    inner join requested on sale_lines.order_id = requested.target_order_id and sale_lines.product_code = requested.product_code

),

taken as (

    select
        order_line_key,
        order_id,
        least(quantity_to_here, requested_quantity) - least(quantity_to_here - quantity, requested_quantity) as quantity
    from running

)

select
    order_line_key,
    order_id,
    cast(quantity as bigint) as quantity
from taken
where quantity > 0

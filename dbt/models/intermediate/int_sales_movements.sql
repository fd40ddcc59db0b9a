-- Grain: one row per amount and the business date it counts on, up to the as-of date and in the base currency.
--
-- Lines of orders and documents that take nothing back appear once. A cancellation line appears once as booked (on its own date, under
-- its own document) and as restated once per sale it takes back from (on the order's date, under the order) plus once for what finds no
-- sale. The sum of `sale`, `adjustment`, `other` and one of the two views of cancellations is the whole of the books.

-- Summed from lines by whoever reads it, so it is not stored a second time.
{{ config(materialized="view") }}

with orders as (

    select * from {{ ref('int_orders_current') }}

),

lines as (

    select * from {{ ref('int_order_lines_classified') }}
    where is_within_as_of and is_base_currency and line_class <> 'cancellation'

),

cancellations as (

    select * from {{ ref('int_cancellations') }}

),

matches as (

    select * from {{ ref('int_cancellation_matches') }}

),

movements as (

    select
        lines.order_line_key as movement_key,
        lines.line_class as kind,
        lines.order_id,
        lines.business_date,
        lines.customer_id,
        lines.product_code,
        case when lines.line_class = 'sale' then lines.quantity else 0 end as quantity,
        lines.amount
    from lines
    union all
    select
        cancellation_key || '>booked' as movement_key,
        'cancelled as booked' as kind,
        order_id,
        business_date,
        customer_id,
        product_code,
        0 as quantity,
        -(applied_amount + unmatched_amount) as amount
    from cancellations
    union all
    -- Taken back from an order that is named.
    select
        cancellations.cancellation_key || '>order' as movement_key,
        'cancelled as restated' as kind,
        cancellations.target_order_id as order_id,
        orders.business_date,
        orders.customer_id,
        cancellations.product_code,
        0 as quantity,
        -cancellations.applied_amount as amount
    from cancellations
    inner join orders on cancellations.target_order_id = orders.order_id
    union all
    -- Taken back from the sales that were found.
    select
        matches.match_key as movement_key,
        'cancelled as restated' as kind,
        matches.order_id,
        orders.business_date,
        orders.customer_id,
        cancellations.product_code,
        0 as quantity,
        -matches.amount as amount
    from matches
    inner join cancellations on matches.cancellation_key = cancellations.cancellation_key
    inner join orders on matches.order_id = orders.order_id
    union all
    -- What finds no sale stays where it is.
    select
        cancellation_key || '>unmatched' as movement_key,
        'cancelled as restated' as kind,
        order_id,
        business_date,
        customer_id,
        product_code,
        0 as quantity,
        -unmatched_amount as amount
    from cancellations
    where unmatched_amount <> 0

)

select
    movements.movement_key,
    movements.kind,
    movements.order_id,
    movements.business_date,
    movements.customer_id,
    orders.channel,
    movements.product_code,
    cast(movements.quantity as bigint) as quantity,
    cast(movements.amount as numeric(18, 4)) as amount
from movements
inner join orders on movements.order_id = orders.order_id

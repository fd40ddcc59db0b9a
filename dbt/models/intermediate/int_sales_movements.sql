-- Grain: one row per amount and the business date it counts on, up to the as-of date and in the base currency.
--
-- Lines of orders and documents that take nothing back appear once. A cancellation line appears once as booked (on its own date, under
-- its own document) and as restated once per sale it takes back from (on the order's date, under the order) plus once for what finds no
-- sale. The sum of `sale`, `adjustment`, `other` and one of the two views of cancellations is the whole of the books.

-- A table would be the order lines a second time. Each part asks for its dates by an index: orders and cancellations have one. What several
-- parts read must not be materialized, which would be all orders there ever were, whatever the dates.
{{ config(materialized="view") }}

with orders as not materialized (

    select * from {{ ref('int_orders_current') }}
    where is_within_as_of and is_base_currency

),

documents as not materialized (

    select * from {{ ref('int_orders_current') }}

),

lines as (

    select * from {{ ref('int_order_lines_classified') }}
    where line_class <> 'cancellation'

),

cancellations as not materialized (

    select * from {{ ref('int_cancellations') }}

),

matches as (

    select * from {{ ref('int_cancellation_matches') }}

),

movements as (

    select
        lines.order_line_key as movement_key,
        lines.line_class as kind,
        orders.order_id,
        orders.business_date,
        orders.customer_id,
        orders.channel,
        lines.product_code,
        case when lines.line_class = 'sale' then lines.quantity else 0 end as quantity,
        lines.amount
    from orders
    inner join lines on orders.order_id = lines.order_id
    union all
    select
        cancellations.cancellation_key || '>booked' as movement_key,
        'cancelled as booked' as kind,
        cancellations.order_id,
        cancellations.business_date,
        cancellations.customer_id,
        documents.channel,
        cancellations.product_code,
        0 as quantity,
        -(cancellations.applied_amount + cancellations.unmatched_amount) as amount
    from cancellations
    inner join documents on cancellations.order_id = documents.order_id
    union all
    -- Taken back from an order that is named.
    select
        cancellations.cancellation_key || '>order' as movement_key,
        'cancelled as restated' as kind,
        orders.order_id,
        orders.business_date,
        orders.customer_id,
        orders.channel,
        cancellations.product_code,
        0 as quantity,
        -cancellations.applied_amount as amount
    from orders
    inner join cancellations on orders.order_id = cancellations.target_order_id
    union all
    -- Taken back from the sales that were found.
    select
        matches.match_key as movement_key,
        'cancelled as restated' as kind,
        orders.order_id,
        orders.business_date,
        orders.customer_id,
        orders.channel,
        cancellations.product_code,
        0 as quantity,
        -matches.amount as amount
    from orders
    inner join matches on orders.order_id = matches.order_id
    inner join cancellations on matches.cancellation_key = cancellations.cancellation_key
    union all
    -- What finds no sale stays where it is.
    select
        cancellations.cancellation_key || '>unmatched' as movement_key,
        'cancelled as restated' as kind,
        cancellations.order_id,
        cancellations.business_date,
        cancellations.customer_id,
        documents.channel,
        cancellations.product_code,
        0 as quantity,
        -cancellations.unmatched_amount as amount
    from cancellations
    inner join documents on cancellations.order_id = documents.order_id
    where cancellations.unmatched_amount <> 0

)

select
    movement_key,
    kind,
    order_id,
    business_date,
    customer_id,
    channel,
    product_code,
    cast(quantity as bigint) as quantity,
    cast(amount as numeric(18, 4)) as amount
from movements

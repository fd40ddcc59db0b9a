-- Grain: one row per product ever seen, sold or not; sales up to the as-of date in the base currency.
--
-- Over all days a cancellation counts once, so booked and restated amounts of a product are the same; they differ in orders and pieces.

with products as (

    select * from {{ ref('dim_products') }}
    where not is_unknown

),

sales as (

    select
        product_key,
        sum(quantity) as sale_quantity,
        sum(cancelled_quantity) as cancelled_quantity,
        count(distinct order_id) as orders_booked,
        count(distinct order_id) filter (where cancelled_quantity < quantity) as orders_restated,
        count(distinct customer_key) filter (where customer_key <> 'unknown') as customers,
        sum(amount) as gross_amount,
        min(business_date) as first_sold_date,
        max(business_date) as last_sold_date
    from {{ ref('fct_order_lines') }}
    where line_class = 'sale' and is_within_as_of and is_base_currency
    group by product_key

),

cancellations as (

    select
        product_code,
        sum(applied_amount + unmatched_amount) as amount,
        sum(unmatched_amount) as unmatched_amount
    from {{ ref('int_cancellations') }}
    group by product_code

),

measured as (

    select
        products.product_key,
        products.product_code,
        products.name,
        products.category,
        others.product_code is null as is_merchandise,
        coalesce(sales.sale_quantity, 0) as sale_quantity,
        coalesce(sales.cancelled_quantity, 0) as cancelled_quantity,
        coalesce(sales.orders_booked, 0) as orders_booked,
        coalesce(sales.orders_restated, 0) as orders_restated,
        coalesce(sales.customers, 0) as customers,
        coalesce(sales.gross_amount, 0) as gross_amount,
        -coalesce(cancellations.amount, 0) as cancelled_amount,
        -coalesce(cancellations.unmatched_amount, 0) as unmatched_amount,
        sales.first_sold_date,
        sales.last_sold_date
    from products
    left join sales on products.product_key = sales.product_key
    left join cancellations on products.product_code = cancellations.product_code
    left join {{ ref('non_merchandise_products') }} as others on products.product_code = others.product_code

)

select
    product_key,
    product_code,
    name,
    category,
    is_merchandise,
    cast(sale_quantity as bigint) as sale_quantity,
    cast(cancelled_quantity as bigint) as cancelled_quantity,
    cast(orders_booked as integer) as orders_booked,
    cast(orders_restated as integer) as orders_restated,
    cast(customers as integer) as customers,
    cast({{ base_currency() }} as text) as currency,
    cast(gross_amount as numeric(18, 4)) as gross_amount,
    cast(cancelled_amount as numeric(18, 4)) as cancelled_amount,
    cast(unmatched_amount as numeric(18, 4)) as unmatched_amount,
    cast(gross_amount + cancelled_amount as numeric(18, 4)) as net_amount,
    cast(-cancelled_amount as double precision) / nullif(cast(gross_amount as double precision), 0) as cancellation_share,
    first_sold_date,
    last_sold_date
from measured

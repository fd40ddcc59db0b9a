-- Grain: one row per product ever seen, sold or not; sales up to the as-of date in the base currency.
--
-- Over all days a cancellation counts once, so booked and restated amounts of a product are the same.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'product_code', 'changes': 'int_changed_products'},
    indexes=[{'columns': ['product_key'], 'unique': true}, {'columns': ['product_code']}],
) }}

with products as (

    select * from {{ ref('dim_products') }}
    where not is_unknown and {{ only_changed('product_code', 'int_changed_products') }}

),

sales as (

    select
        product_code,
        sum(sale_quantity) as sale_quantity,
        sum(orders_booked) as orders_booked,
        sum(gross_amount) as gross_amount,
        sum(cancelled_amount_booked) as cancelled_amount,
        min(business_date) filter (where orders_booked > 0) as first_sold_date,
        max(business_date) filter (where orders_booked > 0) as last_sold_date
    from {{ ref('int_daily_product_sales') }}
    where {{ only_changed('product_code', 'int_changed_products') }}
    group by product_code

),

credits as (

    select
        product_code,
        sum(unmatched_amount) as unmatched_amount
    from {{ ref('int_cancellations') }}
    where {{ only_changed('product_code', 'int_changed_products') }}
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
        coalesce(sales.orders_booked, 0) as orders_booked,
        coalesce(sales.gross_amount, 0) as gross_amount,
        coalesce(sales.cancelled_amount, 0) as cancelled_amount,
        -coalesce(credits.unmatched_amount, 0) as unmatched_amount,
        sales.first_sold_date,
        sales.last_sold_date
    from products
    left join sales on products.product_code = sales.product_code
    left join credits on products.product_code = credits.product_code
    left join {{ ref('non_merchandise_products') }} as others on products.product_code = others.product_code

)

select
    product_key,
    product_code,
    name,
    category,
    is_merchandise,
    cast(sale_quantity as bigint) as sale_quantity,
    cast(orders_booked as integer) as orders_booked,
    cast({{ base_currency() }} as text) as currency,
    cast(gross_amount as numeric(18, 4)) as gross_amount,
    cast(cancelled_amount as numeric(18, 4)) as cancelled_amount,
    cast(unmatched_amount as numeric(18, 4)) as unmatched_amount,
    cast(gross_amount + cancelled_amount as numeric(18, 4)) as net_amount,
    cast(-cancelled_amount as double precision) / nullif(cast(gross_amount as double precision), 0) as cancellation_share,
    first_sold_date,
    last_sold_date
from measured

-- Grain: one row per business date and product that something was sold of or taken back from; what the sales by product are summed from.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'business_date', 'changes': 'int_changed_dates'},
    indexes=[{'columns': ['business_date']}, {'columns': ['product_code']}],
) }}

with movements as (

    select * from {{ ref('int_sales_movements') }}
    where {{ only_changed_by_index('business_date', 'int_changed_dates') }}

),

sums as (

    select
        business_date,
        product_code,
        count(distinct order_id) filter (where kind = 'sale') as orders_booked,
        {{ sums_of_movements() }}
    from movements
    group by business_date, product_code

)

select
    business_date || '/' || product_code as daily_product_key,
    business_date,
    product_code,
    orders_booked,
    sale_quantity,
    gross_amount,
    cancelled_amount_booked,
    cancelled_amount_restated,
    adjustment_amount,
    other_amount
from sums

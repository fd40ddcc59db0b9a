-- Grain: one row per business date up to the as-of date, product category and whether it is merchandise.
--
-- The category is the one the shop files the product under now; a product without one counts as `unknown`.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'business_date', 'changes': 'int_changed_category_dates'},
    indexes=[{'columns': ['business_date']}],
) }}

with days as (

    select
        days.*,
        coalesce(products.category, 'unknown') as category,
        others.product_code is null as is_merchandise
    from {{ ref('int_daily_product_sales') }} as days
    left join {{ ref('int_products_current') }} as products on days.product_code = products.product_code
    left join {{ ref('non_merchandise_products') }} as others on days.product_code = others.product_code
    where {{ only_changed_by_index('days.business_date', 'int_changed_category_dates', 'business_date') }}

),

sums as (

    select
        business_date,
        category,
        is_merchandise,
        {{ sums_of_sums() }}
    from days
    group by business_date, category, is_merchandise

)

select
    business_date || '/' || category || case when is_merchandise then '/merchandise' else '/other' end as daily_sales_key,
    business_date,
    category,
    is_merchandise,
    {{ sales_columns() }}
from sums

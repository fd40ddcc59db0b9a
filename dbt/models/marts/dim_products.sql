-- Grain: one row per product code seen in the catalogue, an order line or an event, and one unknown member.

with products as (

    select * from {{ ref('int_products_current') }}

),

described as (

    select distinct on (product_code)
        product_code,
        description
    from {{ ref('int_order_lines_classified') }}
    where description is not null
    order by
        product_code asc, (line_class = 'sale') desc, line_at desc, source_line desc nulls last, order_id desc, line_number desc

),

seen as (

    select product_code from products
    union distinct
    select product_code from {{ ref('int_order_lines_classified') }}
    union distinct
    select product_code from {{ ref('stg_crm__events') }}
    where product_code is not null

),

members as (

    select
        seen.product_code,
        coalesce(products.name, described.description) as name,
        described.description,
        products.category,
        products.price,
        products.currency,
        products.stock,
        products.is_active,
        products.updated_at,
        products.product_code is null as is_inferred,
        false as is_unknown
    from seen
    left join products on seen.product_code = products.product_code
    left join described on seen.product_code = described.product_code

),

with_unknown as (

    select * from members
    union all
    select
        null as product_code,
        null as name,
        null as description,
        null as category,
        cast(null as numeric(14, 4)) as price,
        null as currency,
        null as stock,
        null as is_active,
        null as updated_at,
        false as is_inferred,
        true as is_unknown

)

select
    {{ member_key('product_code') }} as product_key,
    product_code,
    name,
    description,
    category,
    price,
    currency,
    stock,
    is_active,
    updated_at,
    is_inferred,
    is_unknown
from with_unknown

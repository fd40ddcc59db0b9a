-- Grain: one row per product code seen in the catalogue, an order line or an event, and one unknown member.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'product_code', 'changes': 'int_changed_products'},
    indexes=[{'columns': ['product_key'], 'unique': true}, {'columns': ['product_code']}],
) }}

with products as (

    select * from {{ ref('int_products_current') }}
    where {{ only_changed('product_code', 'int_changed_products') }}

),

-- One look into an index for each code that may have changed, not all lines of these codes.
ordered as (

    {% if execute and changes_only() %}
        select changed.product_code
        from {{ ref('int_changed_products') }} as changed
        where exists (
            select 1
            from {{ ref('int_order_lines_classified') }} as lines
            where lines.product_code = changed.product_code
        )
    {% else %}
        select distinct product_code from {{ ref('int_order_lines_classified') }}
    {% endif %}

),

described as (

    select
        ordered.product_code,
        latest.description
    from ordered
    cross join lateral (
        select lines.description
        from {{ ref('int_order_lines_classified') }} as lines
        where lines.product_code = ordered.product_code and lines.description is not null
        order by
            (lines.line_class = 'sale') desc,
            lines.line_at desc,
            lines.source_line desc nulls last,
            lines.order_id desc,
            lines.line_number desc
        limit 1
    ) as latest

),

seen as (

    select product_code from products
    union distinct
    select product_code from ordered
    union distinct
    select product_code from {{ ref('int_event_products') }}
    where {{ only_changed('product_code', 'int_changed_products') }}

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
    where {{ everything_is_built() }}

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

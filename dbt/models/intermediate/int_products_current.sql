-- Grain: one row per product code, its state by the highest sequence, whatever arrived last.

with ranked as (

    select
        product_code,
        product_id,
        name,
        category,
        price,
        currency,
        stock,
        is_active,
        message_at,
        row_number() over (partition by product_code order by sequence desc, message_at desc, event_id desc) as recency_rank
    from {{ ref('stg_crm__products') }}

)

select
    product_code,
    product_id,
    name,
    category,
    price,
    currency,
    stock,
    is_active,
    message_at as updated_at
from ranked
where recency_rank = 1

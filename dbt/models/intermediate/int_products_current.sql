-- Grain: one row per product code, its state by the highest sequence, whatever arrived last.

with newest as (

    {{ current_state(ref('stg_crm__products'), 'product_code') }}

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
from newest

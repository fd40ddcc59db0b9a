-- Grain: one row per product message (a product sends one whenever it changes).

select
    event_id,
    product_id,
    upper(product_id) as product_code,
    sequence,
    name,
    category,
    price,
    currency,
    stock,
    active as is_active,
    event_time as message_at,
    {{ later_columns('products') }}
    ingested_at,
    loaded_at
from {{ source('crm', 'products') }}

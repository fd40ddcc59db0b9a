-- Grain: one row per thing a visitor did.

select
    event_id,
    event_type,
    visitor_id,
    customer_id,
    session_id,
    product_id,
    upper(product_id) as product_code,
    order_id,
    page,
    channel,
    event_time as occurred_at,
    {{ business_date('event_time') }} as business_date,
    {{ business_date('event_time') }} <= {{ as_of() }} as is_within_as_of,
    {{ later_columns('events') }}
    ingested_at,
    loaded_at
from {{ source('crm', 'events') }}

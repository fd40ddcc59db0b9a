-- Grain: one row per order message (an order sends several while its status changes).

select
    event_id,
    order_id,
    sequence,
    customer_id,
    status,
    status in ('cancelled', 'refunded') as takes_back,
    nullif(cancels_order_id, order_id) as cancels_order_id,
    currency,
    currency = {{ base_currency() }} as is_base_currency,
    channel,
    country,
    amount,
    event_time as message_at,
    {{ business_date('event_time') }} as business_date,
    {{ business_date('event_time') }} <= {{ as_of() }} as is_within_as_of,
    {{ later_columns('orders') }}
    ingested_at,
    loaded_at
from {{ source('crm', 'orders') }}

-- Grain: one row per line of an order message.

select
    event_id,
    line_number,
    product_id,
    upper(product_id) as product_code,
    description,
    quantity,
    unit_price,
    cast(quantity * unit_price as numeric(18, 4)) as amount,
    line_time,
    {{ later_columns('order_lines') }}
    source_line
from {{ source('crm', 'order_lines') }}

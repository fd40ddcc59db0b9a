-- Grain: one row per product code of which a message or an event is new, or which a changed order has or had on a line.

select product_code
from {{ ref('stg_crm__products') }}
where {{ changes_are_wanted() }} and {{ is_new('products') }}
union distinct
select product_code
from {{ ref('stg_crm__events') }}
where {{ changes_are_wanted() }} and {{ is_new('events') }} and product_code is not null
union distinct
select lines.product_code
from {{ ref('stg_crm__orders') }} as messages
inner join {{ ref('stg_crm__order_lines') }} as lines on messages.event_id = lines.event_id
where messages.order_id in (select order_id from {{ ref('int_changed_orders') }})

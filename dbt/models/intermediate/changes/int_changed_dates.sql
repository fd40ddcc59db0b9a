-- Grain: one row per business date whose figures may differ from the last refresh: all dates of messages of orders whose facts may.
--
-- An order counts on the date of one of its messages, and so does what takes it back; on which one may have changed.

select distinct business_date
from {{ ref('stg_crm__orders') }}
where order_id in (select order_id from {{ ref('int_changed_facts') }})

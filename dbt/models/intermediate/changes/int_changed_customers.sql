-- Grain: one row per customer of whom a profile or an event is new, or the facts of an order may differ from the last refresh.

select customer_id
from {{ ref('stg_crm__profiles') }}
where {{ changes_are_wanted() }} and {{ is_new('profiles') }}
union distinct
select customer_id
from {{ ref('stg_crm__events') }}
where {{ changes_are_wanted() }} and {{ is_new('events') }} and customer_id is not null
union distinct
select customer_id
from {{ ref('stg_crm__orders') }}
where customer_id is not null and order_id in (select order_id from {{ ref('int_changed_facts') }})

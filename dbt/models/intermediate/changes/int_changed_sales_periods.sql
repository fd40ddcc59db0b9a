-- Grain: one row per day or month whose sales by type of customer may differ from the last refresh.
--
-- Changed dates, and all dates of customers whose first purchase may be another one: an order with a message on or before it has changed.

with moved as (

    select messages.customer_id
    from {{ ref('stg_crm__orders') }} as messages
    left join {{ ref('int_customer_activity') }} as customers on messages.customer_id = customers.customer_id
    where
        messages.customer_id is not null
        and messages.order_id in (select order_id from {{ ref('int_changed_orders') }})
    group by messages.customer_id, customers.first_purchase_date
    having coalesce(min(messages.business_date) <= customers.first_purchase_date, true)

),

dates as (

    select business_date from {{ ref('int_changed_dates') }}
    union distinct
    select business_date
    from {{ ref('int_daily_customer_sales') }}
    where customer_key in (select {{ member_key('customer_id') }} from moved)

),

periods as (

    select distinct
        periods.period,
        cast(date_trunc(periods.period, dates.business_date) as date) as period_start
    from dates
    cross join (values ('day'), ('month')) as periods (period)

)

select
    period || '/' || period_start as sales_period_key,
    period,
    period_start,
    cast(case when period = 'month' then period_start + interval '1 month - 1 day' else period_start end as date) as period_end
from periods

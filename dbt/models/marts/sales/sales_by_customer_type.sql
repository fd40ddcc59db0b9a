-- Grain: one row per day or month up to the as-of date, and type of customer: new, returning, guest, or no purchase yet.
--
-- A customer is new in the period that holds the first booked purchase. Credits of a known customer in periods before it, or without
-- one, are of nobody's purchase and stand apart, so that the types add up to all sales.

{{ config(
    materialized='incremental',
    meta={
        'changed_key': 'period, period_start',
        'changes': 'int_changed_sales_periods',
    },
    indexes=[{'columns': ['period', 'period_start']}],
) }}

with periods as (

    select * from (values ('day'), ('month')) as periods (period)

),

days as (

    select
        days.*,
        periods.period,
        cast(date_trunc(periods.period, days.business_date) as date) as period_start,
        cast(date_trunc(periods.period, customers.first_purchase_date) as date) as first_period_start
    from {{ ref('int_daily_customer_sales') }} as days
    cross join periods
    left join {{ ref('int_customer_activity') }} as customers on days.customer_key = customers.customer_key
    where
        {{ only_changed_by_index('days.business_date', 'int_changed_sales_periods', dates_from_to('period_start', 'period_end')) }}
        and {{ only_changed(
            'periods.period, cast(date_trunc(periods.period, days.business_date) as date)',
            'int_changed_sales_periods',
            'period, period_start'
        ) }}

),

typed as (

    select
        *,
        case
            when not customer_known then 'guest'
            when period_start > first_period_start then 'returning'
            when period_start = first_period_start then 'new'
            else 'no purchase yet'
        end as customer_type
    from days

),

sums as (

    select
        period,
        period_start,
        customer_type,
        count(distinct customer_key) filter (where customer_known and orders_booked > 0) as customers_booked,
        count(distinct customer_key) filter (where customer_known and orders_restated > 0) as customers_restated,
        sum(orders_booked) as orders_booked,
        sum(orders_restated) as orders_restated,
        {{ sums_of_sums() }}
    from typed
    group by period, period_start, customer_type

)

select
    period || '/' || period_start || '/' || customer_type as sales_by_customer_type_key,
    period,
    period_start,
    customer_type,
    cast(customers_booked as integer) as customers_booked,
    cast(customers_restated as integer) as customers_restated,
    cast(orders_booked as integer) as orders_booked,
    cast(orders_restated as integer) as orders_restated,
    {{ sales_columns() }},
    {{ average_order_values() }}
from sums

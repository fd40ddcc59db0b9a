-- Grain: one row per cohort (month of the first booked purchase) and month since then, up to the month of the as-of date.
--
-- The cohort of a customer is the same in both views, so that they can be compared. The last month ends with the as-of date.

{{ config(
    materialized='incremental',
    meta={
        'changed_key': 'cohort_month, activity_month',
        'changes': 'int_changed_cohorts',
    },
    indexes=[{'columns': ['cohort_month', 'activity_month']}],
) }}

with customers as (

    select
        customer_key,
        cast(date_trunc('month', first_purchase_date) as date) as cohort_month
    from {{ ref('int_customer_activity') }}

),

cohorts as (

    select
        cohort_month,
        count(*) as customers
    from customers
    group by cohort_month

),

months as (

    select
        cohorts.cohort_month,
        cohorts.customers,
        cast(series.moment as date) as activity_month,
        row_number() over (partition by cohorts.cohort_month order by series.moment) - 1 as month_number
    from cohorts
    cross join lateral generate_series(cohorts.cohort_month, {{ as_of() }}, interval '1 month') as series (moment)

),

-- All customers in the changed months, and the customers of changed cohorts in the others: two conditions, each of which has an index.
days as (

    select * from {{ ref('int_daily_customer_sales') }}
    where {{ only_changed_by_index('business_date', 'int_changed_sales_periods', dates_from_to('period_start', 'period_end')) }}
    {% if not execute or changes_only() %}
        union all
        select * from {{ ref('int_daily_customer_sales') }}
        where
            customer_key = any(array(
                select customers.customer_key
                from customers
                inner join {{ ref('int_changed_sales_periods') }} as changed
                    on changed.period = 'month' and customers.cohort_month = changed.period_start
            ))
            and not {{ only_changed_by_index('business_date', 'int_changed_sales_periods', dates_from_to('period_start', 'period_end')) }}
    {% endif %}

),

-- A credit dated in a month before the first purchase belongs to no month of the cohort.
sums as (

    select
        customers.cohort_month,
        cast(date_trunc('month', days.business_date) as date) as activity_month,
        count(distinct days.customer_key) filter (where days.orders_booked > 0) as active_customers_booked,
        count(distinct days.customer_key) filter (where days.orders_restated > 0) as active_customers_restated,
        sum(days.orders_booked) as orders_booked,
        sum(days.orders_restated) as orders_restated,
        sum(days.gross_amount) as gross_amount,
        sum(days.cancelled_amount_booked) as cancelled_amount_booked,
        sum(days.cancelled_amount_restated) as cancelled_amount_restated
    from days
    inner join customers on days.customer_key = customers.customer_key
    group by customers.cohort_month, date_trunc('month', days.business_date)

),

joined as (

    select
        months.cohort_month,
        months.activity_month,
        months.month_number,
        months.customers,
        coalesce(sums.active_customers_booked, 0) as active_customers_booked,
        coalesce(sums.active_customers_restated, 0) as active_customers_restated,
        coalesce(sums.orders_booked, 0) as orders_booked,
        coalesce(sums.orders_restated, 0) as orders_restated,
        coalesce(sums.gross_amount, 0) as gross_amount,
        coalesce(sums.cancelled_amount_booked, 0) as cancelled_amount_booked,
        coalesce(sums.cancelled_amount_restated, 0) as cancelled_amount_restated
    from months
    left join sums on months.cohort_month = sums.cohort_month and months.activity_month = sums.activity_month
    where {{ only_changed('months.cohort_month, months.activity_month', 'int_changed_cohorts', 'cohort_month, activity_month') }}

)

select
    cohort_month || '/' || month_number as cohort_key,
    cohort_month,
    cast(month_number as integer) as month_number,
    activity_month,
    cast(activity_month + interval '1 month - 1 day' as date) <= {{ as_of() }} as is_whole_month,
    cast(customers as integer) as customers,
    cast(active_customers_booked as integer) as active_customers_booked,
    cast(active_customers_restated as integer) as active_customers_restated,
    cast(active_customers_booked as double precision) / customers as retention_booked,
    cast(active_customers_restated as double precision) / customers as retention_restated,
    cast(orders_booked as integer) as orders_booked,
    cast(orders_restated as integer) as orders_restated,
    cast({{ base_currency() }} as text) as currency,
    cast(gross_amount as numeric(18, 4)) as gross_amount,
    cast(cancelled_amount_booked as numeric(18, 4)) as cancelled_amount_booked,
    cast(cancelled_amount_restated as numeric(18, 4)) as cancelled_amount_restated,
    cast(gross_amount + cancelled_amount_booked as numeric(18, 4)) as net_amount_booked,
    cast(gross_amount + cancelled_amount_restated as numeric(18, 4)) as net_amount_restated,
    {{ average_order_values() }}
from joined

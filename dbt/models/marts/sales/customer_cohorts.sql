-- Grain: one row per cohort (month of the first booked purchase) and month since then, up to the month of the as-of date.
--
-- The cohort of a customer is the same in both views, so that they can be compared. The last month ends with the as-of date.

with customers as (

    select
        customer_key,
        customer_id,
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

purchases as (

    select
        customers.cohort_month,
        cast(date_trunc('month', orders.business_date) as date) as activity_month,
        count(orders.order_id) as orders_booked,
        count(orders.order_id) filter (where not orders.is_wholly_cancelled) as orders_restated,
        count(distinct customers.customer_key) as active_customers_booked,
        count(distinct customers.customer_key) filter (where not orders.is_wholly_cancelled) as active_customers_restated
    from {{ ref('fct_orders') }} as orders
    inner join customers on orders.customer_key = customers.customer_key
    where orders.is_within_as_of and orders.is_base_currency and orders.sale_lines > 0
    group by customers.cohort_month, date_trunc('month', orders.business_date)

),

-- A credit dated before the first purchase belongs to no month of the cohort.
sums as (

    select
        customers.cohort_month,
        cast(date_trunc('month', movements.business_date) as date) as activity_month,
        {{ sales_sums() }}
    from {{ ref('int_sales_movements') }} as movements
    inner join customers on movements.customer_id = customers.customer_id
    group by customers.cohort_month, date_trunc('month', movements.business_date)

),

joined as (

    select
        months.cohort_month,
        months.activity_month,
        months.month_number,
        months.customers,
        coalesce(purchases.active_customers_booked, 0) as active_customers_booked,
        coalesce(purchases.active_customers_restated, 0) as active_customers_restated,
        coalesce(purchases.orders_booked, 0) as orders_booked,
        coalesce(purchases.orders_restated, 0) as orders_restated,
        coalesce(sums.gross_amount, 0) as gross_amount,
        coalesce(sums.cancelled_amount_booked, 0) as cancelled_amount_booked,
        coalesce(sums.cancelled_amount_restated, 0) as cancelled_amount_restated
    from months
    left join purchases on months.cohort_month = purchases.cohort_month and months.activity_month = purchases.activity_month
    left join sums on months.cohort_month = sums.cohort_month and months.activity_month = sums.activity_month

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

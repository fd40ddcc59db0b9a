-- Grain: one row per day or month up to the as-of date, and type of customer: new, returning, guest, or no purchase yet.
--
-- A customer is new in the period that holds the first booked purchase. Credits of a known customer in periods before it, or without
-- one, are of nobody's purchase and stand apart, so that the types add up to all sales.

with periods as (

    select * from (values ('day'), ('month')) as periods (period)

),

customers as (

    select * from {{ ref('int_customer_activity') }}

),

movements as (

    select
        periods.period,
        cast(date_trunc(periods.period, movements.business_date) as date) as period_start,
        {{ customer_type('movements.customer_id', 'movements.business_date') }} as customer_type,
        movements.kind,
        movements.quantity,
        movements.amount
    from {{ ref('int_sales_movements') }} as movements
    cross join periods
    left join customers on movements.customer_id = customers.customer_id

),

sums as (

    select
        period,
        period_start,
        customer_type,
        {{ sales_sums() }}
    from movements
    group by period, period_start, customer_type

),

purchases as (

    select
        periods.period,
        cast(date_trunc(periods.period, orders.business_date) as date) as period_start,
        {{ customer_type('customers.customer_id', 'orders.business_date') }} as customer_type,
        orders.order_id,
        orders.is_wholly_cancelled,
        customers.customer_key
    from {{ ref('fct_orders') }} as orders
    cross join periods
    left join customers on orders.customer_key = customers.customer_key
    where orders.is_within_as_of and orders.is_base_currency and orders.sale_lines > 0

),

orders as (

    select
        period,
        period_start,
        customer_type,
        count(order_id) as orders_booked,
        count(order_id) filter (where not is_wholly_cancelled) as orders_restated,
        count(distinct customer_key) as customers_booked,
        count(distinct customer_key) filter (where not is_wholly_cancelled) as customers_restated
    from purchases
    group by period, period_start, customer_type

),

joined as (

    select
        sums.*,
        coalesce(orders.orders_booked, 0) as orders_booked,
        coalesce(orders.orders_restated, 0) as orders_restated,
        coalesce(orders.customers_booked, 0) as customers_booked,
        coalesce(orders.customers_restated, 0) as customers_restated
    from sums
    left join orders
        on sums.period = orders.period and sums.period_start = orders.period_start and sums.customer_type = orders.customer_type

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
from joined

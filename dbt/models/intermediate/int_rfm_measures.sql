-- Grain: one row per customer and basis (booked, restated), of customers who have an order on that basis: what RFM measures.

with customers as (

    select * from {{ ref('int_customer_activity') }}

),

measured as (

    select
        customer_key,
        'booked' as basis,
        first_purchase_date,
        last_purchase_date,
        orders_booked as frequency,
        purchase_days,
        amount_booked as monetary
    from customers
    union all
    select
        customer_key,
        'restated' as basis,
        first_purchase_date_restated as first_purchase_date,
        last_purchase_date_restated as last_purchase_date,
        orders_restated as frequency,
        purchase_days_restated as purchase_days,
        amount_restated as monetary
    from customers
    where orders_restated > 0

)

select
    customer_key || '/' || basis as rfm_score_key,
    customer_key,
    basis,
    first_purchase_date,
    last_purchase_date,
    {{ as_of() }} - last_purchase_date as recency_days,
    frequency,
    purchase_days,
    monetary
from measured

-- Grain: one row per customer and basis (booked, restated), of customers who have an order on that basis.
--
-- Score = 1 + (n_below × bands) div n: n scored customers, n_below those strictly worse. Equal values get equal scores.

with purchases as (

    select
        orders.order_id,
        orders.customer_key,
        orders.business_date,
        orders.sale_amount,
        bases.basis
    from {{ ref('fct_orders') }} as orders
    cross join (values ('booked'), ('restated')) as bases (basis)
    where
        orders.customer_known
        and orders.is_within_as_of
        and orders.is_base_currency
        and orders.sale_lines > 0
        and (bases.basis = 'booked' or not orders.is_wholly_cancelled)

),

booked_amounts as (

    select
        customer_key,
        sum(sale_amount) as amount
    from purchases
    where basis = 'booked'
    group by customer_key

),

credits as (

    select
        {{ member_key('customer_id') }} as customer_key,
        sum(applied_amount + unmatched_amount) as amount
    from {{ ref('int_cancellations') }}
    where customer_id is not null and business_date <= {{ as_of() }}
    group by customer_id

),

visits as (

    select
        customer_key,
        basis,
        min(business_date) as first_purchase_date,
        max(business_date) as last_purchase_date,
        count(order_id) as frequency,
        count(distinct business_date) as purchase_days
    from purchases
    group by customer_key, basis

),

measured as (

    select
        visits.customer_key,
        visits.basis,
        visits.first_purchase_date,
        visits.last_purchase_date,
        {{ as_of() }} - visits.last_purchase_date as recency_days,
        visits.frequency,
        visits.purchase_days,
        booked_amounts.amount - case when visits.basis = 'restated' then coalesce(credits.amount, 0) else 0 end as monetary
    from visits
    inner join booked_amounts on visits.customer_key = booked_amounts.customer_key
    left join credits on visits.customer_key = credits.customer_key

),

ranked as (

    select
        *,
        count(*) over (partition by basis) as scored,
        rank() over (partition by basis order by recency_days desc) - 1 as below_recency,
        rank() over (partition by basis order by frequency) - 1 as below_frequency,
        rank() over (partition by basis order by monetary) - 1 as below_monetary
    from measured

)

select
    customer_key || '/' || basis as rfm_score_key,
    customer_key,
    basis,
    first_purchase_date,
    last_purchase_date,
    cast(recency_days as integer) as recency_days,
    cast(frequency as integer) as frequency,
    cast(purchase_days as integer) as purchase_days,
    cast(monetary as numeric(18, 4)) as monetary,
    cast(1 + below_recency * {{ var('rfm_bands') }} / scored as integer) as recency_score,
    cast(1 + below_frequency * {{ var('rfm_bands') }} / scored as integer) as frequency_score,
    cast(1 + below_monetary * {{ var('rfm_bands') }} / scored as integer) as monetary_score,
    {{ as_of() }} as as_of,
    cast('{{ run_started_at | string }}' as timestamp with time zone) as scored_at,
    'rfm-1' as model_version,
    'rfm_bands' as method
from ranked

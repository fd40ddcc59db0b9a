-- Grain: one row per pair of repeat purchase days and age found among customers.
--
-- What a customer who is alive will buy depends on nothing else, and many share a pair: the sum runs once per pair.

with pairs as (

    select distinct
        purchase_days - 1 as x,
        {{ as_of() }} - first_purchase_date as age_days
    from {{ ref('int_customer_activity') }}

)

select
    pairs.x,
    pairs.age_days,
    {{ expected_orders_if_alive(
        'basis.method', 'pairs.x', 'pairs.age_days', var('value_horizon_days'), 'basis.r', 'basis.alpha', 'basis.a', 'basis.b'
    ) }} as expected_orders_if_alive
from pairs
cross join {{ ref('int_scoring_basis') }} as basis

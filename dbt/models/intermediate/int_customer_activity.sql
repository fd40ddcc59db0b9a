-- Grain: one row per known customer with at least one booked sale order in the base currency, up to the as-of date.
--
-- What every customer score starts from, so that none of them reads order lines. The as-of date leaves later rows out and does
-- nothing else: no column ages. A credit that finds no order lowers the restated amount and belongs to no purchase day.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'customer_id', 'changes': 'int_changed_customers'},
    indexes=[{'columns': ['customer_key'], 'unique': true}, {'columns': ['customer_id']}],
) }}

with orders as (

    select
        orders.order_id,
        orders.customer_id,
        orders.business_date,
        totals.sale_amount,
        totals.sale_amount - coalesce(cancelled.cancelled_amount, 0) as restated_amount,
        coalesce(cancelled.cancelled_quantity >= totals.sale_quantity, false) as is_wholly_cancelled
    from {{ ref('int_orders_current') }} as orders
    inner join {{ ref('int_order_totals') }} as totals on orders.order_id = totals.order_id
    left join {{ ref('int_cancelled_orders') }} as cancelled on orders.order_id = cancelled.order_id
    where
        orders.customer_id is not null
        and orders.is_within_as_of
        and orders.is_base_currency
        and totals.sale_lines > 0
        and {{ only_changed('orders.customer_id', 'int_changed_customers', 'customer_id') }}

),

days as (

    select
        customer_id,
        business_date,
        count(*) as orders_booked,
        count(*) filter (where not is_wholly_cancelled) as orders_restated,
        sum(sale_amount) as amount_booked,
        sum(restated_amount) as restated_amount,
        business_date - lag(business_date) over (partition by customer_id order by business_date) as gap_days
    from orders
    group by customer_id, business_date

),

purchases as (

    select
        customer_id,
        min(business_date) as first_purchase_date,
        max(business_date) as last_purchase_date,
        count(*) as purchase_days,
        sum(orders_booked) as orders_booked,
        sum(amount_booked) as amount_booked,
        min(business_date) filter (where orders_restated > 0) as first_purchase_date_restated,
        max(business_date) filter (where orders_restated > 0) as last_purchase_date_restated,
        count(*) filter (where orders_restated > 0) as purchase_days_restated,
        sum(orders_restated) as orders_restated,
        -- The first purchase day is the one without a gap before it.
        count(*) filter (where gap_days is not null and restated_amount > 0) as repeat_value_days,
        coalesce(sum(restated_amount) filter (where gap_days is not null and restated_amount > 0), 0) as repeat_value_amount,
        percentile_cont(0.5) within group (order by gap_days) as usual_gap_days
    from days
    group by customer_id

),

credits as (

    select
        customer_id,
        sum(applied_amount + unmatched_amount) as amount
    from {{ ref('int_cancellations') }}
    where
        customer_id is not null
        and business_date <= {{ as_of() }}
        and {{ only_changed('customer_id', 'int_changed_customers') }}
    group by customer_id

),

documents as (

    select
        order_id,
        customer_id
    from {{ ref('int_orders_current') }}
    where
        customer_id is not null
        and is_within_as_of
        and {{ only_changed('customer_id', 'int_changed_customers') }}

),

messages as (

    select
        documents.customer_id,
        messages.message_at,
        messages.loaded_at
    from documents
    inner join {{ ref('stg_crm__orders') }} as messages on documents.order_id = messages.order_id
    where messages.is_within_as_of
    union all
    -- A document that takes an order back need not name the customer.
    select
        documents.customer_id,
        messages.message_at,
        messages.loaded_at
    from documents
    inner join {{ ref('stg_crm__orders') }} as messages on documents.order_id = messages.cancels_order_id
    where messages.is_within_as_of

),

changes as (

    select
        customer_id,
        max(message_at) as last_change_at,
        max(loaded_at) as loaded_at
    from messages
    group by customer_id

)

select
    {{ member_key('purchases.customer_id') }} as customer_key,
    purchases.customer_id,
    purchases.first_purchase_date,
    purchases.last_purchase_date,
    cast(purchases.purchase_days as integer) as purchase_days,
    cast(purchases.orders_booked as integer) as orders_booked,
    cast(purchases.amount_booked as numeric(18, 4)) as amount_booked,
    purchases.first_purchase_date_restated,
    purchases.last_purchase_date_restated,
    cast(purchases.purchase_days_restated as integer) as purchase_days_restated,
    cast(purchases.orders_restated as integer) as orders_restated,
    cast(
        case when purchases.orders_restated > 0 then purchases.amount_booked - coalesce(credits.amount, 0) else 0 end as numeric(18, 4)
    ) as amount_restated,
    cast(purchases.repeat_value_days as integer) as repeat_value_days,
    cast(purchases.repeat_value_amount as numeric(18, 4)) as repeat_value_amount,
    cast(purchases.usual_gap_days as numeric) as usual_gap_days,
    changes.last_change_at,
    changes.loaded_at
from purchases
inner join changes on purchases.customer_id = changes.customer_id
left join credits on purchases.customer_id = credits.customer_id

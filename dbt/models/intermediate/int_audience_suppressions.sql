-- Grain: one row per customer and purpose of consent for which the customer is in no audience, with the first reason that applies.
--
-- A score is out of date when an order or cancellation of the customer is newer than it: by its own time, or by when it was loaded. The
-- second looks at raw, so that it holds as well when only the audiences are built.

with customers as (

    select
        dim.customer_key,
        dim.customer_id,
        dim.is_erased,
        dim.is_opted_out,
        purposes.purpose,
        purposes.consent
    from {{ ref('dim_customers') }} as dim
    cross join
        lateral (
            values ('email', dim.consent_email), ('ads', dim.consent_ads), ('analytics', dim.consent_analytics)
        ) as purposes (purpose, consent)
    where not dim.is_unknown

),

messages as (

    select
        order_id,
        cancels_order_id,
        customer_id,
        loaded_at
    from {{ ref('stg_crm__orders') }}

),

arrived as (

    select
        touched.order_id,
        messages.loaded_at
    from messages
    cross join lateral (values (messages.order_id), (messages.cancels_order_id)) as touched (order_id)
    where messages.loaded_at > (select min(risks.scored_at) from {{ ref('churn_risk') }} as risks) and touched.order_id is not null

),

arrivals as (

    select
        messages.customer_id,
        max(arrived.loaded_at) as loaded_at
    from arrived
    inner join messages on arrived.order_id = messages.order_id
    where messages.customer_id is not null
    group by messages.customer_id

),

out_of_date as (

    select risks.customer_key
    from {{ ref('churn_risk') }} as risks
    inner join {{ ref('int_customer_activity') }} as activity on risks.customer_key = activity.customer_key
    left join arrivals on activity.customer_id = arrivals.customer_id
    where greatest(activity.last_change_at, activity.loaded_at, arrivals.loaded_at) > risks.scored_at

),

judged as (

    select
        customers.customer_key,
        customers.purpose,
        case
            when customers.is_erased then 'erased'
            when customers.is_opted_out then 'opted out'
            when customers.consent is null then 'consent unknown'
            when not customers.consent then 'no consent'
            when out_of_date.customer_key is not null then 'score out of date'
        end as reason
    from customers
    left join out_of_date on customers.customer_key = out_of_date.customer_key

)

select
    customer_key,
    purpose,
    reason
from judged
where reason is not null

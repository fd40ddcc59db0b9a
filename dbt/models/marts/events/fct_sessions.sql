-- Grain: one row per session of a visitor, dated by its first event; events up to the as-of date.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'session_key', 'changes': 'int_changed_events', 'key_of_changes': 'event_id'},
    indexes=[{'columns': ['session_key'], 'unique': true}, {'columns': ['business_date']}],
) }}

with events as (

    select * from {{ ref('fct_events') }}
    where is_within_as_of and {{ only_changed('session_key', 'int_changed_events', 'event_id') }}

),

last_customers as (

    select distinct on (session_key)
        session_key,
        customer_key
    from events
    where customer_known
    order by session_key asc, occurred_at desc, event_id desc

),

sessions as (

    select
        session_key,
        visitor_id,
        -- The session is named after its first event.
        max(business_date) filter (where event_id = session_key) as business_date,
        max(channel) filter (where event_id = session_key) as entry_channel,
        max(page) filter (where event_id = session_key) as entry_page,
        min(occurred_at) as started_at,
        max(occurred_at) as ended_at,
        count(event_id) as events,
        count(event_id) filter (where event_type = 'view') as view_events,
        count(event_id) filter (where event_type = 'cart') as cart_events,
        count(event_id) filter (where event_type = 'checkout') as checkout_events,
        count(event_id) filter (where event_type = 'purchase') as purchase_events,
        max(loaded_at) as loaded_at
    from events
    group by session_key, visitor_id

)

select
    sessions.session_key,
    sessions.visitor_id,
    coalesce(last_customers.customer_key, 'unknown') as customer_key,
    last_customers.customer_key is not null as customer_known,
    sessions.business_date,
    sessions.started_at,
    sessions.ended_at,
    cast(extract(epoch from sessions.ended_at - sessions.started_at) as numeric(18, 6)) as duration_seconds,
    sessions.entry_channel,
    sessions.entry_page,
    cast(sessions.events as integer) as events,
    cast(sessions.view_events as integer) as view_events,
    cast(sessions.cart_events as integer) as cart_events,
    cast(sessions.checkout_events as integer) as checkout_events,
    cast(sessions.purchase_events as integer) as purchase_events,
    sessions.view_events > 0 as has_view,
    sessions.cart_events > 0 as has_cart,
    sessions.checkout_events > 0 as has_checkout,
    sessions.purchase_events > 0 as has_purchase,
    sessions.loaded_at
from sessions
left join last_customers on sessions.session_key = last_customers.session_key

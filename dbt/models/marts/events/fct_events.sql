-- Grain: one row per thing a visitor did, with the session it belongs to.
--
-- A session ends when more than 30 minutes pass without an event of its visitor (exactly 30:00 stays); midnight cuts nothing. It is
-- named after its first event by time and then id, so its key does not depend on when its events arrived.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'event_id', 'changes': 'int_changed_events'},
    indexes=[
        {'columns': ['event_id'], 'unique': true},
        {'columns': ['session_key']},
        {'columns': ['business_date']},
    ],
) }}

with events as (

    select
        event_id,
        visitor_id,
        {{ member_key('customer_id') }} as customer_key,
        customer_id is not null as customer_known,
        event_type,
        {{ member_key('product_code') }} as product_key,
        order_id,
        page,
        channel,
        session_id,
        occurred_at,
        business_date,
        is_within_as_of,
        ingested_at,
        loaded_at
    from {{ ref('stg_crm__events') }}
    where {{ only_changed('event_id', 'int_changed_events') }}

),

-- What is dated after the as-of date stands apart: it must not move the sessions before it.
marked as (

    select
        *,
        {{ begins_session('visits') }} as begins_session
    from events
    window visits as (partition by visitor_id, is_within_as_of order by occurred_at, event_id)

),

numbered as (

    select
        *,
        count(*) filter (where begins_session) over visits as visit
    from marked
    window visits as (partition by visitor_id, is_within_as_of order by occurred_at, event_id)

),

sessionized as (

    select
        *,
        first_value(event_id) over visit_events as first_event_id,
        first_value(occurred_at) over visit_events as first_event_at
    from numbered
    window visit_events as (partition by visitor_id, is_within_as_of, visit order by occurred_at, event_id)

)

select
    event_id,
    case when is_within_as_of then first_event_id end as session_key,
    case when is_within_as_of then first_event_at end as session_started_at,
    visitor_id,
    customer_key,
    customer_known,
    event_type,
    product_key,
    order_id,
    page,
    channel,
    session_id,
    occurred_at,
    business_date,
    is_within_as_of,
    ingested_at,
    loaded_at
from sessionized

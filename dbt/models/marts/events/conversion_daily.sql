-- Grain: one row per business date with an event, up to the as-of date.
--
-- A session counts on the date of its first event, an event on its own: a purchase after midnight may be in both rows.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'business_date', 'changes': 'int_changed_events'},
    indexes=[{'columns': ['business_date'], 'unique': true}],
) }}

with session_counts as (

    select
        business_date,
        count(session_key) as sessions,
        count(session_key) filter (where has_view) as sessions_with_view,
        count(session_key) filter (where has_purchase) as sessions_with_purchase
    from {{ ref('fct_sessions') }}
    where {{ only_changed('business_date', 'int_changed_events') }}
    group by business_date

),

event_counts as (

    select
        business_date,
        count(event_id) as events,
        count(event_id) filter (where event_type = 'view') as view_events,
        count(event_id) filter (where event_type = 'purchase') as purchase_events
    from {{ ref('fct_events') }}
    where is_within_as_of and {{ only_changed('business_date', 'int_changed_events') }}
    group by business_date

),

-- Every session has its first event on its date, so no date has sessions alone.
days as (

    select
        event_counts.*,
        coalesce(session_counts.sessions, 0) as sessions,
        coalesce(session_counts.sessions_with_view, 0) as sessions_with_view,
        coalesce(session_counts.sessions_with_purchase, 0) as sessions_with_purchase
    from event_counts
    left join session_counts on event_counts.business_date = session_counts.business_date

)

select
    business_date,
    cast(sessions as integer) as sessions,
    cast(sessions_with_view as integer) as sessions_with_view,
    cast(sessions_with_purchase as integer) as sessions_with_purchase,
    cast(sessions_with_purchase as double precision) / nullif(sessions_with_view, 0) as conversion_by_session,
    cast(events as integer) as events,
    cast(view_events as integer) as view_events,
    cast(purchase_events as integer) as purchase_events,
    cast(purchase_events as double precision) / nullif(view_events, 0) as conversion_by_event
from days

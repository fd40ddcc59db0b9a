-- Recomputed from the events: a gap of more than 30 minutes lies between two sessions of a visitor, and none within a session.
{{ config(meta={"dagster": {"ref": {"name": "fct_sessions"}}}, tags=["nightly"]) }}

with neighbours as (

    select
        session_key,
        occurred_at,
        lag(session_key) over visits as session_before,
        lag(occurred_at) over visits as occurred_before
    from {{ ref('fct_events') }}
    where is_within_as_of
    window visits as (partition by visitor_id order by occurred_at, event_id)

)

select
    neighbours.session_key,
    neighbours.occurred_at,
    neighbours.occurred_before
from neighbours
left join {{ ref('fct_sessions') }} as sessions on neighbours.session_key = sessions.session_key
where
    sessions.session_key is null
    or neighbours.occurred_at not between sessions.started_at and sessions.ended_at
    or (neighbours.session_key <> neighbours.session_before)
    <> (neighbours.occurred_at - neighbours.occurred_before > interval '30 minutes')

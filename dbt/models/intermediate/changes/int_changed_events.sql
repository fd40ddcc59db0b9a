-- Grain: one row per event of a session that has a new event.
--
-- More events never split a session; they lengthen it or join it with the next one. So every session that may differ, or is there no
-- more, began with one of these events. Cut without regard to the as-of date: that makes sessions longer and never shorter.
--
-- Read is what follows the pause before a visitor's earliest new event, and not what the visitor did in the years before.

with received as (

    select
        visitor_id,
        min(occurred_at) as received_from
    from {{ ref('stg_crm__events') }}
    where {{ changes_are_wanted() }} and {{ is_new('events') }}
    group by visitor_id

),

starts as (

    select
        received.visitor_id,
        sessions.begins_at
    from received
    cross join lateral (
        select events.occurred_at as begins_at
        from {{ ref('stg_crm__events') }} as events
        where
            received.visitor_id = events.visitor_id
            and received.received_from >= events.occurred_at
            and not exists (
                select 1
                from {{ ref('stg_crm__events') }} as earlier
                where
                    events.visitor_id = earlier.visitor_id
                    and events.occurred_at > earlier.occurred_at
                    and earlier.occurred_at >= events.occurred_at - {{ session_pause() }}
            )
        order by events.occurred_at desc
        limit 1
    ) as sessions

),

read_again as (

    select events.*
    from {{ ref('stg_crm__events') }} as events
    inner join starts on events.visitor_id = starts.visitor_id and events.occurred_at >= starts.begins_at

),

marked as (

    select
        event_id,
        visitor_id,
        occurred_at,
        business_date,
        {{ is_new('events') }} as is_new,
        {{ begins_session('visits') }} as begins_session
    from read_again
    window visits as (partition by visitor_id order by occurred_at, event_id)

),

numbered as (

    select
        *,
        count(*) filter (where begins_session) over (partition by visitor_id order by occurred_at, event_id) as visit
    from marked

),

touched as (

    select
        *,
        bool_or(is_new) over (partition by visitor_id, visit) as has_new_event
    from numbered

)

select
    event_id,
    business_date
from touched
where has_new_event

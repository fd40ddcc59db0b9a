-- Grain: one row per event of a session that has a new event.
--
-- More events never split a session; they lengthen it or join it with the next one. So every session that may differ, or is there no
-- more, began with one of these events. Cut without regard to the as-of date: that makes sessions longer and never shorter.

with visitors as (

    select distinct visitor_id
    from {{ ref('stg_crm__events') }}
    where {{ changes_are_wanted() }} and {{ is_new('events') }}

),

marked as (

    select
        event_id,
        visitor_id,
        occurred_at,
        business_date,
        {{ is_new('events') }} as is_new,
        {{ begins_session('visits') }} as begins_session
    from {{ ref('stg_crm__events') }}
    where visitor_id in (select visitor_id from visitors)
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

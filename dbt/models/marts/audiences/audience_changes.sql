-- Grain: one row per audience, version and customer who joined or left with that version.
--
-- The log that only grows: who is in an audience is what its changes say, and an export sends them. A version is a refresh that changed
-- the audience, counted from 1, so that joining again after leaving is a change of its own. A full refresh does not touch it.

{{ config(materialized='incremental', incremental_strategy='append', on_schema_change='append_new_columns', full_refresh=false) }}

with eligible as (

    select
        audience,
        customer_key
    from {{ ref('int_audience_eligible') }}

),

earlier as (

    {{ earlier_rows() }}

),

latest as (

    select distinct on (audience, customer_key)
        audience,
        customer_key,
        action
    from earlier
    order by audience asc, customer_key asc, version desc

),

versions as (

    select
        audience,
        max(version) as version
    from earlier
    group by audience

),

members as (

    select
        audience,
        customer_key
    from latest
    where action = 'join'

),

moved as (

    select
        coalesce(eligible.audience, members.audience) as audience,
        coalesce(eligible.customer_key, members.customer_key) as customer_key,
        case when members.customer_key is null then 'join' else 'leave' end as action
    from eligible
    full outer join members on eligible.audience = members.audience and eligible.customer_key = members.customer_key
    where eligible.customer_key is null or members.customer_key is null

)

select
    moved.audience,
    cast(coalesce(versions.version, 0) + 1 as integer) as version,
    moved.customer_key,
    moved.action,
    case
        when moved.action = 'join' then 'conditions met'
        when rules.audience is null then 'audience withdrawn'
        else coalesce(suppressions.reason, 'conditions no longer met')
    end as reason,
    {{ run_time() }} as modified_at,
    {{ as_of() }} as as_of
from moved
left join versions on moved.audience = versions.audience
left join {{ ref('audience_rules') }} as rules on moved.audience = rules.audience
left join {{ ref('int_audience_suppressions') }} as suppressions
    on moved.customer_key = suppressions.customer_key and rules.consent = suppressions.purpose

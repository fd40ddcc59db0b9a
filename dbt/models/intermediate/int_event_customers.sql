-- Grain: one row per customer who was seen in an event.
--
-- Events are only ever added, so the first sighting is the earlier of the one known and the new ones; the events of before are not read.

{{ config(
    materialized='incremental',
    unique_key='customer_id',
    incremental_strategy='delete+insert',
    indexes=[{'columns': ['customer_id'], 'unique': true}],
) }}

with sightings as (

    select
        customer_id,
        min(occurred_at) as seen_at
    from {{ ref('stg_crm__events') }}
    where customer_id is not null and {{ is_new('events') }}
    group by customer_id

)

{% if execute and changes_only() %}
    select
        sightings.customer_id,
        least(sightings.seen_at, known.first_seen_at) as first_seen_at
    from sightings
    left join {{ this }} as known on sightings.customer_id = known.customer_id
{% else %}
    select
        customer_id,
        seen_at as first_seen_at
    from sightings
{% endif %}

-- Grain: one row per customer, basis and business date, of the last two business dates on which segments were published.
--
-- What the movements of the day are explained with: each customer's measures and segment then and now.

{{ config(
    materialized='incremental', incremental_strategy='append', full_refresh=false, on_schema_change='append_new_columns',
    pre_hook="{{ forget_all_but_the_date_before() }}"
) }}

with scores as (

    select * from {{ ref('rfm_scores') }}

),

segments as (

    select * from {{ ref('rfm_segments') }}

),

customers as (

    select * from {{ ref('int_customer_activity') }}

)

select
    scores.rfm_score_key || '/' || scores.as_of as rfm_published_key,
    scores.customer_key,
    scores.basis,
    scores.as_of as business_date,
    scores.last_purchase_date,
    scores.frequency,
    scores.monetary,
    customers.last_purchase_date as last_purchase_date_booked,
    customers.orders_booked,
    customers.amount_booked,
    segments.rfm_code,
    segments.segment,
    segments.segment_rank,
    segments.is_lapsed,
    scores.scored_at as published_at
from scores
inner join segments on scores.rfm_score_key = segments.rfm_score_key
inner join customers on scores.customer_key = customers.customer_key
{% if adds_to_earlier_runs() %}
    where scores.as_of >= (select coalesce(max(earlier.business_date), {{ as_of() }}) from {{ this }} as earlier)
{% endif %}

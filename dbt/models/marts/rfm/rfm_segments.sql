-- Grain: one row per customer and basis (booked, restated): the segment that the three scores name.

{{ config(post_hook="{{ create_rfm_as_of() }}") }}

with scores as (

    select
        *,
        {{ rfm_code('recency_score', 'frequency_score', 'monetary_score') }} as rfm_code
    from {{ ref('rfm_scores') }}

),

segments as (

    select * from {{ ref('rfm_segment_map') }}

)

select
    scores.rfm_score_key,
    scores.customer_key,
    scores.basis,
    scores.rfm_code,
    segments.segment,
    segments.rank as segment_rank,
    segments.is_lapsed,
    scores.as_of,
    scores.scored_at,
    scores.model_version,
    scores.method
from scores
-- A code the map lacks would show as a missing segment, which the tests refuse.
left join segments on scores.rfm_code = segments.rfm_code

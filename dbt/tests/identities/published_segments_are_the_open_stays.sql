-- Whoever has a segment has an open stay in it, and nobody else. Where the marts look back at an earlier date, the history is left out.
{{ config(meta={"dagster": {"ref": {"name": "segment_history"}}}) }}

with segments as (

    select
        customer_key,
        basis,
        segment
    from {{ ref('rfm_segments') }}
    where segment is not null

),

open_stays as (

    select
        customer_key,
        basis,
        segment
    from {{ ref('segment_history') }}
    where valid_to is null

)

select
    coalesce(segments.customer_key, open_stays.customer_key) as customer_key,
    segments.segment,
    open_stays.segment as segment_of_stay
from segments
full outer join open_stays on segments.customer_key = open_stays.customer_key and segments.basis = open_stays.basis
where
    segments.segment is distinct from open_stays.segment
    and (select max(as_of) from {{ ref('rfm_scores') }}) = (select max(business_date) from {{ ref('rfm_published') }})

-- Where the cut points were computed by the run that scored, every score is 1 + (n_below × bands) div n of its own column.
{{ config(meta={"dagster": {"ref": {"name": "rfm_scores"}}}) }}

with ranked as (

    select
        scores.rfm_score_key,
        scores.recency_score,
        scores.frequency_score,
        scores.monetary_score,
        count(*) over (partition by scores.basis) as scored,
        rank() over (partition by scores.basis order by scores.recency_days desc) - 1 as below_recency,
        rank() over (partition by scores.basis order by scores.frequency) - 1 as below_frequency,
        rank() over (partition by scores.basis order by scores.monetary) - 1 as below_monetary
    from {{ ref('rfm_scores') }} as scores
    where
        scores.method = 'rfm_bands'
        and exists (
            select 1 from {{ ref('rfm_cut_points') }} as computed
            where computed.as_of = scores.as_of and computed.basis = scores.basis and computed.computed_at = scores.scored_at
        )

)

select *
from ranked
where
    (recency_score, frequency_score, monetary_score) is distinct from
    (
        1 + below_recency * {{ rfm_bands() }} / scored,
        1 + below_frequency * {{ rfm_bands() }} / scored,
        1 + below_monetary * {{ rfm_bands() }} / scored
    )

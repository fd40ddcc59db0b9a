-- A measure with fixed cut points has one for every score from 2 to the number of bands, each no worse than the one below it.
with cut_points as (

    select
        measure,
        score,
        case when measure = 'recency' then -worst_value else worst_value end as goodness
    from {{ ref('rfm_cut_points_override') }}

),

compared as (

    select
        *,
        lag(goodness) over (partition by measure order by score) as goodness_below,
        count(*) over (partition by measure) as given
    from cut_points

)

select *
from compared
where score not between 2 and {{ rfm_bands() }} or goodness <= goodness_below or given <> {{ rfm_bands() }} - 1

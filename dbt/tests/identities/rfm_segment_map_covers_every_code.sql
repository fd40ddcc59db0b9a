-- Every code of three digits from 1 to 5 stands in the segment map exactly once, and no other.
with digits as (

    select generate_series(1, 5) as digit

),

codes as (

    select concat(r.digit, f.digit, m.digit) as rfm_code
    from digits as r
    cross join digits as f
    cross join digits as m

)

select
    coalesce(codes.rfm_code, segments.rfm_code) as rfm_code,
    count(segments.rfm_code) as entries
from codes
full outer join {{ ref('rfm_segment_map') }} as segments on codes.rfm_code = segments.rfm_code
group by coalesce(codes.rfm_code, segments.rfm_code), codes.rfm_code
having count(segments.rfm_code) <> 1 or codes.rfm_code is null

-- Grain: one row per customer and basis (booked, restated), of customers who have an order on that basis.
--
-- Scored against the cut points of the business day. Right after those were computed, that is 1 + (n_below × bands) div n.

with measures as (

    select * from {{ ref('int_rfm_measures') }}

),

cut_points as (

    select * from {{ ref('rfm_cut_points') }}
    where as_of = {{ as_of() }}

),

scales as (

    {{ rfm_scales('cut_points') }}

)

select
    measures.rfm_score_key,
    measures.customer_key,
    measures.basis,
    measures.first_purchase_date,
    measures.last_purchase_date,
    measures.recency_days,
    measures.frequency,
    measures.purchase_days,
    measures.monetary,
    {{ rfm_score('-measures.recency_days', 'recency', 'scales') }} as recency_score,
    {{ rfm_score('measures.frequency', 'frequency', 'scales') }} as frequency_score,
    {{ rfm_score('measures.monetary', 'monetary', 'scales') }} as monetary_score,
    {{ as_of() }} as as_of,
    {{ run_time() }} as scored_at,
    'rfm-1' as model_version,
    case
        when scales.basis is null then 'too_few_customers'
        when scales.is_fixed then 'rfm_fixed_cut_points'
        else 'rfm_bands'
    end as method
from measures
left join scales on measures.basis = scales.basis

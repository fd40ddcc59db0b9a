-- Grain: one row per customer with a profile, its state by the highest sequence, whatever arrived last.

with ranked as (

    select
        customer_id,
        email,
        country,
        grade,
        signed_up_at,
        consent_email,
        consent_ads,
        consent_analytics,
        is_opted_out,
        is_erased,
        message_at,
        row_number() over (partition by customer_id order by sequence desc, message_at desc, event_id desc) as recency_rank
    from {{ ref('stg_crm__profiles') }}

)

select
    customer_id,
    case when not is_erased then email end as email,
    country,
    grade,
    signed_up_at,
    consent_email,
    consent_ads,
    consent_analytics,
    is_opted_out,
    is_erased,
    message_at as updated_at
from ranked
where recency_rank = 1

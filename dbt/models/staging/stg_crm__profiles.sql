-- Grain: one row per profile message (a customer sends one whenever the profile changes).

select
    event_id,
    customer_id,
    sequence,
    email,
    country,
    grade,
    signed_up_at,
    consent_email,
    consent_ads,
    consent_analytics,
    opted_out as is_opted_out,
    erased as is_erased,
    event_time as message_at,
    {{ later_columns('profiles') }}
    ingested_at,
    loaded_at
from {{ source('crm', 'profiles') }}

-- Grain: one row per customer with a profile, its state by the highest sequence, whatever arrived last.

{{ config(
    materialized='incremental',
    unique_key='customer_id',
    incremental_strategy='delete+insert',
    indexes=[{'columns': ['customer_id'], 'unique': true}],
) }}

with newest as (

    {{ current_state(
        ref('stg_crm__profiles'), 'customer_id', only_with_new_message('customer_id', ref('stg_crm__profiles'), 'profiles')
    ) }}

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
from newest

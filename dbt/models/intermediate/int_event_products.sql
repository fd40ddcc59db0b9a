-- Grain: one row per product code that was seen in an event. Events are only ever added, so a code stays.

{{ config(
    materialized='incremental',
    unique_key='product_code',
    incremental_strategy='delete+insert',
    indexes=[{'columns': ['product_code'], 'unique': true}],
) }}

select distinct product_code
from {{ ref('stg_crm__events') }}
where product_code is not null and {{ is_new('events') }}

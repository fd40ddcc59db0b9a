-- Grain: one row per product code, its state by the highest sequence, whatever arrived last.

{{ config(
    materialized='incremental',
    unique_key='product_code',
    incremental_strategy='delete+insert',
    indexes=[{'columns': ['product_code'], 'unique': true}],
) }}

with newest as (

    {{ current_state(
        ref('stg_crm__products'), 'product_code', only_with_new_message('product_code', ref('stg_crm__products'), 'products')
    ) }}

)

select
    product_code,
    product_id,
    name,
    category,
    price,
    currency,
    stock,
    is_active,
    message_at as updated_at
from newest

-- Grain: one row per business date, basis, segment before and segment after: customers that went from one to the other since the
-- business date before on which segments were published. As known, like segment_history; null is no score.

{{ config(
    materialized='incremental', incremental_strategy='append', full_refresh=false, on_schema_change='append_new_columns',
    pre_hook="{{ forget_matrix_of_the_date() }}", post_hook="{{ create_segment_functions() }}"
) }}

with stays as (

    select * from {{ ref('segment_history') }}

),

dates as (

    select
        {{ as_of() }} as business_date,
        max(business_date) filter (where business_date < {{ as_of() }}) as date_before
    from {{ ref('rfm_published') }}
    having max(business_date) = {{ as_of() }}

),

earlier as (

    select stays.*
    from stays
    inner join dates on stays.valid_from <= dates.date_before and coalesce(stays.valid_to, dates.date_before) >= dates.date_before

),

later as (

    select stays.*
    from stays
    inner join dates on stays.valid_from <= dates.business_date and coalesce(stays.valid_to, dates.business_date) >= dates.business_date

),

moves as (

    select
        coalesce(later.basis, earlier.basis) as basis,
        earlier.segment as from_segment,
        later.segment as to_segment,
        {{ segment_change('earlier', 'later') }} as change
    from earlier
    full outer join later on earlier.customer_key = later.customer_key and earlier.basis = later.basis

)

select
    dates.business_date || '/' || moves.basis || '/' || coalesce(moves.from_segment, '') || '>' || coalesce(moves.to_segment, '')
        as segment_migration_key,
    dates.business_date,
    dates.date_before as from_date,
    moves.basis,
    moves.from_segment,
    moves.to_segment,
    moves.change,
    cast(count(*) as integer) as customers
from moves
cross join dates
group by dates.business_date, dates.date_before, moves.basis, moves.from_segment, moves.to_segment, moves.change

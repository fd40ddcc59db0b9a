-- Grain: one row per calendar day, from the year of the first order or event to the year after the as-of date or the last of them.

with dated as (

    select business_date from {{ ref('int_orders_current') }}
    union all
    select min(business_date) as business_date from {{ ref('fct_events') }}
    union all
    select max(business_date) as business_date from {{ ref('fct_events') }}

),

bounds as (

    select
        cast(date_trunc('year', coalesce(least(min(business_date), {{ as_of() }}), {{ as_of() }})) as date) as first_day,
        cast(
            date_trunc('year', coalesce(greatest(max(business_date), {{ as_of() }}), {{ as_of() }})) + interval '2 years - 1 day' as date
        ) as last_day
    from dated

),

days as (

    select cast(series.moment as date) as date_day
    from bounds
    cross join lateral generate_series(bounds.first_day, bounds.last_day, interval '1 day') as series (moment)

)

select
    date_day,
    cast(extract(year from date_day) as integer) as year_number,
    cast(extract(quarter from date_day) as integer) as quarter_of_year,
    cast(extract(month from date_day) as integer) as month_of_year,
    cast(date_trunc('month', date_day) as date) as month_start,
    cast(extract(week from date_day) as integer) as iso_week,
    cast(extract(isoyear from date_day) as integer) as iso_year,
    cast(extract(isodow from date_day) as integer) as iso_day_of_week,
    extract(isodow from date_day) > 5 as is_weekend,
    date_day <= {{ as_of() }} as is_within_as_of
from days

-- Grain: one row per cohort and month of which the figures may differ from the last refresh.
--
-- In a changed month a customer may have joined or left a cohort, or bought something: all months of its cohort, and all cohorts in it.

with changed as (

    select period_start as month_start
    from {{ ref('int_changed_sales_periods') }}
    where period = 'month'

),

cohorts as (

    select month_start from changed
    union distinct
    select cast(date_trunc('month', first_purchase_date) as date) as month_start
    from {{ ref('int_customer_activity') }}

),

pairs as (

    select
        cohorts.month_start as cohort_month,
        cast(series.moment as date) as activity_month
    from cohorts
    cross join lateral generate_series(cohorts.month_start, {{ as_of() }}, interval '1 month') as series (moment)

)

select
    cohort_month || '/' || activity_month as cohort_month_key,
    cohort_month,
    activity_month
from pairs
where
    cohort_month in (select month_start from changed)
    or activity_month in (select month_start from changed)

-- Grain: one row per customer seen in a profile, an order or an event, and one unknown member for guests.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'customer_id', 'changes': 'int_changed_customers'},
    indexes=[{'columns': ['customer_key'], 'unique': true}, {'columns': ['customer_id']}],
) }}

with profiles as (

    select * from {{ ref('int_profiles_current') }}
    where {{ only_changed('customer_id', 'int_changed_customers') }}

),

orders as (

    select
        orders.customer_id,
        orders.country,
        orders.ordered_at,
        totals.sale_lines > 0 as is_sale,
        coalesce(totals.latest_sale_at, totals.latest_line_at, orders.ordered_at) as latest_at,
        totals.latest_source_line,
        orders.order_id
    from {{ ref('int_orders_current') }} as orders
    left join {{ ref('int_order_totals') }} as totals on orders.order_id = totals.order_id
    where
        orders.customer_id is not null
        and {{ only_changed('orders.customer_id', 'int_changed_customers', 'customer_id') }}

),

countries as (

    select distinct on (customer_id)
        customer_id,
        country
    from orders
    where country is not null
    order by customer_id asc, is_sale desc, latest_at desc, latest_source_line desc nulls last, order_id desc

),

seen as (

    select
        customer_id,
        min(seen_at) as first_seen_at
    from (
        select
            customer_id,
            coalesce(signed_up_at, updated_at) as seen_at
        from profiles
        union all
        select
            customer_id,
            ordered_at as seen_at
        from orders
        union all
        select
            customer_id,
            first_seen_at as seen_at
        from {{ ref('int_event_customers') }}
        where {{ only_changed('customer_id', 'int_changed_customers') }}
    ) as sightings
    group by customer_id

),

members as (

    select
        seen.customer_id,
        profiles.email,
        coalesce(countries.country, profiles.country) as country,
        profiles.country as profile_country,
        profiles.grade,
        profiles.signed_up_at,
        profiles.consent_email,
        profiles.consent_ads,
        profiles.consent_analytics,
        coalesce(profiles.is_opted_out, false) as is_opted_out,
        coalesce(profiles.is_erased, false) as is_erased,
        seen.first_seen_at,
        profiles.customer_id is null as is_inferred,
        false as is_unknown
    from seen
    left join profiles on seen.customer_id = profiles.customer_id
    left join countries on seen.customer_id = countries.customer_id

),

with_unknown as (

    select * from members
    union all
    select
        null as customer_id,
        null as email,
        null as country,
        null as profile_country,
        null as grade,
        null as signed_up_at,
        null as consent_email,
        null as consent_ads,
        null as consent_analytics,
        false as is_opted_out,
        false as is_erased,
        null as first_seen_at,
        false as is_inferred,
        true as is_unknown
    where {{ everything_is_built() }}

)

select
    {{ member_key('customer_id') }} as customer_key,
    customer_id,
    email,
    country,
    profile_country,
    grade,
    signed_up_at,
    consent_email,
    consent_ads,
    consent_analytics,
    is_opted_out,
    is_erased,
    first_seen_at,
    is_inferred,
    is_unknown
from with_unknown

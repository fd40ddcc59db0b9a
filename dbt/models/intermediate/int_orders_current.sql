-- Grain: one row per order or document, its state by the highest sequence, whatever arrived last.
--
-- Messages dated after the as-of date have no effect on an order that has earlier ones. Lines and header come from the highest
-- message that does not take the order back; a later message of the same order that does cancels the whole of it.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'order_id', 'changes': 'int_changed_orders'},
    indexes=[{'columns': ['order_id'], 'unique': true}, {'columns': ['customer_id']}, {'columns': ['business_date']}],
) }}

with messages as (

    select
        *,
        bool_or(is_within_as_of) over (partition by order_id) as has_message_within_as_of
    from {{ ref('stg_crm__orders') }}
    where {{ only_changed('order_id', 'int_changed_orders') }}

),

counted as (

    select
        *,
        max(sequence) filter (where not takes_back) over (partition by order_id) as content_sequence
    from messages
    where is_within_as_of or not has_message_within_as_of

),

-- Windows and no joins: this runs right after a load, when the planner may know nothing of the new rows yet.
ranked as (

    select
        *,
        row_number() over (partition by order_id order by takes_back asc, {{ newest_first() }}) as content_rank,
        first_value(status) over (partition by order_id order by {{ newest_first() }}) as current_status,
        first_value(message_at) over (partition by order_id, takes_back order by sequence, message_at, event_id) as first_message_at,
        count(*) over (partition by order_id) as messages,
        min(message_at) filter (where takes_back and sequence > content_sequence) over (partition by order_id) as taken_back_at,
        count(*) filter (where takes_back and sequence > content_sequence) over (partition by order_id) as take_backs
    from counted

)

select
    order_id,
    event_id,
    customer_id,
    case
        when takes_back then 'cancellation'
        when status = 'adjustment' then 'adjustment'
        else 'sale'
    end as document_kind,
    current_status as status,
    cancels_order_id,
    currency,
    is_base_currency,
    channel,
    country,
    amount,
    first_message_at as ordered_at,
    {{ business_date('first_message_at') }} as business_date,
    is_within_as_of,
    cast(messages as integer) as messages,
    case when status <> 'adjustment' then taken_back_at end as taken_back_at,
    cast(case when status <> 'adjustment' then take_backs else 0 end as integer) as take_backs
from ranked
where content_rank = 1

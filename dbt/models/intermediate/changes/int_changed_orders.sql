-- Grain: one row per order or document whose state, or what is taken back from it by name, may differ from the last refresh.
--
-- Orders of which a message is new; the orders that these name, in whichever message; and all documents that name one of either, because
-- the requests to one order are cut to its amount together.

with received as (

    select order_id
    from {{ ref('stg_crm__orders') }}
    where {{ changes_are_wanted() }} and {{ is_new('orders') }}

),

messages as (

    select
        order_id,
        cancels_order_id
    from {{ ref('stg_crm__orders') }}
    where order_id in (select order_id from received)

),

targets as (

    select order_id from messages
    union distinct
    select cancels_order_id as order_id from messages
    where cancels_order_id is not null

),

documents as (

    select order_id
    from {{ ref('stg_crm__orders') }}
    where cancels_order_id in (select order_id from targets)

)

select order_id from targets
union distinct
select order_id from documents

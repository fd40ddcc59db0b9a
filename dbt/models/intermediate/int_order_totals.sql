-- Grain: one row per order or document: sums over its lines by class.

{{ config(
    materialized='incremental',
    meta={'changed_key': 'order_id', 'changes': 'int_changed_orders'},
    indexes=[{'columns': ['order_id'], 'unique': true}],
) }}

select
    order_id,
    count(order_line_key) as lines,
    count(order_line_key) filter (where line_class = 'sale') as sale_lines,
    coalesce(sum(quantity) filter (where line_class = 'sale'), 0) as sale_quantity,
    coalesce(sum(amount) filter (where line_class = 'sale'), 0) as sale_amount,
    coalesce(sum(amount) filter (where line_class = 'cancellation'), 0) as cancellation_amount,
    coalesce(sum(amount) filter (where line_class = 'adjustment'), 0) as adjustment_amount,
    coalesce(sum(amount) filter (where line_class = 'other'), 0) as other_amount,
    coalesce(bool_or(quantity < 0), false) as has_negative_quantity,
    max(line_at) filter (where line_class = 'sale') as latest_sale_at,
    max(line_at) as latest_line_at,
    max(source_line) as latest_source_line
from {{ ref('int_order_lines_classified') }}
where {{ only_changed('order_id', 'int_changed_orders') }}
group by order_id

{# The sums that every sales mart shows, from `int_sales_movements`. Cancelled amounts are negative, so net is a sum. #}

{% macro sales_measures() -%}
    {%- set cancelled = ["cancelled_amount_booked", "cancelled_amount_restated"] -%}
    {{- return(["sale_quantity", "gross_amount"] + cancelled + ["adjustment_amount", "other_amount"]) -}}
{%- endmacro %}

{# Columns of a CTE that groups the movements. #}
{% macro sums_of_movements() -%}
    cast(sum(quantity) as bigint) as sale_quantity,
    coalesce(sum(amount) filter (where kind = 'sale'), 0) as gross_amount,
    coalesce(sum(amount) filter (where kind = 'cancelled as booked'), 0) as cancelled_amount_booked,
    coalesce(sum(amount) filter (where kind = 'cancelled as restated'), 0) as cancelled_amount_restated,
    coalesce(sum(amount) filter (where kind = 'adjustment'), 0) as adjustment_amount,
    coalesce(sum(amount) filter (where kind = 'other'), 0) as other_amount
{%- endmacro %}

{# Columns of a CTE that groups such sums further. #}
{% macro sums_of_sums() -%}
    {%- for measure in sales_measures() -%}
        sum({{ measure }}) as {{ measure }}{{ ', ' if not loop.last }}
    {%- endfor -%}
{%- endmacro %}

{# Columns of the mart, from the columns of such a CTE. #}
{% macro sales_columns() -%}
    cast({{ base_currency() }} as text) as currency,
    cast(sale_quantity as bigint) as sale_quantity,
    cast(gross_amount as numeric(18, 4)) as gross_amount,
    cast(cancelled_amount_booked as numeric(18, 4)) as cancelled_amount_booked,
    cast(cancelled_amount_restated as numeric(18, 4)) as cancelled_amount_restated,
    cast(gross_amount + cancelled_amount_booked as numeric(18, 4)) as net_amount_booked,
    cast(gross_amount + cancelled_amount_restated as numeric(18, 4)) as net_amount_restated,
    cast(adjustment_amount as numeric(18, 4)) as adjustment_amount,
    cast(other_amount as numeric(18, 4)) as other_amount,
    cast(gross_amount + cancelled_amount_booked + adjustment_amount + other_amount as numeric(18, 4)) as total_amount_booked,
    cast(gross_amount + cancelled_amount_restated + adjustment_amount + other_amount as numeric(18, 4)) as total_amount_restated
{%- endmacro %}

{# Average order values, from the columns of a CTE with these sums and the orders; null where there is no order. #}
{% macro average_order_values() -%}
    cast(gross_amount / nullif(orders_booked, 0) as numeric(18, 4)) as average_order_value_booked,
    cast((gross_amount + cancelled_amount_restated) / nullif(orders_restated, 0) as numeric(18, 4)) as average_order_value_restated
{%- endmacro %}

{# Keys that several models build and that must agree. #}

{# Key of a dimension member: never null, never equal to the one unknown member. #}
{% macro member_key(identifier) -%}
    coalesce('id:' || {{ identifier }}, 'unknown')
{%- endmacro %}

{# Key of an order line. The line number comes last, so two lines never share a key whatever the order id holds. #}
{% macro order_line_key(order_id, line_number) -%}
    {{ order_id }} || '/' || {{ line_number }}
{%- endmacro %}

{# Key of a pile: the sales and cancellations of one product at one price by one customer, within which cancellations find their sales.
   Two piles that share a key would be built anew together and nothing else. #}
{% macro pile_key(row='') -%}
    {%- set of_row = row ~ '.' if row else '' -%}
    {{ of_row }}customer_id || '/' || {{ of_row }}product_code || '/' || {{ of_row }}unit_price
{%- endmacro %}

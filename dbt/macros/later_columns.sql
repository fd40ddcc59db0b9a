{# Fields the contracts gained later, as columns of their staging models. Derived; rewrite with `make contracts`. #}
{% macro later_columns(table) -%}
    {%- set columns = {"events": [], "orders": [], "order_lines": [], "products": [], "profiles": []}[table] -%}
    {%- for column in columns -%}{{ column }},{{ ' ' if not loop.last }}{%- endfor -%}
{%- endmacro %}

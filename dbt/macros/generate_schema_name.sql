{# Schemas are named as declared (staging, intermediate, marts), without the target's schema before them. #}
{% macro generate_schema_name(custom_schema_name, node) -%}
    {{ custom_schema_name if custom_schema_name else target.schema }}
{%- endmacro %}

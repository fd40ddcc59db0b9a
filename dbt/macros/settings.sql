{# What a data set brings with it: its time zone, the date the marts look at, the currency of its sums. #}

{% macro business_timezone() -%}
    {{- var('business_timezone', env_var('CRM_BUSINESS_TIMEZONE', 'UTC')) -}}
{%- endmacro %}

{# Business date of a point in time. #}
{% macro business_date(moment) -%}
    cast({{ moment }} at time zone '{{ business_timezone() }}' as date)
{%- endmacro %}

{# The inclusive date the marts look at: fixed for a replayed file, else the business date on which this run started. #}
{% macro as_of() -%}
    {%- set fixed = var('as_of', env_var('CRM_AS_OF', '')) -%}
    {%- if fixed -%}
        date '{{ fixed }}'
    {%- else -%}
        {{ business_date("timestamp with time zone '" ~ (run_started_at | string) ~ "'") }}
    {%- endif -%}
{%- endmacro %}

{% macro base_currency() -%}
    '{{ var('currency', 'GBP') }}'
{%- endmacro %}

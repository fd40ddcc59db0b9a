{# Where the events of a visitor are cut into sessions. #}

{# Whether more than 30 minutes have passed since the event before, in a window by visitor that is ordered by time and then id. #}
{% macro begins_session(window) -%}
    coalesce(occurred_at - lag(occurred_at) over {{ window }} > interval '30 minutes', true)
{%- endmacro %}

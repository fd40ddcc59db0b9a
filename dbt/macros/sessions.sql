{# Where the events of a visitor are cut into sessions. #}

{# The longest time between two events of one session. #}
{% macro session_pause() -%}
    interval '30 minutes'
{%- endmacro %}

{# Whether more than that has passed since the event before, in a window by visitor that is ordered by time and then id. #}
{% macro begins_session(window) -%}
    coalesce(occurred_at - lag(occurred_at) over {{ window }} > {{ session_pause() }}, true)
{%- endmacro %}

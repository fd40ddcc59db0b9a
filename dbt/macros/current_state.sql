{# Which of several messages about one thing is its current state: the one with the highest sequence, whatever arrived last. #}

{# Order of messages, the current one first. Time and id decide between messages of one sequence, so that every run picks the same. #}
{% macro newest_first() -%}
    sequence desc, message_at desc, event_id desc
{%- endmacro %}

{# Rows of a staging model that are the current state of their key; null is a key. `condition` says which keys. #}
{% macro current_state(model, key, condition='true') -%}
    select distinct on ({{ key }}) * from {{ model }} where {{ condition }} order by {{ key }} asc, {{ newest_first() }}
{%- endmacro %}

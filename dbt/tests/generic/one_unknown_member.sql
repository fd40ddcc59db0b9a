{# Exactly one member of the dimension stands for everything without a key. #}
{% test one_unknown_member(model) %}
{{ config(tags=['nightly']) }}
select count(*) as members
from {{ model }}
where is_unknown
having count(*) <> 1
{% endtest %}

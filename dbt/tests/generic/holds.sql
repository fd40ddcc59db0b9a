{# The condition is true for every row; a row for which it is false or unknown fails. #}
{% test holds(model, condition) %}
select *
from {{ model }}
where ({{ condition }}) is not true
{% endtest %}

{# Two sums over two tables are the same, to the last digit: an accounting identity. #}
{% test same_total(model, expression, other, other_expression, where='true', other_where='true') %}
{{ config(tags=['nightly']) }}
select ours.total as this_total, theirs.total as other_total
from (select coalesce(sum({{ expression }}), 0) as total from {{ model }} where {{ where }}) as ours
cross join (select coalesce(sum({{ other_expression }}), 0) as total from {{ other }} where {{ other_where }}) as theirs
where ours.total <> theirs.total
{% endtest %}

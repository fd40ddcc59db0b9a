{# Columns have the same sums as another table's, to the last digit: over all rows, or by a key; absent is zero. #}
{% test adds_up_to(model, columns, other, key="cast('all rows' as text)", where='true', other_where='true') %}
    {{ config(tags=['nightly']) }}
with ours as (

    select {{ key }} as key{% for column in columns %}, sum({{ column }}) as {{ column }}{% endfor %}
    from {{ model }}
    where {{ where }}
    group by {{ key }}

),

theirs as (

    select {{ key }} as key{% for column in columns %}, sum({{ column }}) as {{ column }}{% endfor %}
    from {{ other }}
    where {{ other_where }}
    group by {{ key }}

)

select
    coalesce(ours.key, theirs.key) as key
    {%- for column in columns %},
    coalesce(ours.{{ column }}, 0) as this_{{ column }},
    coalesce(theirs.{{ column }}, 0) as other_{{ column }}
    {%- endfor %}
from ours
full outer join theirs on ours.key = theirs.key
where
    {%- for column in columns %}
    coalesce(ours.{{ column }}, 0) <> coalesce(theirs.{{ column }}, 0){{ ' or' if not loop.last }}
    {%- endfor %}
{% endtest %}

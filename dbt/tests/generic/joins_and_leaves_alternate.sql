{# A customer's first change of an audience is a join, and each further one is the other action. #}
{% test joins_and_leaves_alternate(model) %}
select *
from (
    select
        *,
        lag(action, 1, 'leave') over (partition by audience, customer_key order by version) as action_before
    from {{ model }}
) as changes
where action = action_before
{% endtest %}

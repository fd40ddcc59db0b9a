{# What customer scores share: the refusal of a model in another unit, numbers as a person reads them. #}

{# A statement that fails, with a message for a person, where the model that would serve does not count days. #}
{% macro refuse_model_in_other_unit() -%}
    do $refuse$
    declare
        serving record;
    begin
        select model_version, unit into serving
        from {{ source('models', 'purchase_models') }}
        where promoted_at is not null
        order by promoted_at desc, model_version desc
        limit 1;
        if found and serving.unit is distinct from 'day' then
            raise exception 'purchase model % has its parameters per %, the marts count in days: no customer is scored',
                serving.model_version, coalesce(serving.unit, 'unknown unit')
                using hint = 'fit the model on days and promote that version';
        end if;
    end
    $refuse$
{%- endmacro %}

{# A number of days as a person reads it: 1 day, 12 days, 3.5 days. #}
{% macro counted_days(days) -%}
    trim_scale(round(cast({{ days }} as numeric), 1)) || case when {{ days }} = 1 then ' day' else ' days' end
{%- endmacro %}

{# A share as whole per cent; null stays null. #}
{% macro percent(share) -%}
    round(cast(100 * {{ share }} as numeric)) || ' %'
{%- endmacro %}

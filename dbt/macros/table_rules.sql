{# What the tests say of single columns, made rules of the table itself: PostgreSQL refuses a null or a second row of a key in the statement
   that would write it, also against rows that were there before. A refresh of what changed therefore leaves these tests out; the nightly
   one runs them. #}

{# Post-hook of all models: `not null` and unique indexes on a table that was made anew, by the tests `not_null` and `unique` of its
   columns. #}
{% macro enforce_column_tests() -%}
    {%- if execute and model.config.materialized in ('table', 'incremental') and not is_incremental() -%}
        {%- set required = [] -%}
        {%- set keys = [] -%}
        {%- set indexed = model.config.get('indexes', []) | selectattr('unique', 'defined') | map(attribute='columns') | list -%}
        {%- for node in graph.nodes.values()
            if node.resource_type == 'test' and node.attached_node == model.unique_id and node.test_metadata and not node.config.where -%}
            {%- if node.test_metadata.name == 'not_null' -%}
                {%- do required.append('alter column ' ~ adapter.quote(node.column_name) ~ ' set not null') -%}
            {%- elif node.test_metadata.name == 'unique' and [node.column_name] not in indexed -%}
                {%- do keys.append(node.column_name) -%}
            {%- endif -%}
        {%- endfor -%}
        {%- if required -%} alter table {{ this }} {{ required | join(', ') }}; {%- endif -%}
        {%- for key in keys %} create unique index on {{ this }} ({{ adapter.quote(key) }}); {%- endfor -%}
    {%- endif -%}
{%- endmacro %}

{# What the tests say of single rows and of keys, made rules of the table itself: PostgreSQL refuses the row in the statement that would
   write it, also against rows that were there before. A refresh of what changed therefore leaves these tests out; the nightly one runs
   them. Which tests: `crm_assets.warehouse.table_rules` decides in the same words. #}

{# Post-hook of all models: wherever a table was built whole, the rules that its tests say. A table that is never made anew gets them again,
   under the same names. #}
{% macro enforce_tests() -%}
    {%- if execute and var('table_rules') and model.config.materialized in ('table', 'incremental') and not changes_only() -%}
        {%- set required = [] -%}
        {%- set keys = [] -%}
        {%- set checks = [] -%}
        {%- set indexed = model.config.get('indexes', []) | selectattr('unique', 'defined') | map(attribute='columns') | list -%}
        {%- for node in graph.nodes.values()
            if node.resource_type == 'test' and node.attached_node == model.unique_id and node.test_metadata
            and not node.config.where and node.config.severity | lower == 'error' -%}
            {%- set said = node.test_metadata.kwargs -%}
            {%- if node.test_metadata.name == 'not_null' -%}
                {%- do required.append('alter column ' ~ adapter.quote(node.column_name) ~ ' set not null') -%}
            {%- elif node.test_metadata.name == 'unique' and [node.column_name] not in indexed -%}
                {%- do keys.append((rule_name(node), [node.column_name])) -%}
            {%- elif node.test_metadata.name == 'unique_combination' and said.columns not in indexed -%}
                {%- do keys.append((rule_name(node), said.columns)) -%}
            {%- elif node.test_metadata.name == 'accepted_values' -%}
                {%- do checks.append((rule_name(node), adapter.quote(node.column_name) ~ ' in (' ~ quoted_values(said['values']) ~ ')')) -%}
            {%- elif node.test_metadata.name == 'holds' -%}
                {%- do checks.append((rule_name(node), '(' ~ render(said.condition) ~ ') is true')) -%}
            {%- endif -%}
        {%- endfor -%}
        {%- for name, condition in checks -%}
            {%- do required.append('drop constraint if exists ' ~ name) -%}
            {%- do required.append('add constraint ' ~ name ~ ' check (' ~ condition ~ ')') -%}
        {%- endfor -%}
        {%- if required -%} alter table {{ this }} {{ required | join(', ') }}; {%- endif -%}
        {#- A table that is swapped stands beside its predecessor for a moment, whose indexes have their names still: these have none. -#}
        {%- set kept = model.config.full_refresh == false -%}
        {%- for name, columns in keys %} create unique index {{ 'if not exists ' ~ name if kept }} on {{ this }} ({{ quoted_columns(columns) }}); {%- endfor -%}
    {%- endif -%}
{%- endmacro %}

{# Name of a rule: that of its test, as far as PostgreSQL takes it, told apart from others by a digest. #}
{% macro rule_name(test) -%}
    {{- return(adapter.quote(test.name[:50] ~ '_' ~ local_md5(test.name)[:8])) -}}
{%- endmacro %}

{% macro quoted_columns(columns) -%}
    {%- for column in columns %}{{ adapter.quote(column) }}{{ ', ' if not loop.last }}{% endfor -%}
{%- endmacro %}

{% macro quoted_values(values) -%}
    {%- for value in values %}'{{ value | string | replace("'", "''") }}'{{ ', ' if not loop.last }}{% endfor -%}
{%- endmacro %}

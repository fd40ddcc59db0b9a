{# What is new since the last whole refresh, and how a model builds only what it touches.

   A refresh that goes on from marks brings them in CRM_CHANGED_SINCE: the newest `loaded_at` by raw table that the marts show already.
   Without it everything is built. The variable is read when a model runs and not when it is parsed: a value that is new in each refresh
   would have dbt parse the project again each time.

   Two kinds of models work together. The `int_changed_*` tables hold the keys that new rows may touch, made anew in each refresh before
   anything else is. An incremental model deletes the rows of these keys and inserts what they are now, in one transaction, so rows that
   are no longer there go as well. Keys are found in raw alone, from all messages of a thing and not only the current one: what a refresh
   that failed had changed is found again, whatever it left behind. #}

{# Whether this run goes on from marks. #}
{% macro has_marks() -%}
    {{- return(env_var('CRM_CHANGED_SINCE', '') != '') -}}
{%- endmacro %}

{# Whether this incremental model builds only what changed: not on its first run, and not when everything is built. #}
{% macro changes_only() -%}
    {{- return(has_marks() and is_incremental()) -}}
{%- endmacro %}

{# Condition on rows of a raw table or of its staging model: loaded since the last whole refresh. #}
{% macro is_new(table) -%}
    {%- if execute and has_marks() and (model.config.materialized != 'incremental' or is_incremental()) -%}
        loaded_at > timestamp with time zone '{{ fromjson(env_var('CRM_CHANGED_SINCE'))[table] }}'
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{# Condition of an `int_changed_*` table: it names nothing where everything is built anyway. #}
{% macro changes_are_wanted() -%}
    {{- 'true' if execute and has_marks() else 'false' -}}
{%- endmacro %}

{# Condition on a row that only the first build brings, such as the one unknown member of a dimension. #}
{% macro everything_is_built() -%}
    {{- 'false' if execute and changes_only() else 'true' -}}
{%- endmacro %}

{# Condition on the input of an incremental model: rows of changed keys. `key` is a column or several, as SQL; `changed_key` is what it is
   called in the table of changes, where that is something else. #}
{% macro only_changed(key, changes, changed_key=none) -%}
    {#- While dbt parses, the reference to the table of changes is rendered whatever the run will be. -#}
    {%- if not execute or changes_only() -%}
        ({{ key }}) in (select {{ changed_key or key }} from {{ ref(changes) }})
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{# The same by an index, whatever the planner thinks: where it may not loop, or would look through a history for some dates. #}
{% macro only_changed_by_index(key, changes, changed_key=none) -%}
    {%- if not execute or changes_only() -%}
        {{ key }} = any(array(select {{ changed_key or key }} from {{ ref(changes) }}))
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{# All dates of spans in a table of changes, as its key. #}
{% macro dates_from_to(first, last) -%}
    cast(generate_series({{ first }}, {{ last }}, interval '1 day') as date)
{%- endmacro %}

{# Condition on the messages of things of which a new one has come; of a thing without a new message the state stays. #}
{% macro only_with_new_message(key, messages, table) -%}
    {%- if execute and changes_only() -%}
        {{ key }} in (select {{ key }} from {{ messages }} where {{ is_new(table) }})
    {%- else -%}
        true
    {%- endif -%}
{%- endmacro %}

{# Pre-hook of all models: where the model says by which key it is built anew (`changed_key`, and the table of `changes` that lists them),
   away with the rows of changed keys. The model then inserts them as they are now. #}
{% macro delete_changed() -%}
    {%- set changed_key = model.config.meta.get('changed_key') -%}
    {%- if execute and changed_key and changes_only() -%}
        {%- set deletion = "delete from " ~ this ~ " where " ~ is_changed(model) -%}
        {{- delete_and_digest(deletion) if model.schema == 'marts' else deletion -}}
    {%- elif execute and changed_key and is_incremental() -%}
        {{ exceptions.raise_compiler_error("no marks to go on from: " ~ this ~ " would hold rows twice; run dbt with --full-refresh") }}
    {%- endif -%}
{%- endmacro %}

{# Condition on the rows of a model that the run has built anew. Of a key whose rows follow each other in time (`changed_from` is the column
   that says it) these are the ones from the time on that the table of changes gives as `built_from`. #}
{% macro is_changed(node) -%}
    {%- set meta = node.config.meta -%}
    {%- set changes = api.Relation.create(database=node.database, schema='intermediate', identifier=meta.changes) -%}
    {%- if meta.get('changed_from') -%}
        exists (
            select 1 from {{ changes }} as changes
            where changes.{{ meta.changed_key }} = {{ node.name }}.{{ meta.changed_key }}
                and changes.built_from <= {{ node.name }}.{{ meta.changed_from }}
        )
    {%- else -%}
        ({{ meta.changed_key }}) in (select {{ meta.get('key_of_changes', meta.changed_key) }} from {{ changes }})
    {%- endif -%}
{%- endmacro %}

{# What a data test looks at, in place of dbt's own: of a model of which only changed keys were built anew, the rows of these. The
   nightly refresh builds everything and tests every row. #}
{% macro get_where_subquery(relation) -%}
    {%- set conditions = [config.get('where')] if config.get('where') else [] -%}
    {%- if execute and has_marks() -%}
        {%- for node in graph.nodes.values() if node.relation_name == relation | string and node.config.meta.get('changed_key') -%}
            {%- do conditions.append(is_changed(node)) -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if conditions -%}
        {%- do return("(select * from " ~ relation ~ " where " ~ conditions | join(" and ") ~ ") as tested") -%}
    {%- endif -%}
    {%- do return(relation) -%}
{%- endmacro %}

{# Post-hook: statistics of a table that was built anew. Without them the planner takes half a million lines for a handful; changed rows
   are left to autovacuum. #}
{% macro analyze_if_built() -%}
    {%- if execute and not changes_only() and model.config.materialized != 'view' -%}
        analyze {{ this }}
    {%- endif -%}
{%- endmacro %}

{# Post-hook: an index that dbt's own `indexes` cannot say, on a table that was built anew. #}
{% macro index_if_built(index) -%}
    {%- if execute and not changes_only() -%}
        create index on {{ this }} {{ index }}
    {%- endif -%}
{%- endmacro %}

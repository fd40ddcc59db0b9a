{# Comments of a table and its columns are written where the table is made; a refresh of changed rows leaves them as they are. #}
{% macro postgres__persist_docs(relation, model, for_relation, for_columns) -%}
    {%- if not changes_only() -%}
        {{- default__persist_docs(relation, model, for_relation, for_columns) -}}
    {%- endif -%}
{%- endmacro %}

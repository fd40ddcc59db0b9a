{# Functions for readers of the marts, in the schema of the marts. They are made again by hooks of the models they belong to. #}

{# Makes marts.rfm_as_of(date): scores and segments of any business date with what is known now, equal to a full refresh with that
   as-of date. Its SQL is that of the models themselves, so the two cannot drift apart. Readers may call it although they may not read
   what it reads. #}
{% macro create_rfm_as_of() %}
    {%- if execute -%}
        {%- set columns = [
            ('customer_key', 'text', 'scores'), ('basis', 'text', 'scores'),
            ('first_purchase_date', 'date', 'scores'), ('last_purchase_date', 'date', 'scores'),
            ('recency_days', 'integer', 'scores'), ('frequency', 'integer', 'scores'), ('purchase_days', 'integer', 'scores'),
            ('monetary', 'numeric', 'scores'),
            ('recency_score', 'integer', 'scores'), ('frequency_score', 'integer', 'scores'), ('monetary_score', 'integer', 'scores'),
            ('rfm_code', 'text', 'segments'), ('segment', 'text', 'segments'), ('segment_rank', 'integer', 'segments'),
            ('is_lapsed', 'boolean', 'segments'), ('as_of', 'date', 'scores'), ('method', 'text', 'scores')
        ] -%}
        {%- set returned = [] -%}
        {%- set selected = [] -%}
        {%- for name, data_type, table in columns -%}
            {%- do returned.append(name ~ ' ' ~ data_type) -%}
            {%- do selected.append(table ~ '.' ~ name) -%}
        {%- endfor -%}
        drop function if exists {{ this.schema }}.rfm_as_of(date);
        create function {{ this.schema }}.rfm_as_of(on_date date)
        returns table ({{ returned | join(', ') }})
        language sql stable security definer
        set search_path = pg_catalog, pg_temp
        -- Steps have no statistics: the planner would loop over millions of pairs.
        set enable_nestloop = off
        set jit = off
        as $rfm_as_of$
            with {{ models_as_ctes('rfm_segments', 'rfm_as_of.on_date') }}

            select {{ selected | join(', ') }}
            from rfm_scores as scores
            inner join rfm_segments as segments on scores.rfm_score_key = segments.rfm_score_key
        $rfm_as_of$;
        comment on function {{ this.schema }}.rfm_as_of(date) is
        'Scores and segments of a business date, booked and restated, with what is known now; equal to a full refresh as of that date.';
        {{ let_readers_call('rfm_as_of(date)') }}
    {%- endif -%}
{% endmacro %}

{# Makes marts.segments_as_known(date), marts.segment_migration_as_known(from, to, basis) and marts.segment_migration(from, to, basis). #}
{% macro create_segment_functions() %}
    {%- set schema = this.schema -%}
    drop function if exists {{ schema }}.segments_as_known(date);
    create function {{ schema }}.segments_as_known(on_date date)
    returns table (
        customer_key text, basis text, segment text, segment_rank integer, is_lapsed boolean, valid_from date,
        entered_segment_at timestamp with time zone, previous_segment text, change text, moved_by text
    )
    language sql stable
    as $segments_as_known$
        select
            stays.customer_key, stays.basis, stays.segment, stays.segment_rank, stays.is_lapsed, stays.valid_from,
            stays.entered_segment_at, stays.previous_segment, stays.change, stays.moved_by
        from {{ ref('segment_history') }} as stays
        where
            stays.valid_from <= segments_as_known.on_date
            and coalesce(stays.valid_to, stays.last_seen) >= segments_as_known.on_date
    $segments_as_known$;
    comment on function {{ schema }}.segments_as_known(date) is
    'Segments as published at the end of a business date; on a date on which nothing ran, those published last before it.';
    {{ let_readers_call('segments_as_known(date)') }}

    {{ create_migration_function('segment_migration_as_known', 'segments_as_known', 'as published at the end of each date') }}
    {{ create_migration_function('segment_migration', 'rfm_as_of', 'with what is known now') }}
{% endmacro %}

{# Makes a function that counts customers by their segments on two dates, as another function gives them. #}
{% macro create_migration_function(name, segments_on, view) %}
    {%- set schema = this.schema -%}
    drop function if exists {{ schema }}.{{ name }}(date, date, text);
    create function {{ schema }}.{{ name }}(from_date date, to_date date, on_basis text default 'restated')
    returns table (from_segment text, to_segment text, change text, customers bigint)
    language sql stable
    as $migration$
        with earlier as (
            select * from {{ schema }}.{{ segments_on }}({{ name }}.from_date)
            where basis = {{ name }}.on_basis and segment is not null
        ),
        later as (
            select * from {{ schema }}.{{ segments_on }}({{ name }}.to_date)
            where basis = {{ name }}.on_basis and segment is not null
        )
        select earlier.segment, later.segment, {{ segment_change('earlier', 'later') }}, count(*)
        from earlier
        full outer join later on earlier.customer_key = later.customer_key
        group by 1, 2, 3
    $migration$;
    comment on function {{ schema }}.{{ name }}(date, date, text) is
    'Customers by their segments on two dates, {{ view }}, on a basis (booked, restated); null is no score.';
    {{ let_readers_call(name ~ '(date, date, text)') }}
{% endmacro %}

{# A model and all models it is made from as a chain of CTEs, each named like its model, that looks at `moment` and not at the as-of
   date of this run. Seeds and raw tables are read where they are. #}
{% macro models_as_ctes(model_name, moment) %}
    {%- set chain = [] -%}
    {%- do append_with_parents('model.' ~ project_name ~ '.' ~ model_name, chain) -%}
    {%- for unique_id in chain -%}
        {%- set found = namespace(sql=graph.nodes[unique_id].raw_code) -%}
        {%- for parent in parents_in_sql(unique_id) -%}
            {%- set name = parent.name if parent.unique_id in chain else parent.relation_name -%}
            {%- set found.sql = found.sql | replace("{{ ref('" ~ parent.name ~ "') }}", name) -%}
        {%- endfor %}
        {{ graph.nodes[unique_id].name }} as (
            {{ render(found.sql) | replace(as_of() | trim, moment) }}
        ){{ ',' if not loop.last }}
    {%- endfor -%}
{% endmacro %}

{# Appends a model to a list of unique ids, after the models it is made from. #}
{% macro append_with_parents(unique_id, chain) %}
    {%- for parent in parents_in_sql(unique_id) if parent.resource_type == 'model' and parent.unique_id not in chain -%}
        {%- do append_with_parents(parent.unique_id, chain) -%}
    {%- endfor -%}
    {%- if unique_id not in chain -%}
        {%- do chain.append(unique_id) -%}
    {%- endif -%}
{% endmacro %}

{# Models and seeds that a model's own SQL names; not those that only its macros and hooks read to find out what changed. #}
{% macro parents_in_sql(unique_id) %}
    {%- set named = [] -%}
    {%- for parent in graph.nodes[unique_id].depends_on.nodes if parent in graph.nodes -%}
        {%- if "{{ ref('" ~ graph.nodes[parent].name ~ "') }}" in graph.nodes[unique_id].raw_code -%}
            {%- do named.append(graph.nodes[parent]) -%}
        {%- endif -%}
    {%- endfor -%}
    {{- return(named) -}}
{% endmacro %}

{# Statements that let the read-only role call a function of the marts, and nobody else but the owner. #}
{% macro let_readers_call(signature) %}
    revoke all on function {{ this.schema }}.{{ signature }} from public;
    grant execute on function {{ this.schema }}.{{ signature }} to crm_read;
{% endmacro %}

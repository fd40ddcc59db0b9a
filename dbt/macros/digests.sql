{# Running digests of the marts that are built by changed keys: rows, and the sums over the halves of their md5 (the checksum that time
   travel compares; `crm_assets.warehouse.mart_digests` says what it is). Reading twenty million rows for it would cost more than the refresh that
   changed a hundred of them, so what leaves is subtracted and what comes is added, in the transaction of the model. #}

{# Times are spelled in the session's zone and style. #}
{% macro digest_spelling() -%}
    set local timezone to 'UTC'; set local datestyle to 'ISO, YMD';
{%- endmacro %}

{# Columns a digest is made of: all but those that hold the time of a run or of a load. #}
{% macro digested_columns() -%}
    {%- set times = ('scored_at', 'loaded_at') -%}
    {%- for name in model.columns if name not in times -%}{{ adapter.quote(name) }}{{ ', ' if not loop.last }}{%- endfor -%}
{%- endmacro %}

{% macro digest_of(relation) -%}
    select
        count(*) as digested_rows,
        coalesce(sum(('x' || substr(digest, 1, 16))::bit(64)::bigint), 0) as high,
        coalesce(sum(('x' || substr(digest, 17, 16))::bit(64)::bigint), 0) as low
    from (select md5(row({{ digested_columns() }})::text) as digest from {{ relation }} as digested) as digests
{%- endmacro %}

{% macro move_digest(sign, relation) -%}
    update meta.mart_digests as kept
    set
        digested_rows = kept.digested_rows {{ sign }} moved.digested_rows,
        high = kept.high {{ sign }} moved.high,
        low = kept.low {{ sign }} moved.low
    from ({{ digest_of(relation) }}) as moved
    where kept.mart = '{{ model.name }}'
{%- endmacro %}

{# A deletion from this mart that its digest follows. #}
{% macro delete_and_digest(deletion) -%}
    {{ digest_spelling() }}
    with gone as ({{ deletion }} returning {{ digested_columns() }})
    {{ move_digest('-', 'gone') }}
{%- endmacro %}

{# Post-hook of a mart: its digest after this build. #}
{% macro keep_digest() -%}
    {%- if execute and model.config.meta.get('changed_key') -%}
        {{ digest_spelling() }}
        {% if changes_only() -%}
            {{ move_digest('+', "(select * from " ~ this ~ " where " ~ is_changed(model) ~ ")") }}
        {%- else -%}
            insert into meta.mart_digests (mart, digested_rows, high, low)
            select '{{ model.name }}', built.* from ({{ digest_of(this) }}) as built
            on conflict (mart) do update
            set digested_rows = excluded.digested_rows, high = excluded.high, low = excluded.low
        {%- endif -%}
    {%- endif -%}
{%- endmacro %}

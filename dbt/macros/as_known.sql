{# Models that keep what was published on earlier business dates and add to it. They survive `--full-refresh` (`full_refresh: false`). #}

{# Whether the model's table is there from earlier runs. Offline, where the manifest is made, nothing is asked of a database. #}
{% macro adds_to_earlier_runs() -%}
    {{- return(flags.WHICH != 'compile' and is_incremental()) -}}
{%- endmacro %}

{# Rows that earlier runs left in the model's own table; none, with the same columns, in the first run. #}
{% macro earlier_rows() -%}
    {%- if adds_to_earlier_runs() -%}
        select * from {{ this }}
    {%- else -%}
        select
        {%- for column in model.columns.values() %}
            cast(null as {{ column.data_type }}) as {{ column.name }}{{ ',' if not loop.last }}
        {%- endfor %}
        where false
    {%- endif -%}
{%- endmacro %}

{# The business date on which this run started, whatever date the marts look at. #}
{% macro current_business_date() -%}
    {{- business_date("timestamp with time zone '" ~ (run_started_at | string) ~ "'") -}}
{%- endmacro %}

{# When this run started. #}
{% macro run_time() -%}
    cast('{{ run_started_at | string }}' as timestamp with time zone)
{%- endmacro %}

{# Hook of rfm_cut_points: drops those that this run computes anew. Today's are kept until tomorrow, unless a full refresh is asked
   for, the number of bands changed, or the customers became a tenth more or fewer. Those of any other date are of a replayed file. #}
{% macro forget_stale_cut_points() -%}
    {%- if adds_to_earlier_runs() -%}
        delete from {{ this }} as stored
        where
            stored.as_of = {{ as_of() }}
            and (
                {{ flags.FULL_REFRESH }}
                or {{ as_of() }} <> {{ current_business_date() }}
                or stored.bands <> {{ rfm_bands() }}
                or 10 * abs(
                    stored.scored_customers - (select count(*) from {{ ref('int_rfm_measures') }} as now where now.basis = stored.basis)
                ) > stored.scored_customers
            )
    {%- endif -%}
{%- endmacro %}

{# Hook of rfm_published: leaves the last business date before this one. Nothing happens when the marts look back at an earlier date. #}
{% macro forget_all_but_the_date_before() -%}
    {%- if adds_to_earlier_runs() -%}
        delete from {{ this }}
        where
            {{ as_of() }} >= (select max(business_date) from {{ this }})
            and business_date is distinct from (select max(business_date) from {{ this }} where business_date < {{ as_of() }})
    {%- endif -%}
{%- endmacro %}

{# Hook of segment_history: takes back of the current date's movements what no longer holds. Rows of earlier dates stay as they are. #}
{% macro take_back_movements_of_the_date() -%}
    {%- if adds_to_earlier_runs() -%}
        delete from {{ this }} as stay
        where
            stay.valid_from = {{ as_of() }}
            and {{ is_newest_published_date() }}
            and not exists (
                select 1
                from {{ ref('rfm_published') }} as published
                where
                    published.business_date = stay.valid_from
                    and published.customer_key = stay.customer_key
                    and published.basis = stay.basis
                    and published.segment = stay.segment
            );
        update {{ this }} as stay
        set valid_to = null
        where
            stay.valid_to = {{ as_of() }} - 1
            and {{ is_newest_published_date() }}
            and not exists (
                select 1
                from {{ this }} as next_stay
                where
                    next_stay.valid_from = {{ as_of() }}
                    and next_stay.customer_key = stay.customer_key
                    and next_stay.basis = stay.basis
            )
    {%- endif -%}
{%- endmacro %}

{# Hook of segment_history: stays that go on were seen on this date as well. #}
{% macro see_open_stays() -%}
    update {{ this }}
    set last_seen = {{ as_of() }}
    where valid_to is null and last_seen < {{ as_of() }} and {{ is_newest_published_date() }}
{%- endmacro %}

{# Hook of segment_migration_daily: the current date's matrix is written anew. #}
{% macro forget_matrix_of_the_date() -%}
    {%- if adds_to_earlier_runs() -%}
        delete from {{ this }} where business_date = {{ as_of() }} and {{ is_newest_published_date() }}
    {%- endif -%}
{%- endmacro %}

{# Whether the marts look at the newest date that was ever published; looking back at an earlier one changes no history. #}
{% macro is_newest_published_date() -%}
    {{ as_of() }} = (select max(business_date) from {{ ref('rfm_published') }})
{%- endmacro %}

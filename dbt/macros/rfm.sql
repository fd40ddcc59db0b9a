{# How R, F and M become scores, a code, and a movement between two segments. #}

{# Number of bands, a whole number from 2. #}
{% macro rfm_bands() -%}
    {{- var('rfm_bands') | int -}}
{%- endmacro %}

{# Cut points as one row per as-of date and basis: per measure the worst value of each score and the scores, ascending. Recency is
   turned round, so that more is better for all three. #}
{% macro rfm_scales(cut_points) -%}
    select
        as_of,
        basis,
        bool_or(is_fixed) as is_fixed,
        array_agg(-highest_value order by score) filter (where measure = 'recency') as recency_bounds,
        array_agg(score order by score) filter (where measure = 'recency') as recency_scores,
        array_agg(lowest_value order by score) filter (where measure = 'frequency') as frequency_bounds,
        array_agg(score order by score) filter (where measure = 'frequency') as frequency_scores,
        array_agg(lowest_value order by score) filter (where measure = 'monetary') as monetary_bounds,
        array_agg(score order by score) filter (where measure = 'monetary') as monetary_scores
    from {{ cut_points }}
    group by as_of, basis
{%- endmacro %}

{# Score of a value on a scale: the highest one whose worst value it reaches; a value worse than all scores 1. Null without a scale. #}
{% macro rfm_score(value, measure, scale) -%}
    case
        when {{ scale }}.{{ measure }}_bounds is not null
            then coalesce(
                {{ scale }}.{{ measure }}_scores[width_bucket(cast({{ value }} as numeric), {{ scale }}.{{ measure }}_bounds)], 1
            )
    end
{%- endmacro %}

{# A score as a digit of the segment map, which knows five: the lowest score is 1 and the highest 5, whatever the number of bands. #}
{% macro rfm_digit(score) -%}
    cast(1 + ({{ score }} - 1) * 4 / ({{ rfm_bands() }} - 1) as text)
{%- endmacro %}

{# Code of three scores in the segment map. Null where a score is. #}
{% macro rfm_code(recency_score, frequency_score, monetary_score) -%}
    {{ rfm_digit(recency_score) }} || {{ rfm_digit(frequency_score) }} || {{ rfm_digit(monetary_score) }}
{%- endmacro %}

{# Category of the change from one row's segment to another's; both have `segment_rank` and `is_lapsed`, null without a segment. #}
{% macro segment_change(earlier, later) -%}
    case
        when {{ later }}.segment_rank is null then 'unscored'
        when {{ earlier }}.segment_rank is null then 'new'
        when {{ later }}.is_lapsed and not {{ earlier }}.is_lapsed then 'churned'
        when {{ earlier }}.is_lapsed and not {{ later }}.is_lapsed then 'reactivated'
        when {{ later }}.segment_rank < {{ earlier }}.segment_rank then 'promoted'
        when {{ later }}.segment_rank > {{ earlier }}.segment_rank then 'demoted'
        else 'unchanged'
    end
{%- endmacro %}

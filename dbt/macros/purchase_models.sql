{# What a fitted purchase model says about a customer, in closed form: BG/NBD (Fader, Hardie, Lee 2005), MBG/NBD (the coin after the first
   purchase as well) and their limit without drop-out, the NBD; and Gamma-Gamma for the amount (Fader, Hardie 2013).

   Arguments are SQL expressions. x: repeat purchase days. t_x: days from the first to the last. age: days from the first to the as-of date
   (T). horizon: days ahead. method: 'bgnbd', 'mbgnbd' or 'nbd'; another one gives null. r, alpha, a, b: parameters, alpha in days.

   PostgreSQL stops a statement whose number leaves the range of a double, in either direction. So powers are exponentials of logarithms
   that are held between -600 and 600: a probability is then off by less than 1e-260. #}

{% macro bounded_exp(logarithm) -%}
    exp(least(greatest({{ logarithm }}, cast(-600 as double precision)), 600))
{%- endmacro %}

{# How often a customer who is alive has thrown the coin and stayed: after each repeat purchase; MBG/NBD: after the first one too. #}
{% macro coins_survived(method, x) -%}
    ({{ x }} + case when {{ method }} = 'mbgnbd' then 1 else 0 end)
{%- endmacro %}

{# Chance that the customer has not dropped out: 1/(1 + a/(b + coins - 1)·((alpha + T)/(alpha + t_x))^(r + x)); 1 before the first coin. #}
{% macro p_alive(method, x, t_x, age, r, alpha, a, b) -%}
    case
        when {{ method }} = 'nbd' then cast(1 as double precision)
        when {{ method }} not in ('bgnbd', 'mbgnbd') then cast(null as double precision)
        when {{ coins_survived(method, x) }} = 0 then 1
        else
            1 / (
                1 + {{ bounded_exp(
                    "ln(" ~ a ~ ") - ln(" ~ b ~ " + " ~ coins_survived(method, x) ~ " - 1) + (" ~ r ~ " + " ~ x ~ ") * ln(("
                    ~ alpha ~ " + " ~ age ~ ") / (" ~ alpha ~ " + " ~ t_x ~ "))"
                ) }}
            )
    end
{%- endmacro %}

{# Chance that a customer who is alive does not buy within the horizon: ((alpha + T)/(alpha + T + h))^(r + x). #}
{% macro p_silent(x, age, horizon, r, alpha) -%}
    {{ bounded_exp(
        "(" ~ r ~ " + " ~ x ~ ") * ln((" ~ alpha ~ " + " ~ age ~ ") / (" ~ alpha ~ " + " ~ age ~ " + " ~ horizon ~ "))"
    ) }}
{%- endmacro %}

{# Chance of at least one purchase within the horizon. #}
{% macro p_buy(method, x, t_x, age, horizon, r, alpha, a, b) -%}
    ({{ p_alive(method, x, t_x, age, r, alpha, a, b) }}) * (1 - {{ p_silent(x, age, horizon, r, alpha) }})
{%- endmacro %}

{# Churn risk if the customer ordered once more today: who orders is alive, throws one more coin, and has x + 1. #}
{% macro risk_after_one_more_order(method, x, age, horizon, r, alpha, a, b) -%}
    1 - case
        when {{ method }} = 'nbd' then cast(1 as double precision)
        when {{ method }} in ('bgnbd', 'mbgnbd')
            then ({{ b }} + {{ coins_survived(method, x) }}) / ({{ a }} + {{ b }} + {{ coins_survived(method, x) }})
    end * (1 - {{ p_silent("(" ~ x ~ " + 1)", age, horizon, r, alpha) }})
{%- endmacro %}

{# Purchases expected within the horizon from a customer who is alive now.

   NBD: (r + x)/(alpha + T)·h. With drop-out it is equation 10 of Fader, Hardie, Lee (2005) before the division by 1/p_alive, which has a
   Gaussian hypergeometric function and no value at a = 1. The same number as a sum of positive terms: purchases the customer would make
   without dropping out are negative binomial, K ~ NB(r + x, z) with z = h/(alpha + T + h); of k of them a customer who may drop out after
   each makes m(k) = S(0) + … + S(k - 1), where S(j) = (B)_j/(a + B)_j is the chance to stay j times and B = b + coins survived. So
   E = sum over k of P(K = k)·m(k).

   The sum ends at the first k for which what is left is below 1e-10 of it: m(k + 1)/m(k) <= 1 + 1/k, and P(K = k + 1)/P(K = k) =
   (r + x + k)/(k + 1)·z tends monotonously to z, so the rest is below a geometric series with R = max(of both)·(1 + 1/k). It ends at
   k = 10,000 as well, far more purchase days than a horizon has; a larger K then counts as 10,000. #}
{% macro expected_orders_if_alive(method, x, age, horizon, r, alpha, a, b) -%}
    {%- set shape = "(" ~ r ~ " + " ~ x ~ ")" -%}
    {%- set z = "(" ~ horizon ~ " / (" ~ alpha ~ " + " ~ age ~ " + " ~ horizon ~ "))" -%}
    {%- set stays = "(" ~ b ~ " + " ~ coins_survived(method, x) ~ ")" -%}
    case
        when {{ method }} = 'nbd' then {{ shape }} / ({{ alpha }} + {{ age }}) * {{ horizon }}
        when {{ method }} in ('bgnbd', 'mbgnbd')
            then (
                with recursive terms (k, log_chance, stayed, made, expected, covered) as (
                    select
                        0,
                        {{ shape }} * ln(({{ alpha }} + {{ age }}) / ({{ alpha }} + {{ age }} + {{ horizon }})),
                        cast(1 as double precision),
                        cast(0 as double precision),
                        cast(0 as double precision),
                        {{ bounded_exp(shape ~ " * ln((" ~ alpha ~ " + " ~ age ~ ") / (" ~ alpha ~ " + " ~ age ~ " + " ~ horizon ~ "))") }}
                    union all
                    select
                        terms.k + 1,
                        following.log_chance,
                        -- Held above the smallest double: with a large `a` the chance to stay soon vanishes.
                        greatest(terms.stayed * ({{ stays }} + terms.k) / ({{ a }} + {{ stays }} + terms.k), 1e-290),
                        terms.made + terms.stayed,
                        terms.expected + {{ bounded_exp("following.log_chance") }} * (terms.made + terms.stayed),
                        terms.covered + {{ bounded_exp("following.log_chance") }}
                    from terms
                    cross join lateral (
                        select
                            terms.log_chance + ln(({{ shape }} + terms.k) / (terms.k + 1) * {{ z }}) as log_chance,
                            greatest(({{ shape }} + terms.k) / (terms.k + 1), 1) * {{ z }} * (1 + 1.0 / greatest(terms.k, 1)) as ratio
                    ) as following
                    where
                        terms.k < 10000
                        and (
                            terms.k = 0
                            or {{ bounded_exp("terms.log_chance") }} * terms.made * following.ratio
                            >= 1e-10 * terms.expected * (1 - following.ratio)
                        )
                )

                select terms.expected + greatest(1 - terms.covered, 0) * terms.made
                from terms
                order by terms.k desc
                limit 1
            )
    end
{%- endmacro %}

{# Amount expected per purchase day: p·(v + amount)/(p·n + q - 1), `amount` the sum over n repeat days; n = 0 gives p·v/(q - 1), the mean
   of everybody. Null where q <= 1: that population has no mean. #}
{% macro expected_amount(n, amount, p, q, v) -%}
    case when {{ q }} > 1 then {{ p }} * ({{ v }} + {{ amount }}) / ({{ p }} * {{ n }} + {{ q }} - 1) end
{%- endmacro %}

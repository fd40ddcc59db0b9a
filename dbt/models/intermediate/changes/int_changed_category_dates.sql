-- Grain: one row per business date whose sales by category may differ from the last refresh: a changed one, or one on which a product was
-- sold or taken back that is filed under another category since.

with received as (

    select product_code
    from {{ ref('stg_crm__products') }}
    where {{ changes_are_wanted() }} and {{ is_new('products') }}

),

-- Most messages of a product change its price or its stock. The first one files it.
filed as (

    select product_code
    from {{ ref('stg_crm__products') }}
    where product_code in (select product_code from received)
    group by product_code
    having bool_and({{ is_new('products') }}) or count(distinct coalesce(category, '')) > 1

)

select business_date from {{ ref('int_changed_dates') }}
union distinct
select business_date
from {{ ref('int_daily_product_sales') }}
where product_code in (select product_code from filed)

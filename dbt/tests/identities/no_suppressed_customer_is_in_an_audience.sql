-- Nobody who was erased, opted out or never agreed is a member of an audience, and no member has a score older than the latest order.
{{ config(meta={"dagster": {"ref": {"name": "audience_members"}}}) }}

select
    members.audience,
    members.customer_key,
    suppressions.reason
from {{ ref('audience_members') }} as members
inner join {{ ref('audience_rules') }} as rules on members.audience = rules.audience
inner join {{ ref('int_audience_suppressions') }} as suppressions
    on members.customer_key = suppressions.customer_key and rules.consent = suppressions.purpose

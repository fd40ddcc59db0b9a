"""What the database knows of an export: who is in which audience, and what each destination was told.

Belongs here: reading the marts' changes, and the two tables `meta.audience_pseudonym_deliveries` and `meta.audience_email_hash_deliveries`
(made by `crm_resources.warehouse.prepare`). One per identity, so that no table holds a pseudonym beside the hash of an e-mail address. Not
here: what is due (`reconcile`), or sending it (`destinations`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any

from crm_assets.warehouse.audiences.identities import Identity
from crm_assets.warehouse.audiences.reconcile import Action, Delivery, Sent, Standing
from crm_resources import warehouse
from crm_resources.settings import Settings

if TYPE_CHECKING:
    from adbc_driver_postgresql.dbapi import Connection

TABLES = {
    Identity.PSEUDONYM: "meta.audience_pseudonym_deliveries",
    Identity.EMAIL_HASH: "meta.audience_email_hash_deliveries",
}

_PLANNED = "audience_deliveries_planned"


class ExportUnderWay(Exception):
    """Another export to the same destination holds the ledger."""


def audience_purposes(settings: Settings) -> dict[str, str | None]:
    """Every audience the marts know, with the purpose of consent it is declared for; `None` for one that was withdrawn."""
    rows = warehouse.rows_if_prepared(
        settings,
        "select coalesce(changed.audience, rules.audience), rules.consent "
        "from (select distinct audience from marts.audience_changes) as changed "
        "full outer join marts.audience_rules as rules on changed.audience = rules.audience order by 1",
    )
    return dict(rows)


class Ledger:
    """The deliveries of one identity to one destination, for the time of an export."""

    def __init__(self, connection: Connection, identity: Identity, destination: str) -> None:
        self._connection = connection
        self._identity = identity
        self._table = TABLES[identity]
        self._destination = destination

    def standings(self, audiences: Sequence[str], member_of: Callable[[str, str, str | None], str | None]) -> Iterator[Standing]:
        """The newest change of each customer in these audiences.

        Args:
            audiences: names.
            member_of: the name outside of a customer in an audience, given the audience, the customer number and the e-mail address.
        """
        rows = self._rows(
            "select distinct on (changes.audience, changes.customer_key) changes.audience, changes.customer_key, changes.version, "
            "changes.modified_at, changes.action, dim.customer_id, dim.email from marts.audience_changes as changes "
            "join marts.dim_customers as dim on dim.customer_key = changes.customer_key "
            "where changes.audience in (select jsonb_array_elements_text($1::text::jsonb)) "
            "order by changes.audience, changes.customer_key, changes.version desc",
            (_json(audiences),),
        )
        for audience, customer_key, version, modified_at, action, customer_id, email in rows:
            member = member_of(audience, customer_id, email) if action == Action.JOIN else None
            yield Standing(audience, customer_key, version, modified_at, member)

    def sent(self, audiences: Sequence[str]) -> Iterator[Sent]:
        """The last message per audience, customer and member, begun or acknowledged."""
        rows = self._rows(
            "select distinct on (audience, customer_key, member) audience, customer_key, member, version, action, modified_at, "  # noqa: S608 -- a table of this module
            f"acknowledged_at is not null from {self._table} where destination = $1::text "
            "and audience in (select jsonb_array_elements_text($2::text::jsonb)) "
            "order by audience, customer_key, member, delivery_id desc",
            (self._destination, _json(audiences)),
        )
        for audience, customer_key, member, version, action, modified_at, acknowledged in rows:
            yield Sent(audience, customer_key, member, version, Action(action), modified_at, acknowledged)

    def begin(self, deliveries: Sequence[Delivery]) -> None:
        """Write down what is about to be sent, before the first message goes out; what was begun before stays as it is."""
        import pyarrow as pa

        if not deliveries:
            return
        rows = pa.table(
            {
                "position": pa.array(range(len(deliveries)), pa.int64()),
                "idempotency_key": [d.idempotency_key for d in deliveries],
                "audience": [d.audience for d in deliveries],
                "version": pa.array([d.version for d in deliveries], pa.int32()),
                "customer_key": [d.customer_key for d in deliveries],
                "member": [d.member for d in deliveries],
                "action": [d.action.value for d in deliveries],
                "modified_at": pa.array([d.modified_at for d in deliveries], pa.timestamp("us", tz="UTC")),
            }
        )
        with self._connection.cursor() as cursor:
            cursor.execute(f"drop table if exists pg_temp.{_PLANNED}")
            cursor.adbc_ingest(_PLANNED, rows, mode="create", temporary=True)
            cursor.execute(
                f"insert into {self._table} (destination, idempotency_key, audience, version, customer_key, member, action, modified_at) "  # noqa: S608 -- tables of this module
                "select $1::text, idempotency_key, audience, version, customer_key, member, action, modified_at "
                f"from pg_temp.{_PLANNED} order by position on conflict (destination, idempotency_key) do nothing",
                (self._destination,),
            )
        self._connection.commit()

    def acknowledge(self, deliveries: Sequence[Delivery]) -> None:
        """Write down that these arrived."""
        with self._connection.cursor() as cursor:
            cursor.execute(
                f"update {self._table} set acknowledged_at = clock_timestamp() where destination = $1::text "  # noqa: S608 -- a table of this module
                "and idempotency_key in (select jsonb_array_elements_text($2::text::jsonb))",
                (self._destination, _json([d.idempotency_key for d in deliveries])),
            )
        self._connection.commit()

    def forget_erased(self) -> None:
        """Delete what customers who were erased were called, once the destination has acknowledged that they left."""
        with self._connection.cursor() as cursor:
            cursor.execute(
                f"with last as (select distinct on (destination, audience, customer_key, member) * from {self._table} "  # noqa: S608 -- a table of this module
                "order by destination, audience, customer_key, member, delivery_id desc) "
                f"delete from {self._table} as told using marts.dim_customers as dim "
                "where told.destination = $1::text and dim.customer_key = told.customer_key and dim.is_erased and not exists ("
                "select from last where last.destination = told.destination and last.audience = told.audience "
                "and last.customer_key = told.customer_key and (last.action = 'join' or last.acknowledged_at is null))",
                (self._destination,),
            )
        self._connection.commit()

    def _rows(self, sql: str, parameters: tuple[object, ...]) -> list[tuple[Any, ...]]:
        with self._connection.cursor() as cursor:
            cursor.execute(sql, parameters)
            return [tuple(row) for row in cursor.fetchall()]


@contextmanager
def open_ledger(settings: Settings, identity: Identity, destination: str) -> Iterator[Ledger]:
    """The ledger, held by one export at a time; another process that dies gives it back.

    Raises:
        ExportUnderWay: somebody else holds it.
        WarehouseError: no connection.
    """
    with warehouse.connect(settings) as connection:
        with connection.cursor() as cursor:
            cursor.execute(
                "select pg_try_advisory_lock(hashtext('crm audience export'), hashtext($1::text))", (f"{identity} {destination}",)
            )
            if not cursor.fetchall()[0][0]:
                raise ExportUnderWay(f"another export of {identity}s to {destination} is under way; start this one again when it has ended")
        connection.commit()
        yield Ledger(connection, identity, destination)


def last_acknowledged(settings: Settings) -> dict[str, datetime]:
    """When a message of each audience last arrived anywhere."""
    both = " union all ".join(f"select audience, acknowledged_at from {table}" for table in TABLES.values())  # noqa: S608 -- tables of this module
    sql = f"select audience, max(acknowledged_at) from ({both}) as told where acknowledged_at is not null group by audience"  # noqa: S608 -- as above
    return dict(warehouse.rows_if_prepared(settings, sql))


def _json(texts: Sequence[str]) -> str:
    import json

    return json.dumps(list(texts))

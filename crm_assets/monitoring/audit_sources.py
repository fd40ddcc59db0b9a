"""Where the audit reads: ledger, lake and warehouse, as Arrow batches of the columns it needs.

Belongs here: opening and reading, batch by batch, so that memory holds a batch and never a table. Not here: any judgement.
`AuditSources` is what the audit takes, so that a test can hand it tables it has doctored.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import TYPE_CHECKING

from crm_resources.contracts import Column, Contract, contract_for, contracts
from crm_resources.contracts.canonical import digest_sql, token_sql
from crm_resources.layout import (
    BATCH_COLUMNS,
    BATCHES,
    BRONZE,
    COORDINATES,
    DEAD_LETTER_COLUMNS,
    DEAD_LETTERS,
    DUPLICATE_COLUMNS,
    DUPLICATES,
    RECORD_VALUE,
    REPLAY_COLUMNS,
    REPLAYS,
    SILVER,
)
from crm_resources.ledger import ledger_dir, ledger_files, read_ledger
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

PLACED = ("kafka_topic", "kafka_partition", "kafka_offset", "ingested_at")
"""Columns that every table between Kafka and the marts carries."""

TYPED = ("typed_high", "typed_low")
"""Halves of the typed checksum in what the warehouse gives."""

REPLAYED = ("kafka_topic", "kafka_partition", "kafka_offset", "attempt", "outcome", "replayed_at")
"""Columns of the replay ledger that are read."""

BATCH = ("generation", "batch_id", "kafka_topic", "kafka_partition", "from_offset", "to_offset", "rows_in", "rows_bronze")
"""Columns of the batch ledger that are read."""

_BATCH_ROWS = 65_536
_BATCH_ROWS_WITH_LISTS = 16_384


@dataclass(frozen=True)
class LineTotal:
    """Sums of one parent table and its lines in the warehouse, as decimal text."""

    parent: str
    lines: str


@dataclass(frozen=True)
class MartCheck:
    """One comparison of a mart with what it is made of: `broken` rows differ, `rows` names them with both figures, at most 10,000."""

    name: str
    rows: tuple[str, ...] = ()
    broken: int = 0


@dataclass(frozen=True)
class MartFindings:
    """What the marts hold, compared with the messages in the warehouse.

    `unavailable` says why they could not be compared, and is empty when they were. As decimal text: `orders_amount` is the sum over
    the marts' orders and documents, `superseded_amount` that of messages which are no longer an order's current state,
    `raw_amount` that of all messages.
    """

    unavailable: str
    orders_amount: str = "0"
    superseded_amount: str = "0"
    raw_amount: str = "0"
    checks: tuple[MartCheck, ...] = ()


@dataclass(frozen=True)
class AuditSources:
    """Readers the audit may call several times; each gives batches.

    `ledger`: columns of `crm_resources.ledger`; argument: names of the columns wanted.
    `bronze`: `PLACED` and `value`.
    `silver`: by plural, columns of the contract and `PLACED`; argument: whether all columns of the contract are wanted, else
    `event_id` alone.
    `dead_letters`: `PLACED`, `event_id`, `reason`, `attempt`; open ones and those a replay has tried. `duplicates`: `PLACED`, `event_id`.
    `replays`: the replay ledger without the replay's id, the event id and the entity.
    `warehouse`: by plural, `PLACED`, `event_id`, `TYPED`, and for orders `amount` as text.
    `warehouse_tokens`: canonical text of each field of the rows with the given event ids, as mappings.
    `order_totals`: the sums of orders and of their lines in the warehouse; None where there is no warehouse.
    `marts`: what the marts hold, compared row by row.
    `batches`: the batch ledger's rows of the ingest query, columns `BATCH`.
    `kafka_offsets`: `{topic: {partition: (low, high)}}`; empty where Kafka is not asked.
    """

    ledger: Callable[[tuple[str, ...]], Iterator[pa.RecordBatch]]
    bronze: Callable[[], Iterator[pa.RecordBatch]]
    silver: Mapping[str, Callable[[bool], Iterator[pa.RecordBatch]]]
    dead_letters: Callable[[], Iterator[pa.RecordBatch]]
    duplicates: Callable[[], Iterator[pa.RecordBatch]]
    warehouse: Mapping[str, Callable[[], Iterator[pa.RecordBatch]]]
    warehouse_tokens: Callable[[str, list[str]], Mapping[str, Mapping[str, str]]] = lambda plural, event_ids: {}
    order_totals: Callable[[], LineTotal | None] = lambda: None
    marts: Callable[[], MartFindings] = lambda: MartFindings("there are no marts")
    batches: Callable[[], Iterator[pa.RecordBatch]] = lambda: iter(())
    replays: Callable[[], Iterator[pa.RecordBatch]] = lambda: iter(())
    kafka_offsets: Mapping[str, Mapping[int, tuple[int, int]]] = field(default_factory=dict)


def open_sources(settings: Settings, *, run_id: str | None = None, with_kafka: bool = True) -> AuditSources:
    """Sources of the settings' environment.

    Args:
        settings: where everything is.
        run_id: only the ledger of this run; of all runs when omitted.
        with_kafka: compare bronze with the offsets of the topics as well.

    Raises:
        KafkaUnavailableError: Kafka does not answer.
    """
    from crm_assets.monitoring.audit_marts import compare_marts

    offsets = _kafka_offsets(settings) if with_kafka else {}
    return AuditSources(
        ledger=lambda columns: _ledger(settings, run_id, columns),
        bronze=lambda: _lake(settings, BRONZE.path, bronze_columns(), _BATCH_ROWS),
        silver={c.plural: _silver_reader(settings, c) for c in contracts()},
        dead_letters=lambda: _lake(settings, DEAD_LETTERS.path, _named(DEAD_LETTER_COLUMNS, (*PLACED, "event_id", "reason", "attempt"))),
        duplicates=lambda: _lake(settings, DUPLICATES.path, _named(DUPLICATE_COLUMNS, (*PLACED, "event_id"))),
        warehouse={c.plural: _warehouse_reader(settings, c) for c in contracts()},
        warehouse_tokens=lambda plural, event_ids: _warehouse_tokens(settings, plural, event_ids),
        order_totals=lambda: _order_totals(settings),
        marts=lambda: compare_marts(settings),
        batches=lambda: _ingest_batches(settings),
        replays=lambda: _lake(settings, REPLAYS.path, _named(REPLAY_COLUMNS, REPLAYED)),
        kafka_offsets=offsets,
    )


def bronze_columns() -> tuple[Column, ...]:
    """Columns of bronze that the audit reads."""
    return (*_named(COORDINATES, PLACED), RECORD_VALUE)


@cache
def silver_columns_read(contract: Contract, whole: bool) -> tuple[Column, ...]:
    """Columns of silver that the audit reads: all of the contract's, or its event id alone, and `PLACED`."""
    own = contract.columns if whole else tuple(c for c in contract.columns if c.name == "event_id")
    return (*own, *_named(COORDINATES, PLACED))


def _ingest_batches(settings: Settings) -> Iterator[pa.RecordBatch]:
    import pyarrow.compute as pc

    for batch in _lake(settings, BATCHES.path, _named(BATCH_COLUMNS, ("query", *BATCH))):
        yield batch.filter(pc.equal(batch.column("query"), "ingest")).select(list(BATCH))


def _named(columns: tuple[Column, ...], names: tuple[str, ...]) -> tuple[Column, ...]:
    by_name = {c.name: c for c in columns}
    return tuple(by_name[name] for name in names)


def _ledger(settings: Settings, run_id: str | None, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    for path in ledger_files(ledger_dir(settings.environment_dir), run_id):
        yield from read_ledger(path, columns)


def _silver_reader(settings: Settings, contract: Contract) -> Callable[[bool], Iterator[pa.RecordBatch]]:
    rows = _BATCH_ROWS_WITH_LISTS if contract.children else _BATCH_ROWS
    return lambda whole: _lake(settings, SILVER[contract.plural].path, silver_columns_read(contract, whole), rows)


def _lake(settings: Settings, path: str, columns: tuple[Column, ...], batch_rows: int = _BATCH_ROWS) -> Iterator[pa.RecordBatch]:
    from crm_resources import lake
    from crm_resources.contracts.derive_arrow import arrow_schema

    table = lake.open_table(settings, path)
    if table is not None:
        yield from lake.iter_batches(settings, path, lake.files_of(table), arrow_schema(columns), batch_rows)


def _warehouse_reader(settings: Settings, contract: Contract) -> Callable[[], Iterator[pa.RecordBatch]]:
    # Arrow has no type for numeric, so the driver would wrap the amount.
    amount = ("r.amount::text as amount",) if contract.plural == "orders" else ()
    statement = digest_sql(contract, (*(f"r.{name}" for name in (*PLACED, "event_id")), *amount))
    return lambda: _query(settings, statement, f"raw.{contract.plural}")


def _warehouse_tokens(settings: Settings, plural: str, event_ids: list[str]) -> dict[str, dict[str, str]]:
    import pyarrow as pa

    contract = contract_for(plural)
    ids = ", ".join(f"'{event_id}'" for event_id in event_ids if re.fullmatch(r"[0-9a-f-]+", event_id))
    if not ids:
        return {}
    batches = list(_query(settings, token_sql(contract, f"r.event_id in ({ids})"), f"raw.{plural}"))
    rows = pa.Table.from_batches(batches).to_pylist() if batches else []
    return {row["event_id"]: {c.name: row[f"field_{c.name}"] for c in contract.columns} for row in rows}


def _query(settings: Settings, statement: str, table: str) -> Iterator[pa.RecordBatch]:
    from crm_resources import warehouse

    try:
        with warehouse.connect(settings) as connection, connection.cursor() as cursor:
            cursor.execute("select to_regclass($1::text) is not null", (table,))
            if not cursor.fetchone()[0]:
                return  # no table yet: nothing was loaded
            cursor.execute(statement)
            yield from cursor.fetch_record_batch()
    except warehouse.DatabaseMissing:
        return  # no database yet: nothing was loaded


def _order_totals(settings: Settings) -> LineTotal | None:
    statement = (
        "select coalesce((select sum(amount) from raw.orders), 0)::text as parent, "
        "coalesce((select sum(quantity * unit_price) from raw.order_lines), 0)::text as lines"
    )
    for batch in _query(settings, statement, "raw.order_lines"):
        for row in batch.to_pylist():
            return LineTotal(row["parent"], row["lines"])
    return None


def _kafka_offsets(settings: Settings) -> dict[str, dict[int, tuple[int, int]]]:
    from crm_resources import kafka

    present = kafka.observe(settings)
    return {name: kafka.offsets(settings, name) for name in present}

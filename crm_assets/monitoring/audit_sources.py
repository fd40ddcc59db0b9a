"""Where the audit reads: ledger, lake and warehouse, as Arrow batches of the columns it needs.

Belongs here: opening and reading, batch by batch, so that memory holds columns and never whole tables. Not here: any judgement.
`AuditSources` is what the audit takes, so that a test can hand it tables it has doctored.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from crm_resources.contracts import contracts
from crm_resources.layout import BRONZE, DEAD_LETTERS, DUPLICATES, SILVER
from crm_resources.ledger import ledger_dir, ledger_files, read_ledger
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa

PLACED = ("kafka_topic", "kafka_partition", "kafka_offset", "ingested_at")
"""Columns that every table between Kafka and the marts carries."""


@dataclass(frozen=True)
class LineTotal:
    """Sums of one parent table and its lines in the warehouse, as decimal text."""

    parent: str
    lines: str


@dataclass(frozen=True)
class AuditSources:
    """Readers the audit may call several times; each gives batches.

    `ledger`: columns of `crm_resources.ledger`; argument: names of the columns wanted.
    `bronze`: `PLACED` and `value`; argument: whether `value` is wanted.
    `silver`, `warehouse`: by plural, `PLACED` and `event_id`, for orders of the warehouse also `amount`.
    `dead_letters`: `PLACED`, `event_id`, `reason`. `duplicates`: `PLACED`, `event_id`.
    `order_totals`: the sums of orders and of their lines in the warehouse; None where there is no warehouse.
    `kafka_offsets`: `{topic: {partition: (low, high)}}`; empty where Kafka is not asked.
    """

    ledger: Callable[[tuple[str, ...]], Iterator[pa.RecordBatch]]
    bronze: Callable[[bool], Iterator[pa.RecordBatch]]
    silver: Mapping[str, Callable[[], Iterator[pa.RecordBatch]]]
    dead_letters: Callable[[], Iterator[pa.RecordBatch]]
    duplicates: Callable[[], Iterator[pa.RecordBatch]]
    warehouse: Mapping[str, Callable[[], Iterator[pa.RecordBatch]]]
    order_totals: Callable[[], LineTotal | None] = lambda: None
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
    offsets = _kafka_offsets(settings) if with_kafka else {}
    return AuditSources(
        ledger=lambda columns: _ledger(settings, run_id, columns),
        bronze=lambda with_value: _lake(settings, BRONZE.path, (*PLACED, "value") if with_value else PLACED),
        silver={plural: _reader(settings, table.path, (*PLACED, "event_id")) for plural, table in SILVER.items()},
        dead_letters=_reader(settings, DEAD_LETTERS.path, (*PLACED, "event_id", "reason")),
        duplicates=_reader(settings, DUPLICATES.path, (*PLACED, "event_id")),
        warehouse={c.plural: _warehouse_reader(settings, c.plural) for c in contracts()},
        order_totals=lambda: _order_totals(settings),
        kafka_offsets=offsets,
    )


def _ledger(settings: Settings, run_id: str | None, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    for path in ledger_files(ledger_dir(settings.environment_dir), run_id):
        yield from read_ledger(path, columns)


def _reader(settings: Settings, path: str, columns: tuple[str, ...]) -> Callable[[], Iterator[pa.RecordBatch]]:
    return lambda: _lake(settings, path, columns)


def _lake(settings: Settings, path: str, columns: tuple[str, ...]) -> Iterator[pa.RecordBatch]:
    from crm_resources import lake

    table = lake.open_table(settings, path)
    if table is None:
        return
    for file in lake.files_of(table):
        yield from _without_views(lake.read_columns(settings, path, [file], columns)).to_batches(max_chunksize=50_000)


def _without_views(table: pa.Table) -> pa.Table:
    """The table with plain strings and bytes: files that delta-rs rewrote come with view types, which few Arrow functions take."""
    import pyarrow as pa

    plain = {pa.string_view(): pa.string(), pa.binary_view(): pa.binary()}
    return table.cast(pa.schema([field.with_type(plain.get(field.type, field.type)) for field in table.schema]))


def _warehouse_reader(settings: Settings, plural: str) -> Callable[[], Iterator[pa.RecordBatch]]:
    columns = [*PLACED, "event_id", *(["amount::text as amount"] if plural == "orders" else [])]
    return lambda: _query(settings, f"select {', '.join(columns)} from raw.{plural}", f"raw.{plural}")  # noqa: S608 -- names from the contracts


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

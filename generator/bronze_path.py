"""The fast path of a backfill: the days of a population straight into bronze, without Kafka.

Belongs here: synthetic coordinates, the order of ledger and commit, going on where it was stopped. Not here: what a day holds
(`population_model`), or what becomes of bronze's rows: the stream refines them like any others.

A record's coordinates are its topic, a negative partition that stands for run and day, and its place among the day's records
of that topic. Some days make one commit, which carries the last of them as a Delta transaction, so repeating a day adds nothing.
The ledger of a commit is on disk before the commit and takes its place among the ledgers after it; what a crash left between is
settled at the next start.
"""

from __future__ import annotations

import hashlib
import multiprocessing
import signal
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from datetime import UTC, date, datetime
from decimal import Decimal
from functools import cache
from typing import TYPE_CHECKING

import numpy as np

from crm_resources.lake_lock import lake_lock
from crm_resources.lake_tables import append_rows, create_table, last_transaction, refuse_altered, table_schema
from crm_resources.layout import BRONZE, topic_name
from crm_resources.ledger import LedgerWriter, ledger_dir, ledger_schema, payload_md5, publish_ledger
from crm_resources.settings import Settings
from generator.backfill import day_done
from generator.backfill_state import DayDone
from generator.ids import epoch_microseconds
from generator.population_model.options import PopulationOptions
from generator.population_model.shop import PopulationShop

if TYPE_CHECKING:
    import pyarrow as pa
    from deltalake import DeltaTable

ROWS_PER_COMMIT = 250_000
"""Days are gathered up to this many rows: fewer, larger files, and a bounded part of memory."""

_DAY_BITS = 15
_RUN_BITS = 16


@dataclass(frozen=True)
class _Day:
    """A day as a worker made it: bronze's rows, the ledger's, and what it held."""

    bronze: pa.Table
    ledger: pa.Table
    done: DayDone


@dataclass
class BronzeOutcome:
    """What a run did: days and rows it added, the time of that, and whether it was stopped. `days_before` were in bronze already."""

    days_before: int = 0
    days_added: int = 0
    rows: int = 0
    seconds: float = 0.0
    interrupted: bool = False

    @property
    def rows_per_second(self) -> float:
        """Rows added by the clock of the whole run, the drawing of the population included."""
        return self.rows / self.seconds if self.seconds > 0 else 0.0


def partition_of(run_id: str, day: date) -> int:
    """The negative partition that stands for a run and a day; Kafka's own are never below 0.

    Args:
        run_id: run of the generator, of which 16 bits of a digest are kept.
        day: up to the year 2059.
    """
    run = int.from_bytes(hashlib.sha256(run_id.encode()).digest()[:2])
    number = (day - date(1970, 1, 1)).days
    if not 0 <= number < 1 << _DAY_BITS:
        raise ValueError(f"{day} lies outside of 1970 to 2059")
    return -1 - ((run << _DAY_BITS) | number)


def run_bronze_backfill(
    settings: Settings,
    options: PopulationOptions,
    *,
    workers: int,
    progress: Callable[[int, int], None] = lambda _days, _rows: None,
    committed: Callable[[DayDone], None] = lambda _day: None,
    stop: Callable[[], bool] = lambda: False,
    rows_per_commit: int = ROWS_PER_COMMIT,
) -> BronzeOutcome:
    """Append every day of a population that bronze lacks.

    Args:
        settings: where the lake and the ledger are.
        options: what fixes the population.
        workers: processes that make the days.
        progress: called with the days that are in bronze and the rows this run added.
        committed: called with each day once it is in bronze.
        stop: asked between two days; what is not committed is made again the next time.
        rows_per_commit: see `ROWS_PER_COMMIT`.

    Raises:
        LakeLocked: the stream or another run writes this lake; nothing was added.
        LakeLockLost: the lock on an object store could not be kept; what is committed stays.
        ObjectStoreError: the object store cannot hold this lake, or does not answer.
        LedgerError: the disk refused the ledger; the rows it lacks are not in bronze.
    """
    begun = time.monotonic()
    with lake_lock(settings, "backfill") as lock:
        refuse_altered(settings, [(BRONZE, BRONZE.path)])
        bronze = create_table(settings, BRONZE)
        run = _Run(settings, options.run_id, bronze)
        run.settle()
        days = [d for d in PopulationShop(options).days if d.toordinal() > run.last_day]
        outcome = BronzeOutcome(days_before=options.days - len(days))
        progress(outcome.days_before, 0)
        waiting: list[_Day] = []
        for made in _made(options, settings.env, days, workers, stop):
            waiting.append(made)
            if sum(d.bronze.num_rows for d in waiting) >= rows_per_commit or made.done.day == days[-1]:
                lock.check()
                run.commit(waiting)
                outcome.rows += sum(d.bronze.num_rows for d in waiting)
                outcome.days_added += len(waiting)
                for day in waiting:
                    committed(day.done)
                waiting = []
                progress(outcome.days_before + outcome.days_added, outcome.rows)
        outcome.interrupted = outcome.days_before + outcome.days_added < options.days
    outcome.seconds = time.monotonic() - begun
    return outcome


class _Run:
    """The writer's side: one run, one bronze table."""

    def __init__(self, settings: Settings, run_id: str, bronze: DeltaTable) -> None:
        self._run_id = run_id
        self._application = f"backfill-{run_id}"
        self._bronze = bronze
        self._ledgers = ledger_dir(settings.environment_dir)
        self._staged = self._ledgers / "staged"

    @property
    def last_day(self) -> int:
        """Ordinal of the last day in bronze, -1 before the first."""
        return last_transaction(self._bronze, self._application)

    def settle(self) -> None:
        """Put ledgers whose commit is in bronze in their place, and drop those whose commit never came."""
        last = self.last_day
        for path in sorted(self._staged.glob("*/*.arrows")) if self._staged.is_dir() else []:
            if not path.parent.name.startswith(f"{self._run_id}@"):
                continue
            if int(path.parent.name.rpartition("@")[2]) <= last:
                publish_ledger(path, self._ledgers, self._run_id)
            else:
                path.unlink()
            path.parent.rmdir()

    def commit(self, days: list[_Day]) -> None:
        """Make some days durable: ledger on disk, rows in bronze, ledger in its place."""
        import pyarrow as pa

        last = days[-1].done.day.toordinal()
        folder = self._staged / f"{self._run_id}@{last}"
        with LedgerWriter(folder, self._run_id) as ledger:
            for day in days:
                for batch in day.ledger.to_batches():
                    ledger.append_batch(batch)
        rows = pa.concat_tables([d.bronze for d in days])
        append_rows(self._bronze, rows, application=self._application, version=last, plain_columns=["value"])
        publish_ledger(ledger.path, self._ledgers, self._run_id)
        folder.rmdir()


def _made(options: PopulationOptions, env: str, days: list[date], workers: int, stop: Callable[[], bool]) -> Iterator[_Day]:
    """The days in order, made by several processes that are a few days ahead."""
    if not days:
        return
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_begin) as pool:
        ahead: deque[Future[_Day]] = deque()
        left = iter(days)
        try:
            for day in left:
                ahead.append(pool.submit(_make, options, env, day))
                if len(ahead) > 2 * workers:
                    break
            while ahead and not stop():
                made = ahead.popleft().result()
                following = next(left, None)
                if following is not None:
                    ahead.append(pool.submit(_make, options, env, following))
                yield made
        finally:
            for future in ahead:
                future.cancel()


def _begin() -> None:
    """Prepare a worker: the main process alone answers an interrupt, and ends the work."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@cache
def _shop(options: PopulationOptions) -> PopulationShop:
    """The population, drawn once in each worker; every worker draws the same."""
    return PopulationShop(options)


def _make(options: PopulationOptions, env: str, day: date) -> _Day:
    shop = _shop(options)
    begun = time.monotonic()
    table = shop.table(day)
    bronze, ledger = day_rows(table, shop.run_id, env, day, datetime.now(UTC))
    return _Day(bronze, ledger, day_done(day, table, time.monotonic() - begun))


def day_rows(table: pa.Table, run_id: str, env: str, day: date, now: datetime) -> tuple[pa.Table, pa.Table]:
    """Rows of bronze and of the ledger for the records of a day; pure.

    Args:
        table: the records, see `PopulationShop.table`.
        run_id: run of the generator.
        env: data set, which names the topics.
        day: the day.
        now: when the rows are made: their time in bronze, and the time of sending and acknowledgement in the ledger.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    rows = table.num_rows
    plural = table["plural"].combine_chunks().dictionary_encode()
    topics = pa.DictionaryArray.from_arrays(plural.indices, pa.array([topic_name(env, p) for p in plural.dictionary.to_pylist()]))
    codes = plural.indices.to_numpy()
    offsets = np.empty(rows, dtype=np.int64)
    for code in range(len(plural.dictionary)):
        own = codes == code
        offsets[own] = np.arange(np.count_nonzero(own))
    partition = pa.repeat(pa.scalar(partition_of(run_id, day), pa.int32()), rows)
    moment = pa.repeat(pa.scalar(epoch_microseconds(now), pa.int64()).cast(pa.timestamp("us", tz="UTC")), rows)
    topic = topics.cast(pa.string())
    columns = {
        "kafka_partition": partition,
        "kafka_offset": pa.array(offsets),
        "kafka_timestamp": moment,
        "ingested_at": moment,
        "kafka_key": table["key"],
        "value": table["value"],
        "kafka_topic": topic,
        "ingest_date": pa.repeat(pa.scalar(now.date()), rows),
    }
    schema = table_schema(BRONZE).remove_metadata()
    bronze = pa.table([_column(columns[field.name], field.type) for field in schema], schema=schema)
    ledger = {
        "run_id": pa.repeat(pa.scalar(run_id), rows),
        "event_id": table["event_id"],
        "entity": table["entity"],
        "entity_key": table["entity_key"],
        "sequence": table["sequence"],
        "amount": pc.multiply(table["amount_cents"].cast(pa.decimal128(19, 0)), pa.scalar(Decimal("0.01"))),
        "payload_md5": pa.array([payload_md5(v) for v in table["value"].to_pylist()], pa.binary(16)),
        "topic": topic,
        "partition": partition,
        "offset": columns["kafka_offset"],
        "intended_at": moment,
        "sent_at": moment,
        "acked_at": moment,
        "defect": pa.nulls(rows, pa.string()),
        "refused": pa.repeat(pa.scalar(value=False), rows),
        "typed_md5": pa.array([payload_md5(t) for t in table["canonical"].cast(pa.binary()).to_pylist()], pa.binary(16)),
    }
    wanted = ledger_schema()
    return bronze, pa.table([_column(ledger[f.name], f.type) for f in wanted], schema=wanted)


def _column(values: pa.Array | pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    import pyarrow as pa

    column = values if isinstance(values, pa.ChunkedArray) else pa.chunked_array([values])
    return column.cast(kind)

"""Dead letters tried again, from their stored bytes, by the refine step's own judgement; nothing is sent to Kafka.

The stream's driver carries a replay out between its batches, chunk by chunk: silver first, then dead letters and duplicates, and last
the replay ledger. A record that is good now goes to silver with its own coordinates, event id and time of capture; one that fails
again is a new dead letter with the next attempt. Not here: which dead letters are open (`dead_letters`), what is asked (`replay_request`),
what makes a record good (`transform`) or where it goes (`refine`).

Why nothing is doubled or lost, wherever the driver is killed: each append is one commit, and what a cut-off chunk left behind is found in
the tables themselves. Every replay begins by looking whether a dead letter without a ledger row already stands somewhere else (`settle`),
and gives it the row that is missing; all others are tried. So a chunk need not be composed or judged the same way twice.
"""

from __future__ import annotations

import logging
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from crm_assets.streaming.crash_points import CrashPoint, CrashPoints, crash_points
from crm_assets.streaming.dead_letters import POSITION, DeadLetters, Selection, open_rows, read_replays, selected, untried_dead_letters
from crm_assets.streaming.history import IDENTITY
from crm_assets.streaming.refine import Placed, RefineStep, judged_thoroughly
from crm_assets.streaming.replay_request import replay_arguments
from crm_assets.streaming.requests import Request
from crm_assets.streaming.tables import BooksOpen
from crm_assets.streaming.transform import RAW, Classifier, Limits
from crm_resources.contracts import contract_for
from crm_resources.contracts.derive_arrow import arrow_schema
from crm_resources.lake import files_of, iter_batches, open_table
from crm_resources.lake_tables import append_rows, create_table, last_transaction, table_schema
from crm_resources.layout import COORDINATES, DEAD_LETTERS, DUPLICATES, RECORD_KEY, RECORD_VALUE, REPLAYS, SILVER, LakeTable
from crm_resources.settings import Settings

if TYPE_CHECKING:
    import pyarrow as pa
    from pyspark.sql import SparkSession

LOG = logging.getLogger(__name__)

CHUNK_RECORDS = 5_000
"""Most records of a chunk: live batches wait for one chunk at most."""

CHUNK_SECONDS = 5.0
"""Most seconds a chunk may stand for at the rate asked for, so that the pauses between chunks stay short."""

CHUNK_BYTES = 64 * 2**20
"""Bytes of stored records after which a chunk takes no further ones: a topic takes records of 8 MiB."""

_READ_ROWS = 64
"""Rows of the dead letters that are read at once, for the same reason."""


class ReplayOutcome(StrEnum):
    """What became of a dead letter that was tried again, as the replay ledger spells it."""

    SILVER = "silver"
    DUPLICATE = "duplicate"
    DEAD_LETTER = "dead_letter"


Outcomes = Counter[tuple[str, ReplayOutcome]]
"""Records by the reason of the dead letter that was tried and what became of it."""


def _utc_now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class Clock:
    """Time as a replay takes it.

    Args:
        now: the time of day, by which future events are judged.
        seconds: seconds since some beginning, for the rate.
        pause: waits for so many seconds.
    """

    now: Callable[[], datetime] = _utc_now
    seconds: Callable[[], float] = time.monotonic
    pause: Callable[[float], None] = time.sleep


def carry_out(
    settings: Settings,
    spark: SparkSession,
    step: RefineStep,
    request: Request,
    *,
    crash: CrashPoints | None = None,
    clock: Clock = Clock(),
) -> dict[str, Any]:
    """Replay what a request asks for; carried out again, it goes on where it was cut off.

    Args:
        settings: where the lake is.
        spark: the driver's session.
        step: the refine step that runs.
        request: see `ReplayArguments`.
        crash: where to die, for tests.
        clock: see `Clock`.

    Returns:
        `selected` records, `outcomes` (reason → outcome → records) and `totals` (outcome → records), predicted ones after a dry run.
        Otherwise besides: `chunks` of this run, and `settled` records whose ledger row an earlier, cut-off chunk had left out.

    Raises:
        ReplayInvalid: the request's arguments are wrong.
        StepClosed: the stream is stopping; the request is carried out at its next start.
        BooksOpen: a chunk's records do not add up, or another process wrote to the lake.
    """
    arguments = replay_arguments(request.arguments)
    selection = arguments.selection(datetime.fromisoformat(request.asked_at))
    size = max(1, min(CHUNK_RECORDS, int(arguments.records_per_second * CHUNK_SECONDS)))
    replay = Replay(settings, spark, step, request.id, crash or crash_points())
    if arguments.dry_run:
        return replay.predict(selection, size, clock)
    with step.between_batches():
        settled = replay.settle(clock.now())
    waiting = replay.waiting(selection)
    chunks = 0
    for chunk in in_chunks(settings, step.place.path(DEAD_LETTERS), waiting, size):
        began = clock.seconds()
        with step.between_batches():
            replay.try_again(chunk, clock.now())
        chunks += 1
        replay.crash.passing(CrashPoint.REPLAY_BETWEEN_CHUNKS)
        clock.pause(max(0.0, chunk.num_rows / arguments.records_per_second - (clock.seconds() - began)))
    outcomes = replay.outcomes()
    LOG.info("replay %s: %s", request.id, dict(outcomes))
    return {**figures(outcomes), "chunks": chunks, "settled": settled}


@dataclass
class Replay:
    """One replay at work. Whoever calls it sees to it that no refine batch runs meanwhile.

    Args:
        settings: where the lake is.
        spark: session to judge with.
        step: refine step whose tables are written.
        id: name of the replay in ledger and transactions.
        crash: where to die, for tests.
    """

    settings: Settings
    spark: SparkSession
    step: RefineStep
    id: str
    crash: CrashPoints = field(default_factory=CrashPoints)
    _number: int | None = None

    def untried(self) -> DeadLetters:
        """Dead letters that the replay ledger does not know."""
        return untried_dead_letters(self.settings, self.step.place.path(DEAD_LETTERS), self.step.place.path(REPLAYS))

    def waiting(self, selection: Selection) -> DeadLetters:
        """Open dead letters that are meant. A replay tries a record once: what it tried already does not count."""
        import pyarrow.compute as pc

        found = self.untried()
        mine = self._ledger([*POSITION, "replay_id"])
        mine = mine.filter(pc.equal(mine["replay_id"], self.id)).select(POSITION)
        rows = selected(open_rows(found.rows), selection).join(mine, list(POSITION), join_type="left anti")
        return DeadLetters(rows.sort_by([(name, "ascending") for name in ("failed_at", *POSITION)]), found.files)

    def settle(self, now: datetime) -> int:
        """Write the ledger rows that a chunk owed when it was cut off, whichever replay it belonged to; returns how many."""
        import pyarrow as pa
        import pyarrow.compute as pc

        untried = self.untried().rows
        parts = [_outcome(untried.filter(pc.less(untried["attempt"], untried["latest"])), ReplayOutcome.DEAD_LETTER)]
        rest = open_rows(untried)
        tables = [(SILVER[contract_for(e).plural], ReplayOutcome.SILVER) for e in pc.unique(rest["entity"]).to_pylist()]
        for table, outcome in (*tables, (DUPLICATES, ReplayOutcome.DUPLICATE)) if rest.num_rows else ():
            parts.append(_outcome(rest.join(self._standing(table, rest), list(POSITION), join_type="left semi"), outcome))
        found = pa.concat_tables(parts)
        if found.num_rows:
            LOG.warning("replay %s: %s records were placed by a chunk that was cut off before its ledger", self.id, found.num_rows)
            self._note(found, now)
        return int(found.num_rows)

    def try_again(self, chunk: pa.Table, now: datetime) -> Outcomes:
        """Judge a chunk's records as of a time, put them where they belong, and note it in the ledger.

        Args:
            chunk: open dead letters with their bytes.
            now: the time; an event that lies too far after it fails again.
        """
        placed = self.judge(chunk, now)
        tried = {_position(row): row for row in chunk.select([*POSITION, "attempt", "first_failed_at"]).to_pylist()}
        for one in placed:
            self._append(SILVER[one.contract.plural], [one.silver])
        self._append(DEAD_LETTERS, [next_attempt(one.dead_letters, tried) for one in placed if one.dead_letters is not None])
        self._append(DUPLICATES, [one.duplicates for one in placed if one.duplicates is not None])
        self.crash.passing(CrashPoint.REPLAY_BEFORE_LEDGER)
        noted = ledger_rows(chunk, placed)
        self._note(noted, now)
        return count_outcomes(noted)

    def judge(self, chunk: pa.Table, now: datetime, accepted: Mapping[str, Sequence[pa.Table]] | None = None) -> list[Placed]:
        """Where a chunk's records belong; writes nothing.

        Args:
            chunk: open dead letters with their bytes.
            now: the time they are judged at.
            accepted: by entity, `IDENTITY` columns of records that count as accepted although they are not in silver.

        Raises:
            BooksOpen: the places do not add up to the chunk.
        """
        import pyarrow.compute as pc

        limits = Limits(self.settings.future_tolerance_seconds, tried_again_at=now)
        placed = []
        for entity in pc.unique(chunk["entity"]).to_pylist():
            contract = contract_for(entity)
            records = chunk.filter(pc.equal(chunk["entity"], entity)).select([*(c.name for c in COORDINATES), *RAW])
            frame = self.spark.createDataFrame(records)
            good, refused = judged_thoroughly(frame, Classifier(contract, limits))
            placed.append(self.step.assign(frame, contract, good, refused, now, (accepted or {}).get(entity, ())))
        counted = sum(p.counts.silver + p.counts.dead_letters + p.counts.duplicates for p in placed)
        if counted != chunk.num_rows:
            raise BooksOpen(
                f"replay {self.id}: {chunk.num_rows} records were judged, {counted} have a place; nothing of the chunk is written"
            )
        return placed

    def predict(self, selection: Selection, size: int, clock: Clock) -> dict[str, Any]:
        """What a replay would come to if it were carried out now; writes nothing."""
        waiting = self.waiting(selection)
        found: Outcomes = Counter()
        accepted: dict[str, list[pa.Table]] = {}
        for chunk in in_chunks(self.settings, self.step.place.path(DEAD_LETTERS), waiting, size):
            with self.step.between_batches():
                placed = self.judge(chunk, clock.now(), accepted)
            for one in placed:
                accepted.setdefault(one.contract.entity, []).append(one.silver.select(IDENTITY))
            found += count_outcomes(ledger_rows(chunk, placed))
        return figures(found)

    def outcomes(self) -> Outcomes:
        """What this replay came to so far, by its ledger."""
        import pyarrow.compute as pc

        ledger = self._ledger(["replay_id", "reason", "outcome"])
        return count_outcomes(ledger.filter(pc.equal(ledger["replay_id"], self.id)))

    def _ledger(self, columns: Sequence[str]) -> pa.Table:
        return read_replays(self.settings, columns, self.step.place.path(REPLAYS))

    def _standing(self, table: LakeTable, rows: pa.Table) -> pa.Table:
        """Those of the rows' coordinates that stand in a table."""
        import pyarrow as pa
        import pyarrow.compute as pc

        path = self.step.place.path(table)
        opened = open_table(self.settings, path)
        schema = arrow_schema(COORDINATES[:3])
        found = [schema.empty_table()]
        offsets = pc.unique(rows["kafka_offset"])
        for batch in iter_batches(self.settings, path, [] if opened is None else files_of(opened), schema):
            near = pa.Table.from_batches([batch]).filter(pc.is_in(batch.column("kafka_offset"), value_set=offsets))
            found.append(near.join(rows.select(POSITION), list(POSITION), join_type="left semi"))
        return pa.concat_tables(found, promote_options="permissive")

    def _append(self, table: LakeTable, parts: Sequence[pa.Table]) -> None:
        rows = sum(part.num_rows for part in parts)
        if rows:
            self.step.append(table, parts, rows, application=self._application(table), number=self._next())
            self.crash.passing(CrashPoint.REPLAY_BETWEEN_TABLES)

    def _note(self, rows: pa.Table, now: datetime) -> None:
        """Append rows to the replay ledger; the chunk is done then."""
        import pyarrow as pa

        path = self.step.place.path(REPLAYS)
        table = create_table(self.settings, REPLAYS, path)
        schema = table_schema(REPLAYS).remove_metadata()
        rows = rows.append_column("replay_id", pa.array([self.id] * rows.num_rows, pa.string()))
        rows = rows.append_column("replayed_at", pa.array([now] * rows.num_rows, pa.timestamp("us", tz="UTC")))
        append_rows(table, rows.select(schema.names).cast(schema), application=self._application(REPLAYS), version=self._next())
        self._number = self._next() + 1

    def _next(self) -> int:
        """Number of the chunk: behind all that any table has seen of this replay."""
        if self._number is None:
            tables = {t: open_table(self.settings, self.step.place.path(t)) for t in (*SILVER.values(), DEAD_LETTERS, DUPLICATES, REPLAYS)}
            seen = [last_transaction(opened, self._application(table)) for table, opened in tables.items() if opened is not None]
            self._number = max(seen, default=-1) + 1
        return self._number

    def _application(self, table: LakeTable) -> str:
        return f"replay-{self.id}-{table.name}"


def repeat_replays(settings: Settings, spark: SparkSession, step: RefineStep, ledger: pa.Table) -> None:
    """Replay on tables made anew from bronze what had been replayed before, each record as of the time it was tried then.

    Args:
        settings: where the lake is.
        spark: session to judge with.
        step: refine step of the new tables; no batch of it runs.
        ledger: the replay ledger of the old tables.
    """
    key = ["replayed_at", "replay_id"]
    for moment in ledger.group_by(key).aggregate([]).sort_by([(name, "ascending") for name in key]).to_pylist():
        again = Replay(settings, spark, step, moment["replay_id"])
        tried = ledger.join(_one_row(ledger, moment), key, join_type="left semi").select([*POSITION, "attempt"])
        found = again.untried()
        rows = open_rows(found.rows).join(tried, [*POSITION, "attempt"], join_type="left semi")
        for chunk in in_chunks(settings, step.place.path(DEAD_LETTERS), DeadLetters(rows, found.files), CHUNK_RECORDS):
            again.try_again(chunk, moment["replayed_at"])


def _one_row(like: pa.Table, row: Mapping[str, Any]) -> pa.Table:
    import pyarrow as pa

    return pa.Table.from_pylist([row], pa.schema([like.schema.field(name) for name in row]))


def in_chunks(settings: Settings, path: str, letters: DeadLetters, size: int) -> Iterator[pa.Table]:
    """Dead letters with their bytes, at most so many at a time and no more than bearable in memory; each file is read once.

    Args:
        settings: where the lake is.
        path: table of the dead letters.
        letters: which of them, in the order in which their files are taken.
        size: most records of a chunk.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    schema = arrow_schema((RECORD_KEY, RECORD_VALUE))
    kept: pa.Table | None = None
    for number in pc.unique(letters.rows["file"]).to_pylist():
        wanted = letters.rows.filter(pc.equal(letters.rows["file"], number)).sort_by("row")
        begin = 0
        for batch in iter_batches(settings, path, [letters.files[number]], schema, batch_rows=_READ_ROWS):
            end = begin + batch.num_rows
            here = wanted.filter(pc.and_(pc.greater_equal(wanted["row"], begin), pc.less(wanted["row"], end)))
            raw = batch.take(pc.subtract(here["row"], begin).combine_chunks())
            for name in RAW:
                here = here.append_column(name, raw.column(name))
            begin = end
            kept = here if kept is None else pa.concat_tables([kept, here])
            while kept.num_rows >= size:
                yield kept.slice(0, size)
                kept = kept.slice(size)
            if kept.num_rows and kept.nbytes > CHUNK_BYTES:
                yield kept
                kept = kept.slice(kept.num_rows)
    if kept is not None and kept.num_rows:
        yield kept


def next_attempt(dead: pa.Table, tried: Mapping[tuple[str, int, int], Mapping[str, Any]]) -> pa.Table:
    """Records that failed again: one attempt more, the first failure kept; pure.

    Args:
        dead: rows of the dead letters as for records that failed for the first time.
        tried: `attempt` and `first_failed_at` by coordinates.
    """
    import pyarrow as pa

    before = [tried[_position(row)] for row in dead.select(POSITION).to_pylist()]
    for name, values in {
        "attempt": pa.array([row["attempt"] + 1 for row in before], pa.int32()),
        "first_failed_at": pa.array([row["first_failed_at"] for row in before], pa.timestamp("us", tz="UTC")),
    }.items():
        dead = dead.set_column(dead.schema.get_field_index(name), name, values)
    return dead


def ledger_rows(chunk: pa.Table, placed: Iterable[Placed]) -> pa.Table:
    """What the replay ledger says of a chunk, without the replay and the time; pure.

    Args:
        chunk: dead letters that were tried.
        placed: what became of them.
    """
    import pyarrow as pa

    outcomes: dict[tuple[str, int, int], tuple[ReplayOutcome, str | None]] = {}
    for one in placed:
        for table, outcome in (
            (one.silver, ReplayOutcome.SILVER),
            (one.duplicates, ReplayOutcome.DUPLICATE),
            (one.dead_letters, ReplayOutcome.DEAD_LETTER),
        ):
            for row in () if table is None else table.select([*POSITION, "event_id"]).to_pylist():
                outcomes[_position(row)] = (outcome, row["event_id"])
    rows = [
        {**row, "outcome": str(outcomes[_position(row)][0]), "event_id": outcomes[_position(row)][1]}
        for row in chunk.select([*POSITION, "attempt", "entity", "reason"]).to_pylist()
    ]
    return pa.Table.from_pylist(rows, _noted_schema())


def _noted_schema() -> pa.Schema:
    return arrow_schema(tuple(c for c in REPLAYS.columns if c.name not in ("replay_id", "replayed_at")))


def _outcome(rows: pa.Table, outcome: ReplayOutcome) -> pa.Table:
    """Dead letters as rows of the ledger that came to one thing."""
    import pyarrow as pa

    schema = _noted_schema()
    return rows.append_column("outcome", pa.array([str(outcome)] * rows.num_rows, pa.string())).select(schema.names).cast(schema)


def count_outcomes(noted: pa.Table) -> Outcomes:
    """Rows of the ledger by reason and outcome; pure."""
    pairs = zip(noted["reason"].to_pylist(), noted["outcome"].to_pylist(), strict=True)
    return Counter((reason, ReplayOutcome(outcome)) for reason, outcome in pairs)


def by_reason(outcomes: Outcomes) -> dict[str, dict[str, int]]:
    """Reason → outcome → records, in JSON types; pure."""
    found: dict[str, dict[str, int]] = {}
    for (reason, outcome), count in sorted(outcomes.items()):
        found.setdefault(reason, {})[str(outcome)] = count
    return found


def figures(outcomes: Outcomes) -> dict[str, Any]:
    """The figures of an answer, in JSON types; pure."""
    totals: Counter[str] = Counter()
    for (_, outcome), count in outcomes.items():
        totals[str(outcome)] += count
    return {"selected": outcomes.total(), "outcomes": by_reason(outcomes), "totals": dict(totals)}


def _position(row: Mapping[str, Any]) -> tuple[str, int, int]:
    return row["kafka_topic"], row["kafka_partition"], row["kafka_offset"]

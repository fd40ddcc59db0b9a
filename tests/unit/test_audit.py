"""The audit passes on books that close, and finds and names everything that is planted into them."""

from __future__ import annotations

import copy
import csv
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa  # noqa: TID253 -- every test here builds Arrow tables
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crm_assets.monitoring.audit import AuditResult, audit
from crm_assets.monitoring.audit_result import Outcome
from crm_assets.monitoring.audit_sources import BATCH, REPLAYED, AuditSources, LineTotal, MartCheck, MartFindings, silver_columns_read
from crm_assets.monitoring.checksums import ChunkSums, halves_of
from crm_resources.contracts import contract_for
from crm_resources.contracts.canonical import column_digests, column_tokens, message_digest
from crm_resources.contracts.derive_arrow import arrow_schema
from crm_resources.contracts.entities import utc
from crm_resources.ledger import ledger_schema, payload_md5
from tests.canonical_messages import typed
from tests.oracle.lake_writer import nullable

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
PLURALS = ("events", "orders", "products", "profiles")

Row = dict[str, Any]


def placed(row: Row, **more: Any) -> Row:
    return {
        "kafka_topic": row["topic"],
        "kafka_partition": row["partition"],
        "kafka_offset": row["offset"],
        "ingested_at": NOW,
    } | more


def message(plural: str, event_id: str, key: str, sequence: int, amount: Decimal) -> Row:
    """A message on the wire with every required field."""
    envelope = {
        "event_id": event_id,
        "entity": plural[:-1],
        "entity_key": key,
        "sequence": sequence,
        "schema_version": 1,
        "event_time": utc(NOW),
        "source": "test",
        "run_id": "run",
    }
    own: dict[str, Row] = {
        "events": {"event_type": "view", "visitor_id": key, "page": "/é"},
        "orders": {
            "order_id": key,
            "status": "paid",
            "currency": "GBP",
            "channel": "web",
            "amount": f"{amount:f}",
            "lines": [{"line_number": 1, "product_id": "P", "quantity": 1, "unit_price": f"{amount:f}"}],
        },
        "products": {"product_id": key, "name": "x", "price": "1.5", "currency": "GBP", "active": True},
        "profiles": {"customer_id": key, "opted_out": False, "erased": False},
    }
    return envelope | own[plural]


@dataclass
class World:
    """Rows of everything between producer and marts, as lists that a test may doctor."""

    ledger: list[Row] = field(default_factory=list)
    bronze: list[Row] = field(default_factory=list)
    silver: dict[str, list[Row]] = field(default_factory=lambda: {p: [] for p in PLURALS})
    dead: list[Row] = field(default_factory=list)
    duplicates: list[Row] = field(default_factory=list)
    warehouse: dict[str, list[Row]] = field(default_factory=lambda: {p: [] for p in PLURALS})
    lines: Decimal = Decimal(0)
    kafka: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)
    batches: list[Row] = field(default_factory=list)
    replays: list[Row] = field(default_factory=list)
    marts: MartFindings = field(default_factory=lambda: MartFindings("there are no marts"))

    def add(self, plural: str, partition: int, defect: str | None = None, event_id: str | None = None, sequence: int | None = None) -> None:
        """One record that went where it belongs."""
        topic = f"demo.{plural}"
        offset = sum(r["topic"] == topic and r["partition"] == partition for r in self.ledger)
        event_id = event_id or f"id-{plural}-{partition}-{offset}"
        amount = Decimal("10.1001") + offset
        sent = message(plural, event_id, f"key-{partition}", offset if sequence is None else sequence, amount)
        dead = defect not in (None, "duplicate", "out_of_order")
        value = None if defect == "null_value" else json.dumps(sent | ({"source": defect} if dead else {})).encode()
        row = {
            "run_id": "run",
            "event_id": event_id,
            "entity": plural[:-1],
            "entity_key": sent["entity_key"],
            "sequence": sent["sequence"],
            "amount": amount if plural == "orders" and not dead else None,
            "payload_md5": payload_md5(value),
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "intended_at": NOW,
            "sent_at": NOW,
            "acked_at": NOW,
            "defect": defect,
            "refused": False,
            "typed_md5": None if dead else message_digest(plural[:-1], sent),
        }
        self.ledger.append(row)
        self.bronze.append(placed(row, value=value))
        if defect == "duplicate":
            self.duplicates.append(placed(row, event_id=event_id))
        elif dead:
            self.dead.append(placed(row, event_id=None, reason=defect, attempt=1))
        else:
            stored = typed(contract_for(plural).columns, sent)
            self.silver[plural].append(placed(row) | stored)
            self.warehouse[plural].append(placed(row) | copy.deepcopy(stored))
            self.lines += row["amount"] or 0
        low, _ = self.kafka.setdefault(topic, {}).get(partition, (0, 0))
        self.kafka[topic][partition] = (low, offset + 1)

    def note_batch(self, number: int, first: int, end: int) -> None:
        """The ledger rows of an ingest batch that captured the records from `first` to `end` of those sent."""
        captured: dict[tuple[str, int], list[int]] = {}
        for row in self.ledger[first:end]:
            captured.setdefault((row["topic"], row["partition"]), []).append(row["offset"])
        for (topic, partition), offsets in captured.items():
            values = ("generation", number, topic, partition, offsets[0], offsets[-1] + 1, len(offsets), len(offsets))
            self.batches.append(dict(zip(BATCH, values, strict=True)))

    def replay(self, letter: Row, outcome: str) -> None:
        """A replay's ledger row, and what it does to the tables."""
        place = {k: v for k, v in letter.items() if k.startswith("kafka_")}
        self.replays.append(place | {"attempt": letter["attempt"], "outcome": outcome, "replayed_at": NOW})
        if outcome == "dead_letter":
            self.dead.append(letter | {"attempt": letter["attempt"] + 1})
        elif outcome == "duplicate":
            self.duplicates.append({k: v for k, v in letter.items() if k not in ("reason", "attempt")})
        else:
            plural = letter["kafka_topic"].removeprefix("demo.")
            stored = typed(contract_for(plural).columns, message(plural, "replayed", "another key", 0, Decimal(0)))
            row = {k: v for k, v in letter.items() if k.startswith(("kafka_", "ingested"))} | stored
            self.silver[plural].append(row)
            self.warehouse[plural].append(copy.deepcopy(row))

    def sources(self) -> AuditSources:
        totals = LineTotal(str(sum(r["amount"] for r in self.warehouse["orders"])), str(self.lines))
        columns = [*PLACED, ("event_id", pa.string())]
        return AuditSources(
            ledger=lambda names: (b.select(list(names)) for b in pa.Table.from_pylist(self.ledger, ledger_schema()).to_batches(7)),
            bronze=lambda: batches(self.bronze, [*PLACED, ("value", pa.binary())]),
            silver={p: partial(self._silver, p) for p in PLURALS},
            dead_letters=reader(self.dead, [*columns, ("reason", pa.string()), ("attempt", pa.int32())]),
            duplicates=reader(self.duplicates, columns),
            warehouse={p: partial(self._warehouse, p) for p in PLURALS},
            warehouse_tokens=self._tokens,
            order_totals=lambda: totals,
            marts=lambda: self.marts,
            batches=reader(self.batches, BATCH_SCHEMA),
            replays=reader(self.replays, REPLAY_SCHEMA),
            kafka_offsets=self.kafka,
        )

    def _silver(self, plural: str, whole: bool) -> Iterator[pa.RecordBatch]:
        return iter(pa.Table.from_pylist(self.silver[plural], silver_schema(plural, whole)).to_batches(5))

    def _warehouse(self, plural: str) -> Iterator[pa.RecordBatch]:
        for batch in pa.Table.from_pylist(self.warehouse[plural], silver_schema(plural, True)).to_batches(5):
            halves = np.frombuffer(column_digests(contract_for(plural), batch), ">i8").astype(np.int64).reshape(-1, 2)
            names = [*(n for n, _ in PLACED), "event_id", "typed_high", "typed_low"]
            arrays = [*(batch.column(n) for n in names[:5]), pa.array(halves[:, 0]), pa.array(halves[:, 1])]
            if plural == "orders":
                names, arrays = [*names, "amount"], [*arrays, batch.column("amount").cast(pa.string())]
            yield pa.RecordBatch.from_arrays(arrays, names)

    def _tokens(self, plural: str, event_ids: list[str]) -> dict[str, dict[str, str]]:
        rows = [r for r in self.warehouse[plural] if r["event_id"] in event_ids]
        (batch,) = pa.Table.from_pylist(rows, silver_schema(plural, True)).to_batches() if rows else (None,)
        return {} if batch is None else {r["event_id"]: t for r, t in zip(rows, column_tokens(contract_for(plural), batch), strict=True)}

    def audit(self, cutoff: datetime | None = None, lists: Path | None = None) -> AuditResult:
        return audit(self.sources(), cutoff=cutoff, lists=lists)


PLACED = [
    ("kafka_topic", pa.string()),
    ("kafka_partition", pa.int32()),
    ("kafka_offset", pa.int64()),
    ("ingested_at", pa.timestamp("us", tz="UTC")),
]


BATCH_SCHEMA = [(name, pa.string() if name in ("generation", "kafka_topic") else pa.int64()) for name in BATCH]
REPLAY_TYPES = {"kafka_topic": pa.string(), "outcome": pa.string(), "replayed_at": pa.timestamp("us", tz="UTC")}
REPLAY_SCHEMA = [(name, REPLAY_TYPES.get(name, pa.int64())) for name in REPLAYED]


def silver_schema(plural: str, whole: bool) -> pa.Schema:
    return nullable(arrow_schema(silver_columns_read(contract_for(plural), whole)))


def batches(rows: list[dict[str, Any]], columns: list[tuple[str, pa.DataType]]) -> Iterator[pa.RecordBatch]:
    return iter(pa.Table.from_pylist(rows, pa.schema(columns)).to_batches(5))


def reader(rows: list[dict[str, Any]], columns: list[tuple[str, pa.DataType]]) -> Callable[[], Iterator[pa.RecordBatch]]:
    return lambda: batches(rows, columns)


@pytest.fixture
def world() -> World:
    made = World()
    for number in range(12):
        for plural in PLURALS:
            made.add(plural, number % 2)
    made.add("orders", 0, "duplicate", made.ledger[1]["event_id"])
    made.add("orders", 1, "corrupt_json")
    made.add("events", 1, "null_value")
    made.add("events", 0, "conflicting_duplicate", made.ledger[0]["event_id"])
    made.add("profiles", 0, "out_of_order", sequence=2)
    made.note_batch(0, 0, 20)
    made.note_batch(1, 20, len(made.ledger))
    return made


ONE_PLACE = "each bronze record is in silver, dead letters or duplicates, and in one only"
WAREHOUSE_CONTENT = "typed content in the warehouse is that of silver"
ORDER = "sequences of a key rise along the offsets"


def broken(result: AuditResult) -> dict[str, int]:
    return {check.name: check.broken for check in result.checks if not check.passed}


def test_closed_books_pass(world: World) -> None:
    result = world.audit()
    assert broken(result) == {}
    assert result.passed
    assert result.counts.acked == result.counts.bronze == 53
    assert (result.counts.silver, result.counts.warehouse, result.counts.dead_letters, result.counts.duplicates) == (49, 49, 3, 1)
    assert (result.counts.typed, result.counts.untyped) == (49, 0)
    sums = result.checksums
    assert sums.ledger_raw == sums.bronze_raw
    assert sums.ledger_typed == sums.silver_typed == sums.silver_all == sums.warehouse_all
    assert result.ledger_revenue == result.warehouse_revenue > 0
    assert result.dead_letter_reasons == {"conflicting_duplicate": 1, "corrupt_json": 1, "null_value": 1}
    assert result.verdict_text().splitlines() == [
        "missing 0, duplicated 0, content equal, order kept, books closed",
        "NOT CHECKED I5 revenue in the marts is that of the ledger: there are no marts",
    ]


def test_nothing_sent_yet_passes() -> None:
    assert World().audit().passed


def test_a_row_lost_before_bronze_is_named(world: World) -> None:
    lost = world.silver["events"].pop(3)
    world.warehouse["events"].pop(3)
    world.bronze = [r for r in world.bronze if (r["kafka_topic"], r["kafka_partition"], r["kafka_offset"]) != key(lost)]
    result = world.audit()
    assert result.missing == (lost["event_id"],)
    assert result.missing_rows == 1
    assert broken(result)["every acked record is in bronze"] == 1
    assert broken(result)["offsets in bronze have no gap"] == 1
    assert "raw bytes in bronze are those that were sent" in broken(result)


def test_the_last_row_of_a_partition_lost_is_found_without_a_gap(world: World) -> None:
    last = world.silver["products"].pop()
    world.warehouse["products"].pop()
    world.bronze = [r for r in world.bronze if (r["kafka_topic"], r["kafka_partition"], r["kafka_offset"]) != key(last)]
    result = world.audit()
    assert result.missing == (last["event_id"],)
    assert broken(result)["bronze reaches from the first to the last offset of Kafka"] == 1


def test_a_row_lost_between_bronze_and_silver_is_named(world: World) -> None:
    lost = world.silver["orders"].pop(2)
    world.warehouse["orders"].pop(2)
    result = world.audit()
    assert result.missing == (lost["event_id"],)
    assert broken(result)["every bronze record was placed"] == 1


def test_a_row_lost_between_silver_and_warehouse_is_named(world: World) -> None:
    lost = world.warehouse["orders"].pop(2)
    result = world.audit()
    assert result.missing == (lost["event_id"],)
    assert set(broken(result)) == {
        "every silver row is in the warehouse",
        WAREHOUSE_CONTENT,
        "revenue in the warehouse is that of the ledger",
        "order lines add up to their orders",
    }


def test_a_dead_letter_that_vanished_is_found(world: World) -> None:
    world.dead.pop()
    assert broken(world.audit())["every bronze record was placed"] == 1


def test_a_row_doubled_in_silver_is_named(world: World) -> None:
    world.silver["profiles"].append(dict(world.silver["profiles"][0]))
    result = world.audit()
    assert result.doubled == (world.silver["profiles"][0]["event_id"],)
    assert result.doubled_rows == 1
    assert broken(result) == {
        "event ids are unique in silver": 1,
        "each coordinate stands once in each place": 1,
        "typed content in silver is that which was sent": 1,
        WAREHOUSE_CONTENT: 1,
        ONE_PLACE: 1,
    }


def test_a_resent_record_accepted_a_second_time_is_named(world: World) -> None:
    again = world.duplicates.pop()
    accepted = next(r for r in world.silver["orders"] if r["event_id"] == again["event_id"]) | again
    world.silver["orders"].append(accepted)
    world.warehouse["orders"].append(accepted)
    world.lines += accepted["amount"]
    result = world.audit()
    assert result.doubled == (again["event_id"],)
    # The repeated message has an amount of its own, so that its content is not that of the first one.
    assert {"event ids are unique in silver", "event ids are unique in the warehouse"} <= set(broken(result))


def test_a_row_doubled_in_the_warehouse_is_named(world: World) -> None:
    world.warehouse["orders"].append(dict(world.warehouse["orders"][5]))
    result = world.audit()
    assert result.doubled == (world.warehouse["orders"][5]["event_id"],)
    assert broken(result)["event ids are unique in the warehouse"] == 1


def test_a_batch_written_twice_to_bronze_is_found(world: World) -> None:
    world.bronze += copy.deepcopy(world.bronze[:5])
    assert broken(world.audit())["each coordinate stands once in each place"] == 5


def test_one_changed_byte_is_named(world: World) -> None:
    world.bronze[9]["value"] += b" "
    result = world.audit()
    (check,) = [c for c in result.checks if not c.passed]
    topic, partition, offset = key(world.bronze[9])
    assert (check.invariant, check.broken) == ("I3", 1)
    assert check.examples == (f"{world.ledger[9]['event_id']} {topic}[{partition}]@{offset}",)
    assert result.checksums.ledger_raw != result.checksums.bronze_raw


def test_two_records_swapped_are_named_although_the_order_free_sum_is_equal(world: World) -> None:
    one, two = world.bronze[8], world.bronze[16]
    assert key(one)[:2] == key(two)[:2], "between two partitions each one's sum would tell"
    one["value"], two["value"] = two["value"], one["value"]
    result = world.audit()
    (check,) = [c for c in result.checks if not c.passed]
    assert (check.invariant, check.broken) == ("I3", 2)
    assert str(result.checksums.ledger_raw) == str(result.checksums.bronze_raw)


def test_a_changed_amount_in_silver_is_named_with_its_field(world: World) -> None:
    row = world.silver["orders"][3]
    row["amount"] += Decimal("0.0001")
    result = world.audit()
    check = next(c for c in result.checks if c.name == "typed content in silver is that which was sent")
    topic, partition, offset = key(row)
    assert check.broken == 1
    (example,) = check.examples
    assert example.startswith(f"{row['event_id']} {topic}[{partition}]@{offset} amount is 1")
    assert "in silver, not 1" in example


def test_a_changed_text_in_the_warehouse_is_named_with_its_field(world: World) -> None:
    row = world.warehouse["events"][3]
    row["page"] = "/e"
    assert broken(world.audit()) == {WAREHOUSE_CONTENT: 1}
    (example,) = next(c.examples for c in world.audit().checks if c.name == WAREHOUSE_CONTENT)
    assert example.endswith("page is 2:/e in warehouse, not 2:/é")


def test_a_ledger_without_typed_checksums_is_said_loudly(world: World) -> None:
    for row in world.ledger:
        row["typed_md5"] = None
    result = world.audit()
    assert result.passed
    (check,) = [c for c in result.checks if c.name == "typed content in silver is that which was sent"]
    assert check.outcome is Outcome.NOT_CHECKED
    assert "49 of 49 accepted records have no typed checksum" in result.verdict_text()
    # What the lake and the warehouse hold is compared all the same.
    world.warehouse["profiles"][0]["erased"] = True
    assert broken(world.audit()) == {WAREHOUSE_CONTENT: 1}


def test_two_records_of_a_key_swapped_in_sequence_are_named(world: World) -> None:
    one, two = world.silver["products"][4], world.silver["products"][6]
    assert one["entity_key"] == two["entity_key"]
    one["sequence"], two["sequence"] = two["sequence"], one["sequence"]
    result = world.audit()
    check = next(c for c in result.checks if c.invariant == "I4")
    topic, partition, offset = key(two)
    assert check.broken == 1
    assert check.examples == (f"{two['event_id']} {topic}[{partition}]@{offset}",)


def test_a_producer_that_sent_a_key_out_of_order_is_found(world: World) -> None:
    world.add("events", 0, sequence=1)
    assert broken(world.audit())[ORDER] == 1


def test_what_was_ordered_to_be_out_of_order_is_counted_and_left_out(world: World) -> None:
    result = world.audit()
    check = next(c for c in result.checks if c.invariant == "I4")
    assert check.passed
    assert "left out, ordered to be out of order" in check.detail
    world.ledger[-1]["defect"] = None
    assert broken(world.audit()) == {ORDER: 1}


def test_keys_of_two_runs_may_overlap(world: World) -> None:
    world.add("events", 0, sequence=1)
    world.ledger[-1]["run_id"] = world.silver["events"][-1]["run_id"] = "other"
    assert ORDER not in broken(world.audit())


BATCHES = "ranges of the ingest batches join and hold as many rows in bronze"
REPLAYS = "the replay ledger is complete, and replayed records are where it says"


def examples(result: AuditResult, name: str) -> tuple[str, ...]:
    return next(check.examples for check in result.checks if check.name == name)


def test_a_batch_with_a_row_too_few_in_bronze_is_named(world: World) -> None:
    lost = world.bronze.pop(30)
    (example,) = examples(world.audit(), BATCHES)
    topic, partition, _ = key(lost)
    assert example.startswith(f"{topic}[{partition}]: batch 1 of generati ")
    assert "rows in bronze, not" in example


def test_a_batch_whose_rows_read_are_not_those_written_is_named(world: World) -> None:
    world.batches[3]["rows_in"] += 1
    (example,) = examples(world.audit(), BATCHES)
    assert f"{world.batches[3]['kafka_topic']}[{world.batches[3]['kafka_partition']}]: batch 0 of " in example


def test_a_batch_that_the_ledger_lost_is_named(world: World) -> None:
    world.note_batch(2, len(world.ledger), len(world.ledger))
    world.add("events", 0)
    world.note_batch(3, len(world.ledger) - 1, len(world.ledger))
    assert BATCHES not in broken(world.audit())
    lost = next(b for b in world.batches if b["batch_id"] == 1 and (b["kafka_topic"], b["kafka_partition"]) == ("demo.events", 0))
    world.batches.remove(lost)
    (example,) = examples(world.audit(), BATCHES)
    assert example == f"demo.events[0]: batch 3 of generati begins at {lost['to_offset']}, the one before it ended at {lost['from_offset']}"


def test_a_batch_noted_twice_is_named(world: World) -> None:
    world.batches.append(dict(world.batches[0]))
    assert broken(world.audit()) == {BATCHES: 1}


def test_rows_in_bronze_that_no_batch_captured_are_named(world: World) -> None:
    world.batches = [b for b in world.batches if b["batch_id"] == 0]
    named = examples(world.audit(), BATCHES)
    assert named
    assert all("are in no batch" in example for example in named)


def test_records_older_than_the_batch_ledger_are_told_as_unchecked(world: World) -> None:
    world.batches = [b for b in world.batches if b["batch_id"] == 1]
    result = world.audit()
    assert result.passed
    assert "NOT CHECKED I5 " + BATCHES + ": 20 records were captured before the batch ledger began" in result.verdict_text()


def replayed(world: World) -> World:
    """A record that is good now, one that is a duplicate now, and one that failed twice more."""
    first, second, third = world.dead
    world.replay(first, "silver")
    world.replay(second, "duplicate")
    world.replay(third, "dead_letter")
    world.replay(world.dead[-1], "dead_letter")
    return world


def test_a_record_refused_without_an_order_has_ended_well_when_a_replay_has_accepted_it(world: World) -> None:
    row = next(r for r in world.ledger if r["topic"] == "demo.orders" and r["defect"] is None)
    letter = placed(row, event_id=None, reason="future_event", attempt=1)
    world.dead.append(letter)
    place = {k: v for k, v in letter.items() if k.startswith("kafka_")}
    world.replays.append(place | {"attempt": 1, "outcome": "silver", "replayed_at": NOW})

    assert world.audit().passed, world.audit().verdict_text()
    world.replays.clear()
    assert not world.audit().passed


def test_the_books_close_after_replays(world: World) -> None:
    result = replayed(world).audit()
    assert result.passed, result.verdict_text()
    assert (result.counts.dead_letters, result.counts.duplicates, result.counts.replayed) == (1, 2, 4)
    assert result.dead_letter_reasons == {"conflicting_duplicate": 1}


@pytest.mark.parametrize(
    ("plant", "text"),
    [
        (lambda w: w.replays.append(dict(w.replays[0])), "attempt 1 stands twice in the replay ledger"),
        (
            lambda w: w.silver[w.replays[0]["kafka_topic"].removeprefix("demo.")].pop(),
            "attempt 1 went to silver by the replay ledger, but is not",
        ),
        (lambda w: w.duplicates.pop(), "attempt 1 went to the duplicates by the replay ledger, but is not there"),
        (lambda w: w.replays.pop(2), "attempt 1 has a next one, but the replay ledger does not say so"),
        (lambda w: w.dead.pop(), "attempt 2 failed again by the replay ledger, but the next attempt is not among the dead letters"),
        (lambda w: w.dead.append(dict(w.dead[0])), "attempt 1 stands twice among the dead letters"),
        (lambda w: w.dead.pop(0), "attempt 1 was replayed, but is not among the dead letters"),
    ],
)
def test_a_fault_planted_into_the_replays_is_named(world: World, plant: Callable[[World], Any], text: str) -> None:
    plant(replayed(world))
    (example,) = examples(world.audit(), REPLAYS)
    assert text in example
    assert "]@" in example


def test_a_replayed_record_without_its_ledger_row_is_in_two_places(world: World) -> None:
    replayed(world).replays.pop(0)
    result = world.audit()
    assert broken(result)[ONE_PLACE] == 1


def test_a_replay_that_is_under_way_is_not_judged(world: World) -> None:
    replayed(world)
    world.replays[0]["replayed_at"] = NOW + timedelta(seconds=50)
    world.silver[world.replays[0]["kafka_topic"].removeprefix("demo.")].pop()
    world.warehouse[world.replays[0]["kafka_topic"].removeprefix("demo.")].pop()
    assert broken(world.audit(cutoff=NOW + timedelta(seconds=1))) == {}


def test_marts_that_hold_another_revenue_are_found(world: World) -> None:
    revenue = sum(r["amount"] for r in world.warehouse["orders"])
    world.marts = MartFindings("", str(revenue - 10), "10", str(revenue))
    assert world.audit().passed
    assert world.audit().mart_revenue == revenue - 10
    off = (MartCheck("daily sales are the sums of the lines", ("daily_sales 2026-01-01/known gross_amount: mart 1, expected 2",), 1),)
    world.marts = MartFindings("", str(revenue - Decimal("9.99")), "10", str(revenue), off)
    result = world.audit()
    assert broken(result) == {"revenue in the marts is that of the ledger": 1, "daily sales are the sums of the lines": 1}
    assert "daily_sales 2026-01-01/known gross_amount: mart 1, expected 2" in result.verdict_text()


def test_every_broken_record_is_in_the_lists(world: World, tmp_path: Path) -> None:
    assert world.audit(lists=tmp_path / "lists.csv").lists is None
    lost = [world.silver["events"].pop() for _ in range(5)]
    world.silver["orders"].append(dict(world.silver["orders"][0]))
    lists = world.audit(lists=tmp_path / "lists.csv").lists
    assert lists is not None
    rows = list(csv.DictReader(lists.open()))
    assert {r["event_id"] for r in rows if r["list"] == "missing"} == {r["event_id"] for r in lost}
    assert [r["event_id"] for r in rows if r["list"] == "doubled"] == [world.silver["orders"][0]["event_id"]] * 2
    assert {r["coordinate"] for r in rows if r["list"] == "missing"} == {f"{t}[{p}]@{o}" for t, p, o in map(key, lost)}


def test_a_dead_letter_with_another_reason_than_ordered_is_found(world: World) -> None:
    world.dead[0]["reason"] = "null_value"
    assert broken(world.audit()) == {"dead letters carry the reasons that were ordered": 2}


def test_a_changed_cent_is_found(world: World) -> None:
    world.warehouse["orders"][3]["amount"] += Decimal("0.0001")
    assert set(broken(world.audit())) == {
        WAREHOUSE_CONTENT,
        "revenue in the warehouse is that of the ledger",
        "order lines add up to their orders",
    }


def test_lost_order_lines_are_found(world: World) -> None:
    world.lines -= Decimal("0.01")
    assert set(broken(world.audit())) == {"order lines add up to their orders"}


def test_a_record_in_two_places_is_found(world: World) -> None:
    world.dead.append(world.silver["events"][0] | {"reason": "corrupt_json", "attempt": 1})
    result = world.audit()
    assert broken(result)[ONE_PLACE] == 1


def test_a_good_record_among_the_dead_letters_is_named(world: World) -> None:
    refused = world.silver["events"].pop(0)
    world.warehouse["events"].pop(0)
    world.dead.append(refused | {"reason": "invalid_field", "attempt": 1})
    (example,) = next(c.examples for c in world.audit().checks if c.name == "each record ended where its ledger row says")
    assert refused["event_id"] in example


def test_a_faulty_record_that_was_accepted_is_found(world: World) -> None:
    refused = world.dead.pop(0)
    accepted = world.silver["orders"][0] | {k: v for k, v in refused.items() if k.startswith("kafka_")} | {"event_id": "x"}
    world.silver["orders"].append(accepted)
    world.warehouse["orders"].append(accepted)
    world.lines += accepted["amount"]
    found = broken(world.audit())
    assert found["each record ended where its ledger row says"] == 1
    assert "revenue in the warehouse is that of the ledger" in found


def test_rows_that_came_from_nowhere_are_found(world: World) -> None:
    ghost = world.silver["events"][0] | {"kafka_offset": 999, "event_id": "ghost"}
    world.silver["events"].append(ghost)
    world.warehouse["events"].append(ghost | {"kafka_offset": 998})
    assert broken(world.audit()) == {
        "every silver row is in the warehouse": 1,
        "nothing is placed that is not in bronze": 1,
        "the warehouse holds nothing that silver lacks": 1,
        WAREHOUSE_CONTENT: 1,
        ONE_PLACE: 1,
    }


def test_a_topic_made_anew_under_an_old_ledger_is_explained(world: World) -> None:
    world.ledger.append(dict(world.ledger[0]))
    (check,) = [c for c in world.audit().checks if not c.passed and "each coordinate" in c.name]
    assert "made anew" in check.detail


def test_records_of_a_producer_without_a_ledger_are_counted_and_not_missed(world: World) -> None:
    world.ledger = [r for r in world.ledger if r["topic"] != "demo.products"]
    result = world.audit()
    assert result.passed
    assert result.counts.unledgered == 12


def test_a_refused_record_is_counted_and_not_missed(world: World) -> None:
    world.ledger.append(world.ledger[0] | {"event_id": "r", "partition": None, "offset": None, "acked_at": None, "refused": True})
    result = world.audit()
    assert result.passed
    assert result.counts.refused == 1


def test_what_is_under_way_is_not_judged(world: World) -> None:
    late = NOW + timedelta(seconds=50)
    world.add("events", 0)
    world.ledger[-1]["acked_at"] = late
    world.bronze.pop()
    world.silver["events"].pop()
    world.warehouse["events"].pop()
    world.add("orders", 0)
    world.bronze[-1]["ingested_at"] = late
    world.silver["orders"].pop()
    world.warehouse["orders"].pop()
    world.lines -= world.ledger[-1]["amount"]
    world.batches = []
    assert not world.audit().passed
    result = world.audit(cutoff=NOW + timedelta(seconds=1))
    assert broken(result) == {}
    assert result.counts.in_flight == 2


@given(st.lists(st.binary(max_size=40), min_size=1, max_size=60), st.randoms())
@settings(deadline=None)
def test_the_checksum_does_not_depend_on_order_or_grouping(values: list[bytes], random: Any) -> None:
    digests = [payload_md5(v) for v in values]
    halves, offsets = halves_of(b"".join(digests)), np.arange(len(values)) * 9_000
    whole, parts = ChunkSums(), ChunkSums()
    whole.add("t", 0, offsets, halves)
    shuffled = np.array(random.sample(range(len(values)), len(values)))
    for places in np.array_split(shuffled, 3):
        parts.add("t", 0, offsets[places], halves[places])
    assert whole.differing(parts) == []
    assert whole.total() == parts.total()
    assert (whole.total().high, whole.total().low) == (
        sum(int.from_bytes(d[:8], "big") for d in digests) % 2**64,
        sum(int.from_bytes(d[8:], "big") for d in digests) % 2**64,
    )


def key(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["kafka_topic"], row["kafka_partition"], row["kafka_offset"]

"""The audit passes on books that close, and finds and names everything that is planted into them."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import pyarrow as pa  # noqa: TID253 -- every test here builds Arrow tables
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crm_assets.monitoring.audit import AuditResult, RawChecksum, audit
from crm_assets.monitoring.audit_sources import AuditSources, LineTotal
from crm_resources.ledger import ledger_schema, payload_md5

NOW = datetime(2026, 1, 1, 12, 0, tzinfo=UTC)
PLURALS = ("events", "orders", "products", "profiles")


def placed(row: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "kafka_topic": row["topic"],
        "kafka_partition": row["partition"],
        "kafka_offset": row["offset"],
        "ingested_at": NOW,
    } | more


@dataclass
class World:
    """Rows of everything between producer and warehouse, as lists that a test may doctor."""

    ledger: list[dict[str, Any]] = field(default_factory=list)
    bronze: list[dict[str, Any]] = field(default_factory=list)
    silver: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {p: [] for p in PLURALS})
    dead: list[dict[str, Any]] = field(default_factory=list)
    duplicates: list[dict[str, Any]] = field(default_factory=list)
    warehouse: dict[str, list[dict[str, Any]]] = field(default_factory=lambda: {p: [] for p in PLURALS})
    lines: Decimal = Decimal(0)
    kafka: dict[str, dict[int, tuple[int, int]]] = field(default_factory=dict)

    def add(self, plural: str, partition: int, defect: str | None = None, event_id: str | None = None) -> None:
        """One record that went where it belongs."""
        topic = f"demo.{plural}"
        offset = sum(r["topic"] == topic and r["partition"] == partition for r in self.ledger)
        event_id = event_id or f"id-{plural}-{partition}-{offset}"
        value = f"{event_id}/{defect}".encode() if defect != "null_value" else None
        amount = Decimal("10.1001") + offset if plural == "orders" and defect in (None, "duplicate") else None
        row = {
            "run_id": "run",
            "event_id": event_id,
            "entity": plural[:-1],
            "entity_key": "k",
            "sequence": 1,
            "amount": amount,
            "payload_md5": payload_md5(value),
            "topic": topic,
            "partition": partition,
            "offset": offset,
            "intended_at": NOW,
            "sent_at": NOW,
            "acked_at": NOW,
            "defect": defect,
            "refused": False,
        }
        self.ledger.append(row)
        self.bronze.append(placed(row, value=value))
        if defect == "duplicate":
            self.duplicates.append(placed(row, event_id=event_id))
        elif defect:
            self.dead.append(placed(row, event_id=None, reason=defect))
        else:
            self.silver[plural].append(placed(row, event_id=event_id))
            self.warehouse[plural].append(placed(row, event_id=event_id) | ({"amount": str(amount)} if plural == "orders" else {}))
            self.lines += amount or 0
        low, _ = self.kafka.setdefault(topic, {}).get(partition, (0, 0))
        self.kafka[topic][partition] = (low, offset + 1)

    def sources(self) -> AuditSources:
        totals = LineTotal(str(sum(Decimal(r["amount"]) for r in self.warehouse["orders"])), str(self.lines))
        columns = [*PLACED, ("event_id", pa.string())]
        return AuditSources(
            ledger=lambda names: (b.select(list(names)) for b in pa.Table.from_pylist(self.ledger, ledger_schema()).to_batches(7)),
            bronze=lambda with_value: batches(self.bronze, PLACED + ([("value", pa.binary())] if with_value else [])),
            silver={p: reader(self.silver[p], columns) for p in PLURALS},
            dead_letters=reader(self.dead, [*columns, ("reason", pa.string())]),
            duplicates=reader(self.duplicates, columns),
            warehouse={p: reader(self.warehouse[p], columns + ([("amount", pa.string())] if p == "orders" else [])) for p in PLURALS},
            order_totals=lambda: totals,
            kafka_offsets=self.kafka,
        )

    def audit(self, cutoff: datetime | None = None) -> AuditResult:
        return audit(self.sources(), cutoff=cutoff)


PLACED = [
    ("kafka_topic", pa.string()),
    ("kafka_partition", pa.int32()),
    ("kafka_offset", pa.int64()),
    ("ingested_at", pa.timestamp("us", tz="UTC")),
]


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
    return made


def broken(result: AuditResult) -> dict[str, int]:
    return {check.name: check.broken for check in result.checks if not check.passed}


def test_closed_books_pass(world: World) -> None:
    result = world.audit()
    assert broken(result) == {}
    assert result.passed
    assert result.counts.acked == result.counts.bronze == 52
    assert (result.counts.silver, result.counts.warehouse, result.counts.dead_letters, result.counts.duplicates) == (48, 48, 3, 1)
    assert result.ledger_checksum == result.bronze_checksum
    assert result.ledger_revenue == result.warehouse_revenue > 0
    assert result.dead_letter_reasons == {"conflicting_duplicate": 1, "corrupt_json": 1, "null_value": 1}
    assert result.verdict_text() == "missing 0, duplicated 0, content equal, books closed"


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
    assert broken(result) == {"event ids are unique in silver": 1, "each coordinate stands once in each place": 1}


def test_a_resent_record_accepted_a_second_time_is_named(world: World) -> None:
    again = world.duplicates.pop()
    world.silver["orders"].append(again)
    amount = next(r["amount"] for r in world.ledger if r["defect"] == "duplicate")
    world.warehouse["orders"].append(again | {"amount": str(amount)})
    world.lines += amount
    result = world.audit()
    assert result.doubled == (again["event_id"],)
    assert set(broken(result)) == {"event ids are unique in silver", "event ids are unique in the warehouse"}


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
    (check,) = [c for c in result.checks if c.invariant == "I3"]
    topic, partition, offset = key(world.bronze[9])
    assert check.examples == (f"{topic}[{partition}]@{offset}",)
    assert check.broken == 1
    assert result.ledger_checksum != result.bronze_checksum


def test_two_records_swapped_are_named_although_the_order_free_sum_is_equal(world: World) -> None:
    one, two = world.bronze[8], world.bronze[12]
    one["value"], two["value"] = two["value"], one["value"]
    result = world.audit()
    (check,) = [c for c in result.checks if not c.passed]
    assert (check.invariant, check.broken) == ("I3", 2)
    assert str(result.ledger_checksum) == str(result.bronze_checksum)


def test_a_changed_cent_is_found(world: World) -> None:
    world.warehouse["orders"][3]["amount"] = str(Decimal(world.warehouse["orders"][3]["amount"]) + Decimal("0.0001"))
    assert set(broken(world.audit())) == {"revenue in the warehouse is that of the ledger", "order lines add up to their orders"}


def test_lost_order_lines_are_found(world: World) -> None:
    world.lines -= Decimal("0.01")
    assert set(broken(world.audit())) == {"order lines add up to their orders"}


def test_a_record_in_two_places_is_found(world: World) -> None:
    world.dead.append(world.silver["events"][0] | {"reason": "corrupt_json"})
    result = world.audit()
    assert broken(result)["no record is in two places"] == 1


def test_a_good_record_among_the_dead_letters_is_named(world: World) -> None:
    refused = world.silver["events"].pop(0)
    world.warehouse["events"].pop(0)
    world.dead.append(refused | {"reason": "invalid_field"})
    (example,) = next(c.examples for c in world.audit().checks if c.name == "each record ended where its ledger row says")
    assert refused["event_id"] in example


def test_a_faulty_record_that_was_accepted_is_found(world: World) -> None:
    accepted = world.dead.pop(0)
    world.silver["orders"].append(accepted | {"event_id": "x"})
    world.warehouse["orders"].append(accepted | {"event_id": "x", "amount": "0"})
    assert broken(world.audit()) == {"each record ended where its ledger row says": 1}


def test_rows_that_came_from_nowhere_are_found(world: World) -> None:
    ghost = world.silver["events"][0] | {"kafka_offset": 999, "event_id": "ghost"}
    world.silver["events"].append(ghost)
    world.warehouse["events"].append(ghost | {"kafka_offset": 998})
    assert broken(world.audit()) == {
        "every silver row is in the warehouse": 1,
        "nothing is placed that is not in bronze": 1,
        "the warehouse holds nothing that silver lacks": 1,
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
    assert not world.audit().passed
    result = world.audit(cutoff=NOW + timedelta(seconds=1))
    assert broken(result) == {}
    assert result.counts.in_flight == 2


@given(st.lists(st.binary(max_size=40), max_size=60), st.randoms())
@settings(deadline=None)
def test_the_checksum_does_not_depend_on_order_or_grouping(values: list[bytes], random: Any) -> None:
    digests = [payload_md5(v) for v in values]
    records = list(enumerate(digests))
    whole = RawChecksum().plus("t", 0, records)
    random.shuffle(records)
    cut = len(records) // 3
    assert RawChecksum().plus("t", 0, records[:cut]).plus("t", 0, records[cut:]) == whole
    assert (whole.high, whole.low) == (
        sum(int.from_bytes(d[:8], "big") for d in digests) % 2**64,
        sum(int.from_bytes(d[8:], "big") for d in digests) % 2**64,
    )


def key(row: dict[str, Any]) -> tuple[str, int, int]:
    return row["kafka_topic"], row["kafka_partition"], row["kafka_offset"]

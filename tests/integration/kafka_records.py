"""Reads back what a topic holds, for tests that compare it with the ledger."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crm_resources import kafka
from crm_resources.ledger import ledger_dir, ledger_files, read_ledger
from crm_resources.settings import Settings


@dataclass(frozen=True)
class Record:
    """One Kafka record."""

    topic: str
    partition: int
    offset: int
    key: bytes | None
    value: bytes | None


def read_all(settings: Settings, topics: Sequence[str] | None = None) -> list[Record]:
    """Every record of these topics, or of the data set's own, by topic and partition in offset order."""
    from confluent_kafka import TopicPartition

    ends = {
        (topic, partition): span for topic in kafka.observe(settings, topics) for partition, span in kafka.offsets(settings, topic).items()
    }
    wanted = sum(high - low for low, high in ends.values())
    found: list[Record] = []
    consumer = kafka.consumer(settings, "test-reader")
    try:
        consumer.assign([TopicPartition(topic, partition, low) for (topic, partition), (low, _) in ends.items()])
        while len(found) < wanted:
            messages = consumer.consume(min(5000, wanted - len(found)), timeout=20)
            assert messages, f"only {len(found)} of {wanted} records came back"
            for m in messages:
                assert m.error() is None, m.error()
                found.append(Record(m.topic(), m.partition(), m.offset(), m.key(), m.value()))
    finally:
        consumer.close()
    return sorted(found, key=lambda r: (r.topic, r.partition, r.offset))


def read_ledger_rows(settings: Settings, folder: Path | None = None) -> list[dict[str, Any]]:
    """Every row of the ledgers of a folder, or of those the audit reads."""
    return [
        row
        for path in ledger_files(folder or ledger_dir(settings.environment_dir))
        for batch in read_ledger(path)
        for row in batch.to_pylist()
    ]

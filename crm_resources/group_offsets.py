"""Committed offsets of the stream's consumer groups, so that `kafka-consumer-groups` and every exporter show its lag.

Spark keeps its offsets in its checkpoint and tells Kafka nothing. The stream commits where its tables stand, after they stand there.
Belongs here: names of the groups, and committing. Not here: measuring lag (`kafka`), or when to commit (the driver).
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from crm_resources import kafka
from crm_resources.settings import Settings

if TYPE_CHECKING:
    from confluent_kafka import Consumer

LOG = logging.getLogger(__name__)

Partition = tuple[str, int]
"""Topic and partition."""


def bronze_group(settings: Settings) -> str:
    """Group whose offsets say what is in bronze."""
    return f"crm-{settings.env}-bronze"


def silver_group(settings: Settings) -> str:
    """Group whose offsets say what is refined: in silver, dead letters or duplicates."""
    return f"crm-{settings.env}-silver"


class GroupOffsets:
    """Commits offsets for a group that has no members, in a thread of its own: a broker that does not answer must not hold up the tables.

    A failure is logged and made good with the next offsets.

    Args:
        settings: where Kafka is.
        group: name of the group.
    """

    def __init__(self, settings: Settings, group: str) -> None:
        self._settings = settings
        self._group = group
        self._client: Consumer | None = None
        self._lock = threading.Lock()
        self._ends: dict[Partition, int] = {}
        self._pool = ThreadPoolExecutor(1, thread_name_prefix=f"offsets-{group}")

    def commit(self, ends: Mapping[Partition, int]) -> None:
        """Have it known where partitions stand.

        Args:
            ends: offset behind the last record that is done, by topic and partition; records that did not come through Kafka
                have negative partitions and are passed over.
        """
        with self._lock:
            self._ends.update({p: end for p, end in ends.items() if p[1] >= 0})
        self._pool.submit(self._bring)

    def close(self) -> None:
        """Bring what is left, and give the connection back."""
        self._pool.shutdown(wait=True)
        if self._client is not None:
            self._client.close()

    def _bring(self) -> None:
        from confluent_kafka import KafkaException, TopicPartition

        with self._lock:
            ends, self._ends = self._ends, {}
        if not ends:
            return
        if self._client is None:
            self._client = kafka.consumer(self._settings, self._group)
        try:
            done = self._client.commit(offsets=[TopicPartition(t, p, end) for (t, p), end in ends.items()], asynchronous=False)
            refused = [f"{p.topic}[{p.partition}]: {p.error}" for p in done or [] if p.error is not None]
        except KafkaException as error:
            refused = [str(error)]
        if refused:
            LOG.warning("offsets of group %s were not committed, the next batch tries again: %s", self._group, "; ".join(refused))
            with self._lock:
                self._ends = ends | self._ends

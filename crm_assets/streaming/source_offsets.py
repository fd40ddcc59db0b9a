"""Where the capture goes on in Kafka, and whether Kafka still holds what lies there.

Offsets name a record only as long as its topic lives: a topic that was deleted and made anew counts from 0 again, and retention takes
records whether they were captured or not. Both stop the stream before it starts, with what is gone, partition by partition. Belongs
here: that comparison and the starting point of a new checkpoint. Not here: reading the records (`ingest`).
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from crm_assets.streaming.batch_ledger import Partition
from crm_resources import kafka
from crm_resources.contracts import contracts
from crm_resources.lake import lake_filesystem
from crm_resources.layout import topic_name
from crm_resources.settings import Settings

LOG = logging.getLogger(__name__)

EARLIEST = -2
"""How Spark's Kafka source spells the first offset that is still there."""

TOPIC_IDS = "_topics.json"
"""File at the lake's root: the ids of the topics whose offsets bronze speaks of."""


class TopicsMissing(RuntimeError):
    """Topics the stream reads do not exist."""


class SourceLost(RuntimeError):
    """Kafka no longer holds what the stream was to read next; going on would lose or confuse records."""


@dataclass(frozen=True)
class Gap:
    """Offsets of a partition that are gone from Kafka and not in bronze: from `first` up to, not including, `end`."""

    partition: Partition
    first: int
    end: int

    def __str__(self) -> str:
        topic, number = self.partition
        return f"{topic}[{number}] {self.first} to {self.end - 1} ({self.end - self.first:,} records)"


def topics(settings: Settings) -> list[str]:
    """Topics of the data set, one per contract."""
    return [topic_name(settings.env, c.plural) for c in contracts()]


def check_source(settings: Settings, following: Mapping[Partition, int]) -> dict[str, list[int]]:
    """See that the topics exist, are those of the last start, and hold what follows.

    Args:
        settings: brokers and data set.
        following: offset that is to be read next, by partition; partitions that are absent begin at their start.

    Returns:
        Partitions by topic.

    Raises:
        TopicsMissing: a topic does not exist.
        SourceLost: a topic was made anew, or records were removed before they were captured.
    """
    ids = _topic_ids(settings)
    _compare_ids(settings, ids)
    held = {(t, p): span for t in ids for p, span in kafka.offsets(settings, t).items()}
    ahead = sorted((p, end) for p, end in following.items() if p in held and end > held[p][1])
    if ahead:
        (topic, number), end = ahead[0]
        raise SourceLost(
            f"{topic}[{number}] ends at offset {held[topic, number][1]}, but bronze holds it up to {end - 1}: "
            + _ANEW.format(env=settings.env)
        )
    gone = gaps(following, held)
    if gone and not settings.accept_gaps:
        raise SourceLost(
            f"Kafka removed records before they were captured: {'; '.join(map(str, gone))}. Send them again from where they came "
            "from; to go on behind the gap, which stays visible in the audit, start the stream once with CRM_ACCEPT_GAPS=true"
        )
    if gone:
        LOG.warning("going on behind what Kafka removed, as CRM_ACCEPT_GAPS says: %s", "; ".join(map(str, gone)))
    found: dict[str, list[int]] = {t: [] for t in ids}
    for topic, number in sorted(held):
        found[topic].append(number)
    return found


def gaps(following: Mapping[Partition, int], held: Mapping[Partition, tuple[int, int]]) -> list[Gap]:
    """What retention took before it was captured; pure.

    Args:
        following: offset that is to be read next, by partition.
        held: first offset that Kafka still has and the one behind its last, by partition.
    """
    return [Gap(p, end, held[p][0]) for p, end in sorted(following.items()) if p in held and end < held[p][0]]


def starting_offsets(partitions: Mapping[str, list[int]], following: Mapping[Partition, int]) -> str:
    """Where a new checkpoint begins, as Spark wants to be told: behind what bronze holds, else at the start; pure."""
    if not following:
        return "earliest"
    return json.dumps({t: {str(p): following.get((t, p), EARLIEST) for p in found} for t, found in partitions.items()})


def _topic_ids(settings: Settings) -> dict[str, str]:
    """Id of each topic of the data set as the brokers know it.

    Raises:
        TopicsMissing: a topic does not exist.
    """
    from confluent_kafka import KafkaException, TopicCollection

    wanted = topics(settings)
    found: dict[str, str] = {}
    missing: list[str] = []
    client = kafka.admin(settings)  # the answers come only as long as it lives
    for topic, future in client.describe_topics(TopicCollection(wanted), request_timeout=30).items():
        try:
            found[topic] = str(future.result().topic_id)
        except KafkaException as error:
            if not _is_unknown(error):
                raise kafka.KafkaUnavailableError(f"Kafka at {settings.kafka_bootstrap} does not describe {topic}: {error}") from error
            missing.append(topic)
    if missing:
        raise TopicsMissing(
            f"no topic {', '.join(sorted(missing))} at {settings.kafka_bootstrap}: "
            f"materialize the assets `topics/*` of the data set {settings.env}"
        )
    return found


def _is_unknown(error: BaseException) -> bool:
    from confluent_kafka import KafkaError

    return error.args[0].code() in {KafkaError.UNKNOWN_TOPIC_OR_PART, KafkaError._UNKNOWN_TOPIC}


def _compare_ids(settings: Settings, ids: Mapping[str, str]) -> None:
    """Against those of the last start; written down for the next one."""
    from pyarrow.fs import FileType

    files = lake_filesystem(settings)
    before: dict[str, str] = {}
    if files.get_file_info(TOPIC_IDS).type == FileType.File:
        with files.open_input_stream(TOPIC_IDS) as stream:
            before = json.loads(stream.read())
    anew = sorted(t for t, found in ids.items() if before.get(t, found) != found)
    if anew:
        raise SourceLost(f"{', '.join(anew)}: {_ANEW.format(env=settings.env)}")
    if before != dict(ids):
        with files.open_output_stream(TOPIC_IDS) as stream:
            stream.write(json.dumps(ids, indent=1).encode() + b"\n")


_ANEW = (
    "the topic was deleted and made anew. Its new records would get coordinates that bronze holds already. Give the new topics "
    "a data set of their own (another CRM_ENV than {env}), or restore the old ones; what was captured stays as it is"
)

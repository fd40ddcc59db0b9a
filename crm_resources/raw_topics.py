"""Topics for public data sets in their own file formats, one row a message, e.g. `demo.raw.online_retail`.

They stand beside the topics of the contracts: created by whoever replays a file, and no part of `kafka.topic_specs`, so the stream
does not read them, and neither the drift check nor the audit looks at them.
"""

from __future__ import annotations

from pathlib import Path

from crm_resources.kafka import TopicSpec
from crm_resources.layout import topic_name
from crm_resources.ledger import ledger_dir
from crm_resources.settings import Profile, Settings

RETENTION_MS = 7 * 24 * 3600 * 1000
"""A week: the file is still there and gives the same records again."""

MAX_MESSAGE_BYTES = 1024 * 1024
"""A row of the known files has less than 1 KiB."""

_LOCAL_PARTITIONS = 4
_CLUSTER_PARTITIONS = 6


def raw_plural(data_set: str) -> str:
    """What stands for a raw data set where an entity's plural would, e.g. `raw.online_retail`."""
    return f"raw.{data_set}"


def raw_topic_spec(settings: Settings, data_set: str) -> TopicSpec:
    """Desired topic of a raw data set in the settings' environment."""
    local = settings.profile is Profile.LOCAL
    plural = raw_plural(data_set)
    return TopicSpec(
        name=topic_name(settings.env, plural),
        plural=plural,
        partitions=_LOCAL_PARTITIONS if local else _CLUSTER_PARTITIONS,
        retention_ms=RETENTION_MS,
        max_message_bytes=MAX_MESSAGE_BYTES,
        min_insync_replicas=1 if local else 2,
        replication_factor=1 if local else 3,
    )


def raw_ledger_dir(environment_dir: Path) -> Path:
    """Folder of the ledgers of raw replays, apart from those the audit compares with the lake."""
    return ledger_dir(environment_dir) / "raw"

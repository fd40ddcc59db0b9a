"""When each record became visible, and how long after it was meant to be sent.

The ledger says when a record was meant to be sent and where Kafka put it; the tables' Delta logs say which commit brought which file,
and when. Belongs here: joining the two. Not here: sending, or what is made of the latencies (`bench_stream`).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from crm_resources.lake import parse_commit, read_columns, table_filesystem
from crm_resources.ledger import read_ledger
from crm_resources.settings import Settings

COORDINATES = ("kafka_topic", "kafka_partition", "kafka_offset")
EVENT_ID = ("event_id",)

_TYPES = {"kafka_topic": pl.String, "kafka_partition": pl.Int32, "kafka_offset": pl.Int64, "event_id": pl.String}


@dataclass(frozen=True)
class Visible:
    """What a table's log says about a span of time.

    Args:
        rows: key columns and `visible_us`, when the row's commit was in the log, microseconds since 1970 UTC.
        commits: commits with data.
        files: files they brought.
    """

    rows: pl.DataFrame
    commits: int
    files: int


def visible(settings: Settings, path: str, key: Sequence[str], begin_us: int) -> Visible:
    """Rows of a table that became visible since a moment.

    Args:
        settings: where the lake is.
        path: table below the lake's root.
        key: columns that name a record.
        begin_us: microseconds since 1970 UTC; older commits are left out.
    """
    from pyarrow.fs import FileSelector

    filesystem = table_filesystem(settings, path)
    commits = files = 0
    parts: list[pl.DataFrame] = []
    for info in filesystem.get_file_info(FileSelector("_delta_log", allow_not_found=True)):
        if not (info.base_name.endswith(".json") and info.base_name[:-5].isdigit()):
            continue
        with filesystem.open_input_file(f"_delta_log/{info.base_name}") as stream:
            text = stream.read().decode()
        at_us = info.mtime_ns // 1_000 if info.mtime_ns else _commit_us(text)
        commit = parse_commit(int(info.base_name[:-5]), text)
        if at_us < begin_us or not commit.added:
            continue
        commits += 1
        files += len(commit.added)
        rows = pl.DataFrame(read_columns(settings, path, commit.added, key))
        parts.append(rows.cast({k: _TYPES[k] for k in key}).with_columns(pl.lit(at_us, pl.Int64).alias("visible_us")))
    empty = pl.DataFrame(schema={**{k: _TYPES[k] for k in key}, "visible_us": pl.Int64})
    return Visible(pl.concat(parts) if parts else empty, commits, files)


def _commit_us(text: str) -> int:
    """Time of a commit as it says itself, where the store does not tell when the object was written."""
    for line in text.splitlines():
        if info := json.loads(line).get("commitInfo"):
            return int(info["timestamp"]) * 1_000
    return 0


def sent(ledger: Path) -> pl.DataFrame:
    """Acknowledged records of a ledger: coordinates, `event_id`, `intended_us` and `acked_us`."""
    columns = ["topic", "partition", "offset", "event_id", "intended_at", "acked_at", "refused"]
    frames = [pl.DataFrame(batch) for batch in read_ledger(ledger, columns)]
    return (
        pl.concat(frames)
        .filter(~pl.col("refused"))
        .select(
            pl.col("topic").alias("kafka_topic"),
            pl.col("partition").alias("kafka_partition"),
            pl.col("offset").alias("kafka_offset"),
            "event_id",
            pl.col("intended_at").dt.timestamp("us").alias("intended_us"),
            pl.col("acked_at").dt.timestamp("us").alias("acked_us"),
        )
    )


def latencies(records: pl.DataFrame, tables: Iterable[Visible], key: Sequence[str]) -> pl.Series:
    """Seconds from the intended time of each record to the moment it was visible; null for one that is not there. Pure.

    Args:
        records: see `sent`.
        tables: tables that hold the records between them.
        key: columns that name a record.
    """
    found = pl.concat([t.rows for t in tables]).group_by(key).agg(pl.col("visible_us").min())
    joined = records.join(found, on=list(key), how="left", maintain_order="left")
    return ((joined["visible_us"] - joined["intended_us"]) / 1_000_000).alias("seconds")

"""Spark streaming as its guides show it, for comparison: `python -m tests.benchmarks.quickstart_stream`, ended by SIGTERM.

A query per topic, `from_json` into Delta, default settings, the product's trigger interval. Nothing is kept raw, checked or
deduplicated, and nothing is exactly once but Delta's own sink.
"""

from __future__ import annotations

import signal
import sys
import threading

from crm_resources.contracts import contracts
from crm_resources.settings import Settings, load_settings
from tests.benchmarks.drain_run import default_session, read_json, topic_stream

READY = "quick start runs"


def quickstart_path(plural: str) -> str:
    """Path of an entity's table below the lake's root."""
    return f"quickstart/{plural}"


def run(settings: Settings) -> None:
    """Start the queries and wait for SIGTERM."""
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    spark = default_session(settings)
    queries = [
        topic_stream(spark, settings, contract)
        .select(read_json(contract).alias("data"))
        .select("data.*")
        .writeStream.format("delta")
        .option("checkpointLocation", f"{settings.checkpoint_root}/quickstart-{contract.plural}")
        .trigger(processingTime=f"{int(settings.trigger_seconds * 1000)} milliseconds")
        .start(settings.table_uri(quickstart_path(contract.plural)))
        for contract in contracts()
    ]
    sys.stdout.write(READY + "\n")
    sys.stdout.flush()
    while not stop.wait(0.5):
        for query in queries:
            error = query.exception()
            if error is not None:
                raise error
    for query in queries:
        query.stop()


if __name__ == "__main__":
    run(load_settings())

"""A stack for the time of a benchmark: a broker in a folder of its own, gone when the benchmark ends."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager

from crm_resources.kafka import ensure
from crm_resources.settings import load_settings
from deploy.local.stack import Stack


@contextmanager
def own_broker(name: str) -> Iterator[dict[str, str]]:
    """Start Kafka with the topics of the data set `bench`; yields the variables with which a process finds it.

    Args:
        name: folder below the stack's home.
    """
    settings = load_settings()
    home = settings.home / name
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith("CRM_")},
        "CRM_HOME": str(home),
        "CRM_ENV": "bench",
        "CRM_JARS_DIR": str(settings.jars_root),
    }
    stack = Stack(load_settings(environ), environ=environ)
    try:
        stack.up(environment=False)
        ensure(load_settings(environ))
        yield environ
    finally:
        stack.down()
        shutil.rmtree(home, ignore_errors=True)

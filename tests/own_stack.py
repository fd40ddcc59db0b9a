"""A home of its own for a benchmark or a fault run, and the local stack in it: gone when the block ends.

Belongs here: folder, variables, Kafka and PostgreSQL. Not here: processes on top of them (`tests.driver_process`).
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from crm_resources.command_end import leave_on_sigterm
from crm_resources.kafka import ensure
from crm_resources.settings import load_settings
from deploy.local.stack import Stack

DISK = "disk"


@contextmanager
def own_home(name: str, **variables: str) -> Iterator[dict[str, str]]:
    """An empty home below the caller's; yields the variables of a process that works in it, nothing of the caller's but the jars.

    Args:
        name: folder below the caller's home.
        variables: `CRM_*` variables besides; the data set is `bench` unless they say otherwise.
    """
    settings = load_settings()
    home = settings.home / name
    environ = {
        **{k: v for k, v in os.environ.items() if not k.startswith(("CRM_", "DAGSTER_"))},
        "CRM_HOME": str(home),
        "CRM_ENV": "bench",
        "CRM_JARS_DIR": str(settings.jars_root),
        **variables,
    }
    settings.home.mkdir(parents=True, exist_ok=True)
    lock = (settings.home / f"{name}.lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)  # gone with this process
    except BlockingIOError:
        lock.close()
        raise SystemExit(f"{home} is in use by another run of this command; wait for it, or choose another CRM_HOME") from None
    # What a killed run left behind would be taken for this one's.
    if home.exists():
        Stack(load_settings(environ), environ=environ).down()
    shutil.rmtree(home, ignore_errors=True)
    home.mkdir(parents=True)
    before = leave_on_sigterm()
    try:
        yield environ
    finally:
        signal.signal(signal.SIGTERM, before)
        lock.close()
        shutil.rmtree(home, ignore_errors=True)


def lake_of(environ: Mapping[str, str], env: str) -> dict[str, str]:
    """Variables of another data set whose lake is in the same place as that of the stack's own.

    Args:
        environ: what `own_stack` gave.
        env: name of the data set.
    """
    settings = load_settings(dict(environ))
    if settings.lake_uri is None:
        return {}
    return {
        "CRM_LAKE_URI": f"{settings.lake_uri.rstrip('/').rpartition('/')[0]}/{env}",
        "CRM_S3_ENDPOINT": str(settings.s3_endpoint),
        "CRM_S3_CREDENTIALS_DIR": str(settings.s3_credentials_dir),
    }


def _stack(environ: dict[str, str], lake: str) -> Stack:
    if lake == DISK:
        return Stack(load_settings(environ), environ=environ)
    from deploy.local.lake_choice import LakeKind

    return Stack(load_settings(environ), environ=environ, lake=LakeKind(lake))


@contextmanager
def own_stack(name: str, lake: str = DISK, **variables: str) -> Iterator[dict[str, str]]:
    """Kafka, with the data set's topics, and PostgreSQL in a home of their own; yields the variables with which a process finds them.

    Args:
        name: folder below the caller's home.
        lake: where the lake is, `disk` or `minio`; see `lake_of` for other data sets than the first.
        variables: see `own_home`.
    """
    with own_home(name, **variables) as environ:
        stack = _stack(environ, lake)
        try:
            stack.up(environment=False)
            ensure(load_settings(environ))
            yield environ
        finally:
            stack.down()

"""The lake on an object store: what makes a store fit for it, its lock, and what its errors say."""

from __future__ import annotations

import json
import socket
import stat
import subprocess
import sys
import threading
import time
import uuid
from contextlib import AbstractContextManager, closing
from pathlib import Path

import pyarrow as pa  # noqa: TID253 -- tests need not start fast
import pytest
from deltalake import DeltaTable, write_deltalake  # noqa: TID253 -- as above
from deltalake.exceptions import CommitFailedError  # noqa: TID253 -- as above

from crm_resources.lake_lease import LOCK_OBJECT, Lease, LeaseLock
from crm_resources.lake_lock import LakeLocked, LakeLockLost, lake_lock, lock_holder
from crm_resources.lake_tables import append_rows
from crm_resources.object_store import (
    ObjectStore,
    ObjectStoreError,
    UnsafeStoreError,
    credentials,
    demand_safe,
    probe_races,
    storage_options,
)
from crm_resources.settings import REPOSITORY, Settings, load_settings
from crm_resources.supervisor import ProcessState, Service
from deploy.local.errors import StackError
from deploy.local.lake_choice import LakeKind
from deploy.local.stack import Stack
from tests.conftest import MinioServer
from tests.driver_process import wait_until
from tests.integration.misbehaving_stores import CutOff, forgetful_store

DEADLINE_SECONDS = 60


@pytest.fixture
def environ(minio: MinioServer, tmp_path: Path, jars_dir: Path, stack_environ: dict[str, str]) -> dict[str, str]:
    """A data set of the test's own with its lake on MinIO."""
    own = {"CRM_HOME": str(tmp_path), "CRM_JARS_DIR": str(jars_dir), "CRM_ENV": "store"}
    return {**stack_environ, **own, **minio.variables(f"test/{uuid.uuid4().hex}")}


@pytest.fixture
def settings(environ: dict[str, str]) -> Settings:
    return load_settings(environ)


@pytest.fixture
def store(settings: Settings) -> ObjectStore:
    return ObjectStore(settings, attempts=1)


def forgetful(settings: Settings, header: str) -> AbstractContextManager[str]:
    keys = credentials(settings)
    assert keys is not None
    return forgetful_store(str(settings.s3_endpoint), keys, header)


# -- is the store fit ---------------------------------------------------------------------------------------------------


def test_every_race_on_minio_has_exactly_one_winner(store: ObjectStore) -> None:
    created, replaced = probe_races(store, writers=8, keys=20)
    assert (created.winners, replaced.winners) == ((1,) * 20, (1,) * 20)
    assert store.paths("") == []


@pytest.mark.parametrize("header", ["If-None-Match", "If-Match"])
def test_a_store_that_ignores_a_condition_is_refused_before_anything_is_written(
    settings: Settings, store: ObjectStore, header: str
) -> None:
    with forgetful(settings, header) as endpoint:
        unsafe = settings.model_copy(update={"s3_endpoint": endpoint})
        with pytest.raises(UnsafeStoreError, match=f"{header}: 0 of 5 objects had exactly one winner"):
            demand_safe(ObjectStore(unsafe, attempts=1))
        with pytest.raises(UnsafeStoreError, match="would lose commits"):
            lake_lock(unsafe, "stream")
    assert store.paths("") == []


def test_delta_refuses_a_commit_in_the_place_of_another_writer_s(settings: Settings) -> None:
    rows, uri, options = pa.table({"n": [1]}), settings.table_uri("two_writers"), storage_options(settings)
    write_deltalake(uri, rows, storage_options=options)
    first, second = (DeltaTable(uri, storage_options=options) for _ in range(2))
    append_rows(first, rows, application="first", version=1)
    with pytest.raises(CommitFailedError):
        append_rows(second, rows, application="second", version=1)
    assert DeltaTable(uri, storage_options=options).to_pyarrow_dataset().count_rows() == 2


def test_the_stream_does_not_start_on_a_store_that_ignores_conditions(
    environ: dict[str, str], settings: Settings, store: ObjectStore
) -> None:
    with forgetful(settings, "If-None-Match") as endpoint:
        done = driver({**environ, "CRM_S3_ENDPOINT": endpoint})
    assert done.returncode == 2
    assert "does not honour conditional writes" in done.stderr
    assert store.paths("") == []


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"CRM_S3_ENDPOINT": "http://127.0.0.1:1"}, "correct CRM_S3_ENDPOINT"),
        ({"CRM_S3_ACCESS_KEY": "nobody", "CRM_S3_SECRET_KEY": "wrong-secret"}, "correct CRM_S3_ACCESS_KEY and CRM_S3_SECRET_KEY"),
        ({"CRM_LAKE_URI": "s3://absent-bucket/lake"}, "there is no bucket absent-bucket at http://127.0.0.1"),
    ],
)
def test_what_is_set_up_wrongly_is_told_in_one_line(environ: dict[str, str], variables: dict[str, str], said: str) -> None:
    with pytest.raises(ObjectStoreError, match=said) as refused:
        lake_lock(load_settings({**environ, **variables}), "stream")
    assert "\n" not in str(refused.value)
    assert "wrong-secret" not in str(refused.value)


# -- MinIO as a service of the local stack ------------------------------------------------------------------------------


def test_the_stack_keeps_minio_and_remembers_that_the_lake_is_there(minio: MinioServer, stack_environ: dict[str, str]) -> None:
    environ = {**stack_environ, "CRM_ENV": "on_minio"}
    settings = load_settings(environ)
    assert (settings.lake_root, settings.s3_endpoint) == ("s3://lake/on_minio", minio.endpoint)
    (status,) = [s for s in Stack(settings, environ=environ).status() if s.service is Service.MINIO]
    assert (status.state, f"http://127.0.0.1:{status.port}") == (ProcessState.RUNNING, minio.endpoint)
    with pytest.raises(StackError, match=r"on MinIO \(s3://lake/on_minio\) already"):
        Stack(settings, environ=environ, lake=LakeKind.DISK).up(environment=False)
    assert {stat.S_IMODE(f.stat().st_mode) for f in minio.credentials_dir.iterdir()} == {0o600}
    assert not any(str(minio.credentials_dir.joinpath("secret_key").read_text().strip()) in f.read_text() for f in conf_files(settings))


def conf_files(settings: Settings) -> list[Path]:
    return [*settings.home.glob("supervisor/**/*.conf"), *settings.home.glob("*.env"), *settings.home.glob("*/*.env")]


# -- the lock -----------------------------------------------------------------------------------------------------------

HOLDER = """
import sys
from crm_resources.lake_lock import lake_lock
from crm_resources.settings import load_settings
with lake_lock(load_settings(), "stream"):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_a_second_writer_is_refused_and_a_killed_one_waited_out(environ: dict[str, str], settings: Settings) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER], cwd=REPOSITORY, env=environ, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    with pytest.raises(LakeLocked, match=rf"stream \(process {process.pid} on {socket.gethostname()}"):
        lake_lock(settings, "rebuild").__enter__()
    holder = lock_holder(settings)
    assert holder is not None
    assert holder.pid == process.pid

    process.kill()
    process.communicate()
    begun = time.monotonic()
    with lake_lock(settings, "rebuild"):
        waited = time.monotonic() - begun
    assert 10 < waited < 40
    assert lock_holder(settings) is None


def test_a_lock_given_back_is_free_at_once(settings: Settings) -> None:
    for role in ("stream", "rebuild"):
        begun = time.monotonic()
        with lake_lock(settings, role) as lock:
            lock.check()
        assert time.monotonic() - begun < 5


def test_of_several_who_want_a_silent_lock_one_gets_it(store: ObjectStore, settings: Settings) -> None:
    store.put(LOCK_OBJECT, Lease("killed", 1, "elsewhere", "stream", "", 2.0).to_bytes())
    results: list[str] = []

    def take(role: str) -> None:
        lock = LeaseLock(ObjectStore(settings, attempts=1), settings.lake_root, role, lease_seconds=2)
        try:
            with lock:
                results.append("held")
                wait_until(lambda: len(results) == 4, "the others are refused")
        except LakeLocked:
            results.append("refused")

    threads = [threading.Thread(target=take, args=(f"writer {n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(results) == ["held", "refused", "refused", "refused"]


def test_a_holder_that_is_cut_off_stops_before_another_may_begin(settings: Settings) -> None:
    lost: list[float] = []
    with closing(CutOff(str(settings.s3_endpoint))) as way:
        behind = ObjectStore(settings.model_copy(update={"s3_endpoint": way.endpoint}), attempts=1, timeout_seconds=0.5)
        first = LeaseLock(behind, settings.lake_root, "stream", lease_seconds=4, on_lost=lambda _: lost.append(time.monotonic()))
        with pytest.raises(LakeLockLost, match="could not be renewed in time"), first:  # noqa: PT012 -- leaving the lock raises
            first.check()
            way.cut()
            with LeaseLock(ObjectStore(settings, attempts=1), settings.lake_root, "rebuild", lease_seconds=4):
                taken = time.monotonic()
            with pytest.raises(LakeLockLost):
                first.check()
    assert len(lost) == 1
    assert lost[0] < taken


def test_a_lock_that_was_taken_by_force_is_noticed(store: ObjectStore, settings: Settings) -> None:
    told = threading.Event()
    lock = LeaseLock(store, settings.lake_root, "stream", lease_seconds=2, on_lost=lambda _: told.set())
    with pytest.raises(LakeLockLost, match="another process has taken it"), lock:  # noqa: PT012 -- as above
        store.put(LOCK_OBJECT, json.dumps({"somebody": "else"}).encode())
        assert told.wait(DEADLINE_SECONDS)
    assert store.get(LOCK_OBJECT) is not None


def driver(environ: dict[str, str]) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "crm_assets.streaming.driver"]
    return subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False, timeout=DEADLINE_SECONDS)

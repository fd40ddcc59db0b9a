"""What is decided about an object store without one: who may take its lock, what libraries are told, where a lake is."""

from __future__ import annotations

import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from crm_resources.lake_lease import Lease, LeaseLock, Verdict, judge, parse_lease
from crm_resources.lake_lock import LakeLockLost
from crm_resources.object_store import (
    ObjectStoreError,
    RaceResult,
    allows_http,
    credentials,
    place_of,
    refusal,
    spark_options,
    storage_options,
)
from crm_resources.settings import Settings, load_settings
from crm_resources.spark import REQUIRED_JARS, spark_conf
from deploy.local import minio
from deploy.local.errors import StackError
from deploy.local.lake_choice import LakeChoice, LakeKind, choose, read_choice, record

LEASE = Lease("token", 1, "host", "stream", "2026-01-01T00:00:00+00:00", 20.0)
MINIO_URI = "s3://lake/demo"


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    keys = {"CRM_S3_ACCESS_KEY": "reader", "CRM_S3_SECRET_KEY": "hunter2"}
    return load_settings(
        {
            "CRM_HOME": str(tmp_path),
            "CRM_JARS_DIR": str(tmp_path / "jars"),
            "CRM_LAKE_URI": "s3://shop/crm/lake/",
            "CRM_S3_ENDPOINT": "https://s3.example.com",
            **keys,
        }
    )


# -- the lock -----------------------------------------------------------------------------------------------------------


@given(unchanged=st.floats(0, 1000), changed=st.booleans(), lease_seconds=st.floats(1, 100))
def test_a_lock_is_taken_only_after_a_whole_lease_without_a_sign_of_life(unchanged: float, changed: bool, lease_seconds: float) -> None:
    lease = Lease("token", 1, "host", "stream", "", lease_seconds)
    verdict = judge(lease, changed=changed, unchanged_seconds=unchanged)
    if changed:
        assert verdict is Verdict.REFUSE
    else:
        assert (verdict is Verdict.TAKE) == (unchanged >= lease_seconds)


def test_a_lock_that_was_given_back_is_taken_at_once() -> None:
    released = Lease("token", 1, "host", "stream", "", 20.0, released=True)
    assert judge(released, changed=False, unchanged_seconds=0) is Verdict.TAKE


def test_an_object_that_is_no_lease_is_waited_out() -> None:
    assert parse_lease(b"something else") is None
    assert parse_lease(LEASE.to_bytes()) == LEASE
    assert judge(None, changed=False, unchanged_seconds=1) is Verdict.WAIT
    assert judge(None, changed=False, unchanged_seconds=1000) is Verdict.TAKE


class MemoryStore:
    """Objects that honour conditions, for the lock alone; `lose_answers` requests arrive without an answer."""

    def __init__(self) -> None:
        self.object: tuple[bytes, str] | None = None
        self.changes = 0
        self.lose_answers = 0

    def get(self, _path: str) -> tuple[bytes, str] | None:
        return self.object

    def put_new(self, path: str, body: bytes) -> str | None:
        return None if self.object else self.replace(path, body, "")

    def replace(self, _path: str, body: bytes, etag: str) -> str | None:
        if self.object is not None and self.object[1] != etag:
            return None
        if self.object is None or self.object[0] != body:
            self.changes += 1
        self.object = (body, f"etag of {body!r}")
        if self.lose_answers:
            self.lose_answers -= 1
            raise ObjectStoreError("no answer")
        return self.object[1]


def test_a_renewal_whose_answer_was_lost_counts_only_when_another_one_is_answered() -> None:
    """Watchers count from the moment the object changed, which was earlier than the holder knows."""
    now = [0.0]
    store = MemoryStore()
    with LeaseLock(store, "s3://lake", "stream", lease_seconds=20, clock=lambda: now[0], pause=lambda _: None) as lock:
        store.lose_answers = 1
        now[0] = 10.0
        lock.renew()
        now[0] = 14.9
        lock.check()
        changes = store.changes
        lock.renew()
        assert store.changes == changes + 1, "the object must change, or a watcher would take the lock from a holder that is alive"
        now[0] = 29.0
        lock.check()
        now[0] = 30.0
        with pytest.raises(LakeLockLost):
            lock.check()
        lock.renew()
        lock.check()


def test_a_holder_that_finds_another_s_object_has_lost_the_lock() -> None:
    store = MemoryStore()
    lock = LeaseLock(store, "s3://lake", "stream")
    with pytest.raises(LakeLockLost, match="another process"), lock:  # noqa: PT012 -- leaving the lock raises
        store.object = (LEASE.to_bytes(), "another etag")
        lock.renew()
        with pytest.raises(LakeLockLost):
            lock.check()
    assert store.object == (LEASE.to_bytes(), "another etag")


# -- what the libraries are told ------------------------------------------------------------------------------------------


def test_each_library_gets_its_own_spelling(settings: Settings) -> None:
    place = place_of(settings)
    assert (place.bucket, place.prefix, place.key("_lock")) == ("shop", "crm/lake", "crm/lake/_lock")
    assert settings.table_uri("bronze") == "s3://shop/crm/lake/bronze"
    assert settings.spark_uri("bronze") == "s3a://shop/crm/lake/bronze"
    options = storage_options(settings)
    assert options is not None
    assert (options["aws_endpoint"], options["aws_conditional_put"], options["allow_http"]) == ("https://s3.example.com", "etag", "false")
    assert spark_options(settings)["fs.s3a.bucket.shop.endpoint"] == "https://s3.example.com"


def test_a_lake_on_disk_needs_no_options(tmp_path: Path) -> None:
    settings = load_settings({"CRM_HOME": str(tmp_path)})
    assert storage_options(settings) is None
    assert spark_options(settings) == {}
    assert settings.spark_uri("bronze") == settings.table_uri("bronze") == f"{tmp_path}/demo/lake/bronze"


def test_checkpoints_stay_on_the_local_disk(settings: Settings) -> None:
    assert settings.checkpoint_root == str(settings.environment_dir / "checkpoints")


def test_no_secret_is_printed_or_stands_on_spark_s_command_line(settings: Settings) -> None:
    for group, names in REQUIRED_JARS.items():
        (settings.jars_root / group).mkdir(parents=True)
        for name in names:
            (settings.jars_root / group / f"{name}.jar").touch()
    assert "hunter2" not in repr(settings) + repr(credentials(settings)) + str(settings.model_dump())
    assert "hunter2" not in str(spark_conf(settings, "test"))
    assert "hunter2" in spark_options(settings).values()
    assert f"{settings.jars_root}/s3a/" in spark_conf(settings, "test")["spark.jars"]


def test_credentials_come_from_files(tmp_path: Path) -> None:
    environ = {"CRM_HOME": str(tmp_path), "CRM_LAKE_URI": "s3://shop", "CRM_S3_CREDENTIALS_DIR": str(tmp_path / "keys")}
    with pytest.raises(ObjectStoreError, match="access_key is absent or empty"):
        credentials(load_settings(environ))
    (tmp_path / "keys").mkdir()
    (tmp_path / "keys" / "access_key").write_text("reader\n")
    (tmp_path / "keys" / "secret_key").write_text("hunter2\n")
    found = credentials(load_settings(environ))
    assert found is not None
    assert (found.access_key, found.secret_key) == ("reader", "hunter2")


@pytest.mark.parametrize(
    ("endpoint", "allowed", "expected"),
    [
        (None, False, False),
        ("https://s3.example.com", True, False),
        ("http://127.0.0.1:9000", False, True),
        ("http://localhost:9000", False, True),
        ("http://s3.internal", True, True),
        ("http://s3.internal", False, None),
        ("http://127.0.0.1.example.com", False, None),
    ],
)
def test_http_is_for_this_machine_or_when_allowed(settings: Settings, endpoint: str | None, allowed: bool, expected: bool | None) -> None:
    settings = settings.model_copy(update={"s3_endpoint": endpoint, "s3_allow_http": allowed})
    if expected is None:
        with pytest.raises(ObjectStoreError, match="CRM_S3_ALLOW_HTTP"):
            allows_http(settings)
    else:
        assert allows_http(settings) is expected


@pytest.mark.parametrize(
    "variables",
    [
        {"CRM_LAKE_URI": "gs://bucket/lake"},
        {"CRM_LAKE_URI": "s3://"},
        {"CRM_S3_ENDPOINT": "s3.example.com"},
        {"CRM_S3_ACCESS_KEY": "without a secret"},
    ],
)
def test_settings_that_cannot_be_meant_are_refused(tmp_path: Path, variables: dict[str, str]) -> None:
    with pytest.raises(ValidationError):
        load_settings({"CRM_HOME": str(tmp_path), **variables})


@pytest.mark.parametrize(
    ("code", "remedy"),
    [
        ("NoSuchBucket", "create it, or correct CRM_LAKE_URI"),
        ("SignatureDoesNotMatch", "correct CRM_S3_ACCESS_KEY and CRM_S3_SECRET_KEY"),
        ("PermanentRedirect", "correct CRM_S3_REGION"),
        ("SlowDown", "SlowDown please"),
    ],
)
def test_an_answer_of_the_store_names_the_remedy(code: str, remedy: str) -> None:
    error = refusal({"Error": {"Code": code, "Message": "please"}}, "shop", "https://s3.example.com")
    assert remedy in str(error)
    assert "\n" not in str(error)


@pytest.mark.parametrize(
    ("result", "passed"),
    [
        (RaceResult("If-Match", (1, 1, 1)), True),
        (RaceResult("If-Match", (1, 4, 1)), False),
        (RaceResult("If-Match", (1, 0, 1)), False),
        (RaceResult("If-Match", (), "not implemented"), False),
    ],
)
def test_a_race_without_exactly_one_winner_each_is_failed(result: RaceResult, passed: bool) -> None:
    assert result.passed is passed


# -- where a lake is ----------------------------------------------------------------------------------------------------


def chosen(
    wish: LakeKind | None = None, uri: str | None = None, recorded: LakeChoice | None = None, holds_local_data: bool = False
) -> LakeChoice:
    return choose("demo", wish=wish, uri=uri, recorded=recorded, holds_local_data=holds_local_data, minio_uri=MINIO_URI)


def test_a_new_data_set_is_put_where_it_is_wished() -> None:
    assert chosen() == LakeChoice(LakeKind.DISK, None)
    assert chosen(LakeKind.MINIO) == LakeChoice(LakeKind.MINIO, MINIO_URI)
    assert chosen(uri="s3://shop/lake") == chosen(LakeKind.S3, "s3://shop/lake") == LakeChoice(LakeKind.S3, "s3://shop/lake")
    assert chosen(uri="/data/lake") == LakeChoice(LakeKind.DISK, "/data/lake")


@pytest.mark.parametrize("recorded", [LakeChoice(LakeKind.MINIO, MINIO_URI), LakeChoice(LakeKind.S3, "s3://shop/lake")])
def test_what_was_chosen_once_is_kept(recorded: LakeChoice) -> None:
    assert chosen(recorded=recorded) == recorded
    assert chosen(recorded.kind, recorded=recorded) == recorded
    assert chosen(uri=recorded.uri if recorded.kind is LakeKind.S3 else None, recorded=recorded) == recorded


@pytest.mark.parametrize(
    ("wish", "uri", "recorded", "holds_local_data"),
    [
        (LakeKind.MINIO, None, None, True),
        (None, "s3://shop/lake", None, True),
        (LakeKind.DISK, None, LakeChoice(LakeKind.MINIO, MINIO_URI), False),
        (None, "s3://shop/other", LakeChoice(LakeKind.S3, "s3://shop/lake"), False),
        (LakeKind.MINIO, None, LakeChoice(LakeKind.S3, "s3://shop/lake"), False),
        (LakeKind.MINIO, "s3://shop/lake", None, False),
        (LakeKind.S3, None, None, False),
    ],
)
def test_another_place_for_a_data_set_is_refused(
    wish: LakeKind | None, uri: str | None, recorded: LakeChoice | None, holds_local_data: bool
) -> None:
    with pytest.raises(StackError):
        chosen(wish, uri, recorded, holds_local_data)


def test_the_choice_is_written_down_with_its_keys_in_files_of_their_owner(settings: Settings) -> None:
    record(settings, LakeKind.S3)
    assert read_choice(settings) == LakeChoice(LakeKind.S3, settings.lake_uri)
    assert "hunter2" not in (settings.environment_dir / "lake.env").read_text()
    again = load_settings({"CRM_HOME": str(settings.home)})
    assert (again.lake_root, again.s3_endpoint) == (settings.lake_root, settings.s3_endpoint)
    assert credentials(again) == credentials(settings)
    assert again.s3_credentials_dir is not None
    assert stat.S_IMODE((again.s3_credentials_dir / "secret_key").stat().st_mode) == 0o600


# -- building MinIO -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "version"),
    [("go version go1.24.0 linux/amd64", (1, 24)), ("go version go1.9 linux/arm64", (1, 9)), ("no such thing", None)],
)
def test_the_version_of_go_is_read(text: str, version: tuple[int, int] | None) -> None:
    assert minio.go_version(text) == version


def test_an_old_go_is_named_with_the_remedy(tmp_path: Path) -> None:
    old = tmp_path / "go"
    old.write_text("#!/bin/sh\necho go version go1.19.8 linux/amd64\n")
    old.chmod(0o755)
    with pytest.raises(minio.GoMissingError, match=r"is 1\.19; install Go 1\.24 or newer"):
        minio.ensure_program(load_settings({"CRM_HOME": str(tmp_path)}), go=str(old))


def test_a_named_program_that_is_absent_is_told(tmp_path: Path) -> None:
    settings = load_settings({"CRM_HOME": str(tmp_path), "CRM_MINIO_BIN": str(tmp_path / "minio")})
    with pytest.raises(StackError, match="CRM_MINIO_BIN"):
        minio.ensure_program(settings)

"""A Spark session for the stream's tests, and a lake of its own for each test that writes one."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crm_resources.settings import Settings, load_settings
from crm_resources.spark import end_session, spark_session, use_object_store
from tests.integration.stream.lake_fixtures import Lake

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(scope="session")
def spark(jars_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    home = tmp_path_factory.mktemp("spark")
    environ = {"CRM_HOME": str(home), "CRM_JARS_DIR": str(jars_dir), "CRM_DRIVER_MEMORY": "1g"}
    # No lake of its own; named so that the session has the libraries for the lakes of the tests that are on MinIO.
    session = spark_session(load_settings({**environ, "CRM_LAKE_URI": "s3://none", "CRM_S3_ENDPOINT": "http://127.0.0.1:9"}), "tests")
    yield session
    end_session(session)


@pytest.fixture
def lake_settings(jars_dir: Path, tmp_path: Path, lake_kind: str, request: pytest.FixtureRequest) -> Settings:
    environ = {"CRM_HOME": str(tmp_path), "CRM_JARS_DIR": str(jars_dir), "CRM_ENV": "test", "CRM_DRIVER_MEMORY": "1g"}
    if lake_kind == "minio":
        environ |= request.getfixturevalue("minio").variables(uuid.uuid4().hex)
    return load_settings(environ)


@pytest.fixture
def lake(spark: SparkSession, lake_settings: Settings) -> Lake:
    use_object_store(spark, lake_settings)
    return Lake(spark, lake_settings)

"""A Spark session for the stream's tests, and a lake of its own for each test that writes one."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crm_resources.settings import Settings, load_settings
from crm_resources.spark import end_session, spark_session
from tests.integration.stream.lake_fixtures import Lake

if TYPE_CHECKING:
    from pyspark.sql import SparkSession


@pytest.fixture(scope="session")
def spark(jars_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[SparkSession]:
    home = tmp_path_factory.mktemp("spark")
    session = spark_session(load_settings({"CRM_HOME": str(home), "CRM_JARS_DIR": str(jars_dir), "CRM_DRIVER_MEMORY": "1g"}), "tests")
    yield session
    end_session(session)


@pytest.fixture
def lake_settings(jars_dir: Path, tmp_path: Path) -> Settings:
    return load_settings({"CRM_HOME": str(tmp_path), "CRM_JARS_DIR": str(jars_dir), "CRM_ENV": "test", "CRM_DRIVER_MEMORY": "1g"})


@pytest.fixture
def lake(spark: SparkSession, lake_settings: Settings) -> Lake:
    return Lake(spark, lake_settings)

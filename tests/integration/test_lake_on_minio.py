"""The whole way with the lake on MinIO: sent, streamed, loaded, audited; and read with ordinary tools."""

from __future__ import annotations

import subprocess
import sys
from datetime import UTC, datetime
from random import Random

import pytest

from crm_assets.monitoring.audit import run_audit
from crm_resources import kafka, lake, warehouse
from crm_resources.layout import BRONZE, SILVER
from crm_resources.object_store import place_of, s3fs_options, storage_options
from crm_resources.settings import REPOSITORY, Settings, load_settings
from generator.defects import DefectShares, with_defects
from generator.delivery import deliver
from generator.records import Defect
from generator.synthetic import Shop, ShopOptions
from tests.conftest import MinioServer

OPTIONS = ShopOptions(seed=7, customers=30, products=10, orders=80, events=300, days=10)

CATCH_UP_AND_LOAD = """
from crm_resources.settings import load_settings
from crm_assets.streaming.catch_up import catch_up
from crm_assets.warehouse.load import load_all
catch_up(load_settings()); load_all(load_settings())
"""


@pytest.fixture(scope="module")
def settings(minio: MinioServer, stack_environ: dict[str, str]) -> Settings:
    """A data set that went all the way: sent with defects, streamed in batch mode, loaded."""
    environ = {**stack_environ, **minio.variables("whole_way"), "CRM_ENV": "whole_way"}
    settings = load_settings(environ)
    kafka.ensure(settings)
    warehouse.prepare(settings)
    shop = Shop(OPTIONS, datetime(2026, 1, 31, tzinfo=UTC))
    shares = DefectShares(**{d.value: 0.0 if d in (Defect.OVERSIZED, Defect.DEEP_NESTING) else 0.02 for d in Defect})
    deliver(settings, shop.run_id, with_defects(shop.history(), shares, Random(1)))
    command = [sys.executable, "-c", CATCH_UP_AND_LOAD]
    done = subprocess.run(command, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return settings


def test_the_books_close(settings: Settings) -> None:
    result = run_audit(settings)
    assert result.passed, result.verdict_text()
    c = result.counts
    assert c.acked == c.bronze == c.silver + c.dead_letters + c.duplicates
    assert c.silver == c.warehouse > 0
    assert c.dead_letters > 0
    assert c.duplicates > 0
    assert not (settings.environment_dir / "lake").exists()


def test_ordinary_readers_see_the_same_rows(settings: Settings) -> None:
    import pyarrow.parquet as pq
    import s3fs
    from deltalake import DeltaTable

    place = place_of(settings)
    files = s3fs.S3FileSystem(**s3fs_options(settings))
    for table in (BRONZE, *SILVER.values()):
        opened = DeltaTable(settings.table_uri(table.path), storage_options=storage_options(settings))
        paths = [f"{place.bucket}/{place.key(table.path)}/{lake.unquoted(f.path)}" for f in lake.files_of(opened)]
        rows = 0
        for path in paths:
            with files.open(path) as stream:
                rows += pq.ParquetFile(stream).metadata.num_rows
        assert rows == lake.row_count(settings, table.path) == opened.to_pyarrow_dataset().count_rows() > 0

"""Running one test with its lake on a local disk and on MinIO."""

from __future__ import annotations

import pytest

on_both_lakes = pytest.mark.parametrize("lake_kind", ["disk", "minio"], indirect=True)
"""For tests whose fixtures follow the fixture `lake_kind`."""

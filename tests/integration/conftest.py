"""Every test in this folder uses the real stack."""

from __future__ import annotations

from pathlib import Path

import pytest

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what lies here, so that `-m 'not integration'` leaves it out."""
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)


@pytest.fixture
def lake_kind(request: pytest.FixtureRequest) -> str:
    """What the test's lake stands on, `disk` or `minio`; a test of both says `@on_both_lakes`."""
    return str(getattr(request, "param", "disk"))

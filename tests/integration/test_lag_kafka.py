"""Lag measured at the brokers, without Spark."""

from __future__ import annotations

import time

import pytest

from crm_resources import kafka
from crm_resources.group_offsets import GroupOffsets
from crm_resources.layout import topic_name
from crm_resources.settings import Settings


@pytest.fixture
def lag_settings(settings: Settings) -> Settings:
    """A data set of this test's own."""
    own = settings.model_copy(update={"env": "lagtest"})
    kafka.ensure(own)
    return own


def test_lag_of_a_group_in_records_and_seconds(lag_settings: Settings) -> None:
    topic, group = topic_name(lag_settings.env, "products"), "crm-lagtest-test"
    producer = kafka.producer(lag_settings)
    first = int(time.time() * 1000) - 90_000
    for n in range(10):
        producer.produce(topic, key=b"k", value=b"v", partition=0, timestamp=first + 1000 * n)
    assert producer.flush(30) == 0

    nothing_read = kafka.group_lag(lag_settings, group)
    commit_offsets(lag_settings, group, {(topic, 0): 4})
    some_read = kafka.group_lag(lag_settings, group, now=first / 1000 + 90)
    commit_offsets(lag_settings, group, {(topic, 0): 10})
    all_read = kafka.group_lag(lag_settings, group)

    assert nothing_read.records == 10
    assert 85 < nothing_read.seconds < 600
    assert (some_read.records, some_read.seconds) == (6, pytest.approx(86.0, abs=0.01))
    assert (all_read.records, all_read.seconds) == (0, 0.0)


def commit_offsets(settings: Settings, group: str, ends: dict[tuple[str, int], int]) -> None:
    offsets = GroupOffsets(settings, group)
    offsets.commit(ends)
    offsets.close()

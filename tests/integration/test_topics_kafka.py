"""Topics as desired state, on a real broker."""

from __future__ import annotations

from dataclasses import replace

import pytest

from crm_resources import kafka
from crm_resources.settings import Settings
from deploy.local.stack import Stack


@pytest.fixture
def shop(stack_services: Stack, request: pytest.FixtureRequest) -> Settings:
    """Settings of a data set that only this test uses."""
    return stack_services.settings.model_copy(update={"env": request.node.name.replace("test_", "t_", 1)[:30].lower()})


def test_a_second_apply_changes_nothing(shop: Settings) -> None:
    assert [s.name for s in kafka.ensure(shop).create] == [s.name for s in kafka.topic_specs(shop)]
    assert kafka.ensure(shop).is_empty
    assert kafka.verify(shop).is_empty


def test_a_hand_made_change_is_seen_and_taken_back(shop: Settings) -> None:
    kafka.ensure(shop)
    orders = next(s for s in kafka.topic_specs(shop) if s.plural == "orders")
    by_hand = replace(orders, retention_ms=60_000)
    kafka.apply(shop, kafka.plan([by_hand], kafka.observe(shop)))
    assert kafka.verify(shop, [by_hand]).is_empty
    drift = kafka.plan([orders], kafka.observe(shop))
    assert drift.describe() == [f"alter {orders.name}: retention.ms 60000 -> {orders.retention_ms}"]
    kafka.ensure(shop)
    assert kafka.plan([orders], kafka.observe(shop)).is_empty


def test_partitions_are_added_only_when_allowed(shop: Settings) -> None:
    kafka.ensure(shop)
    more = replace(next(s for s in kafka.topic_specs(shop) if s.plural == "products"), partitions=5)
    with pytest.raises(kafka.TopicError, match="adding some breaks the order per key"):
        kafka.ensure(shop, [more])
    kafka.apply(shop, kafka.plan([more], kafka.observe(shop), allow_more_partitions=True))
    assert kafka.verify(shop, [more]).is_empty
    with pytest.raises(kafka.TopicError, match="cannot remove partitions"):
        kafka.ensure(shop)


def test_an_empty_topic_has_offsets_zero_for_each_partition(shop: Settings) -> None:
    kafka.ensure(shop)
    for spec in kafka.topic_specs(shop):
        assert kafka.offsets(shop, spec.name) == dict.fromkeys(range(spec.partitions), (0, 0))


def test_an_absent_topic_is_named_with_the_remedy(shop: Settings) -> None:
    assert kafka.observe(shop) == {}
    with pytest.raises(kafka.TopicError, match=f"no topic {shop.env}.orders.*materialize"):
        kafka.require_topics(shop, ["orders"])
    with pytest.raises(kafka.TopicError, match="materialize"):
        kafka.offsets(shop, f"{shop.env}.orders")


def test_the_cluster_says_who_it_is(shop: Settings) -> None:
    cluster = kafka.describe_cluster(shop)
    assert cluster.brokers == (shop.kafka_bootstrap,)


def test_a_broker_that_is_down_is_named_within_the_bounded_wait(shop: Settings) -> None:
    with pytest.raises(kafka.KafkaUnavailableError, match=r"127\.0\.0\.1:1 did not answer within 2 s.*make status"):
        kafka.observe(shop.model_copy(update={"kafka_bootstrap": "127.0.0.1:1"}), wait_seconds=2)

"""What the stream finds out about Kafka before it starts: topics made anew, and records that retention took first."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from crm_assets.streaming.source_offsets import SourceLost, TopicsMissing, check_source
from crm_resources.kafka import admin, ensure, offsets, producer
from crm_resources.layout import topic_name
from crm_resources.settings import Settings

NUMBERS = itertools.count()


@pytest.fixture
def own(settings: Settings, tmp_path: Path) -> Settings:
    """A data set with topics of its own and an empty lake."""
    found = settings.model_copy(update={"env": f"source{next(NUMBERS)}", "home": tmp_path})
    Path(found.lake_root).mkdir(parents=True)
    return found


def send(settings: Settings, topic: str, count: int) -> None:
    sender = producer(settings)
    for _ in range(count):
        sender.produce(topic, b"{}", partition=0)
    assert sender.flush(60) == 0


def test_topics_that_hold_what_follows_are_fine(own: Settings) -> None:
    with pytest.raises(TopicsMissing, match=f"{own.env}.orders"):
        check_source(own, {})
    ensure(own)
    topic = topic_name(own.env, "orders")
    send(own, topic, 5)

    found = check_source(own, {(topic, 0): 5})

    assert found[topic] == sorted(offsets(own, topic))
    assert check_source(own, {(topic, 0): 3}) == found


def test_a_topic_made_anew_is_refused_even_if_it_holds_as_many_records(own: Settings) -> None:
    ensure(own)
    topic = topic_name(own.env, "orders")
    send(own, topic, 5)
    check_source(own, {(topic, 0): 5})

    client = admin(own)
    for future in client.delete_topics([topic], operation_timeout=30).values():
        future.result()
    ensure(own)
    send(own, topic, 9)

    with pytest.raises(SourceLost, match=f"{topic}: the topic was deleted and made anew"):
        check_source(own, {(topic, 0): 5})


def test_records_that_retention_took_are_named_and_can_be_accepted(own: Settings) -> None:
    from confluent_kafka import TopicPartition

    ensure(own)
    topic = topic_name(own.env, "orders")
    send(own, topic, 9)
    check_source(own, {})
    client = admin(own)
    for future in client.delete_records([TopicPartition(topic, 0, 7)]).values():
        future.result()

    with pytest.raises(SourceLost, match=rf"{topic}\[0\] 4 to 6 \(3 records\).*CRM_ACCEPT_GAPS"):
        check_source(own, {(topic, 0): 4})
    check_source(own.model_copy(update={"accept_gaps": True}), {(topic, 0): 4})
    check_source(own, {(topic, 0): 7})


def test_bronze_that_is_ahead_of_its_topic_is_refused(own: Settings) -> None:
    ensure(own)
    topic = topic_name(own.env, "orders")
    send(own, topic, 2)

    with pytest.raises(SourceLost, match=r"ends at offset 2, but bronze holds it up to 8"):
        check_source(own, {(topic, 0): 9})

"""What is planned for the topics, before any broker is asked."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_resources.contracts.model import MAX_MESSAGE_BYTES
from crm_resources.kafka import ObservedTopic, TopicError, TopicSpec, apply, plan, producer_config, topic_specs
from crm_resources.settings import load_settings

SPEC = TopicSpec("demo.orders", "orders", 4, 1000, 2000, 1, 1)
LOCAL = load_settings({"CRM_ENV": "shop", "CRM_HOME": "/nonexistent"})


def observed(spec: TopicSpec) -> ObservedTopic:
    return ObservedTopic(spec.name, spec.partitions, spec.replication_factor, {**spec.config, "segment.bytes": "1"})


names = st.sampled_from(["a.events", "a.orders", "b.orders"])
specs = st.builds(
    TopicSpec, names, st.just("orders"), st.integers(1, 8), st.integers(1, 9), st.integers(1, 9), st.integers(1, 3), st.integers(1, 3)
)
sets = st.lists(specs, unique_by=lambda s: s.name)


@given(sets)
def test_topics_as_declared_need_nothing(desired: list[TopicSpec]) -> None:
    assert plan(desired, {s.name: observed(s) for s in desired}).is_empty


@given(sets, sets, st.booleans())
def test_applying_a_plan_leaves_nothing_but_what_is_blocked(desired: list[TopicSpec], present: list[TopicSpec], allow: bool) -> None:
    state = {s.name: observed(s) for s in present}
    changes = plan(desired, state, allow_more_partitions=allow)
    for spec in changes.create:
        state[spec.name] = observed(spec)
    for change in changes.alter:
        state[change.topic] = replace(state[change.topic], config={**state[change.topic].config, change.key: change.desired})
    for growth in changes.grow:
        state[growth.topic] = replace(state[growth.topic], partitions=growth.desired)
    left = plan(desired, state, allow_more_partitions=allow)
    assert left == replace(left, create=(), alter=(), grow=())
    assert left.blocked == changes.blocked


@given(sets, sets)
def test_partitions_are_never_added_or_removed_unasked(desired: list[TopicSpec], present: list[TopicSpec]) -> None:
    changes = plan(desired, {s.name: observed(s) for s in present})
    assert not changes.grow
    have = {s.name: s for s in present}
    differs = {s.name for s in desired if s.name in have and have[s.name].partitions != s.partitions}
    assert differs <= {b.topic for b in changes.blocked}


def test_fewer_partitions_are_refused_with_a_remedy() -> None:
    (blocked,) = plan([SPEC], {SPEC.name: replace(observed(SPEC), partitions=9)}, allow_more_partitions=True).blocked
    assert "cannot remove partitions" in blocked.reason
    assert "declare 9 partitions" in blocked.remedy


def test_a_changed_retention_is_altered_and_told() -> None:
    drifted = replace(observed(SPEC), config={**SPEC.config, "retention.ms": "5"})
    assert plan([SPEC], {SPEC.name: drifted}).describe() == ["alter demo.orders: retention.ms 5 -> 1000"]


def test_a_blocked_plan_is_not_applied_in_part() -> None:
    changes = plan([SPEC, replace(SPEC, name="demo.events")], {SPEC.name: replace(observed(SPEC), partitions=9)})
    assert changes.create
    # No broker is asked: the settings point nowhere.
    with pytest.raises(TopicError, match=r"demo\.orders has 9 partitions"):
        apply(LOCAL, changes)


def test_the_four_topics_of_an_environment() -> None:
    found = topic_specs(LOCAL)
    assert [s.name for s in found] == ["shop.events", "shop.orders", "shop.products", "shop.profiles"]
    assert {s.config["cleanup.policy"] for s in found} == {"delete"}
    assert all(s.replication_factor == 1 for s in found)


def test_the_cluster_profile_survives_the_loss_of_a_broker() -> None:
    found = topic_specs(LOCAL.model_copy(update={"profile": "cluster"}))
    assert {(s.replication_factor, s.min_insync_replicas) for s in found} == {(3, 2)}


def test_topics_and_producer_take_more_than_a_contract_does() -> None:
    limits = {s.max_message_bytes for s in topic_specs(LOCAL)} | {producer_config(LOCAL)["message.max.bytes"]}
    assert limits == {8 * 1024 * 1024}
    assert min(limits) > MAX_MESSAGE_BYTES

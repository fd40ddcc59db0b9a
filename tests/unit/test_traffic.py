"""Live traffic is what the scenario says: in its mix, at its times, valid, coherent and the same for the same seed."""

from __future__ import annotations

from collections import Counter
from datetime import UTC, datetime
from itertools import pairwise

import orjson
import pytest

from crm_resources.contracts import ENTITIES
from crm_resources.contracts.canonical import message_digest
from crm_resources.contracts.entities import kafka_key
from generator.ids import epoch_microseconds
from generator.records import Outgoing
from generator.scenario import Defects, LiveScenario, Mix, Phase
from generator.schedule import Schedule
from generator.synthetic import Shop, ShopOptions
from generator.traffic import Traffic

START = datetime(2026, 3, 29, 12, 0, tzinfo=UTC)
MIX = Mix(events=0.8, orders=0.1, products=0.04, profiles=0.06)


def traffic_of(scenario: LiveScenario) -> Traffic:
    sizes = ShopOptions(seed=scenario.seed, customers=scenario.customers, products=scenario.products)
    return Traffic(scenario, Schedule(scenario), Shop(sizes, START, "run-1"), START)


def scenario_of(*phases: Phase, **options: object) -> LiveScenario:
    return LiveScenario.model_validate({"customers": 200, "products": 50, "mix": MIX, "seed": 5, **options, "phases": phases})


PLAIN = scenario_of(Phase(name="a", duration=10, rate=600))


@pytest.fixture(scope="module")
def records() -> list[Outgoing]:
    return list(traffic_of(PLAIN).records())


def test_the_same_seed_and_start_give_the_same_bytes(records: list[Outgoing]) -> None:
    assert list(traffic_of(PLAIN).records()) == records
    other = list(traffic_of(PLAIN.model_copy(update={"seed": 6})).records())
    assert {r.value for r in other}.isdisjoint(r.value for r in records)


def test_each_record_happens_at_its_moment(records: list[Outgoing]) -> None:
    begin = epoch_microseconds(START)
    assert [r.event_us for r in records] == [begin + round(m.due_seconds * 1e6) for m in Schedule(PLAIN).moments()]
    fast = list(traffic_of(PLAIN.model_copy(update={"clock_speed_up": 60.0})).records())
    assert fast[-1].event_us - fast[0].event_us == pytest.approx(60 * (records[-1].event_us - records[0].event_us), rel=1e-6)


def test_the_mix_is_met_within_four_standard_errors(records: list[Outgoing]) -> None:
    counts = Counter(r.plural for r in records)
    for plural, share in MIX.model_dump().items():
        assert abs(counts[plural] / len(records) - share) < 4 * (share * (1 - share) / len(records)) ** 0.5


def test_every_record_follows_its_contract_and_its_typed_checksum(records: list[Outgoing]) -> None:
    for record in records:
        message = ENTITIES[record.entity].model_validate_json(record.value or b"", strict=True)
        assert record.key == kafka_key(message)
        assert record.typed_md5() == message_digest(record.entity, orjson.loads(record.value or b""))


def test_sequences_rise_and_references_lead_somewhere_once_everybody_is_introduced() -> None:
    traffic = traffic_of(PLAIN)
    introduced = list(traffic.preamble())
    known = {r.entity_key for r in introduced}
    assert len(introduced) == 250
    assert {r.event_us for r in introduced} == {epoch_microseconds(START) - 1}
    last: dict[tuple[str, str], int] = {}
    orders: set[str] = set()
    wanted: set[str] = set()
    for record in [*introduced, *traffic.records()]:
        assert record.sequence > last.get((record.entity, record.entity_key), -1)
        last[record.entity, record.entity_key] = record.sequence
        message = orjson.loads(record.value or b"")
        if record.entity == "order":
            orders.add(message["order_id"])
        assert {message.get("customer_id"), message.get("product_id")} - {None} <= known
        assert {line["product_id"] for line in message.get("lines", [])} <= known
        if message.get("event_type") == "purchase":
            wanted.add(message["order_id"])
    assert len(wanted) > 20
    assert len(wanted - orders) <= 20  # those whose order is still to come when the traffic ends


def test_the_hot_customer_makes_the_stated_share() -> None:
    hot = list(traffic_of(scenario_of(Phase(name="a", duration=5, rate=1_000, hot_key_share=0.8))).records())
    by_customer = [r for r in hot if r.entity != "product"]
    busiest, count = Counter(r.key for r in by_customer).most_common(1)[0]
    assert busiest == b"C000001"
    guests = 0.1 * 0.1 / 0.96  # of the orders, a tenth is by guests, who are nobody's key
    assert 0.8 * (1 - guests) - 0.02 < count / len(by_customer) < 0.82


def test_each_phase_has_its_own_mix_and_defects() -> None:
    quiet = Phase(name="quiet", duration=2, rate=500, mix=Mix(events=1))
    broken = Phase(name="broken", duration=4, rate=500, defects=Defects(duplicate=0.1, corrupt_json=0.1))
    scenario = scenario_of(quiet, broken)
    sent = list(traffic_of(scenario).records())
    assert len(sent) == 3_000
    assert {(r.entity, r.defect) for r in sent[:1_000]} == {("event", None)}
    faulty = Counter(r.defect for r in sent[1_000:] if r.defect)
    assert len(faulty) == 2
    for count in faulty.values():
        assert 0.06 < count / 2_000 < 0.11  # of the good ones, which share the phase's moments with the faulty ones


def test_records_keep_their_times_when_some_are_held_back() -> None:
    scenario = scenario_of(Phase(name="a", duration=4, rate=500, mix=Mix(events=1), defects=Defects(out_of_order=0.1)))
    sent = list(traffic_of(scenario).records())
    assert len(sent) == 2_000
    times = [r.event_us for r in sent if r.defect is None]
    assert all(a <= b for a, b in pairwise(times))

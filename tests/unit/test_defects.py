"""Each defect is judged as it is declared, and comes in the share that was ordered."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from random import Random

import orjson
import pytest
from pydantic import ValidationError

from crm_resources.contracts import ENTITIES, Reason
from crm_resources.contracts.entities import SCHEMA_VERSION
from crm_resources.contracts.model import MAX_MESSAGE_BYTES
from crm_resources.ordered_defects import Expected
from generator.defects import DefectShares, LateDelays, spoil, suits, with_defects
from generator.ids import epoch_microseconds
from generator.records import Defect, Outgoing
from generator.synthetic import Shop, ShopOptions

NOW = datetime(2026, 3, 29, 12, 0, tzinfo=UTC)
TOLERANCE = timedelta(days=1)


def seeded(seed: int) -> Random:
    return Random(seed)


@pytest.fixture(scope="module")
def records() -> list[Outgoing]:
    return list(Shop(ShopOptions(seed=7, customers=60, products=25, orders=300, events=2_000, days=30), NOW).history())


def judge(record: Outgoing, accepted: dict[str, bytes]) -> Reason | None:
    """What is wrong with a record in the words of the dead letters, told without the generator's knowledge; None when it is fine."""
    if record.value is None:
        return Reason.NULL_VALUE
    if len(record.value) > MAX_MESSAGE_BYTES:
        return Reason.OVERSIZED
    try:
        text = record.value.decode()
    except UnicodeDecodeError:
        return Reason.INVALID_UTF8
    try:
        message = orjson.loads(text)
    except orjson.JSONDecodeError:
        return Reason.CORRUPT_JSON
    if message["entity"] != record.entity:
        return Reason.UNKNOWN_ENTITY
    if message["schema_version"] > SCHEMA_VERSION:
        return Reason.UNKNOWN_SCHEMA_VERSION
    try:
        model = ENTITIES[record.entity].model_validate_json(text, strict=True)
    except ValidationError:
        return Reason.INVALID_FIELD
    if model.event_time > NOW + TOLERANCE:
        return Reason.FUTURE_EVENT
    if model.event_id in accepted and accepted[model.event_id] != record.value:
        return Reason.CONFLICTING_DUPLICATE
    return None


@pytest.mark.parametrize("defect", list(Defect))
def test_each_defect_ends_where_it_is_declared_to(defect: Defect, records: list[Outgoing]) -> None:
    suitable = [r for r in records if suits(r, defect)][:30]
    assert len(suitable) == 30
    accepted = {r.event_id: r.value or b"" for r in records}
    if not defect.additional:
        accepted = {}  # such a record takes the place of the good one
    for good in suitable:
        bad = spoil(good, defect, seeded(1))
        assert bad.defect is defect
        assert judge(bad, accepted) is defect.reason
        assert (bad.key, bad.plural, bad.entity_key) == (good.key, good.plural, good.entity_key)
        if defect.expected is not Expected.ACCEPTED:
            continue
        message = ENTITIES[bad.entity].model_validate_json(bad.value or b"", strict=True)
        assert (message.event_id, message.sequence) == (bad.event_id, bad.sequence) == (message.event_id, good.sequence)
        assert epoch_microseconds(message.event_time) == bad.event_us
        assert bad.event_id[:13] <= f"{bad.event_us // 1000:012x}"[:8] + "-" + f"{bad.event_us // 1000:012x}"[8:]


@pytest.mark.parametrize("defect", list(Defect))
def test_each_defect_comes_in_its_share(defect: Defect, records: list[Outgoing]) -> None:
    share = 0.05
    sent = list(with_defects(records, DefectShares(**{defect.value: share}), seeded(5)))
    faulty = [r for r in sent if r.defect]
    assert {r.defect for r in faulty} == {defect}
    assert 0.7 * share < len(faulty) / len(records) < 1.3 * share
    assert len(sent) == len(records) + (len(faulty) if defect.additional else 0)


def test_what_is_not_additional_replaces_and_loses_nothing(records: list[Outgoing]) -> None:
    shares = DefectShares(late=0.1, out_of_order=0.1, unknown_reference=0.1, clock_skew=0.1, dst=0.1)
    sent = list(with_defects(records, shares, seeded(5)))
    identity = Counter((r.plural, r.entity_key, r.sequence) for r in sent)
    assert identity == Counter((r.plural, r.entity_key, r.sequence) for r in records)
    assert [r for r in sent if r.defect and (r.entity != "event" or r.amount is not None)] == []


def test_a_record_out_of_order_leaves_unchanged_behind_a_later_one_of_its_key(records: list[Outgoing]) -> None:
    busy = [replace(r, key=b"one") for r in records if r.entity == "event"]
    sent = list(with_defects(busy, DefectShares(out_of_order=0.05), seeded(5)))
    place = {r.event_id: n for n, r in enumerate(busy)}
    held = [(n, r) for n, r in enumerate(sent) if r.defect]
    assert held
    for n, record in held:
        assert record.value == busy[place[record.event_id]].value
        assert n == 0 or place[sent[n - 1].event_id] > place[record.event_id] or sent[n - 1].defect


def test_late_records_follow_the_distribution(records: list[Outgoing]) -> None:
    event = next(r for r in records if suits(r, Defect.LATE))
    delays = LateDelays(median_seconds=60, at_most_seconds=3_600)
    random = seeded(2)
    drawn = sorted(event.event_us - spoil(event, Defect.LATE, random, delays).event_us for _ in range(2_000))
    assert 50_000_000 < drawn[1_000] < 72_000_000
    assert drawn[0] >= 1_000_000
    assert drawn[-1] == 3_600_000_000


@pytest.mark.parametrize(("month", "hours"), [(1, -1), (7, 1)])
def test_dst_is_wrong_by_exactly_one_hour(records: list[Outgoing], month: int, hours: int) -> None:
    event = next(r for r in records if suits(r, Defect.DST))
    event = replace(event, event_us=epoch_microseconds(datetime(2026, month, 15, 12, tzinfo=UTC)))
    assert spoil(event, Defect.DST, seeded(1)).event_us - event.event_us == hours * 3_600_000_000


def test_the_same_seed_gives_the_same_defects_of_every_kind(records: list[Outgoing]) -> None:
    shares = DefectShares(**{d.value: 0.02 for d in Defect})
    first, second = (list(with_defects(records, shares, seeded(3))) for _ in range(2))
    assert first == second
    assert {r.defect for r in first} == {None, *Defect}

"""Ids are UUIDv7, sort by time, and repeat exactly when they should."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from generator.ids import Uuid7s, derived_uuid, epoch_microseconds, epoch_milliseconds, uuid7


def seeded(seed: int) -> Random:
    return Random(seed)


MOMENTS = st.datetimes(datetime(1971, 1, 1), datetime(2200, 1, 1), timezones=st.just(UTC))  # noqa: DTZ001 -- hypothesis adds the zone


@given(MOMENTS, st.integers())
def test_a_seeded_id_is_a_uuid7_of_its_time(moment: datetime, seed: int) -> None:
    milliseconds = epoch_milliseconds(moment)
    text = uuid7(milliseconds, seeded(seed))
    parsed = uuid.UUID(text)
    assert parsed.version == 7
    assert parsed.variant == uuid.RFC_4122
    assert parsed.int >> 80 == milliseconds
    assert text == uuid7(milliseconds, seeded(seed))
    assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text)


@given(st.lists(MOMENTS, min_size=1, max_size=5), st.integers())
def test_ids_drawn_in_blocks_are_uuid7s_of_their_times_too(moments: list[datetime], seed: int) -> None:
    times = [epoch_milliseconds(m) for m in moments] * 3
    ids, again = Uuid7s(seeded(seed)), Uuid7s(seeded(seed))
    drawn = [ids.at(t) for t in times]
    assert drawn == [again.at(t) for t in times]
    for milliseconds, text in zip(times, drawn, strict=True):
        parsed = uuid.UUID(text)
        assert (parsed.version, parsed.variant, parsed.int >> 80) == (7, uuid.RFC_4122, milliseconds)
        assert re.fullmatch(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", text)


def test_ids_of_one_moment_differ_across_blocks() -> None:
    ids = Uuid7s(seeded(1))
    assert len({ids.at(1_700_000_000_000) for _ in range(5_000)}) == 5_000


@given(MOMENTS, MOMENTS, st.text(), st.text())
def test_derived_ids_sort_by_time_as_text(one: datetime, two: datetime, namespace: str, key: str) -> None:
    earlier, later = sorted([one, two])
    if epoch_milliseconds(earlier) < epoch_milliseconds(later):
        assert derived_uuid(earlier, namespace, key) < derived_uuid(later, namespace, key)
    assert uuid.UUID(derived_uuid(one, namespace, key)).version == 7


def test_a_derived_id_depends_on_time_namespace_and_key_and_nothing_else() -> None:
    moment = datetime(2011, 12, 9, 12, 50, tzinfo=UTC)
    same = derived_uuid(moment, "file", "536365")
    assert same == derived_uuid(moment, "file", "536365")
    others = {
        derived_uuid(moment, "file", "536366"),
        derived_uuid(moment, "other", "536365"),
        derived_uuid(moment + timedelta(milliseconds=1), "file", "536365"),
    }
    assert same not in others
    assert len(others) == 3


@given(MOMENTS)
def test_epoch_times_are_exact(moment: datetime) -> None:
    assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(microseconds=epoch_microseconds(moment)) == moment
    assert epoch_microseconds(moment) // 1000 == epoch_milliseconds(moment)

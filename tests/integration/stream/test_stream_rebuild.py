"""Silver can always be made again from bronze, and a rebuild may be interrupted at any point of its swap."""

from __future__ import annotations

import pytest

from crm_assets.streaming import rebuild as subject
from crm_assets.streaming.rebuild import finish_swap, rebuild
from crm_resources.lake import table_id
from tests.integration.lakes import on_both_lakes
from tests.integration.stream.lake_fixtures import Lake, records
from tests.integration.stream.test_stream_refine import Crash, messages, mixed


def test_a_rebuild_equals_what_the_stream_wrote(lake: Lake) -> None:
    captured = mixed(count=50)
    half = len(captured) // 2
    for part in (captured[:half], captured[half:]):
        lake.capture(part)
        lake.refine()

    result = rebuild(lake.spark, lake.settings, swap=False)

    assert result.equal, result.comparisons
    assert result.replaced is None
    assert lake.files("_rebuild") == []


@on_both_lakes
def test_the_stream_goes_on_behind_a_rebuild(lake: Lake) -> None:
    captured = mixed(count=30)
    lake.capture(captured)
    lake.refine()
    before = table_id(lake.settings, "silver/events")
    lake.remove("silver/orders")

    result = rebuild(lake.spark, lake.settings)

    assert {c.table for c in result.comparisons if not c.equal} == {"orders"}
    assert table_id(lake.settings, "silver/events") != before
    assert lake.places() == lake.coordinates(captured)

    late = [
        *records("event", messages("event", 4, seed=8), first_offset=10_000),
        *records("event", [messages("event", 1, seed=3)[0]], first_offset=20_000),
    ]
    lake.capture(late)
    counts = lake.refine().total

    assert (counts.read, counts.placed_before) == (5, 0)
    assert lake.places() == lake.coordinates([*captured, *late])


@on_both_lakes
def test_an_interrupted_swap_is_finished_later(lake: Lake, monkeypatch) -> None:
    captured = mixed(count=30)
    lake.capture(captured)
    lake.refine()
    moves = iter(range(5))
    real = subject._move

    def crash(*arguments: object) -> None:
        if next(moves, None) is None:
            raise Crash
        real(*arguments)

    monkeypatch.setattr(subject, "_move", crash)
    with pytest.raises(Crash):
        rebuild(lake.spark, lake.settings)
    assert lake.files("_rebuild/swap.json")

    monkeypatch.undo()
    compared = rebuild(lake.spark, lake.settings, swap=False)  # whoever has the lock next finishes the swap before anything else
    finish_swap(lake.settings)

    assert lake.files("_rebuild/swap.json") == []
    assert all(c.equal for c in compared.comparisons)
    assert lake.places() == lake.coordinates(captured)
    assert lake.refine().total.read == 0

"""Silver can always be made again from bronze, and a rebuild may be interrupted at any point of its swap."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from crm_assets.streaming import rebuild as subject
from crm_assets.streaming.rebuild import finish_swap, rebuild
from crm_resources.lake import table_id
from tests.integration.stream.lake_fixtures import Lake, records
from tests.integration.stream.test_stream_refine import messages, mixed


def test_a_rebuild_equals_what_the_stream_wrote(lake: Lake) -> None:
    captured = mixed(count=50)
    half = len(captured) // 2
    for part in (captured[:half], captured[half:]):
        lake.capture(part)
        lake.refine()

    result = rebuild(lake.spark, lake.settings, swap=False)

    assert result.equal, result.comparisons
    assert result.replaced is None
    assert not list((Path(lake.settings.lake_root) / "_rebuild").glob("2*"))


def test_the_stream_goes_on_behind_a_rebuild(lake: Lake) -> None:
    captured = mixed(count=30)
    lake.capture(captured)
    lake.refine()
    before = table_id(lake.settings, "silver/events")
    shutil.rmtree(Path(lake.settings.table_uri("silver/orders")))

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


def test_an_interrupted_swap_is_finished_later(lake: Lake, monkeypatch) -> None:
    captured = mixed(count=30)
    lake.capture(captured)
    lake.refine()
    monkeypatch.setattr(subject, "finish_swap", lambda _settings: None)
    rebuild(lake.spark, lake.settings)
    journal = Path(lake.settings.lake_root) / "_rebuild" / "swap.json"
    moves = json.loads(journal.read_text())
    for source, target in moves[:5]:
        Path(target).parent.mkdir(parents=True, exist_ok=True)
        Path(source).rename(target)

    monkeypatch.undo()
    compared = rebuild(lake.spark, lake.settings, swap=False)  # whoever has the lock next finishes the swap before anything else
    finish_swap(lake.settings)

    assert not journal.exists()
    assert all(c.equal for c in compared.comparisons)
    assert lake.places() == lake.coordinates(captured)
    assert lake.refine().total.read == 0

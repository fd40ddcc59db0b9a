"""Dead letters tried again: what is good now arrives once, what is not returns, and no crash or second run doubles or loses a record."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from crm_assets.streaming import transform
from crm_assets.streaming.crash_points import CrashPoint, CrashPoints
from crm_assets.streaming.dead_letters import POSITION, open_rows, untried_dead_letters
from crm_assets.streaming.rebuild import rebuild
from crm_assets.streaming.refine import RefineStep
from crm_assets.streaming.replay import Clock, Replay, carry_out, in_chunks
from crm_assets.streaming.replay_request import ReplayArguments
from crm_assets.streaming.requests import Request, RequestKind
from crm_assets.streaming.tables import live, refined_tables
from crm_resources.lake import table_version
from crm_resources.layout import REPLAYS
from tests.integration.stream.lake_fixtures import Lake, Record, records
from tests.integration.stream.messages import ARRIVED, good_message
from tests.integration.stream.test_stream_refine import Crash, messages, other_payload

COME = ARRIVED + timedelta(days=30)
"""When all events of these tests have come to pass."""

LATER = datetime(2100, 1, 1, tzinfo=UTC)
"""A time after every refusal of a test, so that a replay asked for then means all dead letters."""


@dataclass
class Waits:
    """A clock at one moment that notes its pauses instead of waiting."""

    moment: datetime = COME
    pauses: list[float] = field(default_factory=list)

    @property
    def clock(self) -> Clock:
        return Clock(lambda: self.moment, lambda: 0.0, self.pauses.append)


@dataclass
class DieAt(CrashPoints):
    """Dies by an exception."""

    def passing(self, point: CrashPoint) -> None:
        self._passed += point is self.chosen
        if point is self.chosen and self._passed == self.times:
            raise Crash


def request(identity: str = "one", **arguments: Any) -> Request:
    checked = ReplayArguments.model_validate({"dry_run": False, **arguments})
    return Request(identity, RequestKind.REPLAY, checked.model_dump(mode="json"), LATER.isoformat())


def replay(lake: Lake, asked: Request, **more: Any) -> dict[str, Any]:
    """Carry a request out in a step that was just started."""
    return carry_out(lake.settings, lake.spark, RefineStep(lake.settings, live(lake.settings)), asked, **{"clock": Waits().clock, **more})


def future(count: int = 6) -> list[Record]:
    """Orders dated a week ahead of their arrival; the second is resent, the third comes again with another payload."""
    from random import Random

    chooser = Random(7)
    found = [good_message("order", chooser, ARRIVED + timedelta(days=7, seconds=n)) for n in range(count)]
    return records("order", [*found, found[1], other_payload(found[2])])


def poison(first_offset: int = 100) -> list[Record]:
    return records("event", [b"no JSON", None, b'{"event_id": "x"}'], first_offset=first_offset)


def open_letters(lake: Lake) -> list[dict[str, Any]]:
    return open_rows(untried_dead_letters(lake.settings).rows).to_pylist()


def assert_books_closed(lake: Lake, captured: list[Record]) -> None:
    """Every record in one place; every row of the replay ledger once, and true."""
    places: Counter[tuple[Any, ...]] = Counter()
    where: dict[str, set[tuple[Any, ...]]] = {}
    for table in refined_tables():
        rows = [tuple(r[c] for c in POSITION) for r in lake.rows(table.name, *POSITION)] if table.name != "dead_letters" else []
        places.update(rows)
        where.setdefault(table.name if table.name == "duplicates" else "silver", set()).update(rows)
    places.update(tuple(r[c] for c in POSITION) for r in open_letters(lake))
    assert sorted(places.elements()) == lake.coordinates(captured)
    letters = Counter((*(r[c] for c in POSITION), r["attempt"]) for r in lake.rows("dead_letters", *POSITION, "attempt"))
    assert set(letters.values()) <= {1}
    noted = lake.ledger()
    keys = Counter((*(r[c] for c in POSITION), r["attempt"]) for r in noted)
    assert set(keys.values()) <= {1}
    assert set(keys) == {(*k[:3], k[3]) for k in letters} - {(*(r[c] for c in POSITION), r["attempt"]) for r in open_letters(lake)}
    for row in noted:
        place = tuple(row[c] for c in POSITION)
        match row["outcome"]:
            case "silver":
                assert place in where["silver"]
            case "duplicate":
                assert place in where["duplicates"]
            case _:
                assert letters[(*place, row["attempt"] + 1)] == 1


@pytest.fixture
def waiting(lake: Lake) -> list[Record]:
    """Eight future orders and three bad events, captured and refused."""
    captured = [*future(), *poison()]
    lake.capture(captured)
    assert lake.refine().total.dead_letters == len(captured)
    return captured


def test_what_is_good_now_goes_on_and_what_is_not_returns_with_its_next_attempt(lake: Lake, waiting: list[Record]) -> None:
    figures = replay(lake, request())

    assert figures["outcomes"]["future_event"] == {"silver": 6, "duplicate": 1, "dead_letter": 1}
    assert figures["selected"] == len(waiting)
    assert_books_closed(lake, waiting)
    sent = {r.offset: json.loads(r.value or b"") for r in waiting if r.entity == "order"}
    arrived = lake.rows("orders", "event_id", "kafka_offset", "ingested_at", "kafka_timestamp")
    assert {r["kafka_offset"]: r["event_id"] for r in arrived} == {n: sent[n]["event_id"] for n in range(6)}
    assert {(r["ingested_at"], r["kafka_timestamp"]) for r in arrived} == {(ARRIVED, ARRIVED)}
    first = {r["kafka_offset"]: r for r in lake.rows("dead_letters", "kafka_offset", "attempt", "failed_at") if r["attempt"] == 1}
    for row in open_letters(lake):
        assert (row["attempt"], row["first_failed_at"], row["failed_at"]) == (2, first[row["kafka_offset"]]["failed_at"], COME)
    assert Counter(r["reason"] for r in open_letters(lake))["conflicting_duplicate"] == 1
    values = lake.rows("dead_letters", "kafka_offset", "attempt", "value", "kafka_key")
    assert {r["kafka_offset"]: (r["value"], r["kafka_key"]) for r in values if r["attempt"] == 2} == {
        r.offset: (r.value, b"key") for r in waiting if r.offset in (7, 100, 101, 102)
    }


def test_a_replay_run_twice_does_nothing_the_second_time(lake: Lake, waiting: list[Record]) -> None:
    first = replay(lake, request())
    before = {t.name: table_version(lake.settings, t.path) for t in (*refined_tables(), REPLAYS)}

    second = replay(lake, request())

    assert {t.name: table_version(lake.settings, t.path) for t in (*refined_tables(), REPLAYS)} == before
    assert second["outcomes"] == first["outcomes"]
    assert second["chunks"] == 0
    assert_books_closed(lake, waiting)
    assert replay(lake, request("another", reasons=["future_event"]))["selected"] == 0


@pytest.mark.parametrize(
    ("point", "times", "same_request"),
    [
        (CrashPoint.REPLAY_BETWEEN_TABLES, 1, True),
        (CrashPoint.REPLAY_BETWEEN_TABLES, 2, False),
        (CrashPoint.REPLAY_BEFORE_LEDGER, 1, True),
        (CrashPoint.REPLAY_BEFORE_LEDGER, 2, False),
        (CrashPoint.REPLAY_BETWEEN_CHUNKS, 1, True),
    ],
)
def test_a_replay_killed_half_way_doubles_and_loses_nothing(
    lake: Lake, waiting: list[Record], point: CrashPoint, times: int, same_request: bool
) -> None:
    """Taken up again under its own name, or given up and asked for anew under another."""
    rate = {"records_per_second": 1.2}  # chunks of six
    with pytest.raises(Crash):
        replay(lake, request(**rate), crash=DieAt(point, times))
    live_batch = records(
        "order", [other_payload(json.loads(waiting[4].value or b"")) | {"event_time": "2026-03-01T10:00:00Z"}], first_offset=500
    )
    lake.capture(live_batch)
    lake.refine()

    replay(lake, request("one" if same_request else "two", **rate))

    assert_books_closed(lake, [*waiting, *live_batch])
    assert {r["attempt"] for r in open_letters(lake)} <= ({1, 2} if same_request else {1, 2, 3})
    ids = [r["event_id"] for r in lake.rows("orders", "event_id")]
    assert len(ids) == len(set(ids)) == 6


def test_control_without_the_ledger_a_second_run_doubles(lake: Lake, waiting: list[Record]) -> None:
    """The same steps without looking for what was tried and placed before: this is what the ledger and `settle` are for."""
    for name in ("first", "second"):
        found = Replay(lake.settings, lake.spark, RefineStep(lake.settings, live(lake.settings)), name)
        every = untried_dead_letters(lake.settings, replays_path="no ledger")
        for chunk in in_chunks(lake.settings, "dead_letters", every, 1000):
            for placed in found.judge(chunk, COME):
                found._append(live_table(placed.contract.plural), [placed.silver])

    ids = [r["event_id"] for r in lake.rows("orders", "event_id")]
    assert (len(ids), len(set(ids))) == (12, 6)
    with pytest.raises(AssertionError):
        assert_books_closed(lake, waiting)


def live_table(plural: str) -> Any:
    from crm_resources.layout import SILVER

    return SILVER[plural]


def test_a_contract_that_was_widened_makes_old_dead_letters_good(lake: Lake, monkeypatch: pytest.MonkeyPatch) -> None:
    newer = [{**m, "schema_version": 2} for m in messages("profile", 4)]
    captured = records("profile", newer)
    lake.capture(captured)
    assert lake.refine().total.dead_letters == 4
    assert replay(lake, request())["outcomes"] == {"unknown_schema_version": {"dead_letter": 4}}

    monkeypatch.setattr(transform, "KNOWN_SCHEMA_VERSIONS", (1, 2))

    assert replay(lake, request("after"))["outcomes"] == {"unknown_schema_version": {"silver": 4}}
    assert_books_closed(lake, captured)


def test_a_limit_that_was_widened_makes_old_dead_letters_good(lake: Lake, waiting: list[Record]) -> None:
    wider = Lake(lake.spark, lake.settings.model_copy(update={"future_tolerance_seconds": 8 * 86_400}))
    still = Waits(ARRIVED).clock

    assert replay(lake, request("narrow", reasons=["future_event"]), clock=still)["outcomes"] == {"future_event": {"dead_letter": 8}}
    assert replay(wider, request("wide", reasons=["future_event"]), clock=still)["outcomes"]["future_event"]["silver"] == 6
    assert_books_closed(lake, waiting)


def test_a_dry_run_predicts_and_writes_nothing(lake: Lake, waiting: list[Record]) -> None:
    before = {t.name: table_version(lake.settings, t.path) for t in (*refined_tables(), REPLAYS)}

    predicted = replay(lake, request("dry", dry_run=True, records_per_second=0.2))  # records that concern each other in chunks of their own

    assert {t.name: table_version(lake.settings, t.path) for t in (*refined_tables(), REPLAYS)} == before
    assert replay(lake, request())["outcomes"] == predicted["outcomes"]


def test_the_rate_is_kept_by_pauses_between_chunks(lake: Lake, waiting: list[Record]) -> None:
    waits = Waits()

    figures = replay(lake, request(records_per_second=0.6), clock=waits.clock)  # five seconds hold three records

    assert figures["chunks"] == 4
    assert waits.pauses == pytest.approx([5.0, 5.0, 5.0, 2 / 0.6])
    assert_books_closed(lake, waiting)


def test_a_rebuild_keeps_what_was_replayed(lake: Lake, waiting: list[Record]) -> None:
    replay(lake, request())
    replay(lake, request("again", reasons=["corrupt_json"]), clock=Waits(COME + timedelta(hours=1)).clock)
    before = {t: sorted(map(str, lake.rows(t, *POSITION, "event_id"))) for t in ("orders", "duplicates", "dead_letters")}

    result = rebuild(lake.spark, lake.settings)

    assert result.equal, result.comparisons
    assert {t: sorted(map(str, lake.rows(t, *POSITION, "event_id"))) for t in before} == before
    assert Counter(r["replay_id"] for r in lake.ledger()) == {"one": len(waiting), "again": 1}
    assert_books_closed(lake, waiting)
    assert lake.refine().total.read == 0
    assert replay(lake, request("after", reasons=["future_event"]))["selected"] == 0

"""Segments as known, day after day, against a diary that a test keeps of what was published; and cut points that hold for a day."""

from __future__ import annotations

import itertools
from collections import Counter
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any

import pytest

from crm_assets.warehouse.load import load_all
from crm_assets.warehouse.recorded_refresh import PlannedRefresh, recorded_refresh
from crm_resources import refresh_reports, warehouse
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from tests.oracle.lake_writer import append, order
from tests.oracle.refresh import WITHOUT_TESTS, data_set, refresh, run_dbt

TODAY = datetime.now(UTC).date()
START = TODAY - timedelta(days=12)
IDLE = START + timedelta(days=2)
DAYS = [START + timedelta(days=n) for n in (0, 1, 3, 10)]
LAPSED = {"Hibernating", "Lost"}
Diary = dict[date, dict[tuple[str, str], tuple[str, int]]]
"""By business day, customer and basis: segment and rank as published at the end of the day."""


def at(day: date, minute: int = 0) -> datetime:
    return datetime(day.year, day.month, day.day, 9, tzinfo=UTC) + timedelta(minutes=minute)


def some_orders(random: Random, day: date, count: int) -> list[dict[str, Any]]:
    """Orders of a day, some of which arrive with an older date, and refunds that name no order."""
    rows = []
    for number in range(count):
        customer = f"c{random.randrange(25)}"
        dated = day - timedelta(days=random.choice([0, 0, 0, 30]))
        lines = [("sku", random.randint(1, 9), "2.0000")]
        rows.append(order(f"{day}-{number}", at(dated, number), lines, customer_id=customer))
        if random.random() < 0.3:
            refund = [("sku", -random.randint(1, 20), "2.0000")]
            rows.append(order(f"{day}-r{number}", at(day, 300 + number), refund, customer_id=customer, status="refunded"))
    return rows


def build(settings: Settings, day: date) -> None:
    """The whole of RFM from the first row, as on a day's first refresh."""
    refresh(settings.model_copy(update={"as_of": day}), *WITHOUT_TESTS, "--select", "+segment_migration_daily")


def published(settings: Settings) -> dict[tuple[str, str], tuple[str, int]]:
    rows = warehouse.fetch_rows(settings, "select customer_key, basis, segment, segment_rank from marts.rfm_segments")
    return {(customer, basis): (segment, rank) for customer, basis, segment, rank in rows}


def history(settings: Settings) -> list[tuple[Any, ...]]:
    """How each stay began, which nothing may change later."""
    sql = (
        "select customer_key, basis, valid_from, segment, entered_segment_at, previous_segment, change, moved_by, first_seen "
        "from marts.segment_history order by 1, 2, 3"
    )
    return warehouse.fetch_rows(settings, sql)


@pytest.fixture(scope="module")
def days(stack_services: Stack) -> tuple[Settings, Diary]:
    """Four business days and idle ones between them; the last is refreshed twice, with late orders in between."""
    settings = data_set(stack_services.settings, "segment_history")
    random = Random(3)
    append(settings, some_orders(random, START - timedelta(days=60), 60))
    diary: Diary = {}
    for day in DAYS:
        append(settings, some_orders(random, day, 15))
        build(settings, day)
        if day == DAYS[-1]:
            append(settings, some_orders(random, day - timedelta(days=1), 15))
            build(settings, day)
        diary[day] = published(settings)
    return settings, diary


def test_each_day_stays_as_it_was_published(days: tuple[Settings, Diary]):
    settings, diary = days
    for day, expected in diary.items():
        sql = f"select customer_key, basis, segment, segment_rank from marts.segments_as_known(date '{day}')"
        rows = warehouse.fetch_rows(settings, sql)
        assert {(customer, basis): (segment, rank) for customer, basis, segment, rank in rows} == expected
    (count,) = warehouse.fetch_rows(settings, f"select count(*) from marts.segments_as_known(date '{DAYS[-1] + timedelta(days=1)}')")[0]
    assert count == 0, "nothing is known of a day that has not been published"


def test_a_day_on_which_nothing_ran_shows_the_day_before(days: tuple[Settings, Diary]):
    settings, diary = days
    rows = warehouse.fetch_rows(settings, f"select customer_key, basis, segment from marts.segments_as_known(date '{IDLE}')")
    expected = {key: segment for key, (segment, _) in diary[IDLE - timedelta(days=1)].items()}
    assert {(customer, basis): segment for customer, basis, segment in rows} == expected


def test_stays_movements_and_categories(days: tuple[Settings, Diary]):
    settings, diary = days
    sql = "select customer_key, basis, valid_from, segment, previous_segment, change, first_seen, last_seen from marts.segment_history"
    found = {tuple(row[:3]): tuple(row[3:]) for row in warehouse.fetch_rows(settings, sql)}
    assert found == stays(diary)
    assert {row[2] for row in found.values()} >= {"new", "churned", "reactivated", "promoted", "demoted"}
    causes = dict(warehouse.fetch_rows(settings, "select moved_by, count(*) from marts.segment_history group by 1"))
    assert causes.keys() >= {None, "own order", "time", "cut points"}
    assert causes[None] == len(diary[DAYS[0]]), "only the first day has no cause"


def stays(diary: Diary) -> dict[tuple[Any, ...], tuple[Any, ...]]:
    """Stays told from the diary: by customer, basis and first day; segment, the one before, category, first and last day seen."""
    found: dict[tuple[Any, ...], tuple[Any, ...]] = {}
    first: dict[tuple[str, str], date] = {}
    latest: dict[tuple[str, str], tuple[date, str, int]] = {}
    before: dict[tuple[str, str], tuple[str, int]] = {}
    for day, segments in diary.items():
        for key, (segment, rank) in segments.items():
            first.setdefault(key, day)
            if before.get(key, (None, 0))[0] == segment:
                began = latest[key][0]
                found[*key, began] = (*found[*key, began][:-1], day)
                continue
            _, previous, previous_rank = latest.get(key, (day, None, 0))
            found[*key, day] = (segment, previous, category(previous, previous_rank, segment, rank), first[key], day)
            latest[key] = (day, segment, rank)
        before = segments
    return found


def category(previous: str | None, previous_rank: int, segment: str, rank: int) -> str:
    if previous is None:
        return "new"
    if (previous in LAPSED) != (segment in LAPSED):
        return "churned" if segment in LAPSED else "reactivated"
    return "promoted" if rank < previous_rank else "demoted" if rank > previous_rank else "unchanged"


def test_daily_migration_matrix(days: tuple[Settings, Diary]):
    settings, diary = days
    for earlier, later in itertools.pairwise(DAYS):
        sql = (
            "select basis, from_segment, to_segment, customers from marts.segment_migration_daily "
            f"where business_date = date '{later}' and from_date = date '{earlier}'"
        )
        found = {(basis, before, after): count for basis, before, after, count in warehouse.fetch_rows(settings, sql)}
        keys = diary[earlier].keys() | diary[later].keys()
        expected = Counter((basis, *(diary[d].get((key, basis), (None, 0))[0] for d in (earlier, later))) for key, basis in keys)
        assert found == expected
        restated = f"select from_segment, to_segment, customers from marts.segment_migration_as_known(date '{earlier}', date '{later}')"
        assert {("restated", before, after): count for before, after, count in warehouse.fetch_rows(settings, restated)} == {
            key: count for key, count in expected.items() if key[0] == "restated"
        }


def test_looking_back_with_late_data_leaves_the_history_alone(days: tuple[Settings, Diary]):
    settings, _ = days
    before = history(settings)
    append(settings, [order("late", at(START - timedelta(days=20)), [("sku", 99, "9.0000")], customer_id="c1")])
    build(settings, START)
    assert history(settings) == before


def test_cut_points_hold_for_the_day(days: tuple[Settings, Diary]):
    """An order moves its customer and nobody else, until everything is built anew."""
    settings, _ = days
    before = history(settings)
    assert platform_refresh(settings).scope.whole
    assert [row for row in history(settings) if row[2] < TODAY] == before, "a full refresh keeps what was known"
    stored, scores = cut_points(settings), by_customer(settings)
    assert {"rfm_scores", "rfm_segments"} <= reported_marts(settings)

    append(settings, [order("today", at(TODAY - timedelta(days=1)), [("sku", 500, "9.0000")], customer_id="c2")])
    assert not platform_refresh(settings).scope.whole
    assert cut_points(settings) == stored
    after = by_customer(settings)
    assert {key for key in after if after[key] != scores[key]} == {("id:c2", "booked"), ("id:c2", "restated")}
    assert after["id:c2", "booked"][-1] == 5
    assert not {"rfm_scores", "rfm_segments"} & reported_marts(settings), "silver alone does not make these again"

    platform_refresh(settings, everything=True)
    assert cut_points(settings) != stored


def platform_refresh(settings: Settings, *, everything: bool = False) -> PlannedRefresh:
    load_all(settings)
    with recorded_refresh(settings, whole=True, warn=pytest.fail, everything=everything) as planned:
        run_dbt(planned.settings, *WITHOUT_TESTS, changed_since=planned.scope.since)
    return planned


def reported_marts(settings: Settings) -> set[str]:
    report = refresh_reports.last_report_before(settings, datetime.max.replace(tzinfo=UTC))
    assert report is not None
    return set(report.marts)


def cut_points(settings: Settings) -> list[tuple[Any, ...]]:
    sql = f"select *, computed_at::text from marts.rfm_cut_points where as_of = date '{TODAY}' order by rfm_cut_point_key"
    return warehouse.fetch_rows(settings, sql)


def by_customer(settings: Settings) -> dict[tuple[str, str], tuple[Any, ...]]:
    names = "recency_days, frequency, monetary, recency_score, frequency_score, monetary_score"
    rows = warehouse.fetch_rows(settings, f"select customer_key, basis, {names} from marts.rfm_scores")
    return {(customer, basis): tuple(rest) for customer, basis, *rest in rows}

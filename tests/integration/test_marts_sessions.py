"""Events, sessions and conversion against an independent computation, whatever the order in which the events arrive."""

from __future__ import annotations

from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any
from zoneinfo import ZoneInfo

from crm_assets.warehouse.load import load_all
from crm_resources import change_marks, warehouse
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from tests.oracle import sessions as oracle
from tests.oracle.lake_writer import append, event
from tests.oracle.refresh import WITHOUT_TESTS, data_set, run_dbt

ZONE = "Europe/London"
AS_OF = date(2026, 3, 29)
START = datetime(2026, 3, 27, 21, tzinfo=UTC)
"""A day before the clocks change, so that sessions lie over midnight and over the change."""

HALF_HOUR = timedelta(minutes=30)
TICK = timedelta(microseconds=1)
GAPS = (timedelta(0), timedelta(seconds=40), HALF_HOUR - TICK, HALF_HOUR, HALF_HOUR + TICK, timedelta(hours=5))
TYPES = ("view", "view", "view", "click", "search", "cart", "checkout", "payment", "purchase", "login")
MODELS = ("--select", "+fct_sessions", "+conversion_daily")


def visits(seed: int) -> list[dict[str, Any]]:
    """Events of fourteen visitors over some days, full of equal times and gaps near 30 minutes; some lie after the as-of date."""
    random = Random(seed)
    rows = []
    for visitor in range(14):
        moment = START + timedelta(minutes=random.randrange(600))
        for _ in range(random.randrange(2, 70)):
            moment += random.choice(GAPS)
            rows.append(
                {
                    "visitor_id": f"v{visitor}",
                    "event_time": moment,
                    "event_type": random.choice(TYPES),
                    "customer_id": random.choice([None, None, "a", "b"]),
                    "channel": random.choice(["web", "mail", None]),
                    "page": random.choice(["/", "/p", None]),
                }
            )
    # Ids of equal times fall as they may, not in the order of the visit.
    random.shuffle(rows)
    return [event(row.pop("visitor_id"), row.pop("event_time"), **row) for row in rows]


def known(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [e for e in events if e["event_time"].astimezone(ZoneInfo(ZONE)).date() <= AS_OF]


def assert_marts_are_right(settings: Settings, arrived: list[dict[str, Any]]) -> None:
    counted = known(arrived)
    keys = {e["event_id"]: session.key for session in oracle.sessions(counted) for e in session.events}
    found = dict(warehouse.fetch_rows(settings, "select event_id, session_key from marts.fct_events"))
    assert found == {e["event_id"]: keys.get(e["event_id"]) for e in arrived}
    sql = (
        "select session_key, visitor_id, customer_key, business_date, started_at, ended_at, entry_channel, entry_page, events, "
        "view_events, cart_events, checkout_events, purchase_events from marts.fct_sessions"
    )
    assert {row[0]: row[1:] for row in warehouse.fetch_rows(settings, sql)} == oracle.session_rows(counted, ZONE)
    sql = (
        "select business_date, sessions, sessions_with_view, sessions_with_purchase, conversion_by_session, "
        "events, view_events, purchase_events, conversion_by_event from marts.conversion_daily"
    )
    assert {row[0]: row[1:] for row in warehouse.fetch_rows(settings, sql)} == oracle.conversion_rows(counted, ZONE)


def fingerprint(settings: Settings) -> dict[str, object]:
    sql = "select md5(string_agg(to_jsonb(t)::text, '|' order by to_jsonb(t)::text)) from marts.{} as t"
    return {t: warehouse.fetch_rows(settings, sql.format(t))[0][0] for t in ("fct_events", "fct_sessions", "conversion_daily")}


def marks(settings: Settings) -> dict[str, datetime] | None:
    """Newest load that the marts show, to go on from; `None` before the first."""
    warehouse.prepare(settings)
    return dict(change_marks.current_marks(settings, as_of=AS_OF, models="").loaded_at) or None


def arrive(settings: Settings, batch: list[dict[str, Any]], since: dict[str, datetime] | None, *models: str) -> None:
    """Load a batch and build what is newer than the marks."""
    append(settings, batch)
    load_all(settings)
    run_dbt(settings, *WITHOUT_TESTS, *(models or MODELS), changed_since=since)


def test_late_events_end_in_the_same_marts_as_a_full_refresh(stack_services: Stack):
    settings = data_set(stack_services.settings, "marts_sessions", as_of=AS_OF, timezone=ZONE)
    events = visits(seed=1)
    assert 0 < len(known(events)) < len(events)
    arrived: list[dict[str, Any]] = []
    for batch in (events[0::4], events[1::4]):
        arrive(settings, batch, marks(settings))
        arrived += batch
        assert_marts_are_right(settings, arrived)
    # A refresh that ended after the events is made good by the next one, which starts from the same marks.
    since = marks(settings)
    arrive(settings, events[2::4], since, "--select", "+fct_events")
    arrive(settings, events[3::4], since)
    assert_marts_are_right(settings, events)

    before = fingerprint(settings)
    run_dbt(settings, "build", *MODELS, "--indirect-selection", "buildable")
    assert fingerprint(settings) == before


def test_a_late_event_between_two_sessions_makes_them_one_and_leaves_the_others_alone(stack_services: Stack):
    settings = data_set(stack_services.settings, "marts_sessions_bridge", as_of=AS_OF, timezone=ZONE)
    noon = datetime(2026, 3, 29, 12, tzinfo=UTC)
    apart = [event("v", noon + timedelta(minutes=minutes)) for minutes in (-60, 0, 50, 120)] + [event("w", noon)]
    arrive(settings, apart, None)
    assert_marts_are_right(settings, apart)
    written = dict(warehouse.fetch_rows(settings, "select session_key, xmin::text from marts.fct_sessions"))
    assert len(written) == 5

    bridge = event("v", noon + timedelta(minutes=25), event_type="purchase")
    arrive(settings, [bridge], marks(settings))
    assert_marts_are_right(settings, [*apart, bridge])
    now = dict(warehouse.fetch_rows(settings, "select session_key, xmin::text from marts.fct_sessions"))
    joined, gone = apart[1]["event_id"], apart[2]["event_id"]
    assert now.keys() == written.keys() - {gone}
    assert {key for key in now if now[key] != written[key]} == {joined}

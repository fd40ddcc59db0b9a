"""Sessions and conversion of events, computed one event at a time in plain Python, by the page of definitions."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import date, datetime, timedelta
from typing import Any
from zoneinfo import ZoneInfo

GAP = timedelta(minutes=30)


@dataclass
class Session:
    """Events of a visitor that belong together, in order."""

    events: list[Mapping[str, Any]] = field(default_factory=list)

    @property
    def key(self) -> str:
        """Id of the first event."""
        return str(self.events[0]["event_id"])

    def count(self, kind: str) -> int:
        """Events of a type."""
        return sum(event["event_type"] == kind for event in self.events)


def sessions(events: Iterable[Mapping[str, Any]]) -> list[Session]:
    """Cut each visitor's events, ordered by time and then id, wherever more than 30 minutes pass."""
    found: list[Session] = []
    visits: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in events:
        visits[event["visitor_id"]].append(event)
    for visit in visits.values():
        before: datetime | None = None
        for event in sorted(visit, key=lambda e: (e["event_time"], e["event_id"])):
            if before is None or event["event_time"] - before > GAP:
                found.append(Session())
            found[-1].events.append(event)
            before = event["event_time"]
    return found


def session_rows(events: Iterable[Mapping[str, Any]], zone: str) -> dict[str, tuple[Any, ...]]:
    """fct_sessions by key: visitor, customer, date, begin, end, entry channel and page, events, views, carts, checkouts, purchases."""
    rows = {}
    for session in sessions(events):
        first, last = session.events[0], session.events[-1]
        named = [e["customer_id"] for e in session.events if e["customer_id"] is not None]
        rows[session.key] = (
            first["visitor_id"],
            f"id:{named[-1]}" if named else "unknown",
            _day(first, zone),
            first["event_time"],
            last["event_time"],
            first["channel"],
            first["page"],
            len(session.events),
            *(session.count(kind) for kind in ("view", "cart", "checkout", "purchase")),
        )
    return rows


def conversion_rows(events: list[Mapping[str, Any]], zone: str) -> dict[date, tuple[Any, ...]]:
    """conversion_daily by date: sessions, with a view, with a purchase, conversion; events, views, purchases, conversion."""
    by_session: dict[date, list[Session]] = defaultdict(list)
    by_event: dict[date, list[str]] = defaultdict(list)
    for session in sessions(events):
        by_session[_day(session.events[0], zone)].append(session)
    for event in events:
        by_event[_day(event, zone)].append(event["event_type"])
    rows: dict[date, tuple[Any, ...]] = {}
    for day, kinds in by_event.items():
        begun = by_session[day]
        viewed, bought = (sum(s.count(kind) > 0 for s in begun) for kind in ("view", "purchase"))
        views, purchases = kinds.count("view"), kinds.count("purchase")
        rows[day] = (
            len(begun),
            viewed,
            bought,
            bought / viewed if viewed else None,
            len(kinds),
            views,
            purchases,
            purchases / views if views else None,
        )
    return rows


def _day(event: Mapping[str, Any], zone: str) -> date:
    moment: datetime = event["event_time"]
    return moment.astimezone(ZoneInfo(zone)).date()

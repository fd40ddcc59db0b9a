"""Where a time travel goes to, from what a person wrote: pure decisions on text, clock and time zone.

Belongs here: reading points in time and lists of versions. Not here: finding the report (`crm_resources.refresh_reports`) or building
anything (`time_travel`).
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Collection, Mapping
from datetime import UTC, date, datetime, time, timedelta
from zoneinfo import ZoneInfo


class TimeTravelError(RuntimeError):
    """A journey that cannot be made; the message says why, and what can be done instead."""


def end_of(at: str, timezone: str, now: datetime) -> datetime:
    """The moment before which the wanted report was made.

    Args:
        at: a date, meaning the end of that business date, or an ISO time, itself included; one without offset is read in the
            business time zone.
        timezone: the business time zone.
        now: the current time.

    Returns:
        UTC, exclusive. Today's date gives a moment in the future: the latest report of a day that goes on.

    Raises:
        TimeTravelError: the text is neither, or lies in the future.
    """
    zone = ZoneInfo(timezone)
    try:
        if re.fullmatch(r"\d{4}-\d{2}-\d{2}", at):
            day = date.fromisoformat(at)
            begin = datetime.combine(day, time(), zone)
            end = datetime.combine(day + timedelta(days=1), time(), zone)
        else:
            read = datetime.fromisoformat(at)
            begin = read if read.tzinfo else read.replace(tzinfo=zone)
            end = begin + timedelta(microseconds=1)
        begin, end = begin.astimezone(UTC), end.astimezone(UTC)
    except (ValueError, OverflowError) as error:
        raise TimeTravelError(f"AT={at!r} is neither a date nor a time; write 2026-11-20, or 2026-11-20T12:00Z") from error
    if begin > now:
        raise TimeTravelError(f"AT={at} lies in the future: now is {now.astimezone(zone):%Y-%m-%d %H:%M:%S} in {timezone}")
    return end


def read_versions(text: str, tables: Collection[str]) -> dict[str, int]:
    """Versions by silver table, from text such as `orders=12,events=40`.

    Raises:
        TimeTravelError: another form, an unknown table, or one named twice.
    """
    found: dict[str, int] = {}
    for part in text.split(","):
        name, _, number = (p.strip() for p in part.partition("="))
        if name not in tables or name in found or not re.fullmatch(r"\d{1,18}", number):
            raise TimeTravelError(
                f"VERSIONS={text!r}: {part.strip()!r} does not fit; write each table once with its version, e.g. orders=12,events=40. "
                f"Tables: {', '.join(sorted(tables))}"
            )
        found[name] = int(number)
    return found


def read_date(text: str) -> date:
    """An as-of date.

    Raises:
        TimeTravelError: the text is none.
    """
    try:
        return date.fromisoformat(text)
    except ValueError as error:
        raise TimeTravelError(f"AS_OF={text!r} is no date; write 2026-11-20") from error


def place_of_report(env: str, refresh_id: int) -> str:
    """Name of the data set beside `env` into which a report is reproduced."""
    return f"{env}_at_report_{refresh_id}"


def place_of_versions(env: str, versions: Mapping[str, int], as_of: date) -> str:
    """The same for versions without a report; the same versions and date always give the same name."""
    spelled = ",".join(f"{name}={version}" for name, version in sorted(versions.items())) + f"@{as_of.isoformat()}"
    return f"{env}_at_versions_{hashlib.sha256(spelled.encode()).hexdigest()[:8]}"

"""The product's driver with one of its protections taken away, for controls: `python -m tests.faults.unprotected --without=duplicates`.

The product has no such switches. Here a part of it is replaced in this process, under its own name, so that a control breaks with an
error, and not silently, when that part is no longer there.
"""

from __future__ import annotations

import sys
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from types import SimpleNamespace
from typing import Any

from crm_assets.streaming import driver, ingest, refine, resumption, transform
from crm_resources.layout import DEAD_LETTERS

LATENESS_SECONDS = 600
"""What a stream with a watermark would wait for late events."""


class Protection(StrEnum):
    """What can be taken away."""

    TRANSACTIONS = "transactions"
    RECOVERY = "recovery"
    DUPLICATES = "duplicates"
    QUARANTINE = "quarantine"
    LATE_EVENTS = "late-events"
    FUTURE_EVENTS = "future-events"
    LOCK = "lock"
    REPLAY_LEDGER = "replay-ledger"

    @property
    def meaning(self) -> str:
        """In words, for the report."""
        return _MEANINGS[self]


_MEANINGS = {
    Protection.TRANSACTIONS: "looking whether a batch is in a table already (Delta transactions)",
    Protection.RECOVERY: "looking what the tables hold when a checkpoint is new",
    Protection.DUPLICATES: "the check for duplicates",
    Protection.QUARANTINE: "keeping refused records as dead letters",
    Protection.LATE_EVENTS: f"taking late events (a watermark of {LATENESS_SECONDS // 60} minutes instead)",
    Protection.FUTURE_EVENTS: "the limit for events from the future",
    Protection.LOCK: "the lake's lock",
    Protection.REPLAY_LEDGER: "looking which dead letters the replay ledger names",
}


def replace(owner: object, name: str, make: Callable[[Any], Any]) -> None:
    """Replace a part of the product.

    Args:
        owner: module or class that has it.
        name: its name there; an absent one is an error.
        make: given the part, returns what takes its place.
    """
    setattr(owner, name, make(getattr(owner, name)))


def _without_transactions() -> None:
    # Named anew in each process, no transaction of an earlier one is ever met again.
    mine = uuid.uuid4().hex
    replace(ingest.IngestStep, "application", lambda _: property(lambda step: f"{ingest.INGEST}-{step.generation.id}-{mine}"))
    replace(refine.RefineStep, "_application", lambda _: lambda step, table: f"{refine.REFINE}-{step.generation.id}-{table.name}-{mine}")


def _without_recovery() -> None:
    replace(ingest, "captured_ends", lambda _: lambda _settings: {})
    replace(refine, "resumption", lambda _: lambda _settings, _place, _generation: resumption.Resumption())


def _without_duplicates() -> None:
    replace(refine, "decide", lambda _: lambda _batch, _history: [])


def _without_quarantine() -> None:
    def writing(write: Callable[..., None]) -> Callable[..., None]:
        def write_all_but_dead_letters(self: refine.RefineStep, table: Any, *rest: Any, **named: Any) -> None:
            if table is not DEAD_LETTERS:
                write(self, table, *rest, **named)

        return write_all_but_dead_letters

    replace(refine.RefineStep, "_write", writing)


def _without_late_events() -> None:
    from pyspark.sql import functions as F

    def screening(screen: Callable[..., Any]) -> Callable[..., Any]:
        def screen_in_time(self: transform.Screen, records: Any) -> Any:
            behind = F.unix_micros("ingested_at") - F.unix_micros("event_time")
            return screen(self, records).where(F.coalesce(behind <= LATENESS_SECONDS * 1_000_000, F.lit(True)))

        return screen_in_time

    replace(transform.Screen, "__call__", screening)


def _without_future_events() -> None:
    from pyspark.sql import functions as F

    replace(transform, "_is_future", lambda _: lambda _limits: F.lit(False))


def _without_lock() -> None:
    @contextmanager
    def open_door(*_rest: Any, **_named: Any) -> Iterator[SimpleNamespace]:
        yield SimpleNamespace(check=lambda: None)

    replace(driver, "lake_lock", lambda _: open_door)


def _without_replay_ledger() -> None:
    from crm_assets.streaming import replay

    replace(
        replay, "untried_dead_letters", lambda read: lambda settings, dead_letters, _replays: read(settings, dead_letters, "no_replays")
    )
    replace(replay.Replay, "settle", lambda _: lambda _self, _now: 0)


_TAKE_AWAY: dict[Protection, Callable[[], None]] = {
    Protection.TRANSACTIONS: _without_transactions,
    Protection.RECOVERY: _without_recovery,
    Protection.DUPLICATES: _without_duplicates,
    Protection.QUARANTINE: _without_quarantine,
    Protection.LATE_EVENTS: _without_late_events,
    Protection.FUTURE_EVENTS: _without_future_events,
    Protection.LOCK: _without_lock,
    Protection.REPLAY_LEDGER: _without_replay_ledger,
}


def take_away(protections: Iterable[Protection]) -> None:
    """Replace parts of the product in this process, for good.

    Raises:
        AttributeError: a part has another name now; the control must be written anew.
    """
    for protection in protections:
        _TAKE_AWAY[protection]()


def main(arguments: list[str]) -> int:
    """Run the driver without the protections the arguments name; returns its exit status."""
    asked = [Protection(a.removeprefix("--without=")) for a in arguments]
    assert asked, "name a protection to go without, e.g. --without=duplicates"
    take_away(asked)
    return driver.main()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))

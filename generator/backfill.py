"""Sends the days of a population through Kafka, each at most once on purpose, and goes on where it was stopped.

Belongs here: which day comes next and when it counts as done. Not here: what a day holds (`population_model`), the sending of its records
(`delivery`), or where the state is kept (`backfill_state`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import date
from typing import TYPE_CHECKING

import numpy as np

from crm_resources import kafka
from crm_resources.settings import Settings
from generator.backfill_state import DayDone, StateStore
from generator.delivery import deliver
from generator.population_model.season import HOUR_US, midnight_us
from generator.population_model.shop import PopulationShop, records_of

if TYPE_CHECKING:
    import pyarrow as pa

_RENEW_EVERY_SECONDS = 20.0
_LOOK_AGAIN_SECONDS = 1.0


class BackfillError(RuntimeError):
    """A backfill cannot go on: Kafka went away, or turned good records down; the message says what is done and what to do."""


@dataclass
class BackfillOutcome:
    """What one process did. `sent_days` it has sent, with `records` that were all acknowledged; `done` are the days of all processes."""

    sent_days: int = 0
    records: int = 0
    sending_seconds: float = 0.0
    interrupted: bool = False
    done: dict[date, DayDone] = field(default_factory=dict)


def run_backfill(
    settings: Settings,
    shop: PopulationShop,
    store: StateStore,
    *,
    progress: Callable[[int, int], None] = lambda _days, _records: None,
    stop: Callable[[], bool] = lambda: False,
    delivery_timeout_seconds: float = kafka.DELIVERY_SECONDS,
) -> BackfillOutcome:
    """Send every day that is not done.

    Args:
        settings: where Kafka and the ledger are.
        shop: whose days they are.
        store: what is done, and by whom.
        progress: called with the days done and the records this process has handed over.
        stop: asked before each record; a day it ends is sent again as a whole the next time.
        delivery_timeout_seconds: how long a record is tried before it is given up.

    Raises:
        BackfillError: the broker refused records, or did not answer for a day after others were sent.
        KafkaUnavailableError: no broker at the start; nothing was sent.
        DeliveryError: Kafka went away; the day in hand is not done.
        StateError: the state cannot be read or written.
    """
    outcome = BackfillOutcome(done=store.done())
    days = shop.days
    while not stop() and (left := [day for day in days if day not in outcome.done]):
        claimed = False
        for day in left:
            if stop() or not store.claim(day):
                continue
            claimed = True
            if not _send_day(settings, shop, day, store, outcome, progress, stop, delivery_timeout_seconds):
                break
        if not claimed and not stop():
            # The rest is in other hands. If one of them dies, its claim expires and the day comes to this process.
            time.sleep(_LOOK_AGAIN_SECONDS)
        outcome.done = {**store.done(), **outcome.done}
        progress(len(outcome.done), outcome.records)
    outcome.interrupted = stop() and len(outcome.done) < len(days)
    return outcome


def _send_day(
    settings: Settings,
    shop: PopulationShop,
    day: date,
    store: StateStore,
    outcome: BackfillOutcome,
    progress: Callable[[int, int], None],
    stop: Callable[[], bool],
    timeout_seconds: float,
) -> bool:
    """Send a claimed day; False when it was interrupted and is not done."""
    begun = time.monotonic()
    table = shop.table(day)
    renewed = begun

    def on_progress(offered: int) -> None:
        nonlocal renewed
        if time.monotonic() - renewed > _RENEW_EVERY_SECONDS:
            renewed = time.monotonic()
            store.renew(day)
        progress(len(outcome.done), outcome.records + offered)

    try:
        sent = deliver(settings, shop.run_id, records_of(table), progress=on_progress, stop=stop, delivery_timeout_seconds=timeout_seconds)
    except kafka.KafkaUnavailableError as error:
        store.release(day)
        if not outcome.done:
            raise
        done = f"{len(outcome.done)} of {shop.options.days} days are done and stay so"
        raise BackfillError(f"{error}\n{done}; run the same command again when Kafka is back.") from error
    except BaseException:
        store.release(day)
        raise
    if sent.interrupted:
        store.release(day)
        return False
    if sent.refused:
        store.release(day)
        raise BackfillError(
            f"Kafka at {settings.kafka_bootstrap} refused {sent.refused} of {sent.offered} records of {day}; the refusals are in "
            f"{sent.ledger}. Look at the topics' size limit and rights, then run the same command again."
        )
    result = day_done(day, table, time.monotonic() - begun)
    store.finish(result)
    outcome.done[day] = result
    outcome.sent_days += 1
    outcome.records += result.records
    outcome.sending_seconds += sent.seconds
    return True


def day_done(day: date, table: pa.Table, seconds: float) -> DayDone:
    """What is written down of a day.

    Args:
        day: that was sent.
        table: its records, see `PopulationShop.table`.
        seconds: how long it took.
    """
    import pyarrow.compute as pc

    at_us = table["event_us"].to_numpy()
    hour = np.clip((at_us - midnight_us(day)) // HOUR_US, 0, 23)
    events = pc.equal(table["entity"], "event").to_numpy()
    # An order is placed once; the key of its first message is the order's number, and `placed` stands in its bytes.
    orders = pc.and_(pc.equal(table["entity"], "order"), pc.match_substring(table["value"], b'"status":"placed"')).to_numpy()
    return DayDone(
        day,
        table.num_rows,
        round(seconds, 3),
        tuple(np.bincount(hour[events], minlength=24).tolist()),
        tuple(np.bincount(hour[orders], minlength=24).tolist()),
    )

"""A replay inside a real driver that is killed half-way: the next driver finishes it, once and in whole."""

from __future__ import annotations

import json
import random
import signal
from collections import Counter
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta

import pytest

from crm_assets.streaming.crash_points import VARIABLE, CrashPoint
from crm_assets.streaming.dead_letters import POSITION, open_dead_letters, read_replays
from crm_assets.streaming.replay_request import ask_for_replay, replay_and_wait, replay_arguments
from crm_assets.streaming.requests import wait_for_answer
from crm_resources.kafka import ensure, producer
from crm_resources.lake import files_of, open_table, read_columns, stream_counts
from crm_resources.layout import SILVER, topic_name
from tests.driver_process import DEADLINE_SECONDS, DriverProcess, wait_until
from tests.integration.stream.messages import good_message

FUTURE, RESENT, POISON = 70, 5, 5


@pytest.fixture
def driver(stack_services: object, stack_environ: dict[str, str]) -> Iterator[DriverProcess]:
    found = DriverProcess({**stack_environ, "CRM_ENV": "replayed", "CRM_FUTURE_TOLERANCE_SECONDS": "0"})
    ensure(found.settings)
    yield found
    found.end()


def die(driver: DriverProcess, point: CrashPoint, times: int) -> None:
    """Start the driver with a crash point, and wait until it is dead."""
    assert driver.launch(**{VARIABLE: f"{point}:{times}"}).wait(DEADLINE_SECONDS) == -signal.SIGKILL


def test_a_replay_killed_half_way_and_asked_for_twice_doubles_and_loses_nothing(driver: DriverProcess) -> None:
    chooser, sender, later = random.Random(1), producer(driver.settings), datetime.now(UTC) + timedelta(hours=1)
    orders = [good_message("order", chooser, later + timedelta(seconds=n)) for n in range(FUTURE)]
    for message in (*orders, *orders[:RESENT]):
        sender.produce(topic_name(driver.settings.env, "orders"), json.dumps(message).encode(), message["entity_key"])
    for _ in range(POISON):
        sender.produce(topic_name(driver.settings.env, "events"), b"no JSON", "key")
    assert sender.flush(60) == 0
    driver.start()
    wait_until(lambda: driver.rows()["dead_letters"] == FUTURE + RESENT + POISON, "everything is refused")
    driver.running.send_signal(signal.SIGTERM)
    assert driver.running.wait(DEADLINE_SECONDS) == 0

    driver.environ["CRM_FUTURE_TOLERANCE_SECONDS"] = "86400"
    arguments = replay_arguments({"dry_run": False, "records_per_second": 4})  # chunks of 20
    asked = ask_for_replay(driver.settings, "first", arguments)
    die(driver, CrashPoint.REPLAY_BEFORE_LEDGER, 2)
    driver.start()
    answer = wait_for_answer(driver.settings, asked, timeout_seconds=DEADLINE_SECONDS, alive=lambda: True)

    assert answer.ok, answer.error
    assert answer.figures["outcomes"] == {
        "corrupt_json": {"dead_letter": POISON},
        "future_event": {"duplicate": RESENT, "silver": FUTURE},
    }
    ids = column(driver, SILVER["orders"].path, "event_id")
    assert sorted(ids) == sorted(m["event_id"] for m in orders)
    assert {(r["reason"], r["attempt"]) for r in open_dead_letters(driver.settings).to_pylist()} == {("corrupt_json", 2)}
    noted = read_replays(driver.settings, ["replay_id", *POSITION, "attempt"]).to_pylist()
    assert {row["replay_id"] for row in noted} == {asked}
    assert set(Counter(tuple(row.values()) for row in noted).values()) == {1}
    assert len(noted) == FUTURE + RESENT + POISON
    assert stream_counts(driver.settings).settled

    only = replay_arguments({"dry_run": False, "reasons": ["future_event"]})
    again = replay_and_wait(driver.settings, "second", only, timeout_seconds=DEADLINE_SECONDS, alive=lambda: True)
    assert again.figures["selected"] == 0
    assert sorted(column(driver, SILVER["orders"].path, "event_id")) == sorted(ids)


def column(driver: DriverProcess, path: str, name: str) -> list[str]:
    table = open_table(driver.settings, path)
    assert table is not None
    found: list[str] = read_columns(driver.settings, path, files_of(table), [name])[name].to_pylist()
    return found

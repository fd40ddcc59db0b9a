"""A backfill that was killed, or shared among processes, gives what an uninterrupted one gives."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crm_resources import kafka
from crm_resources.settings import REPOSITORY, Settings
from deploy.local.stack import Stack
from generator.backfill import run_backfill
from generator.backfill_state import DayDone, FileState, RedisState
from generator.population_model import PopulationOptions, PopulationShop
from generator.records import Outgoing
from tests.integration.kafka_records import read_all, read_ledger_rows

if TYPE_CHECKING:
    from redis import Redis

OPTIONS = PopulationOptions(end=date(2025, 1, 31), seed=5, customers=60, days=10, products=20, visits_per_customer=60)
COMMAND = [sys.executable, "-m", "generator", "backfill", "--customers", "60", "--days", "10", "--end", "2025-01-31", "--seed", "5"]
COMMAND += ["--products", "20", "--visits", "60"]
DAY = date(2025, 1, 20)


@pytest.fixture
def shop(stack_services: Stack, request: pytest.FixtureRequest) -> Settings:
    """Settings of a data set with topics that only this test uses."""
    settings = stack_services.settings.model_copy(update={"env": request.node.name.replace("test_", "b_", 1)[:30].lower()})
    kafka.ensure(settings)
    return settings


@pytest.fixture
def environ(stack_environ: dict[str, str], shop: Settings) -> dict[str, str]:
    """Variables of a process that works with this test's data set."""
    return {**stack_environ, "CRM_ENV": shop.env, "CRM_KAFKA_BOOTSTRAP": shop.kafka_bootstrap, "COLUMNS": "300"}


@pytest.fixture(scope="module")
def expected() -> list[Outgoing]:
    made = PopulationShop(OPTIONS)
    return [record for day in made.days for record in made.records(day)]


def test_a_killed_backfill_goes_on_and_ends_like_an_uninterrupted_one(
    shop: Settings, environ: dict[str, str], expected: list[Outgoing]
) -> None:
    state = shop.environment_dir / "backfill" / f"{OPTIONS.run_id}.json"
    with subprocess.Popen(COMMAND, cwd=REPOSITORY, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        deadline = time.monotonic() + 120
        while days_in(state) < 3:
            assert time.monotonic() < deadline
            assert process.poll() is None, process.communicate()[0]
        os.kill(process.pid, signal.SIGKILL)
    before = days_in(state)
    assert 3 <= before < 10
    again = subprocess.run(COMMAND, cwd=REPOSITORY, env=environ, capture_output=True, text=True, check=False)
    assert again.returncode == 0, again.stdout + again.stderr
    assert days_in(state) == 10
    report = json.loads((shop.reports_dir / "backfill.json").read_text())
    assert report["verdict"] == "pass"
    assert report["figures"]["days_sent_now"] == 10 - before
    assert report["figures"]["done_rows"] == len(expected)
    held = read_all(shop)
    # What was sent twice is the day in hand, with the same bytes; nothing is absent and nothing else is there.
    times = Counter((r.topic, r.key, r.value) for r in held)
    assert times.keys() == {(f"{shop.env}.{r.plural}", r.key, r.value) for r in expected}
    assert max(times.values()) <= 2
    acked = {row["event_id"] for row in read_ledger_rows(shop)}
    assert acked == {r.event_id for r in expected}
    with FileState(state.parent, OPTIONS.run_id) as done:
        assert run_backfill(shop, PopulationShop(OPTIONS), done).sent_days == 0
    assert len(read_all(shop)) == len(held)


def test_processes_that_share_a_redis_send_each_day_once(
    shop: Settings, environ: dict[str, str], redis_url: str, expected: list[Outgoing]
) -> None:
    shared = {**environ, "CRM_REDIS_URL": redis_url}
    processes = [
        subprocess.Popen(COMMAND, cwd=REPOSITORY, env=shared, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) for _ in range(2)
    ]
    for process in processes:
        shown, _ = process.communicate(timeout=180)
        assert process.returncode == 0, shown
    held = Counter((r.topic, r.key, r.value) for r in read_all(shop))
    assert held == Counter((f"{shop.env}.{r.plural}", r.key, r.value) for r in expected)
    assert Counter(row["event_id"] for row in read_ledger_rows(shop)) == Counter(r.event_id for r in expected)
    assert not (shop.environment_dir / "backfill").exists()


def days_in(state: Path) -> int:
    return len(json.loads(state.read_text())["days"]) if state.exists() else 0


# -- the state in Redis, without Kafka


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A Redis of this module's own, on loopback and a free port."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("redis-server is absent (Debian: redis-server): the state shared by several generators is NOT tested here")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--appendonly", "no", "--dir", str(folder)]
    with subprocess.Popen([program, *options], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(port)
            yield f"redis://127.0.0.1:{port}/0"
        finally:
            process.terminate()


@pytest.fixture
def client(redis_url: str) -> Iterator[Redis]:
    import redis

    with redis.Redis.from_url(redis_url) as connection:
        connection.flushall()
        yield connection


def test_a_day_is_claimed_by_one_process(client: Redis) -> None:
    first, second = (RedisState(client, "demo", "run") for _ in range(2))
    assert first.claim(DAY)
    assert not second.claim(DAY)
    second.release(DAY)
    assert not second.claim(DAY), "a claim is released by whoever made it"
    first.release(DAY)
    assert second.claim(DAY)
    assert RedisState(client, "other", "run").claim(DAY), "data sets do not know each other"


def test_a_finished_day_is_known_to_all_and_claimed_by_none(client: Redis) -> None:
    first, second = (RedisState(client, "demo", "run") for _ in range(2))
    assert first.claim(DAY)
    result = DayDone(DAY, 12, 0.5, (1,) * 24, (0,) * 24)
    first.finish(result)
    assert second.done() == {DAY: result}
    assert not second.claim(DAY)


def test_the_claim_of_a_dead_process_expires_and_that_of_a_living_one_does_not(client: Redis) -> None:
    dead, living, heir = (RedisState(client, "demo", "run", claim_seconds=1) for _ in range(3))
    other = date(2025, 1, 21)
    assert dead.claim(DAY)
    assert living.claim(other)
    deadline = time.monotonic() + 20
    while not heir.claim(DAY):
        assert time.monotonic() < deadline
        living.renew(other)
        assert not heir.claim(other)


def wait_for(port: int) -> None:
    import redis

    deadline = time.monotonic() + 20
    with redis.Redis(port=port) as connection:
        while True:
            try:
                connection.ping()
            except redis.ConnectionError:
                assert time.monotonic() < deadline
            else:
                return

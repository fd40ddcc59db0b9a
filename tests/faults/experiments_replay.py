"""Replaying dead letters: killed half-way, and run twice (F21).

Belongs here: which dead letters there are, and when the replay dies. Not here: what a replay does (`crm_assets.streaming.replay`).
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from importlib.util import find_spec

from crm_assets.streaming.crash_points import CrashPoint
from crm_assets.streaming.requests import Answer, Request, RequestKind, ask, wait_for_answer
from crm_resources.lake import files_of, open_table, read_columns
from crm_resources.layout import DEAD_LETTERS, REPLAYS
from crm_resources.ordered_defects import Defect
from tests.driver_process import DEADLINE_SECONDS
from tests.faults.data_set import DataSet, Ground
from tests.faults.experiments_content import orders_at, send
from tests.faults.experiments_crash import die_at
from tests.faults.trial import Control, Finding, Invariant, Trial, counted, judged, with_finding
from tests.faults.unprotected import Protection

FAULT = "dead letters replayed, the driver killed at three places of the replay, and the replay run a second time"
EARLY = 300
"""Orders an hour early: dead letters of a driver with a tolerance of a minute, good ones for one with the usual tolerance."""

RATE = 20.0
"""Records a second of the replay: a chunk stands for five seconds at most, so there are more chunks than places to die at."""

POINTS = (CrashPoint.REPLAY_BETWEEN_TABLES, CrashPoint.REPLAY_BEFORE_LEDGER, CrashPoint.REPLAY_BETWEEN_CHUNKS)


def replay(ground: Ground) -> Trial:
    """F21."""
    if find_spec("crm_assets.streaming.replay") is None:
        return Trial("F21", "f21", FAULT, skipped="this version of the product cannot replay dead letters")
    begun = time.monotonic()
    with ground.data_set("f21") as data:
        _make_dead_letters(data)
        refused = data.driver.rows()[DEAD_LETTERS.name]
        _ask(data, "first")
        hit = die_at(data, ground, POINTS)
        data.driver.launch()
        first = _answered(data, "first")
        _ask(data, "second")
        second = _answered(data, "second")
        data.wait(data.settled, "every record has its place")
        data.driver.stop()
        result = data.audit()
        tried = _tried(data)
        findings = judged(result)
        missed = tuple(f"the driver did not die at {p.value}" for p, there in hit.items() if not there)
        seen = f"the driver died at {', '.join(p.value for p, there in hit.items() if there) or 'no point'}"
        once = tried["first"] == refused and max(_times_tried(data).values(), default=0) == 1
        ledger = f"the replay ledger names {tried['first']:,} of {refused:,} dead letters for the first replay, each attempt once"
        findings = with_finding(judged(result), Invariant.I5, Finding(once, ledger))
        findings = with_finding(
            findings,
            Invariant.I7,
            Finding(first.ok and second.ok, f"both replays were answered: {first.figures}, {second.figures}"),
        )
        figures = counted(result) | {"dead_letter_rows_before": refused, "replays_killed": len(POINTS) - len(missed)}
    with ground.data_set("f21control", without=[Protection.REPLAY_LEDGER]) as data:
        _make_dead_letters(data)
        data.driver.launch()
        for name in ("first", "second"):
            _ask(data, name)
            _answered(data, name)
        data.driver.kill()
        control = Control(Protection.REPLAY_LEDGER.meaning, frozenset({Invariant.I2}), data.verdict())
    return Trial("F21", "f21", FAULT, findings, (control,), time.monotonic() - begun, figures, (seen,), missed)


def _make_dead_letters(data: DataSet) -> None:
    """Orders that are too early for this driver, and some poison, all refused."""
    data.driver.launch(CRM_FUTURE_TOLERANCE_SECONDS="60")
    send(data, "early", orders_at(EARLY, datetime.now(UTC) + timedelta(hours=1)))
    data.traffic(3, rate=200, defects={Defect.CORRUPT_JSON.value: 0.05, Defect.NAN_AMOUNT.value: 0.05}).finish()
    data.wait(data.settled, "every record has its place")
    data.driver.kill()


def _ask(data: DataSet, name: str) -> None:
    arguments = {"dry_run": False, "records_per_second": RATE}
    ask(data.settings, Request(name, RequestKind.REPLAY, arguments, datetime.now(UTC).isoformat()))


def _answered(data: DataSet, name: str) -> Answer:
    return wait_for_answer(data.settings, name, timeout_seconds=DEADLINE_SECONDS, alive=lambda: data.driver.running.poll() is None)


def _tried(data: DataSet) -> Counter[str]:
    """Rows of the replay ledger by replay."""
    return Counter(_ledger(data, ["replay_id"])["replay_id"].to_pylist())


def _times_tried(data: DataSet) -> Counter[tuple[object, ...]]:
    """How often the replay ledger names each attempt of a record."""
    names = ["kafka_topic", "kafka_partition", "kafka_offset", "attempt"]
    rows = _ledger(data, names)
    return Counter(zip(*(rows[name].to_pylist() for name in names), strict=True))


def _ledger(data: DataSet, columns: Sequence[str]):
    table = open_table(data.settings, REPLAYS.path)
    return read_columns(data.settings, REPLAYS.path, [] if table is None else files_of(table), columns)

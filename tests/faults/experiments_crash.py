"""Killing the driver (F4): at random, at each place where it can die between two writes, and with its checkpoints gone.

Belongs here: when it dies. Not here: what a driver without protection is (`unprotected`).
"""

from __future__ import annotations

import random
import shutil
import signal
import time
from collections import Counter
from collections.abc import Sequence

from crm_assets.streaming.crash_points import VARIABLE, CrashPoint
from crm_assets.streaming.tables import ingest_checkpoint, live
from tests.driver_process import wait_until
from tests.faults.data_set import DataSet, Ground, batch_in_hand
from tests.faults.trial import Control, Invariant, Trial, counted, judged, with_finding
from tests.faults.unprotected import Protection

LATEST_KILL_SECONDS = 4.0
"""A random kill comes within this time after the driver's first commit: one to three batches."""

TRAFFIC_SECONDS = 3_600.0
"""Longer than any experiment; the traffic is ended when the last kill is done."""

UNPROTECTED_POINTS = (CrashPoint.INGEST_BEFORE_CHECKPOINT, CrashPoint.REFINE_BETWEEN_TABLES)
"""Where only the tables' transactions know that a batch is written already. Behind its last table the ledger knows it as well."""

STREAM_POINTS = tuple(p for p in CrashPoint if not p.value.startswith("replay."))


def random_kills(ground: Ground) -> Trial:
    """F4: `kill -9` at random moments of the traffic."""
    begun = time.monotonic()
    chooser = random.Random(ground.seed)
    struck: Counter[str] = Counter()
    with ground.data_set("f4kills") as data:
        traffic = data.traffic(TRAFFIC_SECONDS)
        for number in range(ground.kills):
            data.driver.launch()
            version = data.bronze_version()
            data.wait(lambda before=version: data.bronze_version() > before, "the driver captures something")
            time.sleep(chooser.uniform(0, LATEST_KILL_SECONDS))  # the moment itself is what is tried
            data.driver.kill()
            struck.update(query for query in ("ingest", "refine") if batch_in_hand(data, query))
            ground.say(f"f4kills: kill {number + 1} of {ground.kills}")
        traffic.stop()
        healed = data.heal()
        data.driver.stop()
        result = data.audit()
        findings = with_finding(judged(result), Invariant.I6, healed)
        figures = counted(result) | {
            "kills": ground.kills,
            "kills_within_ingest_batch": struck["ingest"],
            "kills_within_refine_batch": struck["refine"],
        }
    seen = f"{struck['ingest']} kills fell into a batch of ingest, {struck['refine']} into a batch of refine"
    control = _crashed(ground, "f4killscontrol", UNPROTECTED_POINTS, [Protection.TRANSACTIONS])
    fault = f"kill -9 of the driver at {ground.kills} random moments of {ground.rate:,} records a second"
    return Trial("F4", "f4_kills", fault, findings, (control,), time.monotonic() - begun, figures, (seen,))


def crash_points(ground: Ground) -> Trial:
    """F4: at each crash point."""
    begun = time.monotonic()
    points = [CrashPoint(p) for p in ground.crash_points] or list(STREAM_POINTS)
    with ground.data_set("f4points") as data:
        hit = die_at(data, ground, points)
        healed = data.heal()
        data.driver.stop()
        result = data.audit()
        findings = with_finding(judged(result), Invariant.I6, healed)
    missed = tuple(f"the driver did not die at {p.value}" for p, there in hit.items() if not there)
    seen = f"the driver died at {', '.join(p.value for p, there in hit.items() if there) or 'no point'}"
    unprotected = [p for p in UNPROTECTED_POINTS if p in points] or UNPROTECTED_POINTS
    control = _crashed(ground, "f4pointscontrol", unprotected, [Protection.TRANSACTIONS])
    fault = f"kill -9 of the driver at {len(points)} places between its writes"
    figures = counted(result) | {"crash_points": len(points), "crash_points_hit": len(points) - len(missed)}
    return Trial("F4", "f4_points", fault, findings, (control,), time.monotonic() - begun, figures, (seen,), missed)


def lost_checkpoint(ground: Ground) -> Trial:
    """F4: both checkpoints are gone when the driver starts again."""
    begun = time.monotonic()
    with ground.data_set("f4checkpoint") as data:
        before = _lose_checkpoints(data)
        healed = data.heal()
        data.driver.stop()
        result = data.audit()
        findings = with_finding(judged(result), Invariant.I6, healed)
    with ground.data_set("f4checkpointcontrol", without=[Protection.RECOVERY]) as data:
        _lose_checkpoints(data)
        data.driver.launch()
        data.wait(data.quiet, "the control is done")
        data.driver.kill()
        control = Control(Protection.RECOVERY.meaning, frozenset({Invariant.I2}), data.verdict())
    figures = counted(result) | {"bronze_rows_before_loss": before}
    fault = "kill -9 of the driver, and both checkpoints deleted before it starts again"
    return Trial("F4", "f4_checkpoint", fault, findings, (control,), time.monotonic() - begun, figures)


def _lose_checkpoints(data: DataSet) -> int:
    """Stream, kill, delete both checkpoints, send more; returns how many rows bronze held."""
    data.driver.launch()
    data.traffic(4).finish()
    data.wait(lambda: sum(data.driver.rows().values()) > 1_000, "something has its place")
    data.driver.kill()
    before = data.driver.rows()["bronze"]
    for checkpoint in (ingest_checkpoint(data.settings), live(data.settings).checkpoint):
        shutil.rmtree(checkpoint)
    data.traffic(2).finish()
    return before


def _crashed(ground: Ground, name: str, points: Sequence[CrashPoint], without: Sequence[Protection]) -> Control:
    """The driver dies at some points and starts again each time, without a protection."""
    with ground.data_set(name, without=without) as data:
        hit = die_at(data, ground, points)
        assert all(hit.values()), f"the control did not reach {', '.join(p.value for p, there in hit.items() if not there)}"
        data.driver.launch()
        data.wait(data.quiet, "the control is done")
        data.driver.kill()
        return Control(" and ".join(p.meaning for p in without), frozenset({Invariant.I2}), data.verdict())


def die_at(data: DataSet, ground: Ground, points: Sequence[CrashPoint], rate: float | None = None) -> dict[CrashPoint, bool]:
    """Let the driver die at each point while records come in; whether it did, by point."""
    traffic = data.traffic(TRAFFIC_SECONDS, rate)
    hit: dict[CrashPoint, bool] = {}
    for point in points:
        said = len(data.driver.said())
        process = data.driver.launch(**{VARIABLE: point.value})
        wait_until(lambda died=process: died.poll() is not None, f"the driver dies at {point.value}")
        hit[point] = process.returncode == -signal.SIGKILL and f"dying at {point.value}" in data.driver.said()[said:]
        ground.say(f"{data.settings.env}: {point.value} {'hit' if hit[point] else 'missed'}")
    traffic.stop()
    return hit

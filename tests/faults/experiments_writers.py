"""A second writer on the same tables (F13).

Belongs here: the second writer. Not here: the lock (`crm_resources.lake_lock`).
"""

from __future__ import annotations

import time

from tests.driver_process import DriverProcess, wait_until
from tests.faults.data_set import DataSet, Ground
from tests.faults.trial import Control, Finding, Invariant, Trial, counted, judged, with_finding
from tests.faults.unprotected import Protection

REFUSED = 2
"""Exit status of a driver that does not get the lake."""


def second_writer(ground: Ground) -> Trial:
    """F13."""
    begun = time.monotonic()
    with ground.data_set("f13") as data:
        data.driver.start()
        version = data.bronze_version()
        traffic = data.traffic(3_600)
        data.wait(lambda: data.bronze_version() > version, "the driver captures something")
        second = _second(data)
        process = second.launch()
        wait_until(lambda: process.poll() is not None, "the second writer ends")
        said = next((line for line in second.said().splitlines() if "is being written by" in line), "")
        traffic.stop()
        data.wait(data.settled, "every record has its place")
        data.driver.stop()
        result = data.audit()
        named = str(data.driver.running.pid) in said
        findings = with_finding(
            judged(result),
            Invariant.I7,
            Finding(process.returncode == REFUSED and named, f"the second writer ended with {process.returncode}, saying: {said[-250:]}"),
        )
    with ground.data_set("f13control", without=[Protection.LOCK]) as data:
        data.driver.start()
        second = _second(data)
        second.start()
        data.traffic(6).finish()
        wait_until(lambda: data.quiet() or data.driver.running.poll() is not None, "the control is done")
        second.kill()
        if data.driver.running.poll() is None:
            data.driver.kill()
        control = Control(Protection.LOCK.meaning, frozenset({Invariant.I2}), data.verdict())
    place = "an object store" if "://" in data.settings.lake_root else "local disk"
    fault = f"a second driver with checkpoints of its own on the same lake, on {place}"
    return Trial("F13", "f13", fault, findings, (control,), time.monotonic() - begun, counted(result))


def _second(data: DataSet) -> DriverProcess:
    """A driver on the same lake and topics whose home, and with it its checkpoints, is elsewhere."""
    settings = data.settings
    home = settings.home / "second"
    home.mkdir(exist_ok=True)
    return data.another_driver("second", CRM_HOME=str(home), CRM_LAKE_URI=settings.lake_root, CRM_KAFKA_BOOTSTRAP=settings.kafka_bootstrap)

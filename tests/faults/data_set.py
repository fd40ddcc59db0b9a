"""One data set of a fault run: its topics, its driver, the traffic into it, and the audit of what came of it.

Belongs here: everything an experiment does to a data set. Not here: which faults there are (`experiments_*`).
"""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any

from crm_assets.monitoring.audit import run_audit
from crm_assets.monitoring.audit_result import AuditResult
from crm_assets.streaming.checkpoint import begun_batches, ended_batches, reach
from crm_assets.streaming.progress import QueryState
from crm_assets.streaming.tables import ingest_checkpoint, live
from crm_assets.warehouse.load import load_all
from crm_resources.kafka import ensure
from crm_resources.lake import stream_counts, table_version
from crm_resources.layout import BRONZE
from crm_resources.settings import REPOSITORY, load_settings
from tests.driver_process import DEADLINE_SECONDS, DRIVER, DriverProcess, wait_until
from tests.faults.trial import Finding, Invariant, judged
from tests.own_stack import lake_of

HEAL_SECONDS = 120.0
"""Within this time after the last fault, counted from the start of the driver, everything must be in its place."""

MIX = {"events": 0.86, "orders": 0.08, "products": 0.01, "profiles": 0.05}


@dataclass(frozen=True)
class Ground:
    """What the experiments stand on.

    Args:
        environ: variables of processes that work with the stack.
        say: told what is going on.
        kills: random kills of the driver.
        rate: records a second of the traffic.
        seed: of the random choices.
        crash_points: names of the crash points to try; all when empty.
    """

    environ: Mapping[str, str]
    say: Callable[[str], None]
    kills: int = 20
    rate: int = 1_000
    seed: int = 1
    crash_points: tuple[str, ...] = ()

    @contextmanager
    def data_set(self, name: str, *, without: Sequence[str] = ()) -> Iterator[DataSet]:
        """A data set of its own; no process of it is left at the end.

        Args:
            name: its name; the environment's name is in front of it.
            without: protections its driver does without, as `unprotected` names them.
        """
        self.say(f"{name}" + (f", without {' and '.join(without)}" if without else ""))
        found = DataSet(self, name, without)
        try:
            yield found
        finally:
            found.end()


class DataSet:
    """See `Ground.data_set`."""

    def __init__(self, ground: Ground, name: str, without: Sequence[str]) -> None:
        self._ground = ground
        self.environ = {**ground.environ, "CRM_ENV": name, **lake_of(ground.environ, name)}
        self.settings = load_settings(self.environ)
        module = ("tests.faults.unprotected", *(f"--without={w}" for w in without)) if without else DRIVER
        self._module = module
        self.driver = DriverProcess(self.environ, module)
        self._others: list[DriverProcess] = []
        self._traffic: list[Traffic] = []
        ensure(self.settings)

    def another_driver(self, name: str, **variables: str) -> DriverProcess:
        """A second driver of the same making.

        Args:
            name: of its log.
            variables: variables in which it differs.
        """
        found = DriverProcess(self.environ | variables, self._module, name)
        self._others.append(found)
        return found

    # -- traffic -------------------------------------------------------------------------------------------------------

    def traffic(self, seconds: float, rate: float | None = None, **scenario: Any) -> Traffic:
        """Begin to send; the ledger is written beside it.

        Args:
            seconds: how long.
            rate: records a second; the run's own rate when omitted.
            scenario: further keys of the scenario, e.g. `defects`.
        """
        content = {
            "seed": self._ground.seed,
            "customers": 200,
            "products": 50,
            "truth": {"bgnbd": False},
            "mix": MIX,
            "phases": [{"name": "traffic", "duration": seconds, "rate": rate or self._ground.rate}],
            **scenario,
        }
        found = Traffic(self, content, len(self._traffic))
        self._traffic.append(found)
        return found

    # -- conditions ----------------------------------------------------------------------------------------------------

    def settled(self) -> bool:
        """Whether every record in Kafka is in bronze and has its place."""
        return stream_counts(self.settings).settled

    def quiet(self) -> bool:
        """Whether the stream has nothing more to do, or no longer gets ahead: what a control without protection comes to."""
        counts = stream_counts(self.settings)
        if counts.settled:
            return True
        progress = self.driver.progress()
        if progress is not None and (progress.queries["refine"].restarts >= 2 or progress.queries["refine"].state is QueryState.FAILED):
            return True
        return counts.bronze >= counts.kafka and self._refined_to_the_end()

    def _refined_to_the_end(self) -> bool:
        """Whether the refine query has committed a batch that reaches behind bronze's newest version."""
        checkpoint = live(self.settings).checkpoint
        ended = ended_batches(checkpoint)
        version = table_version(self.settings, BRONZE.path)
        if not ended or version is None:
            return False
        reached = reach(checkpoint, ended[-1])
        return reached is not None and int(reached["reservoirVersion"]) > version

    def bronze_version(self) -> int:
        """Newest version of bronze, -1 before there is one."""
        found = table_version(self.settings, BRONZE.path)
        return -1 if found is None else found

    def wait(self, condition: Callable[[], bool], what: str, seconds: float = DEADLINE_SECONDS) -> float:
        """Wait for a condition while the driver lives; returns the seconds it took."""

        def looked() -> bool:
            if condition():
                return True
            ended = self.driver.running.poll()
            assert ended is None, f"the driver ended with {ended} while waiting: {what}\n{self.driver.said()[-3000:]}"
            return False

        return wait_until(looked, what, seconds)

    # -- verdicts ------------------------------------------------------------------------------------------------------

    def heal(self) -> Finding:
        """Start the driver without any fault and see how long it takes to put everything in its place (I6)."""
        self.driver.launch()
        seconds = self.wait(self.settled, "every record has its place")
        return Finding(
            seconds <= HEAL_SECONDS, f"everything in its place {seconds:.0f} s after the last start (at most {HEAL_SECONDS:.0f})"
        )

    def audit(self) -> AuditResult:
        """Load what silver holds into the warehouse, and audit all of it."""
        load_all(self.settings)
        return run_audit(self.settings)

    def verdict(self) -> dict[Invariant, Finding]:
        """The audit's verdict on each invariant."""
        return judged(self.audit())

    def end(self) -> None:
        """Leave no process behind."""
        for traffic in self._traffic:
            traffic.end()
        for driver in (self.driver, *self._others):
            driver.end()


class Traffic:
    """`python -m generator run` on a scenario of its own."""

    def __init__(self, data: DataSet, scenario: Mapping[str, Any], number: int) -> None:
        home = data.settings.home
        file = home / f"{data.settings.env}-traffic{number}.yml"
        file.write_text(json.dumps(scenario, indent=1))  # JSON is YAML
        self._log = file.with_suffix(".log")
        self._output: IO[bytes] = self._log.open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "generator", "run", str(file), "--env", data.settings.env],
            env=data.environ,
            cwd=REPOSITORY,
            stdout=self._output,
            stderr=subprocess.STDOUT,
        )

    def finish(self) -> None:
        """Wait until all is sent and acknowledged."""
        status = self._process.wait(DEADLINE_SECONDS)
        assert status == 0, f"the generator ended with {status}:\n{self._log.read_text()[-3000:]}"

    def stop(self) -> None:
        """End it now; what was acknowledged is in the ledger."""
        self._process.send_signal(signal.SIGINT)
        status = self._process.wait(DEADLINE_SECONDS)
        assert status in {0, 130}, f"the generator ended with {status}:\n{self._log.read_text()[-3000:]}"

    def end(self) -> None:
        """Leave nothing behind."""
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        self._output.close()


def batch_in_hand(data: DataSet, query: str) -> bool:
    """Whether a batch of a query is begun and not ended, by its checkpoint."""
    checkpoint = ingest_checkpoint(data.settings) if query == "ingest" else live(data.settings).checkpoint
    begun = begun_batches(checkpoint)
    return bool(begun) and begun[-1:] != ended_batches(checkpoint)[-1:]

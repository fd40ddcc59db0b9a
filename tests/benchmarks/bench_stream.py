"""`make bench-stream`: how long a record is under way to bronze and to silver while they keep coming, and how many can keep coming.

Broker, driver and generator share this machine. Each rate is held by the generator in an open loop: a record leaves at its time whether or
not the stream keeps up, and its latency counts from the time it was meant to leave to the commit that made it visible. Then the rate is
raised until the lag grows. Plain quick-start code gets the same traffic in the same run. Shows a table, leaves `bench-stream.json` and a
picture, and ends with 1 when a target is missed.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated

import numpy as np
import polars as pl
import psutil  # noqa: TID253 -- the benchmark measures with it
import typer
from rich.console import Console
from rich.table import Table

from crm_assets.streaming.requests import Request, RequestKind, ask, wait_for_answer
from crm_resources.contracts import contracts
from crm_resources.kafka import ensure, offsets
from crm_resources.lake import row_count, stream_counts
from crm_resources.layout import BRONZE, DEAD_LETTERS, SILVER, topic_name
from crm_resources.ledger import ledger_dir, ledger_files
from crm_resources.report import Verdict, write_report
from crm_resources.settings import REPOSITORY, Settings, load_settings
from tests.benchmarks.quickstart_stream import READY, quickstart_path
from tests.benchmarks.stream_latency import COORDINATES, EVENT_ID, Visible, latencies, sent, visible
from tests.driver_process import DriverProcess, wait_until
from tests.own_stack import DISK, lake_of, own_stack
from tests.process_usage import ProcessUsage

TARGET_RATE = 3_000
BRONZE_TARGET_SECONDS = 5.0
SILVER_TARGET_SECONDS = 10.0

QUANTILES = {"p50": 0.50, "p95": 0.95, "p99": 0.99}

SLOPE_ALLOWED = 0.02
"""A lag that grows by less than this share of the rate, and what waits for a batch to begin, does not grow: that are the saw-teeth."""

SETTLE_SECONDS = 300.0
STEP_FACTOR = 1.5
MIX = {"events": 0.93, "orders": 0.04, "products": 0.005, "profiles": 0.025}

CONSOLE = Console()


@dataclass(frozen=True)
class Phase:
    """One rate that was held.

    Args:
        rate: records a second that were asked for.
        achieved: records a second that were acknowledged.
        seconds: seconds from the intended time to being visible, by place (`bronze`, `silver`, `quickstart`); null where it is not.
        intended_us: the intended time of each record, microseconds since 1970 UTC.
        lost: records that are in no table of the place, by place.
        cpu_seconds: CPU time by process (`driver`, `broker`, `generator`) until everything had its place.
        peak_mib: most memory by process.
        commits: commits with data by table; files likewise.
        files: see `commits`.
        lag_slope: records a second by which the lag grew while the rate was held, see `growth`.
        waiting: most records that wait for the capture to begin a batch, by its settings.
    """

    rate: float
    achieved: float
    records: int
    held_seconds: float
    seconds: Mapping[str, pl.Series]
    intended_us: pl.Series
    lost: Mapping[str, int]
    cpu_seconds: Mapping[str, float]
    peak_mib: Mapping[str, float]
    commits: Mapping[str, int]
    files: Mapping[str, int]
    lag_slope: float
    waiting: float

    @property
    def sustained(self) -> bool:
        """Whether the lag did not grow, and the generator kept the rate."""
        teeth = self.waiting / (self.records / self.rate)
        return self.lag_slope <= SLOPE_ALLOWED * self.rate + teeth and self.achieved >= 0.98 * self.rate


def main(
    rates: Annotated[str, typer.Option(help="Records a second, separated by commas.")] = "50,3000,10000",
    seconds: Annotated[float, typer.Option(min=5, help="How long each rate is held.")] = 180,
    warm_seconds: Annotated[float, typer.Option(min=0, help="Traffic before the first rate, unmeasured.")] = 60,
    ladder_seconds: Annotated[float, typer.Option(min=0, help="Length of a step of the search for the largest rate; 0: none.")] = 30,
    quickstart: Annotated[bool, typer.Option(help="Measure the quick-start code as well.")] = True,
    upkeep: Annotated[bool, typer.Option(help="Measure latency while the tables are compacted.")] = True,
    driver_memory: Annotated[str, typer.Option(help="Heap of each Spark process.")] = "2g",
    lake: Annotated[str, typer.Option(help="Where the lake is: disk or minio.")] = DISK,
    refused_share: Annotated[float, typer.Option(min=0, max=0.5, help="Share of records that are cut off and end as dead letters.")] = 0,
) -> None:
    """Measure latency and the largest rate of the running stream."""
    started = datetime.now(UTC)
    wanted = [float(r) for r in rates.split(",")]
    settings = load_settings()
    variables = {"CRM_DRIVER_MEMORY": driver_memory, "CRM_SPARK_CORES": str(settings.spark_cores), "CRM_ENV": "bench"}
    ours: list[Phase] = []
    plain: list[Phase] = []
    figures: dict[str, float] = {"held_seconds": seconds, "refused_share": refused_share}
    with CONSOLE.status("starting Kafka") as status, own_stack("bench-stream", lake, **variables) as environ:

        def say(what: str) -> None:
            status.update(what)

        with product(environ, refused_share) as bench:
            say("warming up")
            bench.hold("warm", TARGET_RATE, warm_seconds)
            for rate in wanted:
                say(f"{rate:,.0f} records a second for {seconds:.0f} s")
                ours.append(bench.hold("rate", rate, seconds))
                CONSOLE.print(_line(ours[-1]), highlight=False)
            if upkeep and find_spec("crm_assets.streaming.upkeep") is not None:
                figures |= _during_upkeep(bench, say, min(seconds, 60))
            elif upkeep:
                CONSOLE.print("this version of the product has no upkeep: latency during upkeep is not measured", style="yellow")
            if ladder_seconds:
                figures |= _largest_rate(bench, ours, ladder_seconds, say)
        if quickstart:
            with quickstart_code({**environ, "CRM_ENV": "quickstart", **lake_of(environ, "quickstart")}) as bench:
                say("warming up the quick-start code")
                bench.hold("warm", TARGET_RATE, warm_seconds)
                for rate in wanted:
                    say(f"quick start: {rate:,.0f} records a second for {seconds:.0f} s")
                    plain.append(bench.hold("rate", rate, seconds))
                    CONSOLE.print(_line(plain[-1]), highlight=False)
    figures |= {k: v for p in ours for k, v in _figures(p, "").items()}
    figures |= {k: v for p in plain for k, v in _figures(p, "quickstart_").items()}
    CONSOLE.print(_table(ours, plain, lake))
    missed = _missed(ours)
    for line in missed:
        CONSOLE.print(f"[red]missed:[/red] {line}", highlight=False)
    target = "bench-stream" if lake == DISK else f"bench-stream-{lake}"
    path = write_report(settings.reports_dir, target, Verdict.FAIL if missed else Verdict.PASS, figures, started=started)
    _plot(ours, plain, path.with_suffix(".png"))
    CONSOLE.print(f"report: {path}\nplot: {path.with_suffix('.png')}", soft_wrap=True)
    if missed:
        raise typer.Exit(1)


# -- what is measured --------------------------------------------------------------------------------------------------------


class Bench:
    """A stream that runs, and how far it has come.

    Args:
        environ: variables of the generator.
        process: the stream.
        done: whether everything sent is in its tables.
        places: tables by place, with the columns that name a record there.
        refused_share: share of the records that are no valid JSON.
    """

    def __init__(
        self,
        environ: Mapping[str, str],
        process: DriverProcess,
        done: Callable[[], bool],
        places: Mapping[str, tuple[Sequence[str], Sequence[str]]],
        refused_share: float = 0.0,
    ) -> None:
        self.environ = dict(environ)
        self.settings = load_settings(self.environ)
        self._process = process
        self._done, self._places = done, places
        self._refused_share = refused_share
        self._held = 0

    def hold(self, name: str, rate: float, seconds: float, during: Callable[[], None] = lambda: None) -> Phase:
        """Hold a rate, wait until everything has its place, and look when each record was visible.

        Args:
            name: of the scenario.
            rate: records a second.
            seconds: how long.
            during: called once in the middle.
        """
        self._held += 1
        begun_us = time.time_ns() // 1_000
        with (
            ProcessUsage(self._process.running.pid) as stream,
            ProcessUsage(broker_pid(self.settings)) as broker,
            self._generator(f"{name}{self._held}", rate, seconds) as generator,
            ProcessUsage(generator.pid) as sender,
        ):
            self._wait_for(generator, seconds, during)
            generator_cpu = sender.cpu_seconds
            wait_until(self._done, "everything has its place", SETTLE_SECONDS)
            cpu = {"driver": stream.cpu_seconds, "broker": broker.cpu_seconds, "generator": generator_cpu}
            peak = {"driver": stream.peak_mib, "broker": broker.peak_mib, "generator": sender.peak_mib}
        newest = max(ledger_files(ledger_dir(self.settings.environment_dir)), key=lambda f: f.stat().st_mtime_ns)
        records = sent(newest)
        found = {place: [visible(self.settings, t, key, begun_us) for t in tables] for place, (tables, key) in self._places.items()}
        latency = {place: latencies(records, found[place], key) for place, (_, key) in self._places.items()}
        by_table: dict[str, Visible] = {
            table: v for place, (tables, _) in self._places.items() for table, v in zip(tables, found[place], strict=True)
        }
        acked_us = records["acked_us"]
        return Phase(
            rate,
            (records.height - 1) / max(1, int(acked_us.max() or 0) - int(acked_us.min() or 0)) * 1_000_000,
            records.height,
            time.time() - begun_us / 1_000_000,
            latency,
            records["intended_us"],
            {place: s.null_count() for place, s in latency.items()},
            cpu,
            peak,
            {t.replace("/", "_"): v.commits for t, v in by_table.items()},
            {t.replace("/", "_"): v.files for t, v in by_table.items()},
            growth(records["intended_us"], list(latency.values())[-1]),
            min(self.settings.min_records_per_batch, rate * self.settings.max_trigger_delay_seconds),
        )

    @contextmanager
    def _generator(self, name: str, rate: float, seconds: float) -> Iterator[subprocess.Popen[bytes]]:
        scenario = {
            "seed": self._held,
            "customers": 500,
            "products": 100,
            "truth": {"bgnbd": False},
            "mix": MIX,
            "defects": {"corrupt_json": self._refused_share},
            "phases": [{"name": f"{rate:g} per s", "duration": seconds, "rate": rate}],
        }
        file = self.settings.home / f"{self.settings.env}-{name}.yml"
        file.write_text(json.dumps(scenario))  # JSON is YAML
        command = [sys.executable, "-m", "generator", "run", str(file), "--env", self.settings.env]
        with file.with_suffix(".log").open("wb") as log:
            process = subprocess.Popen(command, env=self.environ, cwd=REPOSITORY, stdout=log, stderr=subprocess.STDOUT)
            try:
                yield process
            finally:
                if process.poll() is None:
                    process.kill()
                process.wait()
        if process.returncode:
            raise RuntimeError(f"the generator ended with {process.returncode}:\n{file.with_suffix('.log').read_text()[-3000:]}")

    def _alive(self) -> None:
        ended = self._process.running.poll()
        assert ended is None, f"the stream ended with {ended}:\n{self._process.said()[-3000:]}"

    def _wait_for(self, generator: subprocess.Popen[bytes], seconds: float, during: Callable[[], None]) -> None:
        """Wait for the end of the generator, while the stream lives."""
        middle = time.monotonic() + seconds / 2
        asked = False
        while generator.poll() is None:
            self._alive()
            if not asked and time.monotonic() >= middle:
                asked = True
                during()
            with suppress(subprocess.TimeoutExpired):
                generator.wait(1.0)
        if not asked:
            during()


def growth(intended_us: pl.Series, seconds: pl.Series) -> float:
    """Records a second by which those that were meant to be sent and are not visible yet grow while a rate is held; pure.

    By least squares over the last two thirds of the time. Whoever is too slow, generator, broker or stream, makes it grow.

    Args:
        intended_us: intended time of each record, microseconds since 1970 UTC.
        seconds: seconds to its being visible, null where it is not.
    """
    intended = intended_us.to_numpy().astype(np.float64) / 1e6
    visible_at = np.sort(intended + seconds.fill_null(float("inf")).to_numpy())
    intended.sort()
    moments = np.arange(intended[0] + (intended[-1] - intended[0]) / 3, intended[-1], 0.25)
    if len(moments) < 3:
        return 0.0
    lag = np.searchsorted(intended, moments, "right") - np.searchsorted(visible_at, moments, "right")
    return float(np.polyfit(moments - moments[0], lag.astype(np.float64), 1)[0])


def written(settings: Settings) -> int:
    """Records that were ever written to the topics."""
    return sum(high for c in contracts() for _, high in offsets(settings, topic_name(settings.env, c.plural)).values())


def broker_pid(settings: Settings) -> int:
    """Process of the broker of a home."""
    for process in psutil.process_iter(["cmdline"]):
        line = " ".join(process.info["cmdline"] or [])
        if "kafka.Kafka" in line and str(settings.home) in line:
            return int(process.pid)
    raise RuntimeError(f"no broker of {settings.home} runs")


@contextmanager
def product(environ: Mapping[str, str], refused_share: float) -> Iterator[Bench]:
    """The product's driver on the data set `bench`. A refused record has its place among the dead letters instead of in silver."""
    driver = DriverProcess(dict(environ))
    driver.start()
    silver = [table.path for table in (*SILVER.values(), DEAD_LETTERS)]
    places = {"bronze": ([BRONZE.path], COORDINATES), "silver": (silver, COORDINATES)}

    try:
        yield Bench(environ, driver, lambda: stream_counts(driver.settings).settled, places, refused_share)
        driver.stop()
    finally:
        driver.end()


@contextmanager
def quickstart_code(environ: Mapping[str, str]) -> Iterator[Bench]:
    """The quick-start code on a data set of its own."""
    settings = load_settings(dict(environ))
    ensure(settings)
    process = DriverProcess(dict(environ), ("tests.benchmarks.quickstart_stream",), "quickstart")
    process.launch()
    wait_until(lambda: READY in process.said() or process.running.poll() is not None, "the quick-start code runs")
    tables = [quickstart_path(c.plural) for c in contracts()]

    def done() -> bool:
        return sum(row_count(settings, t) for t in tables) >= written(settings)

    try:
        yield Bench(environ, process, done, {"quickstart": (tables, EVENT_ID)})
        process.running.send_signal(signal.SIGTERM)
        process.running.wait(60)
    finally:
        process.end()


def _during_upkeep(bench: Bench, say: Callable[[str], None], seconds: float) -> dict[str, float]:
    """Latency of the records that were meant to be sent while the tables were compacted."""
    say(f"{TARGET_RATE:,} records a second while the tables are compacted")
    request = Request(f"bench-{os.getpid()}", RequestKind.COMPACT)
    phase = bench.hold("upkeep", TARGET_RATE, seconds, during=lambda: ask(bench.settings, request))
    answer = wait_for_answer(bench.settings, request.id, timeout_seconds=SETTLE_SECONDS, alive=lambda: True)
    if not answer.ok:
        raise RuntimeError(f"the driver did not compact: {answer.error}")
    begun, ended = (datetime.fromisoformat(moment) for moment in (answer.started_at, answer.ended_at))
    meanwhile = phase.intended_us.is_between(int(begun.timestamp() * 1e6), int(ended.timestamp() * 1e6))
    seconds_meanwhile = {place: s.filter(meanwhile) for place, s in phase.seconds.items()}
    return {
        "upkeep_seconds": round((ended - begun).total_seconds(), 2),
        "upkeep_records_meanwhile": int(meanwhile.sum()),
        **_quantiles(seconds_meanwhile, "upkeep_"),
    }


def _largest_rate(bench: Bench, held: Sequence[Phase], seconds: float, say: Callable[[str], None]) -> dict[str, float]:
    """Raise the rate until the lag grows, then halve the distance twice."""
    best = max((p.rate for p in held if p.sustained), default=0.0)
    too_much = min((p.rate for p in held if not p.sustained and p.rate > best), default=0.0)
    steps = 0
    while not too_much or steps < 2:
        rate = (best + too_much) / 2 if too_much else (best or TARGET_RATE) * STEP_FACTOR
        steps += bool(too_much)
        say(f"looking for the largest rate: {rate:,.0f} records a second for {seconds:.0f} s")
        phase = bench.hold("step", rate, seconds)
        CONSOLE.print(_line(phase), highlight=False)
        if phase.sustained:
            best = rate
        else:
            too_much = rate
    return {"sustained_records_per_s": round(best), "not_sustained_records_per_s": round(too_much)}


# -- what is shown -----------------------------------------------------------------------------------------------------------


def _quantiles(seconds: Mapping[str, pl.Series], prefix: str) -> dict[str, float]:
    return {
        f"{prefix}{place}_{name}_seconds": round(float(s.quantile(q) or 0.0), 3)
        for place, s in seconds.items()
        for name, q in QUANTILES.items()
        if s.drop_nulls().len()
    }


def _figures(phase: Phase, kind: str) -> dict[str, float]:
    head = f"{kind}at_{phase.rate:.0f}_"
    million, hour = phase.records / 1e6, phase.held_seconds / 3_600
    return {
        **_quantiles(phase.seconds, head),
        f"{head}records": phase.records,
        f"{head}achieved_records_per_s": round(phase.achieved, 1),
        f"{head}lag_growth_records_per_s": round(phase.lag_slope, 1),
        **{f"{head}{place}_absent_records": n for place, n in phase.lost.items()},
        **{f"{head}{who}_cpu_seconds_per_million": round(s / million, 1) for who, s in phase.cpu_seconds.items()},
        **{f"{head}{who}_peak_rss_mib": round(mib) for who, mib in phase.peak_mib.items()},
        **{f"{head}{table}_commits_per_hour": round(n / hour) for table, n in phase.commits.items()},
        **{f"{head}{table}_files_per_hour": round(n / hour) for table, n in phase.files.items()},
    }


def _missed(phases: Sequence[Phase]) -> list[str]:
    """Promises that were not kept, in words."""
    missed = [f"{n:,} records at {p.rate:,.0f}/s are not in {place}" for p in phases for place, n in p.lost.items() if n]
    for phase in phases:
        if phase.rate != TARGET_RATE:
            continue
        for place, target in (("bronze", BRONZE_TARGET_SECONDS), ("silver", SILVER_TARGET_SECONDS)):
            p95 = float(phase.seconds[place].quantile(QUANTILES["p95"]) or 0.0)
            if p95 > target:
                missed.append(f"at {phase.rate:,.0f}/s 95 % are in {place} after {p95:.1f} s, not {target:.0f}")
    return missed


def _line(phase: Phase) -> str:
    parts = [f"{place} p95 {float(s.quantile(0.95) or 0.0):.2f} s" for place, s in phase.seconds.items() if s.len()]
    growth = "sustained" if phase.sustained else f"lag grows by {phase.lag_slope:,.0f} a second, {phase.achieved:,.0f}/s were sent"
    return f"{phase.rate:,.0f}/s: {', '.join(parts)}, {growth}"


def _table(ours: Sequence[Phase], plain: Sequence[Phase], lake: str) -> Table:
    columns = ("records/s", "place", *QUANTILES, "CPU s per million", "peak MiB", "lag growth/s", "commits/h", "files/h")
    table = Table(*columns, title=f"bench-stream, lake on {lake}", title_justify="left")
    for phase in (*ours, *plain):
        million, hour = phase.records / 1e6, phase.held_seconds / 3_600
        for place, s in phase.seconds.items():
            values = [f"{float(s.quantile(q) or 0.0):.2f}" for q in QUANTILES.values()]
            cpu, peak = phase.cpu_seconds["driver"] / million, phase.peak_mib["driver"]
            tables = [t for t in phase.commits if t.startswith(place)]
            commits, files = (sum(found[t] for t in tables) / hour for found in (phase.commits, phase.files))
            rest = (f"{cpu:.0f}", f"{peak:,.0f}", f"{phase.lag_slope:,.0f}", f"{commits:,.0f}", f"{files:,.0f}")
            table.add_row(f"{phase.rate:,.0f}", place, *values, *rest)
    return table


def _plot(ours: Sequence[Phase], plain: Sequence[Phase], path: Path) -> None:
    """Share of the records that are visible after so many seconds, a picture for each rate."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5 * len(ours), 4.2), layout="constrained")
    shares = np.linspace(0.001, 0.999, 400)
    for place, phase in zip(np.atleast_1d(figure.subplots(1, len(ours), sharey=True)), ours, strict=True):
        beside = [p for p in plain if p.rate == phase.rate]
        for name, seconds in [pair for p in (phase, *beside) for pair in p.seconds.items()]:
            place.plot(np.quantile(seconds.drop_nulls().to_numpy(), shares), shares * 100, label=name)
        place.set_title(f"{phase.rate:,.0f} records a second")
        place.set_xlabel("seconds from the intended time")
        place.set_xscale("log")
        place.grid(visible=True, alpha=0.3)
        place.legend()
    figure.axes[0].set_ylabel("% of the records visible")
    FigureCanvasAgg(figure).print_png(str(path))


if __name__ == "__main__":
    typer.run(main)

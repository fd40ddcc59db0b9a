"""Serves a run's figures to Prometheus, on the loopback address and with a registry of its own.

Belongs here: names, help and types of the metrics, and the port. Not here: the figures (`meter`), which are read when they are
asked for, so that sending a record costs nothing more.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, start_http_server
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from generator.meter import Histogram, Meter

ADDRESS = "127.0.0.1"
BUCKETS_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0)

_COUNTERS = (
    ("offered", "Records whose turn came by the schedule."),
    ("acked", "Records that Kafka acknowledged."),
    ("refused", "Records that were turned down for good."),
    ("shed", "Records that were left out because the producer's queue was full."),
    ("unknown", "Records that were given up; they may or may not be in Kafka."),
)


class MetricsError(RuntimeError):
    """The metrics cannot be served; the message names the port."""


class RunCollector(Collector):
    """The metrics of one run.

    Args:
        meter: measures the run.
        phases: names of the scenario's phases.
    """

    def __init__(self, meter: Meter, phases: Sequence[str]) -> None:
        self._meter = meter
        self._phases = tuple(phases)

    def collect(self) -> Iterable[Metric]:
        """All metrics as they stand."""
        tallies = sorted(self._meter.tallies.copy().items())
        for name, text in _COUNTERS:
            counter = CounterMetricFamily(f"crm_generator_{name}_records", text, labels=["entity"])
            for entity, tally in tallies:
                counter.add_metric([entity], getattr(tally, name))
            yield counter
        yield _histogram("lateness", "Hand-over of records behind their intended times.", self._meter.lateness)
        yield _histogram("latency", "Acknowledgement of records behind their intended times.", self._meter.latency)
        queue = GaugeMetricFamily("crm_generator_queue_records", "Records with the producer, not acknowledged yet.")
        queue.add_metric([], self._meter.queue)
        yield queue
        phase = GaugeMetricFamily("crm_generator_scenario_phase", "1 for the phase that is under way.", labels=["phase"])
        for name in self._phases:
            phase.add_metric([name], 1 if name == self._meter.phase else 0)
        yield phase


def _histogram(name: str, text: str, values: Histogram) -> Metric:
    buckets = [(str(bound), float(values.up_to(bound))) for bound in BUCKETS_SECONDS]
    family = HistogramMetricFamily(f"crm_generator_{name}_seconds", f"{text} Complete up to the last whole second.")
    family.add_metric([], [*buckets, ("+Inf", float(values.count))], sum_value=values.sum_us / 1e6)
    return family


@contextmanager
def served(meter: Meter, phases: Sequence[str], port: int) -> Iterator[str]:
    """Serve the metrics while it lasts; yields their address.

    Args:
        meter: measures the run.
        phases: names of the scenario's phases.
        port: TCP port on the loopback address; 0 takes a free one.

    Raises:
        MetricsError: the port is taken.
    """
    registry = CollectorRegistry()
    registry.register(RunCollector(meter, phases))
    try:
        server, thread = start_http_server(port, addr=ADDRESS, registry=registry)
    except OSError as error:
        raise MetricsError(f"cannot serve metrics on {ADDRESS}:{port}: {error.strerror}; choose another --metrics-port") from error
    try:
        yield f"http://{ADDRESS}:{server.server_port}/metrics"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()

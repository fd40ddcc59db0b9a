"""The meter's seconds, percentiles and phases are what was put in, in bounded memory."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from generator.meter import Histogram, Meter, Second, Stretch
from generator.metrics import MetricsError, RunCollector, served

START = 1_700_000_000_000_000


def run_of(meter: Meter, dues: list[int], late_us: int = 1_000, acked_after_us: int = 5_000) -> None:
    """Records due at the given microseconds, each handed over and acknowledged a little later."""
    meter.begin(START)
    for due in dues:
        intended = START + due
        meter.position_us = intended
        meter.tick(intended, 3)
        meter.due("event", intended).acked += 1
        meter.handed_over(late_us)
        meter.acked(acked_after_us)
    meter.position_us = 2**62
    meter.finish(START + (dues[-1] if dues else 0))


def test_each_second_is_told_once_in_order_with_what_was_due_in_it() -> None:
    told: list[Second] = []
    run_of(Meter(on_second=told.append), [0, 100_000, 1_500_000, 3_999_999])
    assert [(s.second, s.offered, s.achieved, s.acked) for s in told] == [(0, 2, 2, 2), (1, 1, 1, 1), (2, 0, 0, 0), (3, 1, 1, 1)]
    assert told[0].lateness.p99_seconds == 0.001
    assert told[0].latency.max_seconds == 0.005
    assert told[0].queue == 3


def test_a_late_sender_still_counts_records_where_they_were_due() -> None:
    """All is handed over in the third second, as after a stall: offered lies where the schedule put it, achieved where it happened."""
    told: list[Second] = []
    meter = Meter(on_second=told.append)
    meter.begin(START)
    for n in range(20):
        intended = START + n * 100_000
        meter.position_us = intended
        meter.tick(START + 2_500_000)
        meter.due("event", intended)
        meter.handed_over(START + 2_500_000 - intended)
    meter.position_us = 2**62
    meter.finish(START + 2_600_000)
    assert [(s.second, s.offered, s.achieved) for s in told] == [(0, 10, 0), (1, 10, 0), (2, 0, 20)]
    assert told[2].lateness.max_seconds == 2.5


def test_phases_add_up_their_seconds() -> None:
    meter = Meter([Stretch("calm", 0, 2), Stretch("rush", 2, 3)])
    run_of(meter, [n * 10_000 for n in range(300)])
    calm, rush = meter.by_phase.values()
    assert (calm.offered, calm.achieved, rush.offered, rush.acked) == (200, 200, 100, 100)
    assert (calm.seconds, rush.lateness.count) == (2, 100)
    assert meter.phase == ""


@given(st.lists(st.integers(0, 10**9), min_size=1, max_size=500), st.sampled_from([0.5, 0.9, 0.99, 1.0]))
@settings(max_examples=60, deadline=None)
def test_percentiles_of_the_histogram_are_right_to_three_per_cent(values: list[int], share: float) -> None:
    import numpy as np

    histogram = Histogram()
    half = len(values) // 2
    for part in (values[:half], values[half:]):
        histogram.add(np.array(part, dtype=np.int64))
    exact = sorted(values)[max(0, -(-int(share * 1_000) * len(values) // 1_000) - 1)] / 1e6
    assert histogram.at(share) >= exact - 1e-9
    assert histogram.at(share) <= max(exact * 1.031, exact + 2e-6)
    assert histogram.count == len(values)


def test_values_do_not_pile_up() -> None:
    meter = Meter()
    run_of(meter, list(range(0, 60_000_000, 1_000)))
    assert len(meter._lateness_us) == len(meter._latency_us) == 0  # a second's values go when it is over
    assert len(meter._offered) == len(meter._waiting) == 0
    assert meter.lateness.count == 60_000


def test_metrics_tell_what_was_measured() -> None:
    meter = Meter([Stretch("calm", 0, 9), Stretch("rush", 9, 10)])
    meter.begin(START)
    meter.due("order", START).shed += 1
    run_of(meter, [0, 1_000_000, 2_000_000], late_us=200_000)
    meter.phase = "rush"
    registry = CollectorRegistry()
    registry.register(RunCollector(meter, ["calm", "rush"]))
    samples = {
        (s.name, *s.labels.values()): s.value
        for family in text_string_to_metric_families(generate_latest(registry).decode())
        for s in family.samples
    }
    assert samples["crm_generator_offered_records_total", "event"] == 3
    assert samples["crm_generator_shed_records_total", "order"] == 1
    assert samples["crm_generator_lateness_seconds_count",] == 3
    assert samples["crm_generator_lateness_seconds_sum",] == pytest.approx(0.6)
    assert samples["crm_generator_lateness_seconds_bucket", "0.1"] == 0
    assert samples["crm_generator_lateness_seconds_bucket", "0.25"] == 3
    assert samples["crm_generator_scenario_phase", "rush"] == 1
    assert samples["crm_generator_scenario_phase", "calm"] == 0


def test_a_port_that_is_taken_is_named() -> None:
    with served(Meter(), [], 0) as address:
        port = int(address.split(":")[2].split("/")[0])
        with pytest.raises(MetricsError, match=f"cannot serve metrics on 127.0.0.1:{port}.*choose another"), served(Meter(), [], port):
            pass

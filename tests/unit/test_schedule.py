"""The schedule's counts are the integral of the rate, whatever its form."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from generator.scenario import DAY_SECONDS, Arrivals, Curve, Daily, LiveScenario, Phase, Ramp
from generator.schedule import Moment, Schedule, Scheduled

rates = st.floats(0, 200).map(lambda r: round(r, 3))
constants = rates
ramps = st.builds(lambda a, b: Ramp(**{"from": a, "to": b}), rates, rates)
curves = st.builds(lambda a, b: Daily(daily=Curve(low=min(a, b), high=max(a, b))), rates, rates)
phases = st.lists(st.tuples(st.floats(0.05, 20).map(lambda s: round(s, 2)), st.one_of(constants, ramps, curves)), min_size=1, max_size=4)


def scenario_of(parts: list[tuple[float, float | Ramp | Daily]], arrivals: Arrivals = Arrivals.EVEN, speed_up: float = 1.0) -> LiveScenario:
    named = tuple(Phase(name=str(n), duration=duration, rate=rate) for n, (duration, rate) in enumerate(parts))
    return LiveScenario(phases=named, arrivals=arrivals, clock_speed_up=speed_up)


def integral(schedule: Schedule, until: float, steps: int = 4_000) -> float:
    """The rate added up in small steps."""
    width = until / steps
    return sum(schedule.rate_at((n + 0.5) * width) for n in range(steps)) * width


@given(phases, st.floats(0, 86_400), st.sampled_from([1.0, 3_600.0]))
@settings(max_examples=60, deadline=None)
def test_even_arrivals_number_the_integral_of_the_rate_up_to_any_time(
    parts: list[tuple[float, float | Ramp | Daily]], second_of_day: float, speed_up: float
) -> None:
    schedule = Schedule(scenario_of(parts, speed_up=speed_up), second_of_day)
    due = [m.due_seconds for m in schedule.moments()]
    assert due == sorted(due)
    assert abs(len(due) - schedule.expected) < 1 + 1e-6
    for part in (0.25, 0.5, 0.9):
        until = schedule.seconds * part
        assert abs(sum(d < until for d in due) - schedule.expected_until(until)) <= 1 + 1e-6


@given(phases)
@settings(max_examples=30, deadline=None)
def test_the_expected_number_is_the_integral(parts: list[tuple[float, float | Ramp | Daily]]) -> None:
    schedule = Schedule(scenario_of(parts))
    highest = max(max(p.rate_start, p.rate_end) for p in schedule.pieces)
    allowed = highest * schedule.seconds / 4_000 * (len(parts) + 1) + 1e-6
    assert abs(schedule.expected - integral(schedule, schedule.seconds)) <= allowed


@given(phases, st.floats(0, 1))
@settings(max_examples=60, deadline=None)
def test_the_time_of_a_count_is_the_inverse_of_the_count_at_a_time(parts: list[tuple[float, float | Ramp | Daily]], part: float) -> None:
    for piece in Schedule(scenario_of(parts)).pieces:
        count = piece.count * part
        assert piece.count_after(piece.seconds_at(count)) == pytest.approx(count, rel=1e-6, abs=1e-6)


def test_a_constant_rate_is_even_to_the_last() -> None:
    due = [m.due_seconds for m in Schedule(scenario_of([(2.0, 10.0), (1.0, 4.0)])).moments()]
    assert due[:20] == pytest.approx([n / 10 for n in range(20)])
    assert due[20:] == pytest.approx([2, 2.25, 2.5, 2.75])


def test_each_moment_names_its_phase() -> None:
    moments = list(Schedule(scenario_of([(1.0, 5.0), (1.0, 0.0), (1.0, 5.0)])).moments())
    assert [m.phase for m in moments] == [0] * 5 + [2] * 5
    assert moments[5].due_seconds == 2


def test_a_daily_curve_follows_the_hours_of_the_scenarios_clock() -> None:
    hours = tuple(float(h) for h in range(24))
    curve = Daily(daily=Curve(low=0, high=23, hours=hours))
    by_day = Schedule(scenario_of([(DAY_SECONDS, curve)]))
    fast = Schedule(scenario_of([(DAY_SECONDS / 1_000, curve)], speed_up=1_000))
    for hour in range(1, 24):
        assert by_day.rate_at(hour * 3_600) == pytest.approx(hour)
        assert fast.rate_at(hour * 3.6) == pytest.approx(hour)
    assert Schedule(scenario_of([(60, curve)]), second_of_day=12 * 3_600).rate_at(0) == pytest.approx(12)
    assert fast.expected == pytest.approx(by_day.expected / 1_000)


def test_poisson_arrivals_are_independent_with_the_rate_of_the_schedule() -> None:
    """Counts and distances within 4.4 standard errors: each of the four bounds errs once in 100,000 seeds; the seed is fixed."""
    schedule = Schedule(scenario_of([(200.0, 50.0), (200.0, Ramp(**{"from": 0, "to": 100}))], Arrivals.POISSON))
    due = [m.due_seconds for m in schedule.moments()]
    assert abs(len(due) - 20_000) < 4.4 * math.sqrt(20_000)
    steady = [d for d in due if d < 200]
    gaps = [b - a for a, b in pairwise(steady)]
    mean = sum(gaps) / len(gaps)
    assert abs(mean - 0.02) < 4.4 * 0.02 / math.sqrt(len(gaps))
    assert abs(sum(g > 0.02 for g in gaps) / len(gaps) - math.exp(-1)) < 4.4 * math.sqrt(math.exp(-1) * (1 - math.exp(-1)) / len(gaps))
    seconds = [0] * 200
    for d in steady:
        seconds[int(d)] += 1
    dispersion = sum((n - 50) ** 2 for n in seconds) / 50
    assert abs(dispersion - 200) < 4.4 * math.sqrt(2 * 200)


def test_the_moments_are_the_same_each_time() -> None:
    schedule = Schedule(scenario_of([(5.0, 20.0)], Arrivals.POISSON))
    assert list(schedule.moments()) == list(schedule.moments())


def test_the_pace_gives_the_moments_in_order() -> None:
    pace = Scheduled(iter([Moment(0.5, 0), Moment(0.7, 0)]))
    assert [pace.due_seconds(n, 0) for n in range(3)] == [0.5, 0.7, None]


@given(phases, st.floats(0.05, 1))
@settings(max_examples=30, deadline=None)
def test_a_limit_cuts_the_schedule_and_changes_nothing_before(parts: list[tuple[float, float | Ramp | Daily]], share: float) -> None:
    whole = Schedule(scenario_of(parts))
    cut = Schedule(scenario_of(parts), limit_seconds=whole.seconds * share)
    due = [m for m in whole.moments() if m.due_seconds < cut.seconds - 1e-6]
    kept = list(cut.moments())
    assert cut.expected == pytest.approx(whole.expected_until(cut.seconds), abs=1e-6)
    assert [m.phase for m in kept[: len(due)]] == [m.phase for m in due]
    assert [m.due_seconds for m in kept[: len(due)]] == pytest.approx([m.due_seconds for m in due], abs=1e-6)
    assert len(kept) - len(due) <= 1

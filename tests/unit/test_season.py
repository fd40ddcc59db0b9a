"""The season has a mean of one, and operational time can be read both ways."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from generator.population_model.season import DAY_US, HOUR_US, WEEK_US, YEAR_DAYS, Campaign, Season, SeasonShape, midnight_us

START = date(2025, 11, 1)
SEASON = Season(SeasonShape(), START, 500)


def test_the_mean_over_each_year_from_the_first_day_is_one() -> None:
    two_years = Season(SeasonShape(), START, 2 * YEAR_DAYS)
    for year in two_years.level.reshape(2, -1):
        assert year.mean() == pytest.approx(1, abs=1e-12)
    assert two_years.passed_weeks[YEAR_DAYS * 24] == pytest.approx(YEAR_DAYS / 7, abs=1e-9)


def test_a_campaign_changes_the_level_of_its_days_and_of_no_hour_more_than_another() -> None:
    plain = Season(SeasonShape(campaigns=()), START, YEAR_DAYS)
    busy = Season(SeasonShape(campaigns=(Campaign("sale", (7, 1), (7, 14), 2.0),)), START, YEAR_DAYS)
    ratio = (busy.level / plain.level).reshape(-1, 24).round(9)
    in_july = [START.toordinal() + d in range(date(2026, 7, 1).toordinal(), date(2026, 7, 15).toordinal()) for d in range(YEAR_DAYS)]
    usual = ratio[0, 0]
    assert ratio[in_july] == pytest.approx(2 * usual)
    assert ratio[~np.array(in_july)] == pytest.approx(usual)


def test_a_campaign_may_pass_the_turn_of_the_year() -> None:
    turn = Campaign("turn", (12, 25), (1, 6), 0.5)
    days = [date(2025, 12, 24), date(2025, 12, 25), date(2026, 1, 6), date(2026, 1, 7)]
    assert [turn.covers(day) for day in days] == [False, True, True, False]


def test_without_a_season_operational_time_is_calendar_time() -> None:
    flat = Season(SeasonShape.flat(), START, 10)
    assert float(flat.operational_weeks(flat.start_us + WEEK_US)) == pytest.approx(1, abs=1e-12)


@given(st.integers(0, 500 * DAY_US - 1))
def test_operational_time_leads_back_to_the_same_moment(after_us: int) -> None:
    at_us = np.array([SEASON.start_us + after_us])
    assert abs(int(SEASON.calendar_us(SEASON.operational_weeks(at_us))[0] - at_us[0])) <= 1


@given(st.lists(st.integers(0, 500 * DAY_US), min_size=2, max_size=20))
def test_operational_time_never_stands_still(moments: list[int]) -> None:
    at_us = np.sort(np.array(moments)) + SEASON.start_us
    gained = np.diff(SEASON.operational_weeks(at_us))
    assert (gained >= SEASON.level.min() * np.diff(at_us) / WEEK_US - 1e-12).all()


def test_times_outside_the_season_are_refused() -> None:
    with pytest.raises(ValueError, match="outside the 500 days from 2025-11-01"):
        SEASON.operational_weeks(SEASON.end_us + 1)
    with pytest.raises(ValueError, match="outside the 500 days"):
        SEASON.calendar_us(np.array([SEASON.passed_weeks[-1] + 1]))


@pytest.mark.parametrize("factor", [0.0, -1.0, float("inf")])
def test_a_campaign_that_stops_or_explodes_the_clock_is_refused(factor: float) -> None:
    with pytest.raises(ValueError, match="factor of campaign 'x' must be above 0"):
        Campaign("x", (1, 1), (1, 2), factor)


def test_midnights_are_those_of_utc() -> None:
    assert midnight_us(date(1970, 1, 2)) == 24 * HOUR_US

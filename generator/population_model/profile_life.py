"""What a customer's profile says over time: sign-up, what the customer allows, e-mail address, and loyalty grade.

The grade follows from observed net spend alone (orders placed less what was taken back, up to then), so it tells nothing a shop could not
know. Consents change at random moments. Nobody is erased here: a customer who was forgotten must not buy again, and who buys again is
the purchase model's to say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from generator.population_model.baskets import Index
from generator.population_model.season import Microseconds, Season
from generator.population_model.spend import Cents

GRADES = ("bronze", "silver", "gold", "platinum")
GRADE_CENTS = (7_500, 20_000, 50_000)
"""Net spend in cents from which silver, gold and platinum are given."""

_GRADE_DELAY_US = 300_000_000
_WEEKS_A_YEAR = 365 / 7


@dataclass(frozen=True, slots=True)
class ProfileState:
    """A profile from `at_us` on; `address` counts the customer's e-mail addresses from 0."""

    at_us: int
    customer: int
    grade: int
    address: int
    consent_email: bool | None
    consent_ads: bool | None
    consent_analytics: bool | None
    opted_out: bool


def grade_changes(customer: Index, at_us: Microseconds, change: Cents) -> tuple[Index, Microseconds, npt.NDArray[np.int64]]:
    """Who gets which grade when, everybody beginning as bronze.

    Args:
        customer: whose net spend changes.
        at_us: when.
        change: by how many cents; negative for what was taken back.
    """
    order = np.lexsort((at_us, customer))
    who, when = customer[order], at_us[order]
    running = np.cumsum(change[order])
    first = np.concatenate(([True], who[1:] != who[:-1])) if who.size else np.zeros(0, dtype=np.bool_)
    begin = np.flatnonzero(first)
    before = np.repeat(running[begin] - change[order][begin], np.diff(np.append(begin, who.size)))
    grade = np.searchsorted(GRADE_CENTS, running - before, side="right")
    previous = np.concatenate(([0], grade[:-1])) if grade.size else grade
    previous = np.where(first, 0, previous)
    changed = grade != previous
    return who[changed], when[changed] + _GRADE_DELAY_US, grade[changed]


def profile_states(
    season: Season,
    signed_up_us: Microseconds,
    until_us: int,
    grades: tuple[Index, Microseconds, npt.NDArray[np.int64]],
    changes_per_year: float,
    random: np.random.Generator,
) -> list[ProfileState]:
    """Every profile message in the order of time.

    Args:
        season: the clock; changes of consent follow it as everything does.
        signed_up_us: by customer.
        until_us: no message from here on.
        grades: as `grade_changes` gives them.
        changes_per_year: mean number of changes the customer makes in an average year.
        random: generator of the purpose.
    """
    count = signed_up_us.size
    begin = season.operational_weeks(signed_up_us)
    span = np.maximum(0, season.operational_weeks(until_us) - begin)
    numbers = random.poisson(changes_per_year / _WEEKS_A_YEAR * span)
    who = np.repeat(np.arange(count), numbers)
    when = season.calendar_us(begin[who] + random.random(who.size) * span[who])
    first = random.random((count, 8))
    drawn = random.random((who.size, 2)).tolist()
    # Three sources in one order: sign-up (0), grade (1), the customer's own change (2).
    customers = np.concatenate((np.arange(count), grades[0], who))
    times = np.concatenate((signed_up_us, grades[1], when))
    source = np.concatenate((np.zeros(count, int), np.ones(grades[0].size, int), np.full(who.size, 2)))
    detail = np.concatenate((np.zeros(count, int), grades[2], np.arange(who.size)))
    order = np.lexsort((source, times, customers))
    states: list[ProfileState] = []
    state = ProfileState(0, -1, 0, 0, None, None, None, False)
    for customer, at_us, kind, which in zip(
        customers[order].tolist(), times[order].tolist(), source[order].tolist(), detail[order].tolist(), strict=True
    ):
        if kind == 0:
            email, ads, analytics, out = first[customer, :4].tolist()
            state = ProfileState(at_us, customer, 0, 0, _consent(email, 0.7), _consent(ads, 0.45), _consent(analytics, 0.8), out < 0.03)
        else:
            # A profile says one thing at a time: two changes in one microsecond stand one apart.
            at_us = max(at_us, state.at_us + 1)
            if kind == 1:
                state = ProfileState(
                    at_us, customer, which, state.address, state.consent_email, state.consent_ads, state.consent_analytics, state.opted_out
                )
            else:
                state = _changed(state, at_us, *drawn[which])
        if at_us < until_us:
            states.append(state)
    states.sort(key=lambda s: (s.at_us, s.customer))
    return states


def _consent(drawn: float, share: float) -> bool | None:
    """Yes in the given share, never asked in a twentieth."""
    return None if drawn < 0.05 else drawn < 0.05 + 0.95 * share


def _changed(state: ProfileState, at_us: int, what: float, to: float) -> ProfileState:
    email, ads, analytics, out, address = (
        state.consent_email,
        state.consent_ads,
        state.consent_analytics,
        state.opted_out,
        state.address,
    )
    if what < 0.35:
        email = not email if email is not None else to < 0.7
    elif what < 0.55:
        ads = not ads if ads is not None else to < 0.45
    elif what < 0.75:
        analytics = not analytics if analytics is not None else to < 0.8
    elif what < 0.9:
        address += 1
    else:
        out = not out
    return ProfileState(at_us, state.customer, state.grade, address, email, ads, analytics, out)

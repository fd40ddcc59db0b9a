"""What visitors do: the one converting session of each purchase, built backwards from it, and visits that end without one.

A converting session is view, click, cart for each product of the basket, then checkout, payment and purchase; the purchase event has the
purchase's own time. Some log in first, and in some the first payment fails and the second does not. A visit without a purchase is
browsing, sometimes a cart, a checkout, and a payment that fails and is not tried again. Visits are drawn by day from the arrived
customers and from strangers alike; they know nothing of rates or drop-outs and never remove a purchase.

Every pause is shorter than the 30 minutes that end a session, and a visit shorter than a day.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from generator.population_model.baskets import Baskets, Index
from generator.population_model.season import HOUR_US, Microseconds, Season

_SECOND = 1_000_000
_SHORTEST_PAUSE = 1.0
_LONGEST_PAUSE = 240.0
_MEAN_PAUSE = 35.0
_SIGN_UP_BEFORE_US = 2 * _SECOND
_LOGIN_SHARE = 0.35
_SECOND_PAYMENT_SHARE = 0.04
_MOST_PAGES = 10
_PAGES_STOP = 0.32
_CART_SHARE = 0.16
_CHECKOUT_SHARE = 0.35
_FAILED_PAYMENT_SHARE = 0.3


class Kind(IntEnum):
    """Event types by the number the columns hold."""

    VIEW = 0
    CLICK = 1
    SEARCH = 2
    CART = 3
    CHECKOUT = 4
    PAYMENT = 5
    PAYMENT_FAILED = 6
    PURCHASE = 7
    LOGIN = 8


CHANNELS = ("web", "app", "mail")
_CHANNEL_BOUNDS = (0.62, 0.88)


@dataclass(frozen=True)
class Steps:
    """Events in columns, one entry each.

    `customer` is -1 for a stranger, whose visit's number is in `stranger` (else -1); `session` is a random number of 64 bits; `product` and
    `order` are -1 where there is none.
    """

    at_us: Microseconds
    kind: npt.NDArray[np.int64]
    customer: Index
    stranger: Index
    session: npt.NDArray[np.uint64]
    channel: npt.NDArray[np.int64]
    product: Index
    order: Index

    @property
    def count(self) -> int:
        """How many events."""
        return int(self.at_us.size)

    def take(self, which: Index | npt.NDArray[np.bool_]) -> Steps:
        """Some of the events."""
        return Steps(*(getattr(self, f.name)[which] for f in fields(self)))

    def part(self, low: int, high: int) -> Steps:
        """The events at the places from `low` up to `high`."""
        return Steps(*(getattr(self, f.name)[low:high] for f in fields(self)))

    @staticmethod
    def joined(parts: list[Steps]) -> Steps:
        """Several columns one after the other."""
        return Steps(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in fields(Steps)))


@dataclass(frozen=True)
class Conversions:
    """The converting sessions of all orders, in the order of time; `first_us` and `channel` by order."""

    steps: Steps
    first_us: Microseconds
    channel: npt.NDArray[np.int64]


def converting(at_us: Microseconds, customer: Index, baskets: Baskets, opens_us: int, random: np.random.Generator) -> Conversions:
    """One session for each order.

    Args:
        at_us: purchase times.
        customer: who buys.
        baskets: what; the products of the session are those of the basket.
        opens_us: no event is earlier; a session that would be is drawn together.
        random: generator of the purpose.
    """
    orders = at_us.size
    bought = baskets.products_in
    login = (random.random(orders) < _LOGIN_SHARE).astype(np.int64)
    failed = (random.random(orders) < _SECOND_PAYMENT_SHARE).astype(np.int64)
    session = random.integers(0, 2**64, orders, dtype=np.uint64)
    channel = np.searchsorted(_CHANNEL_BOUNDS, random.random(orders), side="right")
    length = login + 3 * bought + 3 + failed
    ends = np.cumsum(length)
    begins = ends - length
    order = np.repeat(np.arange(orders), length)
    place = np.arange(order.size) - begins[order] - login[order]
    browsing = 3 * bought[order]
    after = place - browsing
    kind = np.array([Kind.VIEW, Kind.CLICK, Kind.CART])[place % 3]
    kind = np.where(after == 0, Kind.CHECKOUT, kind)
    closing = after - failed[order]
    kind = np.where((after == 1) & (failed[order] == 1), Kind.PAYMENT_FAILED, kind)
    kind = np.where((closing == 1) & (after > 0), Kind.PAYMENT, kind)
    kind = np.where(closing == 2, Kind.PURCHASE, kind)
    kind = np.where(place < 0, Kind.LOGIN, kind)
    has_product = (place >= 0) & (after < 0)
    line = baskets.offsets[order] + np.where(has_product, place // 3, 0)
    product = np.where(has_product, baskets.product[line], -1)
    pause = _pauses(order.size, random)
    pause[ends - 1] = 0
    passed = np.cumsum(pause) - pause
    back = (passed[ends - 1])[order] - passed
    room = (at_us - opens_us)[order]
    span = back[begins][order] + 2 * _SIGN_UP_BEFORE_US
    back = np.where(span > room, (back * (room / span)).astype(np.int64), back)
    when = at_us[order] - back
    steps = Steps(
        at_us=when,
        kind=kind,
        customer=customer[order],
        stranger=np.full(order.size, -1, dtype=np.int64),
        session=session[order],
        channel=channel[order],
        product=product,
        order=np.where((kind == Kind.PAYMENT) | (kind == Kind.PURCHASE), order, -1),
    )
    return Conversions(steps.take(np.argsort(when, kind="stable")), when[begins], channel)


def sign_ups(first_us: Microseconds, opens_us: int) -> Microseconds:
    """When the accounts were opened, given the first events of the customers' first sessions: shortly before, never before the shop."""
    return first_us - np.minimum(_SIGN_UP_BEFORE_US, (first_us - opens_us) // 2)


def visits(
    season: Season,
    day_us: int,
    visits_per_week: float,
    known_share: float,
    births_us: Microseconds,
    product_bounds: npt.NDArray[np.float64],
    random: np.random.Generator,
) -> Steps:
    """Visits without a purchase that begin on a day, in no order; some end after its midnight.

    Args:
        season: the clock.
        day_us: midnight at which the day begins.
        visits_per_week: mean number per operational week.
        known_share: share of the visits by customers, once there are any.
        births_us: first purchases, rising; who has not bought yet visits as a stranger only.
        product_bounds: cumulative popularity of the products, up to 1.
        random: generator of the day.
    """
    hours = day_us + np.arange(25) * HOUR_US
    counts = random.poisson(visits_per_week * np.diff(season.operational_weeks(hours)))
    begin = np.repeat(hours[:-1], counts) + random.integers(0, HOUR_US, int(counts.sum()))
    number = begin.size
    arrived = np.searchsorted(births_us, begin, side="left")
    known = (random.random(number) < known_share) & (arrived > 0)
    customer = np.where(known, (random.random(number) * arrived).astype(np.int64), -1)
    session = random.integers(0, 2**64, number, dtype=np.uint64)
    channel = np.searchsorted(_CHANNEL_BOUNDS, random.random(number), side="right")
    pages = np.minimum(random.geometric(_PAGES_STOP, number), _MOST_PAGES)
    login = ((random.random(number) < _LOGIN_SHARE) & known).astype(np.int64)
    depth = random.random(number)
    cart = depth < _CART_SHARE
    checkout = depth < _CART_SHARE * _CHECKOUT_SHARE
    fails = depth < _CART_SHARE * _CHECKOUT_SHARE * _FAILED_PAYMENT_SHARE
    length = login + pages + cart + checkout + fails
    ends = np.cumsum(length)
    begins = ends - length
    visit = np.repeat(np.arange(number), length)
    place = np.arange(visit.size) - begins[visit] - login[visit]
    after = place - pages[visit]
    drawn = random.random(visit.size)
    looked_at = np.searchsorted(product_bounds, random.random(visit.size), side="right")
    kind = np.where(drawn < 0.68, Kind.VIEW, np.where(drawn < 0.88, Kind.CLICK, Kind.SEARCH))
    kind = np.where(place == 0, np.where(drawn < 0.85, Kind.VIEW, Kind.SEARCH), kind)
    kind = np.where(place < 0, Kind.LOGIN, kind)
    for far, step in enumerate((Kind.CART, Kind.CHECKOUT, Kind.PAYMENT_FAILED)):
        kind = np.where(after == far, step, kind)
    has_product = (kind == Kind.VIEW) | (kind == Kind.CLICK) | (kind == Kind.CART)
    pause = _pauses(visit.size, random)
    passed = np.cumsum(pause) - pause
    return Steps(
        at_us=begin[visit] + passed - passed[begins][visit],
        kind=kind,
        customer=customer[visit],
        stranger=np.where(known, -1, np.arange(number))[visit],
        session=session[visit],
        channel=channel[visit],
        product=np.where(has_product, looked_at, -1),
        order=np.full(visit.size, -1, dtype=np.int64),
    )


def _pauses(count: int, random: np.random.Generator) -> npt.NDArray[np.int64]:
    seconds = np.clip(random.exponential(_MEAN_PAUSE, count), _SHORTEST_PAUSE, _LONGEST_PAUSE)
    return (seconds * _SECOND).astype(np.int64) + random.integers(0, 1000, count)

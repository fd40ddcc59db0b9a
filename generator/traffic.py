"""Live traffic: a made-up shop's records at scheduled moments, in a stated mix, with a hot customer and ordered defects.

The rate is met by browsing, profile and product records; orders take the share that the mix gives them. This traffic has no truth
about purchase behaviour (`bgnbd: false`). Belongs here: which record comes next. Not here: when (`schedule`), what a visit or an
order is made of (`synthetic`), what a defect does (`defects`).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from datetime import datetime
from random import Random

from generator.defects import Faults
from generator.encode import Draft, Step
from generator.ids import epoch_microseconds
from generator.population import Shopper
from generator.records import Outgoing
from generator.scenario import LiveScenario, Mix
from generator.schedule import Schedule
from generator.synthetic import Shop

_OPEN_VISITS = 40
_ORDERS_AHEAD = 20


class Traffic:
    """The records of a live scenario.

    Args:
        scenario: phases, mix, hot key, defects.
        schedule: its moments.
        shop: where people shop; its seed is the scenario's.
        start: time of the scenario's clock at the beginning; aware.
    """

    def __init__(self, scenario: LiveScenario, schedule: Schedule, shop: Shop, start: datetime) -> None:
        self._scenario = scenario
        self._schedule = schedule
        self._shop = shop
        self._encode_step = shop.encode_step
        self._start_us = epoch_microseconds(start)
        self._random = Random(f"{scenario.seed}/traffic")
        self._faults = Faults(Random(f"{scenario.seed}/defects"))
        self._everybody = _Lane(shop, self._random, shop.shoppers)
        self._hot = _Lane(shop, self._random, shop.shoppers[:1])

    def preamble(self) -> Iterator[Outgoing]:
        """Every product and profile once, dated just before the beginning, so that each later reference leads somewhere."""
        for draft in self._shop.introductions():
            yield self._shop.encode(draft, self._start_us - 1)

    def records(self) -> Iterator[Outgoing]:
        """One record for each moment of the schedule, faulty ones included; endless in no case."""
        phases = self._scenario.phases
        shares = [self._scenario.defects_of(p).shares() for p in phases]
        hot = [self._scenario.hot_key_share_of(p) for p in phases]
        mixes = [_bounds(self._scenario.mix_of(p)) for p in phases]
        tick_us = self._scenario.clock_speed_up * 1_000_000
        faults = self._faults
        start_us, draw, encode, pass_on = self._start_us, self._draw, self.encode, faults.pass_on
        for due_seconds, phase in self._schedule.moments():
            record = faults.due()
            while record is None:  # a record that is held back leaves its moment to the next
                at_us = start_us + round(due_seconds * tick_us)
                record = pass_on(encode(draw(mixes[phase], hot[phase]), at_us), shares[phase])
            yield record

    def draws(self) -> Iterator[tuple[Draft | Step, int]]:
        """What happens at each moment and when, in microseconds since 1970 UTC, without defects; `encode` makes the records."""
        phases = self._scenario.phases
        tick_us = self._scenario.clock_speed_up * 1_000_000
        for due_seconds, phase in self._schedule.moments():
            mix, hot_share = _bounds(self._scenario.mix_of(phases[phase])), self._scenario.hot_key_share_of(phases[phase])
            yield self._draw(mix, hot_share), self._start_us + round(due_seconds * tick_us)

    def encode(self, drawn: Draft | Step, at_us: int) -> Outgoing:
        """The record of what happens at a time."""
        return self._encode_step(drawn, at_us) if isinstance(drawn, Step) else self._shop.encode(drawn, at_us)

    def _draw(self, mix: tuple[float, float, float], hot_share: float) -> Draft | Step:
        events, orders, profiles = mix
        drawn = self._random.random()
        if drawn >= profiles:
            return self._shop.product_update()
        lane = self._hot if hot_share and self._random.random() < hot_share else self._everybody
        if drawn < events:
            return lane.event(orders > events)
        return lane.order() if drawn < orders else self._shop.profile_update(lane.shopper())


class _Lane:
    """Visits under way and orders about to be placed, of everybody or of the hot customer."""

    def __init__(self, shop: Shop, random: Random, shoppers: tuple[Shopper, ...]) -> None:
        self._shop = shop
        self._random = random
        self._shoppers = shoppers
        self._visits: list[list[Draft] | list[Step]] = []
        self._ordering: dict[int, list[Draft]] = {}
        self._orders: deque[Draft] = deque()

    def shopper(self) -> Shopper:
        """Somebody of the lane."""
        return self._shoppers[int(self._random.random() * len(self._shoppers))]

    def event(self, with_purchases: bool) -> Draft | Step:
        """The next step of a visit under way; the order of a session that ends with a purchase comes after its last step."""
        visits = self._visits
        if len(visits) < _OPEN_VISITS:
            visits.append(self._visit(with_purchases))
        place = int(self._random.random() * len(visits))
        visit = visits[place]
        draft = visit.pop()
        if not visit:
            visits[place] = visits[-1]
            visits.pop()
            self._orders.extend(self._ordering.pop(id(visit), ()))
        return draft

    def order(self) -> Draft:
        """The next state of an order: of a tracked session that has ended, else of a purchase that nobody watched."""
        if not self._orders:
            self._orders.extend(self._shop.purchase(self.shopper(), with_session=False)[1])
        return self._orders.popleft()

    def _visit(self, with_purchases: bool) -> list[Draft] | list[Step]:
        """Steps of a visit, the last one first."""
        if with_purchases and len(self._orders) + 2 * len(self._ordering) < _ORDERS_AHEAD and self._random.random() < 0.1:
            session, orders = self._shop.purchase(self.shopper(), with_session=True)
            session.reverse()
            self._ordering[id(session)] = orders
            return session
        visit = self._shop.browsing(self.shopper())
        visit.reverse()
        return visit


def _bounds(mix: Mix) -> tuple[float, float, float]:
    """Upper bounds of a number drawn between 0 and 1 for an event, an order and a profile; a product above."""
    return (mix.events, mix.events + mix.orders, mix.events + mix.orders + mix.profiles)

"""The population as a shop sees it: every record of a day, on the wire, in the order of event time.

The models are drawn once when first needed; the records of a day follow from them and from the day's own generators, so a day is the
same bytes whichever days were generated before, and by whichever process. `sequence` is the event time in microseconds: it rises per
entity key (records of one key in one microsecond are put one apart) and needs no counter that would tie a day to the days before it.

Belongs here: putting the layers together, day by day. Not here: the models, the spelling (`event_columns`, `entity_rows`), or sending.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import date, timedelta
from decimal import Decimal
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from generator.population_model import baskets, catalogue, event_columns, journeys, order_life, profile_life, spend
from generator.population_model.baskets import Baskets, Index
from generator.population_model.draws import Purpose, generator_for
from generator.population_model.entity_rows import EntityRows
from generator.population_model.options import PopulationOptions
from generator.population_model.purchases import Customers, Purchases, arrivals, buy
from generator.population_model.season import DAY_US, YEAR_DAYS, Season, midnight_us
from generator.records import Outgoing

if TYPE_CHECKING:
    import pyarrow as pa

SOURCE = "backfill"
_OPENING_US = 1_000_000
"""The first customer comes a second after the shop has opened, when the catalogue is published."""


@dataclass(frozen=True)
class _Models:
    """What is drawn from the models: hidden, but for the purchases before the window's end."""

    customers: Customers
    purchases: Purchases
    nu: npt.NDArray[np.float64]
    totals: spend.Cents


class PopulationShop:
    """The shop of one population.

    Args:
        options: what fixes the population.
        run_id: written into each message; by default from the options alone.
        source: system that is played, written into each message.
    """

    def __init__(self, options: PopulationOptions, run_id: str | None = None, source: str = SOURCE) -> None:
        self.options = options
        self.run_id = run_id or options.run_id
        self.source = source
        self.start_us = midnight_us(options.start)
        self.end_us = self.start_us + options.days * DAY_US
        self.tag = options.digest[:4].upper()
        self._browsed: tuple[int, journeys.Steps] | None = None

    @property
    def days(self) -> list[date]:
        """The days that are streamed, in order."""
        return [self.options.start + timedelta(days=d) for d in range(self.options.days)]

    # -- the models

    @cached_property
    def season(self) -> Season:
        """The clock, from the first day to the truth's horizon."""
        return Season(self.options.season, self.options.start, self.options.days + self.options.truth_days)

    @property
    def customers(self) -> Customers:
        """Every customer, with the hidden rates."""
        return self._models.customers

    @property
    def purchases(self) -> Purchases:
        """Every purchase up to the truth's horizon, in the order of time; those in the window come first."""
        return self._models.purchases

    @property
    def totals_cents(self) -> spend.Cents:
        """Total of each purchase."""
        return self._models.totals

    @property
    def nu(self) -> npt.NDArray[np.float64]:
        """The hidden spend rate of each customer."""
        return self._models.nu

    @cached_property
    def orders(self) -> int:
        """How many purchases lie in the window: order i is purchase i."""
        return int(np.searchsorted(self.purchases.at_us, self.end_us, side="left"))

    @cached_property
    def customer_ids(self) -> list[str]:
        """Customer ids by number."""
        return [f"C{self.tag}-{n:06d}" for n in range(1, self.customers.count + 1)]

    @cached_property
    def order_ids(self) -> list[str]:
        """Order ids of the window's purchases."""
        return [f"O{self.tag}-{n:07d}" for n in range(1, self.orders + 1)]

    @cached_property
    def _models(self) -> _Models:
        options, season = self.options, self.season
        births = arrivals(
            season, self.start_us + _OPENING_US, self.end_us - 1, options.customers, generator_for(options.seed, Purpose.ARRIVALS)
        )
        customers, purchases = buy(
            season,
            births,
            options.purchase_model,
            generator_for(options.seed, Purpose.RATES),
            generator_for(options.seed, Purpose.PURCHASES),
        )
        nu, totals = spend.draw_totals(
            options.spend_model, customers.count, purchases.customer, purchases.ordinal, generator_for(options.seed, Purpose.SPEND)
        )
        return _Models(customers, purchases, nu, totals)

    # -- what a shop would see of them

    @cached_property
    def catalogue(self) -> catalogue.Catalogue:
        """What is for sale."""
        return catalogue.make_catalogue(self.options.products, self.options.seed, self.options.zipf_exponent)

    @cached_property
    def baskets(self) -> Baskets:
        """Lines of the window's orders."""
        found = self.catalogue
        return baskets.fill(
            self.totals_cents[: self.orders],
            found.list_cents,
            found.weights,
            found.adjustment,
            generator_for(self.options.seed, Purpose.BASKETS),
        )

    @cached_property
    def order_messages(self) -> order_life.OrderMessages:
        """Every message of the window's orders, also those after it."""
        options = self.options
        shares = (options.cancelled_share, options.returned_share, options.part_refunded_share)
        random = generator_for(options.seed, Purpose.ORDER_LIFE)
        return order_life.order_messages(
            self.purchases.at_us[: self.orders], self.totals_cents[: self.orders], self.baskets, shares, random
        )

    @cached_property
    def conversions(self) -> journeys.Conversions:
        """The converting session of each of the window's orders."""
        return journeys.converting(
            self.purchases.at_us[: self.orders],
            self.purchases.customer[: self.orders],
            self.baskets,
            self.start_us + _OPENING_US // 2,
            generator_for(self.options.seed, Purpose.JOURNEYS),
        )

    @cached_property
    def signed_up_us(self) -> Index:
        """When each customer opened the account: just before the first session."""
        first = self.purchases.ordinal[: self.orders] == 0
        begun = np.zeros(self.customers.count, dtype=np.int64)
        begun[self.purchases.customer[: self.orders][first]] = self.conversions.first_us[first]
        return journeys.sign_ups(begun, self.start_us + _OPENING_US // 4)

    @cached_property
    def profiles(self) -> list[profile_life.ProfileState]:
        """Every profile message of the window."""
        messages = self.order_messages
        counted = (messages.state == order_life.State.PLACED) | (messages.state >= order_life.State.CANCELLED)
        order = messages.order[counted]
        placed = messages.state[counted] == order_life.State.PLACED
        change = np.where(placed, self.totals_cents[order], -messages.taken_back[counted])
        grades = profile_life.grade_changes(self.purchases.customer[order], messages.at_us[counted], change)
        random = generator_for(self.options.seed, Purpose.PROFILES)
        return profile_life.profile_states(
            self.season, self.signed_up_us, self.end_us, grades, self.options.consent_changes_per_year, random
        )

    # -- by day

    def table(self, day: date) -> pa.Table:
        """All records of a day in the order of event time, as columns.

        Columns: `plural`, `entity`, `entity_key`, `event_id` (text), `key`, `value` (binary, as Kafka gets them), `sequence`, `event_us`
        (microseconds since 1970 UTC), `amount_cents` (orders only), `canonical` (the text the typed checksum is
        taken of, see `crm_resources.contracts.canonical`).

        Raises:
            ValueError: the day is not streamed.
        """
        import pyarrow as pa

        day_us = midnight_us(day)
        if not self.start_us <= day_us < self.end_us:
            raise ValueError(f"{day} is not among the {self.options.days} days up to {self.options.end}")
        ids = generator_for(self.options.seed, Purpose.IDS, int(self.options.digest[:16], 16), day.toordinal())
        rows = self._rows
        # Where times are equal a record comes after those it refers to: products, profiles, orders, then events.
        parts = [
            rows.products(day_us, generator_for(self.options.seed, Purpose.STOCK, day.toordinal()), ids),
            rows.profiles(day_us, ids),
            rows.orders(day_us, ids),
            event_columns.encode(self._steps(day_us), self._names, ids),
        ]
        whole = pa.concat_tables(parts)
        order = np.argsort(whole["event_us"].to_numpy(), kind="stable")
        return whole.take(pa.array(order)).combine_chunks()

    def records(self, day: date) -> Iterator[Outgoing]:
        """All records of a day in the order of event time.

        Raises:
            ValueError: the day is not streamed.
        """
        return records_of(self.table(day))

    def _steps(self, day_us: int) -> journeys.Steps:
        """The events of a day: converting sessions, and visits that began on it or the day before."""
        bought = self.conversions.steps
        low, high = np.searchsorted(bought.at_us, (day_us, day_us + DAY_US), side="left")
        steps = [bought.part(int(low), int(high))]
        for begun_us in (day_us - DAY_US, day_us):
            if begun_us >= self.start_us:
                visits = self._visits(begun_us)
                # A stranger's name comes from the visit's own session, so a visit over midnight keeps it.
                steps.append(visits.take((visits.at_us >= day_us) & (visits.at_us < day_us + DAY_US)))
        return journeys.Steps.joined(steps)

    def _visits(self, day_us: int) -> journeys.Steps:
        if self._browsed is not None and self._browsed[0] == day_us:
            return self._browsed[1]
        weeks_a_year = YEAR_DAYS / 7
        visits = journeys.visits(
            self.season,
            day_us,
            self.options.visits_per_customer * self.options.customers / weeks_a_year,
            self.options.known_share,
            self.customers.birth_us,
            self.catalogue.bounds,
            generator_for(self.options.seed, Purpose.BROWSING, day_us // DAY_US),
        )
        self._browsed = (day_us, visits)
        return visits

    @cached_property
    def _names(self) -> event_columns.Names:
        return event_columns.Names(
            self.run_id, self.source, self.customer_ids, self.order_ids, self.catalogue.product_ids, self.options.seed
        )

    @cached_property
    def _rows(self) -> EntityRows:
        return EntityRows(self)


def records_of(table: pa.Table) -> Iterator[Outgoing]:
    """The rows of a day's table as records to send."""
    names = ("plural", "entity", "key", "value", "event_id", "entity_key", "sequence", "event_us", "amount_cents", "canonical")
    for plural, entity, key, value, event_id, entity_key, sequence, event_us, cents, canonical in zip(
        *(table[name].to_pylist() for name in names), strict=True
    ):
        amount = None if cents is None else Decimal(cents).scaleb(-2)
        yield Outgoing(plural, entity, key, value, event_id, entity_key, sequence, event_us, amount, canonical=canonical)

"""Products, profiles and orders on the wire: few beside the events, so one at a time."""

from __future__ import annotations

from bisect import bisect_left
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from crm_resources.contracts.canonical import message_text
from crm_resources.contracts.entities import ENTITY_KEY_FIELDS, KAFKA_KEY_FIELDS, SCHEMA_VERSION
from generator.encode import Draft, first_set, pounds, wire_time
from generator.population_model.columns import uuid7_column
from generator.population_model.event_columns import apart, record_table
from generator.population_model.journeys import CHANNELS
from generator.population_model.order_life import State
from generator.population_model.people import People, make_people
from generator.population_model.profile_life import GRADES, ProfileState
from generator.population_model.season import DAY_US

if TYPE_CHECKING:
    import pyarrow as pa

    from generator.population_model.shop import PopulationShop

CURRENCY = "GBP"
_STOCK_MESSAGES_A_DAY = 12.0
_MOST_STOCK = 2_000
_STATUS = {
    State.PLACED: "placed",
    State.PAID: "paid",
    State.SHIPPED: "shipped",
    State.COMPLETED: "completed",
    State.CANCELLED: "cancelled",
    State.RETURNED: "refunded",
    State.PART_REFUNDED: "refunded",
}


class EntityRows:
    """Encodes what is not an event, by day.

    Args:
        shop: whose records they are.
    """

    def __init__(self, shop: PopulationShop) -> None:
        self._shop = shop

    def products(self, day_us: int, stock: np.random.Generator, ids: np.random.Generator) -> pa.Table:
        """The catalogue when the shop opens, and messages about stock.

        Args:
            day_us: midnight at which the day begins.
            stock: generator of the day's stock messages.
            ids: generator of the day's event ids.
        """
        found = self._shop.catalogue
        drafts = []
        if day_us == self._shop.start_us:
            drafts = [Draft(day_us + n, "product", self._product(n, item.stock)) for n, item in enumerate(found.items)]
        count = int(stock.poisson(_STOCK_MESSAGES_A_DAY))
        place = stock.integers(0, found.adjustment, count)
        # After the catalogue, which takes the day's first microseconds.
        at_us = apart(place.astype(np.uint64), day_us + 1_000_000 + stock.integers(0, DAY_US - 2_000_000, count))
        left = stock.integers(0, _MOST_STOCK, count).tolist()
        drafts += [
            Draft(when, "product", self._product(n, pieces)) for when, n, pieces in zip(at_us.tolist(), place.tolist(), left, strict=True)
        ]
        return self._encode("product", drafts, ids)

    def profiles(self, day_us: int, ids: np.random.Generator) -> pa.Table:
        """What profiles began to say on the day.

        Args:
            day_us: midnight at which the day begins.
            ids: generator of the day's event ids.
        """
        states = self._shop.profiles
        low = bisect_left(states, day_us, key=lambda s: s.at_us)
        high = bisect_left(states, day_us + DAY_US, key=lambda s: s.at_us)
        return self._encode("profile", [Draft(s.at_us, "profile", self._profile(s)) for s in states[low:high]], ids)

    def orders(self, day_us: int, ids: np.random.Generator) -> pa.Table:
        """Orders and their later states, and documents that take back.

        Args:
            day_us: midnight at which the day begins.
            ids: generator of the day's event ids.
        """
        messages = self._shop.order_messages
        low, high = np.searchsorted(messages.at_us, (day_us, day_us + DAY_US), side="left").tolist()
        drafts = [
            self._order(*row)
            for row in zip(
                messages.at_us[low:high].tolist(),
                messages.order[low:high].tolist(),
                messages.state[low:high].tolist(),
                messages.line[low:high].tolist(),
                messages.quantity[low:high].tolist(),
                strict=True,
            )
        ]
        return self._encode("order", drafts, ids)

    def _product(self, place: int, stock: int) -> dict[str, Any]:
        item = self._shop.catalogue.items[place]
        sold = place != self._shop.catalogue.adjustment
        return {
            "product_id": item.product_id,
            "name": item.name,
            "category": item.category,
            "price": pounds(item.pence),
            "currency": CURRENCY,
            "stock": stock if sold else None,
            "active": True,
        }

    def _profile(self, state: ProfileState) -> dict[str, Any]:
        return {
            "customer_id": self._shop.customer_ids[state.customer],
            "email": self._people.email(state.customer, state.address),
            "country": self._people.country[state.customer],
            "grade": GRADES[state.grade],
            "signed_up_at": wire_time(int(self._shop.signed_up_us[state.customer])),
            "consent_email": state.consent_email,
            "consent_ads": state.consent_ads,
            "consent_analytics": state.consent_analytics,
            "opted_out": state.opted_out,
            "erased": False,
        }

    def _order(self, at_us: int, number: int, state: int, line: int, pieces: int) -> Draft:
        shop = self._shop
        customer = int(shop.purchases.customer[number])
        takes_back = state >= State.CANCELLED
        low, high = (line, line + 1) if state == State.PART_REFUNDED else shop.baskets.offsets[number : number + 2].tolist()
        lines = []
        cents = 0
        for place, at in enumerate(range(low, high), start=1):
            product, quantity, price = self._lines[0][at], self._lines[1][at], self._lines[2][at]
            quantity = -(pieces or quantity) if takes_back else quantity
            cents += quantity * price
            item = shop.catalogue.items[product]
            lines.append(
                {
                    "line_number": place,
                    "product_id": item.product_id,
                    "description": item.name,
                    "quantity": quantity,
                    "unit_price": pounds(price),
                    "line_time": None,
                    "source_line": None,
                }
            )
        order_id = shop.order_ids[number]
        fields = {
            "order_id": f"R{order_id}" if takes_back else order_id,
            "customer_id": shop.customer_ids[customer],
            "status": _STATUS[State(state)],
            "cancels_order_id": order_id if takes_back else None,
            "currency": CURRENCY,
            "channel": CHANNELS[shop.conversions.channel[number]],
            "country": self._people.country[customer],
            "amount": pounds(cents),
            "lines": lines,
        }
        return Draft(at_us, "order", fields, cents)

    def _encode(self, entity: str, drafts: list[Draft], ids: np.random.Generator) -> pa.Table:
        import pyarrow as pa

        at_us = np.array([draft.at_us for draft in drafts], dtype=np.int64)
        event_ids = uuid7_column(at_us, ids)
        entity_keys = [first_set(draft.fields, ENTITY_KEY_FIELDS[entity]) for draft in drafts]
        messages = [
            {
                "event_id": event_id,
                "entity": entity,
                "entity_key": entity_key,
                "sequence": draft.at_us,
                "schema_version": SCHEMA_VERSION,
                "event_time": wire_time(draft.at_us),
                "source": self._shop.source,
                "run_id": self._shop.run_id,
                **draft.fields,
            }
            for event_id, entity_key, draft in zip(event_ids.to_pylist(), entity_keys, drafts, strict=True)
        ]
        return record_table(
            entity,
            event_id=event_ids,
            entity_key=pa.array(entity_keys, pa.string()),
            key=pa.array([first_set(draft.fields, KAFKA_KEY_FIELDS[entity]).encode() for draft in drafts], pa.binary()),
            value=pa.array([orjson.dumps(message) for message in messages], pa.binary()),
            event_us=pa.array(at_us),
            amount_cents=pa.array([draft.pence for draft in drafts], pa.int64()),
            canonical=pa.array([message_text(entity, message) for message in messages], pa.string()),
        )

    @cached_property
    def _people(self) -> People:
        return make_people(self._shop.customers.count, self._shop.options.seed)

    @cached_property
    def _lines(self) -> tuple[list[int], list[int], list[int]]:
        baskets = self._shop.baskets
        return baskets.product.tolist(), baskets.quantity.tolist(), baskets.cents.tolist()

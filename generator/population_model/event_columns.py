"""Events on the wire, a day at a time: contract fields in contract order, joined column by column."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from crm_resources.contracts.canonical import NULL, string_text
from crm_resources.contracts.entities import SCHEMA_VERSION
from generator.population_model.columns import hex_column, joined, taken, time_column, uuid7_column
from generator.population_model.journeys import CHANNELS, Kind, Steps

if TYPE_CHECKING:
    import pyarrow as pa

_PAGES = {
    Kind.SEARCH: "/search",
    Kind.CART: "/cart",
    Kind.CHECKOUT: "/checkout",
    Kind.PAYMENT: "/pay",
    Kind.PAYMENT_FAILED: "/pay",
    Kind.PURCHASE: "/thank-you",
    Kind.LOGIN: "/login",
}
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


class Names:
    """What the numbers in the columns are called.

    Args:
        run_id: written into each message.
        source: written into each message.
        customer_ids: by number.
        order_ids: by number.
        product_ids: by place in the catalogue.
        seed: of the population; fixes the browsers' names.
    """

    def __init__(self, run_id: str, source: str, customer_ids: list[str], order_ids: list[str], product_ids: list[str], seed: int) -> None:
        self.run_id = run_id
        self.source = source
        self.customer_ids = customer_ids
        self.order_ids = order_ids
        self.product_ids = product_ids
        self.seed = seed

    @cached_property
    def customers(self) -> pa.Array:
        """Customer ids."""
        import pyarrow as pa

        return pa.array(self.customer_ids, pa.string())

    @cached_property
    def browsers(self) -> pa.Array:
        """The one browser of each customer; its name does not tell whose it is."""
        numbers = np.arange(1, len(self.customer_ids) + 1, dtype=np.uint64)
        return hex_column(mixed(numbers + (np.uint64(self.seed % 2**31) << np.uint64(32))), "V")

    @cached_property
    def customers_text(self) -> pa.Array:
        """Customer ids in canonical text."""
        return _text(self.customer_ids)[:-1]

    @cached_property
    def orders_text(self) -> pa.Array:
        """Order ids in canonical text; the last, at -1, is null."""
        return _text(self.order_ids)

    @cached_property
    def products_text(self) -> pa.Array:
        """Product ids in canonical text; the last, at -1, is null."""
        return _text(self.product_ids)

    @cached_property
    def pages_text(self) -> pa.Array:
        """Pages in canonical text, placed like `pages`."""
        return _text(self.pages.to_pylist())[:-1]

    @cached_property
    def orders_json(self) -> pa.Array:
        """Order ids as JSON; the last, at -1, is null."""
        return _json(self.order_ids)

    @cached_property
    def products_json(self) -> pa.Array:
        """Product ids as JSON; the last, at -1, is null."""
        return _json(self.product_ids)

    @cached_property
    def pages(self) -> pa.Array:
        """Page by `kind * (products + 1) + product`, the place of no product being the last."""
        import pyarrow as pa

        places = [*self.product_ids, None]
        return pa.array([_PAGES.get(kind, f"/p/{product}") for kind in Kind for product in places], pa.string())


def mixed(numbers: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """Numbers scattered over 64 bits, one to one (the finisher of SplitMix64)."""
    with np.errstate(over="ignore"):
        x = numbers * _GOLDEN
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def encode(steps: Steps, names: Names, ids: np.random.Generator) -> pa.Table:
    """The events as columns, see `PopulationShop.table`.

    Args:
        steps: in any order.
        names: what the numbers are called.
        ids: generator of the event ids.
    """
    import pyarrow as pa
    import pyarrow.compute as pc

    count = steps.count
    known = pa.array(steps.customer >= 0)
    strangers = hex_column(mixed(steps.session), "V")
    strangers_text = hex_column(mixed(steps.session), "17:V")
    # Strangers stand behind the customers, each event with a place of its own.
    who = np.where(steps.customer >= 0, steps.customer, len(names.customer_ids) + np.arange(count))
    visitor = taken(pa.concat_arrays([names.browsers, strangers]), who)
    key = taken(pa.concat_arrays([names.customers, strangers]), who)
    key_text = taken(pa.concat_arrays([names.customers_text, strangers_text]), who)
    at_us = apart(key_numbers(steps), steps.at_us)
    event_id = uuid7_column(at_us, ids)
    no_product = len(names.product_ids)
    product = np.where(steps.product < 0, no_product, steps.product)
    order = np.where(steps.order < 0, len(names.order_ids), steps.order)
    page = steps.kind * (no_product + 1) + product
    kinds = [kind.name.lower() for kind in Kind]
    sequence = pa.array(at_us)
    sequence_text = pc.cast(sequence, pa.string())
    time = time_column(at_us)
    session = hex_column(steps.session, "S")
    value = joined(
        '{"event_id":"',
        event_id,
        '","entity":"event","entity_key":"',
        key,
        '","sequence":',
        sequence_text,
        f',"schema_version":{SCHEMA_VERSION},"event_time":"',
        time,
        f'","source":"{names.source}","run_id":"{names.run_id}","event_type":"',
        taken(pa.array(kinds), steps.kind),
        '","visitor_id":"',
        visitor,
        '","customer_id":',
        pc.if_else(known, joined('"', key, '"'), "null"),
        ',"session_id":"',
        session,
        '","product_id":',
        taken(names.products_json, product),
        ',"order_id":',
        taken(names.orders_json, order),
        ',"page":"',
        taken(names.pages, page),
        '","channel":"',
        taken(pa.array(CHANNELS), steps.channel),
        '"}',
    )
    canonical = joined(
        "36:",
        event_id,
        ",5:event,",
        key_text,
        ",",
        sequence_text,
        f",{SCHEMA_VERSION},",
        time,
        f",{string_text(names.source)},{string_text(names.run_id)},",
        taken(_text(kinds), steps.kind),
        ",17:",
        visitor,
        ",",
        pc.if_else(known, key_text, NULL),
        ",17:",
        session,
        ",",
        taken(names.products_text, product),
        ",",
        taken(names.orders_text, order),
        ",",
        taken(names.pages_text, page),
        ",",
        taken(_text(CHANNELS), steps.channel),
    )
    return record_table(
        "event",
        event_id=event_id,
        entity_key=key,
        key=pc.cast(key, pa.binary()),
        value=pc.cast(value, pa.binary()),
        event_us=sequence,
        amount_cents=pa.nulls(count, pa.int64()),
        canonical=canonical,
    )


def record_table(
    entity: str,
    *,
    event_id: pa.Array,
    entity_key: pa.Array,
    key: pa.Array,
    value: pa.Array,
    event_us: pa.Array,
    amount_cents: pa.Array,
    canonical: pa.Array,
) -> pa.Table:
    """Columns of records of one entity, see `PopulationShop.table`."""
    import pyarrow as pa

    count = len(event_id)
    return pa.table(
        {
            "plural": pa.repeat(f"{entity}s", count),
            "entity": pa.repeat(entity, count),
            "entity_key": entity_key,
            "event_id": event_id,
            "key": key,
            "value": value,
            "sequence": event_us,
            "event_us": event_us,
            "amount_cents": amount_cents,
            "canonical": canonical,
        }
    )


def key_numbers(steps: Steps) -> npt.NDArray[np.uint64]:
    """A number per event that is equal for equal entity keys."""
    return np.where(steps.customer >= 0, steps.customer.astype(np.uint64), steps.session | np.uint64(1 << 63))


def apart(keys: npt.NDArray[np.uint64], at_us: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The times, those of one key that are equal put one microsecond apart."""
    order = np.lexsort((at_us, keys))
    key, when = keys[order], at_us[order]
    while (close := (key[1:] == key[:-1]) & (when[1:] <= when[:-1])).any():
        when[1:][close] = when[:-1][close] + 1
    moved = np.empty_like(at_us)
    moved[order] = when
    return moved


def _json(texts: list[str]) -> pa.Array:
    import pyarrow as pa

    return pa.array([*(f'"{text}"' for text in texts), "null"], pa.string())


def _text(texts: Sequence[str]) -> pa.Array:
    """Texts in canonical text; null stands behind them."""
    import pyarrow as pa

    return pa.array([*map(string_text, texts), NULL], pa.string())

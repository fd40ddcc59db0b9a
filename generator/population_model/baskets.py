"""What is in each order: Zipf-popular products that reach the drawn total exactly, with an explicit adjustment line for the rest.

The adjustment is what remains after whole pieces at list price: positive, less than the price of the last product, one piece of the
catalogue's own adjustment product. It is positive on purpose: customer sums are sums of lines with quantity and price above zero, so
they equal the drawn total to the cent. An order smaller than the list price of its product sells that product at a reduced price.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from generator.population_model.spend import Cents

MOST_PRODUCTS = 4
_HOW_MANY = (0.42, 0.30, 0.18, 0.10)

Index = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Baskets:
    """Lines of all orders, one after the other; order i has the lines `offsets[i]` to `offsets[i + 1]`.

    `product` is a place in the catalogue, `cents` the unit price. `products_in` counts each order's lines without its adjustment, which
    is always the last.
    """

    offsets: Index
    product: Index
    quantity: Index
    cents: Cents
    products_in: Index


def fill(totals: Cents, list_cents: Cents, weights: npt.NDArray[np.float64], adjustment: int, random: np.random.Generator) -> Baskets:
    """Fill a basket for each total.

    Args:
        totals: in cents, each at least 1.
        list_cents: list price by place in the catalogue.
        weights: popularity of the products by place in the catalogue; 0 for what is not sold by itself.
        adjustment: place of the adjustment product.
        random: generator of the purpose.
    """
    orders = totals.size
    bounds = np.cumsum(weights) / np.sum(weights)
    wanted: Index = 1 + np.searchsorted(np.cumsum(_HOW_MANY)[:-1], random.random(orders))
    picks = np.searchsorted(bounds, random.random((orders, MOST_PRODUCTS)), side="right")
    product = np.full((orders, MOST_PRODUCTS + 1), adjustment, dtype=np.int64)
    quantity = np.zeros_like(product)
    cents = np.zeros_like(product)
    left: Index = totals.copy()
    for place in range(MOST_PRODUCTS):
        active = place < wanted
        pick = picks[:, place]
        # A product that is in the basket already is not listed twice.
        active &= ~((product[:, :place] == pick[:, None]) & (quantity[:, :place] > 0)).any(axis=1)
        price: Index = list_cents[pick] if place else np.minimum(list_cents[pick], totals)
        share = np.where(place + 1 < wanted, left // np.maximum(1, wanted - place), left)
        pieces = np.where(price <= left, np.maximum(1, share // price), 0) * active
        product[:, place] = np.where(pieces > 0, pick, adjustment)
        quantity[:, place] = pieces
        cents[:, place] = price
        left -= pieces * price
    quantity[:, MOST_PRODUCTS] = left > 0
    cents[:, MOST_PRODUCTS] = left
    kept = quantity > 0
    return Baskets(
        offsets=np.concatenate(([0], np.cumsum(kept.sum(axis=1)))),
        product=product[kept],
        quantity=quantity[kept],
        cents=cents[kept],
        products_in=kept[:, :MOST_PRODUCTS].sum(axis=1),
    )

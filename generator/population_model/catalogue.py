"""What is for sale: made-up products with Zipf popularity, and the product of adjustment lines."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from generator.population import Item, make_items
from generator.population_model.spend import Cents

ADJUSTMENT_ID = "ADJUST"


@dataclass(frozen=True)
class Catalogue:
    """The products by place; the last one is that of adjustment lines and is not sold by itself."""

    items: tuple[Item, ...]
    weights: npt.NDArray[np.float64]

    @property
    def adjustment(self) -> int:
        """Place of the adjustment product."""
        return len(self.items) - 1

    @cached_property
    def list_cents(self) -> Cents:
        """List price by place."""
        return np.array([item.pence for item in self.items], dtype=np.int64)

    @cached_property
    def bounds(self) -> npt.NDArray[np.float64]:
        """Cumulative popularity of what is sold by itself, up to 1."""
        sold = self.weights[: self.adjustment]
        return np.asarray(np.cumsum(sold) / sold.sum())

    @cached_property
    def product_ids(self) -> list[str]:
        """Product ids by place."""
        return [item.product_id for item in self.items]


def make_catalogue(count: int, seed: int, exponent: float) -> Catalogue:
    """Products whose popularity falls with their rank.

    Args:
        count: how many, at least 1; the adjustment product comes on top.
        seed: the same seed gives the same products.
        exponent: of Zipf's law: the k-th product is bought in proportion to k to the power of minus this.
    """
    items = make_items(count, seed)
    adjustment = Item(ADJUSTMENT_ID, "Adjustment to the agreed total", "Adjustment", 1, 0, True, 0.0)
    weights = np.append(np.arange(1, count + 1, dtype=np.float64) ** -exponent, 0.0)
    return Catalogue((*items, adjustment), weights)

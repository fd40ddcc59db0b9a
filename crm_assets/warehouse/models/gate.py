"""Whether a shop has enough history for a purchase model; pure.

Belongs here: the decision. Not here: what scores customers below the gate (the recency rule, in the marts).
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from crm_assets.warehouse.models.histories import Histories

FEWEST_CUSTOMERS = 500
FEWEST_DAYS = 180
LATEST_ORDER_DAYS = 30
FEWEST_REPEATERS = 50
"""Customers with at least two repeat purchases."""


@dataclass(frozen=True)
class Gate:
    """What the gate looks at, and its verdict: `closed` says why no model may score, and is empty where one may."""

    customers: int
    days: int
    days_since_last_order: int
    repeaters: int
    closed: tuple[str, ...]

    @property
    def open(self) -> bool:
        """Whether a model may score."""
        return not self.closed


def decide_gate(seen: Histories) -> Gate:
    """Judge histories in days, aged to the as-of date."""
    if not seen.count:
        return Gate(0, 0, 0, 0, ("no customer has bought yet",))
    customers = seen.count
    days = int(seen.age.max())
    since_last = int(np.min(seen.age - seen.last))
    repeaters = int(seen.customers[seen.repeats >= 2].sum())
    closed = []
    if customers < FEWEST_CUSTOMERS:
        closed.append(f"{customers} customers, fewer than {FEWEST_CUSTOMERS}")
    if days < FEWEST_DAYS:
        closed.append(f"{days} days of history, fewer than {FEWEST_DAYS}")
    if since_last > LATEST_ORDER_DAYS:
        closed.append(f"the last order is {since_last} days old, more than {LATEST_ORDER_DAYS}")
    if repeaters < FEWEST_REPEATERS:
        closed.append(f"{repeaters} customers with two repeat purchases or more, fewer than {FEWEST_REPEATERS}")
    return Gate(customers, days, since_last, repeaters, tuple(closed))

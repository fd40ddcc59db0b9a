"""What becomes of an order after it was placed: paid, shipped, completed; or cancelled, returned, refunded in part.

Drawn for each order alike, so independent of the customer's λ and p. A cancelled or returned order stays a purchase: ordering is a sign
of life. What takes back is a document of its own that names the order.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import numpy.typing as npt

from generator.population_model.baskets import Baskets, Index
from generator.population_model.season import DAY_US, HOUR_US, Microseconds
from generator.population_model.spend import Cents

_MINUTE_US = 60_000_000


class State(IntEnum):
    """What an order message says. The last three are documents of their own: `R` before the order's number."""

    PLACED = 0
    PAID = 1
    SHIPPED = 2
    COMPLETED = 3
    CANCELLED = 4
    RETURNED = 5
    PART_REFUNDED = 6


@dataclass(frozen=True)
class OrderMessages:
    """One entry per message, in the order of time; `line` and `quantity` say what a part refund takes back (else -1 and 0)."""

    at_us: Microseconds
    order: Index
    state: npt.NDArray[np.int64]
    line: Index
    quantity: Index
    taken_back: Cents


def order_messages(
    at_us: Microseconds,
    totals: Cents,
    baskets: Baskets,
    shares: tuple[float, float, float],
    random: np.random.Generator,
) -> OrderMessages:
    """Every message of every order, also those later than what is streamed.

    Args:
        at_us: when each order was placed.
        totals: in cents.
        baskets: the orders' lines.
        shares: of orders that are cancelled, returned as a whole, refunded in part.
        random: generator of the purpose.
    """
    count = at_us.size
    number = np.arange(count)
    fate = random.random(count)
    cancelled = fate < shares[0]
    returned = ~cancelled & (fate < shares[0] + shares[1])
    part = ~cancelled & ~returned & (fate < sum(shares))
    paid_us = at_us + random.integers(5_000_000, 20 * _MINUTE_US, count)
    shipped_us = paid_us + random.integers(4 * HOUR_US, 3 * DAY_US, count)
    completed_us = shipped_us + random.integers(DAY_US, 5 * DAY_US, count)
    # Cancelled while it was waiting to be shipped; returned and refunded after it had come.
    cancelled_us = paid_us + 10 * _MINUTE_US + ((shipped_us - paid_us - 10 * _MINUTE_US) * random.random(count)).astype(np.int64)
    back_us = completed_us + random.integers(HOUR_US, 21 * DAY_US, count)
    line = baskets.offsets[:-1] + (random.random(count) * baskets.products_in).astype(np.int64)
    pieces = 1 + (random.random(count) * baskets.quantity[line]).astype(np.int64)
    none = np.full(count, -1, dtype=np.int64)
    zero = np.zeros(count, dtype=np.int64)
    parts = [
        _some(np.ones(count, dtype=np.bool_), at_us, number, State.PLACED, none, zero, zero),
        _some(np.ones(count, dtype=np.bool_), paid_us, number, State.PAID, none, zero, zero),
        _some(~cancelled, shipped_us, number, State.SHIPPED, none, zero, zero),
        _some(~cancelled, completed_us, number, State.COMPLETED, none, zero, zero),
        _some(cancelled, cancelled_us, number, State.CANCELLED, none, zero, totals),
        _some(returned, back_us, number, State.RETURNED, none, zero, totals),
        _some(part, back_us, number, State.PART_REFUNDED, line, pieces, pieces * baskets.cents[line]),
    ]
    columns = [np.concatenate(column) for column in zip(*parts, strict=True)]
    order = np.lexsort((columns[2], columns[1], columns[0]))
    return OrderMessages(*(column[order] for column in columns))


def _some(
    which: npt.NDArray[np.bool_], at_us: Microseconds, number: Index, state: State, line: Index, pieces: Index, taken: Cents
) -> tuple[npt.NDArray[np.int64], ...]:
    chosen = number[which]
    return (at_us[which], chosen, np.full(chosen.size, int(state)), line[which], pieces[which], taken[which])

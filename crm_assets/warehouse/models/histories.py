"""What a purchase model sees of customers: repeat purchases, time of the last, length of the history.

Belongs here: the data class, its validity, its hash, putting equal histories together. Not here: where histories come from (`csv_file`,
`reading`).
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from enum import StrEnum

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]


class Family(StrEnum):
    """Purchase models. They differ in when the coin of drop-out is flipped first."""

    BGNBD = "bgnbd"
    """After each repeat purchase, never after the first (Fader, Hardie and Lee 2005)."""
    MBGNBD = "mbgnbd"
    """After the first purchase as well (Batislam, Denizel and Filiztekin 2007)."""

    def coins(self, repeats: Integers) -> Integers:
        """How many coins a customer with that many repeat purchases has survived, if still alive."""
        return repeats + (self is Family.MBGNBD)


class HistoryError(ValueError):
    """Histories that cannot be; the message names the first of them."""


@dataclass(frozen=True)
class Histories:
    """Purchase histories, one entry per customer or per group of customers with equal ones.

    Attributes:
        repeats: x, purchases after the first (in the marts: distinct purchase days less one).
        last: t_x, time from the first purchase to the last; 0 where x is 0.
        age: T, time from the first purchase to the as-of date; all times in one unit.
        customers: how many customers have this history.
    """

    repeats: Integers
    last: Floats
    age: Floats
    customers: Integers

    @classmethod
    def of(cls, repeats: npt.ArrayLike, last: npt.ArrayLike, age: npt.ArrayLike) -> Histories:
        """Histories of single customers, in their order.

        Raises:
            HistoryError: an entry cannot be; its position counts from 0.
        """
        x, t_x, t = np.asarray(repeats, np.int64), np.asarray(last, np.float64), np.asarray(age, np.float64)
        for wrong, why in (
            (~(np.isfinite(t_x) & np.isfinite(t)), "t_x and T must be finite"),
            (x < 0, "x must be 0 or above"),
            ((t_x < 0) | (t < t_x), "times must be 0 <= t_x <= T"),
            ((x == 0) & (t_x != 0), "t_x must be 0 where x is 0"),
        ):
            if wrong.any():
                at = int(np.flatnonzero(wrong)[0])
                raise HistoryError(f"history {at}: {why}, found x = {x[at]}, t_x = {t_x[at]:g}, T = {t[at]:g}")
        return cls(x, t_x, t, np.ones(x.size, np.int64))

    @property
    def count(self) -> int:
        """How many customers in all."""
        return int(self.customers.sum())

    def grouped(self) -> Histories:
        """Equal histories put together, sorted; a likelihood over them is the same and cheaper."""
        if not self.repeats.size:
            return self
        order = np.lexsort((self.age, self.last, self.repeats))
        x, t_x, age = self.repeats[order], self.last[order], self.age[order]
        other = (x[1:] != x[:-1]) | (t_x[1:] != t_x[:-1]) | (age[1:] != age[:-1])
        begins = np.flatnonzero(np.append(True, other))
        return Histories(x[begins], t_x[begins], age[begins], np.add.reduceat(self.customers[order], begins))

    def data_hash(self) -> str:
        """Hash of the histories whatever their order: of each distinct (x, t_x, T) with its number of customers."""
        g = self.grouped()
        digest = hashlib.sha256()
        for name, values in (("<i8", g.repeats), ("<f8", g.last), ("<f8", g.age), ("<i8", g.customers)):
            digest.update(values.astype(name).tobytes())
        return digest.hexdigest()[:32]

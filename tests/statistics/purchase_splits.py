"""Time splits computed straight from purchase days, for the models' judges: of made-up populations, and of the real file."""

from __future__ import annotations

import math
from dataclasses import dataclass
from datetime import date, timedelta
from pathlib import Path

import numpy as np
import numpy.typing as npt
import polars as pl

from crm_assets.warehouse.models.evaluation import HoldOut
from crm_assets.warehouse.models.histories import Histories
from generator.population_model import PopulationShop
from generator.population_model.season import DAY_US
from tests.oracle.marts import classified
from tests.oracle.online_retail import FILE, read_lines

EPOCH = date(1970, 1, 1)


@dataclass(frozen=True)
class PurchaseDays:
    """Distinct purchase days by customer, sorted; days since 1970. `customers` numbers those with any."""

    customer: npt.NDArray[np.int64]
    day: npt.NDArray[np.int64]

    @classmethod
    def of(cls, customer: npt.NDArray[np.int64], day: npt.NDArray[np.int64]) -> PurchaseDays:
        pairs = np.unique(np.stack((customer, day), axis=1), axis=0)
        return cls(pairs[:, 0], pairs[:, 1])

    def split(self, as_of: date, horizon_days: int) -> tuple[HoldOut, npt.NDArray[np.int64]]:
        """The hold-out after a date, and which customers are in it, in its order."""
        at = (as_of - EPOCH).days
        first = np.full(self.customer.max() + 1, 2**40)
        last = np.full(first.size, -1)
        np.minimum.at(first, self.customer, self.day)
        past = self.day <= at
        np.maximum.at(last, self.customer[past], self.day[past])
        number = np.bincount(self.customer[past], minlength=first.size)
        after = np.bincount(self.customer[(self.day > at) & (self.day <= at + horizon_days)], minlength=first.size)
        before = np.bincount(self.customer[past & (self.day > at - horizon_days)], minlength=first.size)
        born = np.flatnonzero(number)
        old = np.flatnonzero(first <= at - horizon_days)
        seen = Histories.of(number[born] - 1, (last - first)[born], at - first[born])
        ratio = after[old].sum() / before[old].sum() if before[old].sum() else math.nan
        return HoldOut(as_of, horizon_days, seen, after[born] > 0, float(ratio)), born

    def splits(self, as_of: date, horizon_days: int) -> tuple[HoldOut, HoldOut]:
        """The hold-out after a date, and the one a horizon earlier, from which baselines learn."""
        return self.split(as_of, horizon_days)[0], self.split(as_of - timedelta(days=horizon_days), horizon_days)[0]


def of_population(shop: PopulationShop) -> PurchaseDays:
    """Every purchase to the truth's horizon by UTC day; cancelled orders are purchases."""
    return PurchaseDays.of(shop.purchases.customer, shop.purchases.at_us // DAY_US)


def of_real_file(path: Path = FILE) -> PurchaseDays:
    """Booked sales of known customers by the file's own dates."""
    sales = classified(read_lines(path)).filter((pl.col("line_class") == "sale") & pl.col("customer").is_not_null())
    return PurchaseDays.of(sales["customer"].cast(pl.Int64).to_numpy(), (sales["business_date"].cast(pl.Int32).cast(pl.Int64)).to_numpy())

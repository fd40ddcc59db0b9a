"""What the models' likelihoods are given of a population: the exact view, the calendar view, and the day-merged view of the marts."""

from __future__ import annotations

import numpy as np

from generator.population_model.season import DAY_US, WEEK_US
from generator.population_model.shop import PopulationShop
from tests.statistics.likelihoods import Histories, Numbers, Spendings


def exact(shop: PopulationShop) -> Histories:
    """Exact purchase times mapped through Λ, in operational weeks; cancelled orders are purchases."""
    return _histories(shop, shop.purchases.weeks[: shop.orders], float(shop.season.operational_weeks(shop.end_us)))


def calendar(shop: PopulationShop) -> Histories:
    """Exact purchase times as the calendar has them, in weeks: the season is taken for the customers' own doing."""
    weeks = (shop.purchases.at_us[: shop.orders] - shop.start_us) / WEEK_US
    return _histories(shop, weeks, (shop.end_us - shop.start_us) / WEEK_US)


def day_merged(shop: PopulationShop) -> Histories:
    """As the marts see it: distinct purchase days, times in whole calendar days up to the last day."""
    customer = shop.purchases.customer[: shop.orders]
    day = (shop.purchases.at_us[: shop.orders] - shop.start_us) // DAY_US
    pairs = np.unique(np.stack((customer, day), axis=1), axis=0)
    number = np.bincount(pairs[:, 0], minlength=shop.customers.count)
    begin = np.cumsum(number) - number
    first, last = pairs[begin, 1], pairs[begin + number - 1, 1]
    return Histories(number - 1, (last - first).astype(np.float64), (shop.options.days - 1 - first).astype(np.float64))


def spendings(shop: PopulationShop) -> Spendings:
    """Every total of the window in whole units of the currency."""
    customer = shop.purchases.customer[: shop.orders]
    total = shop.totals_cents[: shop.orders] / 100
    count = shop.customers.count
    return Spendings(
        np.bincount(customer, minlength=count), np.bincount(customer, weights=total, minlength=count), float(np.log(total).sum())
    )


def _histories(shop: PopulationShop, when: Numbers, end: float) -> Histories:
    customer = shop.purchases.customer[: shop.orders]
    count = shop.customers.count
    first = np.full(count, np.inf)
    last = np.zeros(count)
    np.minimum.at(first, customer, when)
    np.maximum.at(last, customer, when)
    return Histories(np.bincount(customer, minlength=count) - 1, last - first, end - first)

"""What a population is judged by, as numbers: used by the tests, and by `python -m tests.statistics.judgement`, which prints them all.

Each bound is the 99.9 % quantile of what a right generator gives, so one in a thousand right populations misses it.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, date, datetime

import numpy as np

from crm_resources.report import Verdict, write_report
from crm_resources.settings import load_settings
from generator.population_model import BgNbd, Campaign, GammaGamma, PopulationOptions, PopulationShop, SeasonShape
from generator.population_model.season import HOUR_US
from tests.statistics import samples
from tests.statistics.likelihoods import Fit, Histories, bgnbd, gamma_gamma, maximum

SEEDS = (1, 2, 3, 4, 5)
END = date(2026, 10, 31)
MODEL = BgNbd()
SPEND = GammaGamma()
TRUE_PURCHASES = (MODEL.r, MODEL.alpha, MODEL.a, MODEL.b)
TRUE_SPEND = (SPEND.p, SPEND.q, SPEND.v)

PURCHASE_BOUND = 18.5
"""Of 2·(LL(fit) - LL(truth)) with four parameters: chi-squared with 4 degrees of freedom at 0.1 %."""
SPEND_BOUND = 16.3
"""The same with three parameters."""
NORMAL_BOUND = 3.291
"""Of a standard normal's absolute value at 0.1 %."""
SMALLEST_P = 0.001

CHRISTMAS = SeasonShape(campaigns=(Campaign("christmas", (11, 15), (12, 24), 4.0),))
_STARTS = (TRUE_PURCHASES, (1.0, 10.0, 1.0, 1.0), (0.5, 2.0, 0.3, 3.0))
_SPEND_STARTS = (TRUE_SPEND, (1.0, 2.0, 10.0), (3.0, 3.0, 3.0))


@dataclass(frozen=True)
class Excess:
    """How much likelier the best parameters are than the true ones: twice the difference of the logarithms."""

    fit: Fit
    value: float


def population(seed: int, *, season: SeasonShape | None = None, dropout_at_first: bool = False) -> PopulationShop:
    """A year of 20,000 customers."""
    options = PopulationOptions(end=END, seed=seed, purchase_model=BgNbd(dropout_at_first=dropout_at_first), season=season or SeasonShape())
    return PopulationShop(options)


def purchase_excess(seen: Histories) -> Excess:
    """Of BG/NBD on histories in weeks."""
    fit = maximum(lambda parameters: bgnbd(parameters, seen), _STARTS)
    return Excess(fit, 2 * (fit.log_likelihood - bgnbd(TRUE_PURCHASES, seen)))


def spend_excess(shop: PopulationShop) -> Excess:
    """Of Gamma-Gamma on the exact totals."""
    seen = samples.spendings(shop)
    fit = maximum(lambda parameters: gamma_gamma(parameters, seen), _SPEND_STARTS)
    return Excess(fit, 2 * (fit.log_likelihood - gamma_gamma(TRUE_SPEND, seen)))


def day_merged_fit(shop: PopulationShop) -> Fit:
    """BG/NBD on distinct purchase days in calendar days, alpha in weeks again: what the marts would estimate."""
    seen = samples.day_merged(shop)
    fit = maximum(lambda parameters: bgnbd(parameters, seen), [(r, alpha * 7, a, b) for r, alpha, a, b in _STARTS])
    return Fit(fit.parameters / np.array([1, 7, 1, 1]), fit.log_likelihood)


def arrivals_p(shop: PopulationShop) -> float:
    """That births in 52 equal stretches of operational time scatter as Poisson counts of the stated mean do (two-sided)."""
    from scipy.stats import chi2

    stretches = 52
    end = float(shop.season.operational_weeks(shop.end_us))
    births = shop.season.operational_weeks(shop.customers.birth_us)
    counts = np.histogram(births, bins=np.linspace(0, end, stretches + 1))[0]
    mean = shop.options.customers / stretches
    spread = float(((counts - mean) ** 2 / mean).sum())
    tail = float(chi2.sf(spread, stretches))
    return 2 * min(tail, 1 - tail)


def arrivals_by_hour_p(shop: PopulationShop) -> float:
    """That births fall into the hours of the day as s(t) says."""
    from scipy.stats import chisquare

    hours = shop.options.days * 24
    share = shop.season.level[:hours].reshape(-1, 24).sum(axis=0) / shop.season.level[:hours].sum()
    counts = np.bincount((shop.customers.birth_us // HOUR_US) % 24, minlength=24)
    return float(chisquare(counts, share * counts.sum()).pvalue)


def gaps_p(shop: PopulationShop) -> float:
    """That times between purchases are exponential with the customer's rate, given that they ended before the horizon (KS)."""
    from scipy.stats import kstest

    order = np.lexsort((shop.purchases.ordinal, shop.purchases.customer))
    customer, weeks = shop.purchases.customer[order], shop.purchases.weeks[order]
    same = customer[1:] == customer[:-1]
    rate = shop.customers.rate_per_week[customer[1:][same]]
    gap = np.diff(weeks)[same]
    room = shop.season.passed_weeks[-1] - weeks[:-1][same]
    return float(kstest(np.expm1(-rate * gap) / np.expm1(-rate * room), "uniform").pvalue)


def dropout_z(shop: PopulationShop) -> float:
    """Drop-outs against the sum of the coins flipped after repeat purchases, in standard deviations."""
    flips = shop.purchases.customer[shop.purchases.ordinal > 0]
    p = shop.customers.dropout_probability[flips]
    drops = int((shop.customers.dropout_us >= 0).sum())
    return float((drops - p.sum()) / np.sqrt((p * (1 - p)).sum()))


def independence_z(shop: PopulationShop) -> dict[str, float]:
    """Rank correlations that should be none, in standard deviations."""
    from scipy.stats import spearmanr

    customers = shop.customers
    hidden = {"rate": customers.rate_per_week, "dropout": customers.dropout_probability}
    taken_back = np.zeros(shop.orders)
    messages = shop.order_messages
    taken_back[messages.order[messages.taken_back > 0]] = 1
    buyer = shop.purchases.customer[: shop.orders]
    found = {"rate_dropout": (hidden["rate"], hidden["dropout"])}
    for name, values in hidden.items():
        found[f"{name}_spend"] = (values, shop.nu)
        found[f"{name}_taken_back"] = (values[buyer], taken_back)
    return {name: float(spearmanr(*pair).statistic * np.sqrt(len(pair[0]) - 1)) for name, pair in found.items()}


def _figures() -> Iterator[tuple[str, float]]:
    for seed in SEEDS:
        shop = population(seed)
        excess = purchase_excess(samples.exact(shop))
        yield f"seed_{seed}_purchase_excess", excess.value
        yield f"seed_{seed}_spend_excess", spend_excess(shop).value
        merged = day_merged_fit(shop)
        for name, truth, estimate in zip(("r", "alpha_weeks", "a", "b"), TRUE_PURCHASES, merged.parameters, strict=True):
            yield f"seed_{seed}_day_merged_{name}_over_truth", float(estimate / truth)
        lost = samples.exact(shop).repeats.sum() - samples.day_merged(shop).repeats.sum()
        yield f"seed_{seed}_day_merged_repeat_purchases_lost_share", float(lost / samples.exact(shop).repeats.sum())
        yield f"seed_{seed}_arrivals_p", arrivals_p(shop)
        yield f"seed_{seed}_arrivals_by_hour_p", arrivals_by_hour_p(shop)
        yield f"seed_{seed}_gaps_p", gaps_p(shop)
        yield f"seed_{seed}_dropout_z", dropout_z(shop)
        for name, z in independence_z(shop).items():
            yield f"seed_{seed}_{name}_z", z
        yield (
            f"seed_{seed}_control_dropout_at_first_excess",
            purchase_excess(samples.exact(population(seed, dropout_at_first=True))).value,
        )
        yield (
            f"seed_{seed}_control_christmas_in_calendar_time_excess",
            purchase_excess(samples.calendar(population(seed, season=CHRISTMAS))).value,
        )


def main() -> None:
    """Print every figure and leave them in the reports folder."""
    started = datetime.now(UTC)
    figures = dict(_figures())
    for name, value in figures.items():
        print(f"{name:60} {value:12.4f}")  # noqa: T201 -- a command's output
    missed = any(
        value > bound
        for name, value in figures.items()
        for suffix, bound in (("purchase_excess", PURCHASE_BOUND), ("spend_excess", SPEND_BOUND))
        if name.endswith(suffix)
    )
    missed |= any(value <= PURCHASE_BOUND for name, value in figures.items() if "control" in name)
    verdict = Verdict.FAIL if missed else Verdict.PASS
    path = write_report(load_settings(dict(os.environ)).reports_dir, "population-statistics", verdict, figures, started=started)
    print(f"{verdict}: {path}")  # noqa: T201 -- a command's output


if __name__ == "__main__":
    main()

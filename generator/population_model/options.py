"""Everything that fixes a population: the same options give the same bytes, in any process and any order of days."""

from __future__ import annotations

import hashlib
from dataclasses import asdict, dataclass, field
from datetime import date, timedelta
from typing import Any

import orjson

from generator.population_model.purchases import BgNbd
from generator.population_model.season import SeasonShape
from generator.population_model.spend import GammaGamma

_FEWEST_TRUTH_DAYS = 180


@dataclass(frozen=True)
class PopulationOptions:
    """Sizes, models and shares.

    `customers` is the mean of a Poisson number; `end` is the last day that is streamed, `days` how many there are; `truth_days` how far
    the truth goes on after it. `visits_per_customer` is the mean number of visits without a purchase per customer and 365 days; shares are
    of orders and lie between 0 and 1.
    """

    end: date
    seed: int = 1
    customers: int = 20_000
    days: int = 365
    products: int = 300
    visits_per_customer: float = 45.0
    known_share: float = 0.6
    cancelled_share: float = 0.03
    returned_share: float = 0.02
    part_refunded_share: float = 0.03
    consent_changes_per_year: float = 0.5
    truth_days: int = 365
    zipf_exponent: float = 1.0
    purchase_model: BgNbd = field(default_factory=BgNbd)
    spend_model: GammaGamma = field(default_factory=GammaGamma)
    season: SeasonShape = field(default_factory=SeasonShape)

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be 0 or above, not {self.seed}")
        for name in ("customers", "days", "products"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("visits_per_customer", "consent_changes_per_year", "zipf_exponent"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be 0 or above, not {getattr(self, name)}")
        if not 0 <= self.known_share <= 1:
            raise ValueError(f"known_share must lie between 0 and 1, not {self.known_share}")
        shares = (self.cancelled_share, self.returned_share, self.part_refunded_share)
        if min(shares) < 0 or sum(shares) > 1:
            raise ValueError("the shares of cancelled, returned and part refunded orders must be 0 or above, together at most 1")
        if self.truth_days < _FEWEST_TRUTH_DAYS:
            raise ValueError(f"truth_days must be at least {_FEWEST_TRUTH_DAYS}, not {self.truth_days}")

    @property
    def start(self) -> date:
        """First day that is streamed."""
        return self.end - timedelta(days=self.days - 1)

    @property
    def digest(self) -> str:
        """Hash of all options; names the run and its customers, so that two populations in one data set never share a key."""
        return hashlib.sha256(orjson.dumps(_plain(asdict(self)), option=orjson.OPT_SORT_KEYS)).hexdigest()

    @property
    def run_id(self) -> str:
        """Run id of the backfill: from the options alone, so that a day sent again is the same bytes."""
        return f"backfill-{self.seed}-{self.start:%Y%m%d}-{self.end:%Y%m%d}-{self.digest[:8]}"


def _plain(value: Any) -> Any:  # noqa: ANN401 -- whatever options are made of
    """The value with whole numbers in one spelling: 45 and 45.0 visits are the same population."""
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value

"""What a scenario may say: named phases with their rates, mix, hot key and defects; or a backfill's sizes.

Belongs here: the models, their defaults and limits. Not here: reading files and naming lines (`scenario_file`), turning rates into
times (`schedule`), or making records (`traffic`).
"""

from __future__ import annotations

import re
from enum import StrEnum
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Discriminator, Field, StrictBool, Tag, model_validator

from crm_resources.ordered_defects import Defect
from generator.defects import DefectShares, LateDelays

_UNITS = {"ms": 0.001, "s": 1, "m": 60, "h": 3_600, "d": 86_400}
_DURATION = re.compile(r"(?P<number>\d+(?:\.\d+)?)\s*(?P<unit>ms|s|m|h|d)")
DAY_SECONDS = 86_400

SHOP_HOURS = (2, 1, 1, 1, 1, 2, 4, 6, 8, 10, 12, 13, 14, 13, 12, 11, 11, 11, 12, 13, 13, 11, 8, 4)
"""How busy a shop is at each full hour, in parts of no unit."""


class Arrivals(StrEnum):
    """How the moments of the records lie within the rate."""

    EVEN = "even"
    """At equal distances: the count is exact."""

    POISSON = "poisson"
    """At random, each independent of the others: the count varies by its square root."""


def seconds_of(value: Any) -> Any:  # noqa: ANN401 -- whatever the file holds
    """Seconds of a duration such as `90s`, `1.5h` or a bare number; anything else is refused.

    Raises:
        ValueError: it is no duration.
    """
    if isinstance(value, str) and (found := _DURATION.fullmatch(value.strip())):
        return float(found["number"]) * _UNITS[found["unit"]]
    if isinstance(value, int | float) and not isinstance(value, bool):
        return float(value)
    raise ValueError(f"must be a duration such as 500ms, 90s, 5m, 2h or 1d, not {value!r}")


Duration = Annotated[float, BeforeValidator(seconds_of), Field(gt=0, allow_inf_nan=False)]
PerSecondRate = Annotated[float, Field(strict=True, ge=0, le=1_000_000, allow_inf_nan=False)]
Share = Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Ramp(_Part):
    """A rate that changes steadily over the phase, in records a second."""

    start: PerSecondRate = Field(alias="from", description="Records a second at the beginning of the phase.")
    to: PerSecondRate = Field(description="Records a second at its end.")


class Curve(_Part):
    """A rate that follows the hours of the day, steadily from each full hour to the next, in records a second."""

    low: PerSecondRate = Field(description="Records a second in the quietest hour.")
    high: PerSecondRate = Field(description="Records a second in the busiest hour.")
    hours: Annotated[tuple[Annotated[float, Field(ge=0)], ...], Field(min_length=24, max_length=24)] = Field(
        default=SHOP_HOURS, description="How busy each of the 24 hours is, in any unit."
    )

    @model_validator(mode="after")
    def _in_order(self) -> Curve:
        if self.low > self.high:
            raise ValueError(f"low ({self.low:g}) must not exceed high ({self.high:g})")
        return self

    @property
    def hourly(self) -> tuple[float, ...]:
        """Records a second at each full hour."""
        quiet, busy = min(self.hours), max(self.hours)
        span = busy - quiet
        return tuple(self.low + (self.high - self.low) * ((h - quiet) / span if span else 1.0) for h in self.hours)


class Daily(_Part):
    """The form in which a file gives a daily curve."""

    daily: Curve


def _kind_of_rate(value: Any) -> str:  # noqa: ANN401 -- whatever the file holds
    if isinstance(value, Daily) or (isinstance(value, dict) and "daily" in value):
        return "daily curve"
    return "ramp" if isinstance(value, dict | Ramp) else "constant"


Rate = Annotated[
    Annotated[PerSecondRate, Tag("constant")] | Annotated[Ramp, Tag("ramp")] | Annotated[Daily, Tag("daily curve")],
    Discriminator(_kind_of_rate),
]


class Mix(_Part):
    """Shares of the entities among the good records; together 1."""

    events: Share = 0.0
    orders: Share = 0.0
    products: Share = 0.0
    profiles: Share = 0.0

    @model_validator(mode="after")
    def _whole(self) -> Mix:
        total = self.events + self.orders + self.products + self.profiles
        if abs(total - 1) > 1e-9:
            raise ValueError(f"the shares must add up to 1, not {total:g}")
        return self


USUAL_MIX = Mix(events=0.9, orders=0.05, products=0.01, profiles=0.04)


class Late(_Part):
    """Share of late events and how late they are: log-normal delays."""

    share: Share
    median: Duration = Field(default=600, description="Half of the late events are under way for less than this.")
    at_most: Duration = Field(default=DAY_SECONDS, description="Longer delays are cut to this.")


def _late(value: Any) -> Any:  # noqa: ANN401 -- whatever the file holds
    return value if isinstance(value, dict | Late) else {"share": value}


class Defects(_Part):
    """Share of the good records that each defect is ordered for; together at most 1."""

    duplicate: Share = 0.0
    conflicting_duplicate: Share = 0.0
    late: Annotated[Late, BeforeValidator(_late)] = Field(default_factory=lambda: Late(share=0.0))
    out_of_order: Share = 0.0
    far_future: Share = 0.0
    corrupt_json: Share = 0.0
    bad_utf8: Share = 0.0
    oversized: Share = 0.0
    null_value: Share = 0.0
    unknown_version: Share = 0.0
    unknown_reference: Share = 0.0
    unknown_entity: Share = 0.0
    clock_skew: Share = 0.0
    dst: Share = 0.0
    deep_nesting: Share = 0.0
    nan_amount: Share = 0.0

    @model_validator(mode="after")
    def _at_most_all(self) -> Defects:
        total = sum(self._shares().values())
        if total > 1:
            raise ValueError(f"the shares must not exceed 1 together; they are {total:g}")
        return self

    def shares(self) -> DefectShares:
        """The same in the form the faults are drawn from."""
        return DefectShares(**self._shares(), late_delays=LateDelays(self.late.median, self.late.at_most))

    def _shares(self) -> dict[str, float]:
        return {d.value: self.late.share if d is Defect.LATE else getattr(self, d.value) for d in Defect}


class Truth(_Part):
    """What the run's data may be used to prove."""

    bgnbd: StrictBool = Field(default=False, description="Whether purchase times follow BG/NBD; live traffic never does.")


class Phase(_Part):
    """A stretch of a scenario. What a phase does not say is as the scenario says."""

    name: Annotated[str, Field(min_length=1, max_length=60)]
    duration: Duration
    rate: Rate
    arrivals: Arrivals | None = None
    mix: Mix | None = None
    hot_key_share: Share | None = Field(default=None, description="Share of the events, orders and profiles that one customer makes.")
    defects: Defects | None = None


class LiveScenario(_Part):
    """Traffic sent at its scheduled times."""

    kind: Literal["live"] = "live"
    description: str = ""
    seed: Annotated[int, Field(strict=True, ge=0)] = 1
    customers: Annotated[int, Field(strict=True, ge=1, le=10_000_000)] = 2_000
    products: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 300
    clock_speed_up: Annotated[float, Field(strict=True, gt=0, le=100_000, allow_inf_nan=False)] = Field(
        default=1.0, description="How many times as fast as the wall clock the scenario's clock runs; rates count by the wall clock."
    )
    truth: Truth = Truth()
    arrivals: Arrivals = Arrivals.EVEN
    mix: Mix = USUAL_MIX
    hot_key_share: Share = 0.0
    defects: Defects = Defects()
    phases: Annotated[tuple[Phase, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _consistent(self) -> LiveScenario:
        names = [p.name for p in self.phases]
        if twice := sorted({n for n in names if names.count(n) > 1}):
            raise ValueError(f"two phases have the name {twice[0]!r}")
        if self.truth.bgnbd:
            raise ValueError("truth.bgnbd must be false: rates of live traffic are met by browsing, not by purchases that follow BG/NBD")
        return self

    def arrivals_of(self, phase: Phase) -> Arrivals:
        """How the records of a phase arrive."""
        return phase.arrivals or self.arrivals

    def mix_of(self, phase: Phase) -> Mix:
        """Entities of a phase."""
        return phase.mix or self.mix

    def hot_key_share_of(self, phase: Phase) -> float:
        """Hot key share of a phase."""
        return self.hot_key_share if phase.hot_key_share is None else phase.hot_key_share

    def defects_of(self, phase: Phase) -> Defects:
        """Defects of a phase."""
        return phase.defects or self.defects

    @property
    def seconds(self) -> float:
        """Length of the whole scenario by the wall clock."""
        return sum(p.duration for p in self.phases)


class BackfillScenario(_Part):
    """A history that is made in one go, as fast as it can be; `visits` without a purchase per customer and year."""

    kind: Literal["backfill"]
    description: str = ""
    seed: Annotated[int, Field(strict=True, ge=0)] = 1
    customers: Annotated[int, Field(strict=True, ge=1, le=1_000_000)] = 20_000
    days: Annotated[int, Field(strict=True, ge=1, le=3_660)] = 365
    products: Annotated[int, Field(strict=True, ge=1, le=99_999)] = 300
    visits: Annotated[float, Field(strict=True, ge=0, le=10_000, allow_inf_nan=False)] = 45
    dropout_at_first: StrictBool = False
    truth: Truth = Truth(bgnbd=True)


Scenario = LiveScenario | BackfillScenario

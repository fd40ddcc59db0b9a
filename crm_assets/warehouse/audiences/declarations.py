"""The declared audiences: `dbt/audiences.yml` read and checked, and the files dbt reads made of it.

Belongs here: what may stand in the yml, errors for the person who edits it, the seed `audience_rules` and the exposures. Not here: who
meets the conditions (`int_audience_eligible` in the dbt project).
"""

from __future__ import annotations

import csv
import io
from collections import Counter
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, Self

import yaml
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from crm_resources.settings import REPOSITORY

DECLARATIONS = REPOSITORY / "dbt" / "audiences.yml"
RULES_SEED = REPOSITORY / "dbt" / "seeds" / "audience_rules.csv"
EXPOSURES = REPOSITORY / "dbt" / "models" / "marts" / "audiences" / "_exposures.yml"
SEGMENT_MAP = REPOSITORY / "dbt" / "seeds" / "rfm_segment_map.csv"

Share = Annotated[float, Field(ge=0, le=1)]
Words = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]


class AudienceError(Exception):
    """The declarations cannot be used; the message names the file, the audience and the field."""


class Purpose(StrEnum):
    """What a customer can agree to; `consent_<purpose>` of a profile."""

    EMAIL = "email"
    ADS = "ads"
    ANALYTICS = "analytics"


class RiskBand(StrEnum):
    """Bands of `churn_risk`: the first four by a model, the others by the rule for a short history."""

    LOW = "low"
    MEDIUM = "medium"
    HIGH = "high"
    VERY_HIGH = "very high"
    ACTIVE = "active"
    COOLING = "cooling"
    AT_RISK = "at risk"
    HIGHLY_AT_RISK = "highly at risk"
    LOST = "lost"


class ValueTier(StrEnum):
    """Tiers of `customer_value`."""

    TOP_1 = "top 1 %"
    TOP_5 = "top 5 %"
    TOP_10 = "top 10 %"
    TOP_25 = "top 25 %"
    TOP_50 = "top 50 %"
    REST = "rest"


class _Declared(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class RiskCondition(_Declared):
    """Condition on the churn risk; the bounds are inclusive."""

    bands: tuple[RiskBand, ...] = ()
    min: Share | None = None
    max: Share | None = None

    @model_validator(mode="after")
    def _some_range(self) -> Self:
        if not self.bands and self.min is None and self.max is None:
            raise ValueError("give bands, min or max")
        if self.min is not None and self.max is not None and self.min > self.max:
            raise ValueError(f"min {self.min:g} is above max {self.max:g}, so nobody could meet it")
        return self


class ValueCondition(_Declared):
    """Condition on the customer value; `min_revenue` in the currency of the data set, expected within the horizon."""

    tiers: tuple[ValueTier, ...] = ()
    min_revenue: Annotated[float, Field(ge=0)] | None = None

    @model_validator(mode="after")
    def _some_condition(self) -> Self:
        if not self.tiers and self.min_revenue is None:
            raise ValueError("give tiers or min_revenue")
        return self


class Audience(_Declared):
    """One declared audience; all its conditions must hold."""

    name: Annotated[str, StringConstraints(pattern=r"^[a-z][a-z0-9_]{1,59}$")]
    description: Words
    owner: Words
    consent: Purpose
    segment: tuple[Words, ...] = ()
    risk: RiskCondition | None = None
    value: ValueCondition | None = None

    @model_validator(mode="after")
    def _some_condition(self) -> Self:
        if not self.segment and self.risk is None and self.value is None:
            raise ValueError("give a condition on segment, risk or value; an audience of everybody is none")
        return self


class _File(_Declared):
    audiences: tuple[Audience, ...] = Field(min_length=1)


def read_audiences(path: Path = DECLARATIONS) -> tuple[Audience, ...]:
    """The declared audiences, in the order of the file.

    Raises:
        AudienceError: the file is absent, is no yml, or says something that cannot be; every such place is named.
    """
    try:
        document = yaml.safe_load(path.read_text())
    except OSError as error:
        raise AudienceError(f"{path}: {error.strerror}; audiences are declared there") from error
    except yaml.YAMLError as error:
        raise AudienceError(f"{path} is no yml: {' '.join(str(error).split())}") from error
    try:
        declared = _File.model_validate(document)
    except ValidationError as error:
        faults = [_spelled(document, fault["loc"], fault["msg"]) for fault in error.errors()]
        raise AudienceError(_listed(path, faults)) from error
    faults = [*_repeated_names(declared.audiences), *_unknown_segments(declared.audiences, known_segments())]
    if faults:
        raise AudienceError(_listed(path, faults))
    return declared.audiences


def known_segments(path: Path = SEGMENT_MAP) -> frozenset[str]:
    """Segments of the seed that marketing edits."""
    with path.open(newline="") as stream:
        return frozenset(row["segment"] for row in csv.DictReader(stream))


def rules_csv(audiences: tuple[Audience, ...]) -> str:
    """The seed `audience_rules`, one row per audience."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(("audience", "description", "consent", "segments", "risk_bands", "min_risk", "max_risk", "value_tiers", "min_revenue"))
    for audience in audiences:
        risk = audience.risk or RiskCondition.model_construct()
        value = audience.value or ValueCondition.model_construct()
        lists = ("|".join(audience.segment), "|".join(risk.bands), "|".join(value.tiers))
        bounds = ["" if bound is None else repr(bound) for bound in (risk.min, risk.max, value.min_revenue)]
        writer.writerow(
            (audience.name, audience.description, audience.consent, lists[0], lists[1], bounds[0], bounds[1], lists[2], bounds[2])
        )
    return text.getvalue()


def exposures_yml(audiences: tuple[Audience, ...]) -> str:
    """A dbt exposure per audience, so that dbt's graph ends where the data is used."""
    document = {
        "version": 2,
        "exposures": [
            {
                "name": audience.name,
                "label": audience.name.replace("_", " ").capitalize(),
                "type": "application",
                "description": audience.description,
                "owner": {"name": audience.owner},
                "depends_on": ["ref('audience_members')", "ref('audience_changes')"],
                "config": {"meta": {"consent": audience.consent.value}},
            }
            for audience in audiences
        ],
    }
    head = "# Derived from dbt/audiences.yml; rewrite with `make contracts`.\n"
    return head + yaml.safe_dump(document, sort_keys=False, allow_unicode=True, width=140)


def derived_files() -> dict[Path, str]:
    """Text of the files dbt reads, by path.

    Raises:
        AudienceError: see `read_audiences`.
    """
    audiences = read_audiences()
    return {RULES_SEED: rules_csv(audiences), EXPOSURES: exposures_yml(audiences)}


def write_files() -> list[Path]:
    """Rewrite the derived files that are stale, and return them.

    Raises:
        AudienceError: see `read_audiences`; nothing is written.
    """
    stale = [(path, text) for path, text in derived_files().items() if not path.exists() or path.read_text() != text]
    for path, text in stale:
        path.write_text(text)
    return [path for path, _ in stale]


def _repeated_names(audiences: tuple[Audience, ...]) -> list[str]:
    return [f"{name}: is declared {times} times" for name, times in Counter(a.name for a in audiences).items() if times > 1]


def _unknown_segments(audiences: tuple[Audience, ...], known: frozenset[str]) -> list[str]:
    return [
        f"{audience.name}.segment: {segment!r} is no segment; known are {', '.join(sorted(known))}"
        for audience in audiences
        for segment in audience.segment
        if segment not in known
    ]


def _spelled(document: Any, place: tuple[int | str, ...], message: str) -> str:  # noqa: ANN401 -- whatever the yml holds
    """A fault by the audience's name where it has one, else by its position."""
    if len(place) < 2 or place[0] != "audiences" or not isinstance(place[1], int):
        return f"{'.'.join(str(p) for p in place) or 'the file'}: {message}"
    entry = document["audiences"][place[1]]
    name = entry.get("name") if isinstance(entry, dict) else None
    return ".".join([str(name or f"audience {place[1] + 1}"), *(str(p) for p in place[2:])]) + f": {message.removeprefix('Value error, ')}"


def _listed(path: Path, faults: list[str]) -> str:
    shown = path.relative_to(REPOSITORY) if path.is_relative_to(REPOSITORY) else path
    return "\n".join([f"{shown} declares what cannot be:", *(f"  {fault}" for fault in faults)])

"""Writes the facts of a data set where the settings find them: `<home>/<env>/environment.env`."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date
from pathlib import Path

from crm_resources.settings import Settings


@dataclass(frozen=True)
class EnvironmentFacts:
    """What every part of the platform has to know of a replayed data set."""

    business_timezone: str
    as_of: date


def write_environment(settings: Settings, facts: EnvironmentFacts) -> Path:
    """Write the facts of the settings' environment; the same facts give the same file.

    Processes that are already running keep what they read at their start.
    """
    path = settings.environment_dir / "environment.env"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = f"CRM_BUSINESS_TIMEZONE={facts.business_timezone}\nCRM_AS_OF={facts.as_of.isoformat()}\n"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(text)
    temporary.replace(path)
    return path

"""The code location Dagster loads."""

from crm_assets.build import build_defs

defs = build_defs()

"""`python -m crm_assets.warehouse.models`."""

from crm_assets.warehouse.models.cli import app

app()

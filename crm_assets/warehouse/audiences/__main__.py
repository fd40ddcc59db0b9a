"""`python -m crm_assets.warehouse.audiences`."""

from crm_assets.warehouse.audiences.cli import app

if __name__ == "__main__":
    app()

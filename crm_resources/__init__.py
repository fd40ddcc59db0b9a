"""What the asset graph stands on: contracts, settings, and one module for each outside system.

Nothing here knows the asset graph; importing `crm_assets` from this package fails the build.
"""

"""The export as a Dagster job: the same as the command, with counts in the run's metadata.

Belongs here: config, metadata, and how an export fails the run. Not here: the export itself (`export`).
"""

import dagster as dg
from pydantic import Field

from crm_resources.dagster_resources import SettingsResource


class ExportConfig(dg.Config):
    """What goes where. The webhook's address and token come from the settings, so that no run holds them."""

    to: str = Field(default="csv", description="`csv` or `webhook`.")
    identity: str = Field(default="pseudonym", description="`pseudonym` or `email-hash`.")
    audiences: list[str] = Field(default=[], description="Names; empty for all.")


@dg.op(description="Sends joins and leaves of audiences that a destination has not acknowledged yet.")
def send_audiences(context: dg.OpExecutionContext, config: ExportConfig, settings: SettingsResource) -> None:
    """Export; a second run sends nothing that has arrived."""
    from crm_assets.warehouse.audiences.destinations import ExportError
    from crm_assets.warehouse.audiences.export import Way, destination_of, export_audiences
    from crm_assets.warehouse.audiences.identities import Identity, PseudonymKeyMissing
    from crm_assets.warehouse.audiences.ledger import ExportUnderWay

    loaded = settings.load()
    try:
        way, identity = Way(config.to), Identity(config.identity)
    except ValueError as error:
        raise dg.Failure(f"{error}; `to` is csv or webhook, `identity` is pseudonym or email-hash", allow_retries=False) from None
    try:
        result = export_audiences(loaded, destination_of(loaded, way, identity), identity, config.audiences)
    except (ExportError, ExportUnderWay, PseudonymKeyMissing) as error:
        raise dg.Failure(str(error), allow_retries=False) from None
    rows = [f"| {name} | {action} | {count:,} |" for (name, action), count in sorted(result.sent.items())]
    context.add_output_metadata(
        {
            **result.figures(),
            "destination": result.destination,
            "identity": result.identity.value,
            "sent": dg.MetadataValue.md("\n".join(["| audience | action | messages |", "|---|---|---|", *rows])),
        }
    )


@dg.job(
    name="export_audiences",
    description="Sends what changed in the audiences since the last export, each message under its idempotency key.",
    executor_def=dg.in_process_executor,
)
def export_audiences_job() -> None:
    """Export the audiences."""
    send_audiences()

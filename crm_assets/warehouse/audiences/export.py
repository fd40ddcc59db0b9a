"""An export of audiences: what is due is written down, sent, and written down as arrived.

Belongs here: the order of these steps, and which audiences an identity may be exported for. Not here: the steps themselves.

A process that dies at any point leaves what it began in the ledger; the next export goes on from there, with the same idempotency keys.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from crm_assets.warehouse.audiences.declarations import Purpose
from crm_assets.warehouse.audiences.destinations import CsvFolder, Destination, ExportError, Webhook
from crm_assets.warehouse.audiences.identities import Identity, email_hash, pseudonym, pseudonym_key
from crm_assets.warehouse.audiences.ledger import audience_purposes, open_ledger
from crm_assets.warehouse.audiences.reconcile import Action, due
from crm_resources.settings import Settings


class Way(StrEnum):
    """Kinds of destination."""

    CSV = "csv"
    WEBHOOK = "webhook"


@dataclass(frozen=True)
class ExportResult:
    """What an export sent: messages by audience and action."""

    destination: str
    identity: Identity
    audiences: tuple[str, ...]
    sent: Counter[tuple[str, Action]]
    seconds: float

    def figures(self) -> dict[str, float]:
        """For the JSON report."""
        return {
            "audiences_count": len(self.audiences),
            "joins_count": sum(n for (_, action), n in self.sent.items() if action is Action.JOIN),
            "leaves_count": sum(n for (_, action), n in self.sent.items() if action is Action.LEAVE),
            "export_seconds": round(self.seconds, 3),
        }


def destination_of(settings: Settings, way: Way, identity: Identity, folder: Path | None = None) -> Destination:
    """The destination the settings name.

    Raises:
        ExportError: no address is set, or it cannot be used.
    """
    if way is Way.CSV:
        return CsvFolder(folder or settings.environment_dir / "audiences", identity)
    if settings.audience_webhook_url is None:
        raise ExportError("no webhook is set; give its address with CRM_AUDIENCE_WEBHOOK_URL")
    return Webhook(settings.audience_webhook_url, settings.audience_webhook_token)


def export_audiences(settings: Settings, destination: Destination, identity: Identity, names: Sequence[str] = ()) -> ExportResult:
    """Bring a destination to where the audiences are now.

    Args:
        settings: which data set.
        destination: where to.
        identity: how members are called there. E-mail hashes go out for audiences of purpose `ads` alone; of others only the leaves of
            members that were sent while it was theirs.
        names: audiences; all when empty, withdrawn ones included.

    Raises:
        ExportError: an audience is not known, or not for this identity, or the destination fails.
        PseudonymKeyMissing: there is no key for pseudonyms.
        ExportUnderWay: another export to the destination runs.
        WarehouseError: no connection.
    """
    started = time.monotonic()
    purposes = audience_purposes(settings)
    if not purposes:
        raise ExportError(f"{settings.env} has no audiences yet; they come with the first refresh of the marts")
    chosen = _chosen(purposes, identity, names)
    member_of = _naming(settings, purposes, identity)
    with open_ledger(settings, identity, destination.name) as ledger:
        deliveries = due(ledger.standings(chosen, member_of), ledger.sent(chosen))
        ledger.begin(deliveries)
        destination.deliver(deliveries, ledger.acknowledge)
        ledger.forget_erased()
    sent = Counter((d.audience, d.action) for d in deliveries)
    return ExportResult(destination.name, identity, tuple(chosen), sent, time.monotonic() - started)


def _chosen(purposes: dict[str, str | None], identity: Identity, names: Sequence[str]) -> list[str]:
    unknown = [name for name in names if name not in purposes]
    if unknown:
        raise ExportError(f"no audience is called {', '.join(unknown)}; known are {', '.join(purposes)}")
    wrong = [name for name in names if identity is Identity.EMAIL_HASH and purposes[name] not in (None, Purpose.ADS)]
    if wrong:
        raise ExportError(f"{', '.join(wrong)}: e-mail hashes are exported for audiences with consent `ads` only; export pseudonyms")
    return list(names or purposes)


def _naming(settings: Settings, purposes: dict[str, str | None], identity: Identity) -> Callable[[str, str, str | None], str | None]:
    if identity is Identity.EMAIL_HASH:
        return lambda audience, _, email: email_hash(email) if purposes[audience] == Purpose.ADS else None
    key = pseudonym_key(settings)
    return lambda _, customer_id, __: pseudonym(key, customer_id)

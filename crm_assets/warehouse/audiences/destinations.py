"""Where an export goes: a webhook that is told message by message, or files in a folder.

Belongs here: sending, retrying, and when a message counts as arrived. Not here: which messages (`reconcile`), or keeping them (`ledger`).
No error or log of this module holds a secret, the webhook's path and query, or a member.
"""

from __future__ import annotations

import csv
import hashlib
import io
import ipaddress
import logging
import os
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Protocol
from urllib.parse import urlsplit

from pydantic import SecretStr
from tenacity import Retrying, retry_if_exception_type, stop_after_attempt, wait_exponential_jitter
from tenacity.wait import wait_base

from crm_assets.warehouse.audiences.identities import Identity
from crm_assets.warehouse.audiences.reconcile import Delivery

if TYPE_CHECKING:
    import httpx

COLUMNS = ("idempotency_key", "audience", "version", "member", "action", "modified_at")

ATTEMPTS = 6
PATIENT = wait_exponential_jitter(multiplier=0.5, max=30)
TIMEOUT_SECONDS = 15.0

_TRY_AGAIN = frozenset({408, 409, 425, 429})
"""With all of 5xx. 409 is what a receiver says that is still working on a message of the same key."""

Acknowledge = Callable[[Sequence[Delivery]], None]


class ExportError(Exception):
    """The destination cannot be used, or would not take a message; what it has not acknowledged is sent by the next export."""


class _NotNow(Exception):
    """The receiver may take the message at another attempt."""


class Destination(Protocol):
    """Takes messages in order, and says of each when it has arrived."""

    @property
    def name(self) -> str:
        """What tells this destination from others; holds no secret."""
        ...

    def deliver(self, deliveries: Sequence[Delivery], acknowledge: Acknowledge) -> None:
        """Send; `acknowledge` is called as soon as messages have arrived.

        Raises:
            ExportError: a message could not be brought; those before it were acknowledged.
        """
        ...


class Webhook:
    """A message per request, `POST` with JSON and the header `Idempotency-Key`; any 2xx says that it has arrived.

    Args:
        url: where to; `https`, or `http` on this machine.
        token: sent as `Authorization: Bearer`, if there is one.
        attempts: how often a message is tried before the export stops.
        wait: between attempts.

    Raises:
        ExportError: the address is none, or would carry personal data unencrypted to another machine.
    """

    def __init__(self, url: SecretStr, token: SecretStr | None = None, *, attempts: int = ATTEMPTS, wait: wait_base = PATIENT) -> None:
        parts = urlsplit(url.get_secret_value())
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ExportError("CRM_AUDIENCE_WEBHOOK_URL is no web address; write it as https://host/path")
        if parts.scheme == "http" and not _is_loopback(parts.hostname):
            raise ExportError(f"CRM_AUDIENCE_WEBHOOK_URL leads to {parts.hostname} without TLS; use https://")
        # The path may hold a token, so it is told apart by its hash only.
        place = hashlib.sha256(f"{parts.path}?{parts.query}".encode()).hexdigest()[:12]
        self.name = f"webhook {parts.scheme}://{parts.hostname}{f':{parts.port}' if parts.port else ''} {place}"
        self._address = f"{parts.hostname}{f':{parts.port}' if parts.port else ''}"
        self._url = url
        self._token = token
        self._attempts = attempts
        self._wait = wait

    def deliver(self, deliveries: Sequence[Delivery], acknowledge: Acknowledge) -> None:
        """See `Destination`."""
        import httpx

        # At its usual level this logger writes every address in full.
        logging.getLogger("httpx").setLevel(logging.WARNING)
        headers = {"Authorization": f"Bearer {self._token.get_secret_value()}"} if self._token else {}
        retrying = Retrying(retry=retry_if_exception_type(_NotNow), stop=stop_after_attempt(self._attempts), wait=self._wait, reraise=True)
        with httpx.Client(headers=headers, timeout=TIMEOUT_SECONDS, trust_env=False) as client:
            for number, delivery in enumerate(deliveries):
                try:
                    retrying(self._post, client, delivery)
                except _NotNow as error:
                    left = len(deliveries) - number
                    raise ExportError(
                        f"the webhook at {self._address} did not take a message in {self._attempts} attempts: {error}. "
                        f"{number:,} messages arrived, {left:,} are left; export again when it works"
                    ) from None
                acknowledge([delivery])

    def _post(self, client: httpx.Client, delivery: Delivery) -> None:
        import httpx

        try:
            answer = client.post(
                self._url.get_secret_value(), json=delivery.payload(), headers={"Idempotency-Key": delivery.idempotency_key}
            )
        except httpx.TransportError as error:
            raise _NotNow(f"no answer ({type(error).__name__})") from None
        if answer.is_success:
            return
        if answer.status_code in _TRY_AGAIN or answer.is_server_error:
            raise _NotNow(f"it answered {answer.status_code}")
        raise ExportError(
            f"the webhook at {self._address} answered {answer.status_code} to the {delivery.action} of customer {delivery.customer_key} in "
            f"{delivery.audience}, version {delivery.version}. Nothing is lost: put the receiver right and export again"
        )


class CsvFolder:
    """A file per audience and export, whole or not at all, readable by its owner only."""

    def __init__(self, folder: Path, identity: Identity) -> None:
        self.name = f"csv {folder.absolute()}"
        self._folder = folder
        self._identity = identity

    def deliver(self, deliveries: Sequence[Delivery], acknowledge: Acknowledge) -> None:
        """See `Destination`."""
        by_audience = sorted(deliveries, key=lambda d: d.audience)  # stable: leaves stay before joins
        for audience, group in groupby(by_audience, key=lambda d: d.audience):
            messages = list(group)
            # The same messages make the same file, so an export that died after writing it writes it once more and no other.
            content = hashlib.sha256("\n".join(m.idempotency_key for m in messages).encode()).hexdigest()[:8]
            name = f"{audience}.{self._identity}.v{max(m.version for m in messages)}.{content}.csv"
            try:
                self._write(self._folder / name, _csv(messages))
            except OSError as error:
                raise ExportError(f"{self._folder / name} cannot be written: {error.strerror}") from error
            acknowledge(messages)

    def _write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = path.with_suffix(".part")
        with os.fdopen(os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as stream:
            stream.write(text)
            stream.flush()
            os.fsync(stream.fileno())
        unfinished.replace(path)


def _csv(messages: Sequence[Delivery]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator="\n")
    writer.writeheader()
    writer.writerows(message.payload() for message in messages)
    return text.getvalue()


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"

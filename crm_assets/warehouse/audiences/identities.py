"""How a customer is called outside the platform: a keyed pseudonym, or the hash that ad platforms match by.

Belongs here: computing them, and where the key comes from. The two never stand in one table or file: a pseudonym whose e-mail hash is
known is none any more.
"""

from __future__ import annotations

import hashlib
import hmac
from enum import StrEnum

from crm_resources.settings import Settings

PSEUDONYM_KEY_FILE = "pseudonym_key"
SHORTEST_KEY_BYTES = 16


class Identity(StrEnum):
    """Which name of a customer an export carries."""

    PSEUDONYM = "pseudonym"
    EMAIL_HASH = "email-hash"


class PseudonymKeyMissing(Exception):
    """There is no key, or one that is too short to keep anything secret."""


def pseudonym_key(settings: Settings) -> bytes:
    """The secret key: `CRM_PSEUDONYM_KEY`, else the file the local stack made.

    Raises:
        PseudonymKeyMissing: neither is there, or the key has fewer than 16 bytes.
    """
    path = settings.home / "secrets" / PSEUDONYM_KEY_FILE
    if settings.pseudonym_key is not None:
        key = settings.pseudonym_key.get_secret_value().strip().encode()
    elif path.exists():
        key = path.read_text().strip().encode()
    else:
        raise PseudonymKeyMissing(f"there is no key for pseudonyms: set CRM_PSEUDONYM_KEY, or let `make up` make {path}")
    if len(key) < SHORTEST_KEY_BYTES:
        raise PseudonymKeyMissing(f"the key for pseudonyms has {len(key)} bytes, {SHORTEST_KEY_BYTES} are the least")
    return key


def pseudonym(key: bytes, customer_id: str) -> str:
    """HMAC-SHA-256 of the customer number, in hexadecimal; without the key it cannot be told from chance, nor guessed by trying numbers."""
    return hmac.new(key, customer_id.encode(), hashlib.sha256).hexdigest()


def email_hash(email: str | None) -> str | None:
    """SHA-256 of the trimmed address in lower case, in hexadecimal, as ad platforms ask for; `None` without an address."""
    normal = (email or "").strip().lower()
    return hashlib.sha256(normal.encode()).hexdigest() if normal else None

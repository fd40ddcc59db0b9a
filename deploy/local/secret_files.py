"""Passwords of the local stack: made once, kept in files only their owner reads, never on a command line."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

POSTGRES_PASSWORD = "postgres_password"  # noqa: S105 -- the name of a file
WAREHOUSE_DSN = "warehouse_dsn"
PSEUDONYM_KEY = "pseudonym_key"

KEPT = {
    "CRM_WAREHOUSE_DSN": WAREHOUSE_DSN,
    "CRM_PSEUDONYM_KEY": PSEUDONYM_KEY,
    "CRM_AUDIENCE_WEBHOOK_URL": "audience_webhook_url",
    "CRM_AUDIENCE_WEBHOOK_TOKEN": "audience_webhook_token",
}
"""Secrets a caller may give in the environment, and the files in which they are kept for the services."""


def folder(home: Path) -> Path:
    """The folder of secrets, made with mode 0700 when absent."""
    path = home / "secrets"
    path.mkdir(parents=True, exist_ok=True)
    path.chmod(0o700)
    return path


def ensure(home: Path, name: str) -> str:
    """The secret of this name, made up when it does not exist yet."""
    path = folder(home) / name
    if not path.exists():
        write(home, name, secrets.token_urlsafe(24))
    return path.read_text().strip()


def read(home: Path, name: str) -> str | None:
    """The secret of this name, None when there is none."""
    path = home / "secrets" / name
    return path.read_text().strip() if path.exists() else None


def write(home: Path, name: str, value: str) -> None:
    """Keep a secret; nobody but the owner can read the file at any moment."""
    write_in(folder(home), name, value)


def ensure_in(folder_: Path, name: str, *, length: int = 24) -> None:
    """Make a secret up in a folder of its own where it does not exist yet.

    Args:
        folder_: the folder, made with mode 0700 when absent.
        name: file in it.
        length: bytes of randomness.
    """
    if not (folder_ / name).exists():
        write_in(folder_, name, secrets.token_urlsafe(length))


def write_in(folder_: Path, name: str, value: str) -> None:
    """Keep a secret in a folder of its own; nobody but the owner can read it at any moment."""
    folder_.mkdir(parents=True, exist_ok=True)
    folder_.chmod(0o700)
    handle = os.open(folder_ / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(handle, "w") as out:
        out.write(value + "\n")


def forget(home: Path, name: str) -> None:
    """Drop a secret that is not used any more."""
    (home / "secrets" / name).unlink(missing_ok=True)

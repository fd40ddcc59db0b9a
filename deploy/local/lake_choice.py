"""Where a data set's lake is: chosen once, at its first start, and kept.

A data set whose lake changed its place without a word would look empty; so the choice is written to `<home>/<env>/lake.env`, which
`load_settings` reads, and another choice later is refused. Belongs here: the decision and that file. Not here: the stores themselves.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from crm_resources.settings import Settings
from deploy.local import secret_files
from deploy.local.errors import StackError
from deploy.local.ports import read_env, write_env

KIND = "CRM_LAKE_KIND"


class LakeKind(StrEnum):
    """What a lake stands on."""

    DISK = "disk"
    MINIO = "minio"
    S3 = "s3"


@dataclass(frozen=True)
class LakeChoice:
    """What a lake stands on, and its root; `None` is the default folder."""

    kind: LakeKind
    uri: str | None


def choose(
    env: str, *, wish: LakeKind | None, uri: str | None, recorded: LakeChoice | None, holds_local_data: bool, minio_uri: str
) -> LakeChoice:
    """Where the lake is; pure.

    Args:
        env: the data set, for messages.
        wish: what was asked for now, `None` when nothing.
        uri: `CRM_LAKE_URI` of the process, `None` when absent.
        recorded: choice that was written down.
        holds_local_data: whether the default folder holds a lake.
        minio_uri: root the lake has on MinIO.

    Raises:
        StackError: the wishes contradict each other, or what the data set has already.
    """
    if wish is LakeKind.S3 and not (uri or (recorded and recorded.kind is LakeKind.S3)):
        raise StackError("LAKE=s3 names no bucket", "say CRM_LAKE_URI=s3://bucket/prefix and CRM_S3_ENDPOINT")
    wished = _wished(wish, uri, minio_uri)
    before = recorded or (LakeChoice(LakeKind.DISK, None) if holds_local_data else None)
    if before is None:
        return wished or LakeChoice(LakeKind.DISK, None)
    if wished is not None and wished != before and not (wish is before.kind and uri is None):
        raise StackError(
            f"the lake of data set {env} is {_named(before)} already, {_named(wished)} was asked for",
            "choose another data set with CRM_ENV, leave the wish out, or delete all data with `make clean YES=1`",
        )
    return before


def _wished(wish: LakeKind | None, uri: str | None, minio_uri: str) -> LakeChoice | None:
    if uri is None:
        uris = {LakeKind.MINIO: minio_uri, LakeKind.DISK: None}
        return LakeChoice(wish, uris[wish]) if wish in uris else None
    kind = LakeKind.S3 if uri.startswith("s3://") else LakeKind.DISK
    if wish is LakeKind.MINIO and uri == minio_uri:
        return LakeChoice(LakeKind.MINIO, uri)
    if wish not in {None, kind}:
        raise StackError(f"LAKE={wish} and CRM_LAKE_URI={uri} contradict each other", "leave one of them out")
    return LakeChoice(kind, uri)


def _named(choice: LakeChoice) -> str:
    place = choice.uri or "the default folder"
    return f"on MinIO ({place})" if choice.kind is LakeKind.MINIO else f"at {place}"


def lake_file(settings: Settings) -> Path:
    """Where the choice is kept."""
    return settings.environment_dir / "lake.env"


def read_choice(settings: Settings) -> LakeChoice | None:
    """The choice that was written down, `None` before the first."""
    values = read_env(lake_file(settings))
    return LakeChoice(LakeKind(values[KIND]), values.get("CRM_LAKE_URI")) if values.get(KIND) else None


def holds_local_data(settings: Settings) -> bool:
    """Whether the default folder holds tables."""
    return any((settings.environment_dir / "lake").glob("*/_delta_log"))


def record(settings: Settings, kind: LakeKind) -> None:
    """Write the choice down, with all that is needed to reach the lake; an access key and its secret go to files of their own.

    Args:
        settings: with the lake as it was chosen.
        kind: what it stands on.
    """
    values = {KIND: kind.value}
    if settings.lake_uri is not None:
        values["CRM_LAKE_URI"] = settings.lake_uri
    if kind is not LakeKind.DISK:
        folder = settings.s3_credentials_dir
        if settings.s3_access_key is not None and settings.s3_secret_key is not None:
            folder = secret_files.folder(settings.home) / f"s3-{settings.env}"
            secret_files.write_in(folder, "access_key", settings.s3_access_key.get_secret_value())
            secret_files.write_in(folder, "secret_key", settings.s3_secret_key.get_secret_value())
        values |= {
            "CRM_S3_REGION": settings.s3_region,
            "CRM_S3_PATH_STYLE": str(settings.s3_path_style).lower(),
            "CRM_S3_ALLOW_HTTP": str(settings.s3_allow_http).lower(),
            **({"CRM_S3_ENDPOINT": settings.s3_endpoint} if settings.s3_endpoint else {}),
            **({"CRM_S3_CREDENTIALS_DIR": str(folder)} if folder else {}),
        }
    write_env(lake_file(settings), values, f"Where the lake of data set {settings.env} is; written by the local stack.")


def process_wish(environ: Mapping[str, str]) -> str | None:
    """`CRM_LAKE_URI` of a process, without a trailing slash."""
    return (environ.get("CRM_LAKE_URI") or "").rstrip("/") or None

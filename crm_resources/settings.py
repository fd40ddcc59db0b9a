"""The one settings object: `CRM_*` variables over what the local stack wrote down, over working defaults.

Order of precedence: process environment, `.crm/<environment>/environment.env` (facts of a data set: time zone, as-of
date), `.crm/<environment>/lake.env` (where its lake was put), `.crm/stack.env` (ports the local stack took),
defaults. Secrets are read from files under `.crm/secrets/` or from the environment, and never printed. Importing this module reads nothing.
"""

from __future__ import annotations

import os
import re
from datetime import date
from enum import StrEnum
from pathlib import Path
from typing import Self, get_args
from zoneinfo import ZoneInfo

from pydantic import Field, SecretStr, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

REPOSITORY = Path(__file__).resolve().parents[1]

SHORTEST_RETENTION_DAYS = 30
"""What loads that lag behind and time travel are promised."""


class Profile(StrEnum):
    """Which parts the platform stands on."""

    LOCAL = "local"
    CLUSTER = "cluster"


class Settings(BaseSettings):
    """Everything a part of the platform may be told from outside. Each field is the variable `CRM_<FIELD>`."""

    model_config = SettingsConfigDict(
        env_prefix="CRM_",
        extra="ignore",
        frozen=True,
        env_ignore_empty=True,
        # The input of a rule that looks at several fields is all of them, secrets as plain text among them.
        hide_input_in_errors=True,
    )

    profile: Profile = Field(default=Profile.LOCAL, description="`local` (one machine) or `cluster`.")
    env: str = Field(
        default="demo",
        pattern=r"^[a-z][a-z0-9_]{0,30}$",
        description="Data set to work on: topics, lake, database and stream state of its own.",
    )
    home: Path = Field(default=REPOSITORY / ".crm", description="Folder for data, logs, secrets and reports of the local stack.")
    jars_dir: Path | None = Field(default=None, description="Folder of the fetched Java libraries. Default: `<home>/jars`.")
    kafka_bootstrap: str = Field(default="127.0.0.1:19092", description="Kafka bootstrap servers.")
    lake_uri: str | None = Field(
        default=None, description="Root of the lake; a folder or `s3://bucket/prefix`. Default: `<home>/<env>/lake`."
    )
    s3_endpoint: str | None = Field(
        default=None,
        pattern=r"^https?://[^/]+/?$",
        description="Address of the object store the lake is on, e.g. `https://s3.example.com`. Default: AWS S3 of the region.",
    )
    s3_region: str = Field(default="us-east-1", description="Region of the bucket; stores other than AWS mostly take any.")
    s3_access_key: SecretStr | None = Field(
        default=None, description="Access key of the object store. Default: the folder of credentials, else AWS's own chain of credentials."
    )
    s3_secret_key: SecretStr | None = Field(default=None, description="Secret that belongs to the access key.")
    s3_credentials_dir: Path | None = Field(
        default=None, description="Folder with the files `access_key` and `secret_key`, instead of the two variables."
    )
    s3_path_style: bool = Field(
        default=True, description="Whether the bucket stands in the path of an address (most stores) or in its host name."
    )
    s3_allow_http: bool = Field(
        default=False,
        description="Allow an object store without TLS that is not on this machine; keys and data can then be read on the way.",
    )
    minio_bin: Path | None = Field(
        default=None, description="Program of MinIO for `LAKE=minio`. Default: the pinned release, built into `<home>/tools`."
    )
    warehouse_dsn: SecretStr | None = Field(
        default=None,
        description="PostgreSQL server as a URI with user, password and database; each data set gets a database beside it. "
        "Default: the embedded server.",
    )
    postgres_port: int = Field(default=15432, ge=1, le=65535, description="Port of the embedded PostgreSQL.")
    business_timezone: str = Field(default="UTC", description="Time zone in which an event gets its business date.")
    as_of: date | None = Field(default=None, description="Business date the marts look at; default is the current one.")
    time_travel_days: int = Field(
        default=30,
        ge=1,
        le=30,
        description="How many days back `make time-travel` can go; 30 is what the lake keeps of its logs and replaced files.",
    )
    future_tolerance_seconds: int = Field(
        default=86_400, ge=0, description="How far an event time may lie after its arrival before it is a dead letter."
    )
    trigger_seconds: float = Field(default=2.0, ge=0, description="Trigger interval of the stream's queries.")
    max_records_per_batch: int = Field(default=250_000, ge=1, description="Upper bound of records a micro-batch takes.")
    min_records_per_batch: int = Field(
        default=2_000, ge=1, description="Records the capture waits for before it begins a batch, see `max_trigger_delay_seconds`."
    )
    max_trigger_delay_seconds: float = Field(
        default=10.0,
        ge=0,
        description="Longest wait for `min_records_per_batch`: fewer, larger files when little comes; 0: no wait.",
    )
    accept_gaps: bool = Field(
        default=False,
        description="Let the stream go on behind records that Kafka removed before they were captured.",
    )
    metrics_port: int = Field(
        default=0,
        ge=0,
        le=65535,
        description="Port of the stream's Prometheus metrics on loopback; 0: a free one, see `<env>/stream/metrics_targets.json`.",
    )
    driver_memory: str = Field(default="2g", pattern=r"^[0-9]+[mg]$", description="Heap of the Spark driver.")
    spark_cores: int = Field(default=2, ge=1, description="Cores the Spark driver uses.")
    retention_days: int = Field(
        default=SHORTEST_RETENTION_DAYS,
        ge=SHORTEST_RETENTION_DAYS,
        description="How long the lake keeps replaced files and its logs: the furthest a load may lag behind, and time travel reaches.",
    )
    max_lag_records: int = Field(default=500_000, ge=0, description="Records the stream may lag behind Kafka before its check fails.")
    max_lag_seconds: float = Field(
        default=120.0, gt=0, description="Age of the oldest record the stream has not placed before its check fails."
    )

    pseudonym_key: SecretStr | None = Field(
        default=None,
        description="Key of the pseudonyms under which audiences are exported, 16 bytes at least. Default: the file `pseudonym_key` in the "
        "secrets folder, which the local stack makes.",
    )
    audience_webhook_url: SecretStr | None = Field(
        default=None, description="Address audiences are exported to message by message; `https`, or `http` on this machine."
    )
    audience_webhook_token: SecretStr | None = Field(default=None, description="Sent to the webhook as `Authorization: Bearer`.")

    redis_url: SecretStr | None = Field(
        default=None,
        description="Redis in which several generator processes share the state of a backfill (`redis://…`). Default: a file, one process.",
    )

    @field_validator("business_timezone")
    @classmethod
    def _known_zone(cls, value: str) -> str:
        try:
            ZoneInfo(value)
        except Exception as error:
            msg = f"CRM_BUSINESS_TIMEZONE={value!r} is no time zone; use a name such as Europe/London or Asia/Seoul"
            raise ValueError(msg) from error
        return value

    @field_validator("lake_uri")
    @classmethod
    def _known_store(cls, value: str | None) -> str | None:
        if value is not None and "://" in value and not re.fullmatch(r"s3://[a-z0-9][a-z0-9.-]{1,61}[a-z0-9](/[^?#]*)?", value):
            msg = f"CRM_LAKE_URI={value!r} is neither a folder nor s3://bucket/prefix"
            raise ValueError(msg)
        return value

    @model_validator(mode="after")
    def _whole_credentials(self) -> Self:
        if (self.s3_access_key is None) != (self.s3_secret_key is None):
            missing = "CRM_S3_SECRET_KEY" if self.s3_secret_key is None else "CRM_S3_ACCESS_KEY"
            msg = f"{missing} is missing; an access key and its secret are given together"
            raise ValueError(msg)
        return self

    @property
    def history_days(self) -> int:
        """Days the lake keeps what left its tables: the retention and one more, for a load may be a day behind on the first of them."""
        return self.retention_days + 1

    @property
    def environment_dir(self) -> Path:
        """What belongs to the data set: `<home>/<env>`."""
        return self.home / self.env

    @property
    def lake_root(self) -> str:
        """Root of the data set's lake, without a trailing slash."""
        return (self.lake_uri or str(self.environment_dir / "lake")).rstrip("/")

    @property
    def lake_on_object_store(self) -> bool:
        """Whether the lake is on an object store; otherwise it is a folder."""
        return self.lake_root.startswith("s3://")

    @property
    def checkpoint_root(self) -> str:
        """Where the stream's checkpoints live: on the driver's own disk, wherever the lake is.

        Spark writes them by renaming, which is a copy on an object store; a lost one is recovered from the tables.
        """
        return str(self.environment_dir / "checkpoints")

    @property
    def jars_root(self) -> Path:
        """Fetched Java libraries: `kafka/*.jar` for the broker, `spark/*.jar` for the driver."""
        return self.jars_dir or self.home / "jars"

    @property
    def database(self) -> str:
        """PostgreSQL database of the data set."""
        return f"crm_{self.env}"

    @property
    def reports_dir(self) -> Path:
        """Where commands leave their JSON reports."""
        return self.home / "reports"

    def table_uri(self, path: str) -> str:
        """URI of a lake table given its path below the root."""
        return f"{self.lake_root}/{path}"

    def spark_uri(self, path: str) -> str:
        """URI of a lake table as Spark spells it: its file system for object stores is called `s3a`."""
        uri = self.table_uri(path)
        return f"s3a://{uri.removeprefix('s3://')}" if self.lake_on_object_store else uri


def load_settings(environ: dict[str, str] | None = None) -> Settings:
    """Settings of this process, read anew at each call.

    Args:
        environ: variables instead of the process's own, for tests.

    Raises:
        pydantic.ValidationError: a variable has a value that is not allowed; the message names it.
    """
    variables = dict(os.environ if environ is None else environ)
    home = Path(variables.get("CRM_HOME") or REPOSITORY / ".crm").absolute()
    env = variables.get("CRM_ENV") or "demo"
    files = (home / "stack.env", home / env / "lake.env", home / env / "environment.env")
    merged: dict[str, str] = {}
    for file in files:
        merged.update(_read_env_file(file))
    merged.update({k: v for k, v in variables.items() if k.startswith("CRM_") and v})
    values = {k.removeprefix("CRM_").lower(): v for k, v in merged.items()}
    values["home"] = str(home)
    known = {k: v for k, v in values.items() if k in Settings.model_fields}
    return Settings.model_validate(known)


def wrong_settings(error: ValidationError) -> list[str]:
    """A line for each value that is not allowed: the variable, its value unless that is a secret, and the reason.

    A rule over several variables names them in its reason; the value it was given is all settings, and is left out.

    Args:
        error: what `load_settings` raised.
    """
    lines = []
    for problem in error.errors():
        if not problem["loc"]:
            lines.append(problem["msg"].removeprefix("Value error, "))
            continue
        name = str(problem["loc"][0])
        value = "" if SecretStr in get_args(Settings.model_fields[name].annotation) else f"={problem['input']!r}"
        lines.append(f"CRM_{name.upper()}{value}: {problem['msg']}")
    return lines


def _read_env_file(path: Path) -> dict[str, str]:
    from dotenv import dotenv_values

    return {k: v for k, v in dotenv_values(path).items() if v} if path.exists() else {}

"""A lake on an object store: how each library is told where it is, and the store's own operations that a lake stands on.

Belongs here: what delta-rs, Arrow, Spark and s3fs need to know, the few plain requests (conditional PUT, list, copy, delete), and
judging whether a store may hold Delta tables at all. Not here: what is in the tables (`lake`), or who may write (`lake_lock`).

A commit of Delta is an object that must not exist yet. Two writers can only be kept from overwriting each other's commit by a store
that honours `If-None-Match` on PUT; the lake's lock needs `If-Match` as well. A store that ignores either loses data without a word.
"""

from __future__ import annotations

import functools
import os
import threading
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from crm_resources.settings import Settings

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1"})

PROBE_FOLDER = "_probe"
"""Below the lake's root; what a probe leaves there when it is killed may be deleted at any time."""

PROBE_WRITERS = 4
PROBE_KEYS = 5

_MOVES_AT_ONCE = 8

_CONDITION_FAILED = frozenset({"PreconditionFailed", "ConditionalRequestConflict", "412", "409"})
_ABSENT = frozenset({"NoSuchKey", "NotFound", "404"})
_WRONG_CREDENTIALS = frozenset(
    {"InvalidAccessKeyId", "SignatureDoesNotMatch", "AccessDenied", "InvalidToken", "ExpiredToken", "AuthorizationHeaderMalformed", "403"}
)
_WRONG_REGION = frozenset({"PermanentRedirect", "301", "IllegalLocationConstraintException"})


class ObjectStoreError(RuntimeError):
    """The object store cannot be used as it is set up; the message says what to correct."""


class UnsafeStoreError(ObjectStoreError):
    """The store lets two writers win the same object; Delta tables on it would lose commits."""


@dataclass(frozen=True)
class Credentials:
    """An access key and its secret. Not printed."""

    access_key: str
    secret_key: str

    def __repr__(self) -> str:
        return "Credentials(**********)"


@dataclass(frozen=True)
class Place:
    """A bucket and a prefix in it, without slashes at its ends."""

    bucket: str
    prefix: str

    def key(self, path: str) -> str:
        """Key of an object given its path below the prefix."""
        return f"{self.prefix}/{path}" if self.prefix else path


def place_of(settings: Settings) -> Place:
    """Bucket and prefix of the lake; pure."""
    parts = urlsplit(settings.lake_root)
    return Place(parts.netloc, parts.path.strip("/"))


def credentials(settings: Settings) -> Credentials | None:
    """Access key and secret from the settings or the folder of credentials; `None` leaves it to AWS's own chain.

    Raises:
        ObjectStoreError: a file of the folder is absent or empty.
    """
    if settings.s3_access_key is not None and settings.s3_secret_key is not None:
        return Credentials(settings.s3_access_key.get_secret_value(), settings.s3_secret_key.get_secret_value())
    folder = settings.s3_credentials_dir
    if folder is None:
        return None
    found = []
    for name in ("access_key", "secret_key"):
        path = folder / name
        value = path.read_text().strip() if path.is_file() else ""
        if not value:
            raise ObjectStoreError(f"{path} is absent or empty; write the key into it, or unset CRM_S3_CREDENTIALS_DIR")
        found.append(value)
    return Credentials(*found)


def allows_http(settings: Settings) -> bool:
    """Whether the endpoint may be spoken to without TLS; pure.

    Raises:
        ObjectStoreError: it would have to be, and nobody allowed that.
    """
    if settings.s3_endpoint is None or urlsplit(settings.s3_endpoint).scheme == "https":
        return False
    if urlsplit(settings.s3_endpoint).hostname in LOOPBACK or settings.s3_allow_http:
        return True
    raise ObjectStoreError(
        f"CRM_S3_ENDPOINT={settings.s3_endpoint} has no TLS and is not on this machine; use https, or allow it with CRM_S3_ALLOW_HTTP=1"
    )


def storage_options(settings: Settings) -> dict[str, str] | None:
    """What delta-rs has to know of the store; `None` for a lake on a local disk.

    Raises:
        ObjectStoreError: the settings do not go together.
    """
    if not settings.lake_on_object_store:
        return None
    options = {
        "aws_region": settings.s3_region,
        "aws_conditional_put": "etag",
        "aws_virtual_hosted_style_request": str(not settings.s3_path_style).lower(),
        "allow_http": str(allows_http(settings)).lower(),
        "connect_timeout": "5s",
        "timeout": "60s",
    }
    if settings.s3_endpoint is not None:
        options["aws_endpoint"] = settings.s3_endpoint.rstrip("/")
    if (found := credentials(settings)) is not None:
        options |= {"aws_access_key_id": found.access_key, "aws_secret_access_key": found.secret_key}
    return options


def spark_options(settings: Settings) -> dict[str, str]:
    """What Spark has to know of the store, for this bucket alone; none for a lake on a local disk.

    They hold the secret, so they are set inside the Java process and not on its command line. A bucket's own settings win over general
    ones, so one process may speak to two stores.

    Raises:
        ObjectStoreError: the settings do not go together.
    """
    if not settings.lake_on_object_store:
        return {}
    own = {
        "endpoint.region": settings.s3_region,
        "path.style.access": str(settings.s3_path_style).lower(),
        "connection.ssl.enabled": str(not allows_http(settings)).lower(),
        # Some tasks, each with a few open files, and Delta's own threads; the default of 500 is for clusters.
        "connection.maximum": "64",
        "threads.max": "16",
        "connection.establish.timeout": "5s",
        "connection.timeout": "60s",
        "attempts.maximum": "5",
        "retry.limit": "5",
        # A file that is written is written once under a name of its own: no look whether a folder or another file has the name.
        "performance.flags": "create,mkdir",
        "buffer.dir": str(settings.environment_dir / "spark" / "s3a"),
        "audit.enabled": "false",
    }
    if settings.s3_endpoint is not None:
        own["endpoint"] = settings.s3_endpoint.rstrip("/")
    if (found := credentials(settings)) is not None:
        own |= {
            "access.key": found.access_key,
            "secret.key": found.secret_key,
            "aws.credentials.provider": "org.apache.hadoop.fs.s3a.SimpleAWSCredentialsProvider",
        }
    bucket = place_of(settings).bucket
    return {"fs.s3a.impl": "org.apache.hadoop.fs.s3a.S3AFileSystem"} | {f"fs.s3a.bucket.{bucket}.{name}": v for name, v in own.items()}


def arrow_filesystem(settings: Settings, path: str) -> FileSystem:
    """Arrow's file system whose root is a folder below the lake's root.

    Raises:
        ObjectStoreError: the settings do not go together.
    """
    from pyarrow.fs import SubTreeFileSystem

    place = place_of(settings)
    below = place.key(path).strip("/")
    return SubTreeFileSystem(f"{place.bucket}/{below}" if below else place.bucket, _arrow_store(_connection(settings)))


def s3fs_options(settings: Settings) -> dict[str, Any]:
    """Arguments of `s3fs.S3FileSystem` with which it reads the lake, for notebooks and other readers.

    Raises:
        ObjectStoreError: the settings do not go together.
    """
    allows_http(settings)
    found = credentials(settings)
    client = {"region_name": settings.s3_region} | ({"endpoint_url": settings.s3_endpoint} if settings.s3_endpoint else {})
    style = "path" if settings.s3_path_style else "virtual"
    keys = {"key": found.access_key, "secret": found.secret_key} if found else {}
    return {**keys, "client_kwargs": client, "config_kwargs": {"s3": {"addressing_style": style}}, "use_listings_cache": False}


class ObjectStore:
    """Plain requests to the bucket of a lake. Paths are below the lake's root.

    Args:
        settings: where the store is.
        attempts: how often a request that got no answer is tried.
        timeout_seconds: longest wait for an answer to one try.

    Raises:
        ObjectStoreError: the settings do not go together. Each method raises it when the store does not answer or refuses the credentials.
    """

    def __init__(self, settings: Settings, *, attempts: int = 3, timeout_seconds: float = 10.0) -> None:
        self._settings = settings
        self.place = place_of(settings)
        self._client = _client(_connection(settings), attempts, timeout_seconds)

    def demand(self) -> None:
        """Look whether the bucket is there and answers to these credentials.

        Raises:
            ObjectStoreError: it does not; the message says what to correct.
        """
        self._call("list_objects_v2", Prefix=self.place.key(""), MaxKeys=1)

    def make_bucket(self) -> bool:
        """Make the bucket; returns whether it was absent."""
        try:
            self._call("create_bucket")
        except _RefusedError as error:
            if error.code in {"BucketAlreadyOwnedByYou", "BucketAlreadyExists"}:
                return False
            raise
        return True

    def put(self, path: str, body: bytes) -> str:
        """Write an object whole, whatever is there; returns its ETag."""
        return str(self._call("put_object", Key=self.place.key(path), Body=body)["ETag"])

    def put_new(self, path: str, body: bytes) -> str | None:
        """Write an object that must not exist yet; returns its ETag, `None` when somebody else was first."""
        return self._put_if(path, body, IfNoneMatch="*")

    def replace(self, path: str, body: bytes, etag: str) -> str | None:
        """Replace the very object that has this ETag; returns the new ETag, `None` when there is another one, or none."""
        return self._put_if(path, body, IfMatch=etag)

    def get(self, path: str) -> tuple[bytes, str] | None:
        """Content and ETag of an object, `None` when it is absent."""
        try:
            found = self._call("get_object", Key=self.place.key(path))
        except _RefusedError as error:
            if error.code in _ABSENT:
                return None
            raise
        from botocore.exceptions import BotoCoreError

        try:
            return found["Body"].read(), str(found["ETag"])
        except BotoCoreError as error:
            raise self._unusable(error) from error

    def paths(self, folder: str) -> list[str]:
        """Paths of all objects in a folder, at any depth, in order."""
        return sorted(self._paths(folder))

    def copy(self, source: str, target: str) -> None:
        """Copy an object inside the bucket."""
        origin = {"Bucket": self.place.bucket, "Key": self.place.key(source)}
        self._call("copy_object", Key=self.place.key(target), CopySource=origin)

    def delete(self, path: str) -> None:
        """Delete an object; one that is absent is no error."""
        self._call("delete_object", Key=self.place.key(path))

    def move_folder(self, source: str, target: str) -> None:
        """Copy every object of a folder, then delete it; begun anew after an interruption, it goes on to the same end.

        A table's log comes last and goes first, so whoever opens the table meanwhile finds all files of the version it sees, or no table.

        Args:
            source: folder with a table.
            target: folder that holds nothing, or what an interrupted try left there.
        """
        paths = self.paths(source)
        logs = [path for path in paths if "/_delta_log/" in path]
        files = [path for path in paths if "/_delta_log/" not in path]
        with ThreadPoolExecutor(_MOVES_AT_ONCE) as pool:
            for part in (files, logs):
                list(pool.map(lambda path: self.copy(path, target + path.removeprefix(source)), part))
            for part in (logs, files):
                list(pool.map(self.delete, part))

    def delete_folder(self, folder: str) -> None:
        """Delete every object of a folder."""
        for path in self.paths(folder):
            self.delete(path)

    def _paths(self, folder: str) -> Iterator[str]:
        below = self.place.key("")
        within = self.place.key(f"{folder.strip('/')}/" if folder.strip("/") else "")
        token: dict[str, str] = {}
        while True:
            page = self._call("list_objects_v2", Prefix=within, **token)
            yield from (str(found["Key"]).removeprefix(below) for found in page.get("Contents", ()))
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def _put_if(self, path: str, body: bytes, **condition: str) -> str | None:
        try:
            return str(self._call("put_object", Key=self.place.key(path), Body=body, **condition)["ETag"])
        except _RefusedError as error:
            if error.code in _CONDITION_FAILED or ("IfMatch" in condition and error.code in _ABSENT):
                return None
            raise

    def _call(self, operation: str, **arguments: Any) -> dict[str, Any]:  # noqa: ANN401 -- botocore's own arguments
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            answer: dict[str, Any] = getattr(self._client, operation)(Bucket=self.place.bucket, **arguments)
        except ClientError as error:
            raise refusal(error.response, self.place.bucket, self._address) from error
        except BotoCoreError as error:
            raise self._unusable(error) from error
        return answer

    @property
    def _address(self) -> str:
        return self._settings.s3_endpoint or f"AWS S3 in {self._settings.s3_region}"

    def _unusable(self, error: Exception) -> ObjectStoreError:
        why = f"the object store at {self._address} cannot be used ({_first_line(error)})"
        return ObjectStoreError(f"{why}; correct CRM_S3_ENDPOINT and the credentials, or start it")


class _RefusedError(ObjectStoreError):
    """The store answered with an error."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def refusal(response: dict[str, Any], bucket: str, place: str) -> _RefusedError:
    """What an error of the store means to the person who set it up; pure.

    Args:
        response: botocore's form of the answer.
        bucket: bucket of the request.
        place: the store, for the message.
    """
    code = str(response.get("Error", {}).get("Code", ""))
    if code == "NoSuchBucket":
        return _RefusedError(code, f"there is no bucket {bucket} at {place}; create it, or correct CRM_LAKE_URI")
    if code in _WRONG_CREDENTIALS:
        return _RefusedError(
            code,
            f"{place} does not let these credentials use the bucket {bucket} ({code}); correct CRM_S3_ACCESS_KEY and CRM_S3_SECRET_KEY, "
            "or the bucket's policy",
        )
    if code in _WRONG_REGION:
        return _RefusedError(code, f"the bucket {bucket} is not in the region {place} ({code}); correct CRM_S3_REGION")
    said = str(response.get("Error", {}).get("Message", "")).strip()
    return _RefusedError(code, f"{place} refused a request on the bucket {bucket}: {code or 'no code'} {said}".rstrip())


@dataclass(frozen=True)
class RaceResult:
    """Outcome of a race of conditional writes.

    Attributes:
        kind: header that was tried.
        winners: for each object, how many writers were told that they had won.
        refused: what the store said when it does not know the condition at all.
    """

    kind: str
    winners: tuple[int, ...]
    refused: str | None = None

    @property
    def passed(self) -> bool:
        """Whether each object had exactly one winner."""
        return self.refused is None and all(n == 1 for n in self.winners)

    def __str__(self) -> str:
        if self.refused is not None:
            return f"{self.kind}: {self.refused}"
        return f"{self.kind}: {sum(n == 1 for n in self.winners)} of {len(self.winners)} objects had exactly one winner"


def probe_races(store: ObjectStore, *, writers: int = PROBE_WRITERS, keys: int = PROBE_KEYS) -> tuple[RaceResult, RaceResult]:
    """Let several writers race for fresh objects, and then for replacing them; what was written is deleted.

    Args:
        store: store to try.
        writers: writers that start at the same moment.
        keys: objects they race for, one after the other.

    Raises:
        ObjectStoreError: the store does not answer.
    """
    folder = f"{PROBE_FOLDER}/{uuid.uuid4().hex}"
    paths = [f"{folder}/{n}" for n in range(keys)]
    try:
        created = _race("If-None-Match", paths, writers, lambda path, body: store.put_new(path, body) is not None)
        etags = {path: found[1] for path in paths if (found := store.get(path)) is not None}
        replaced = _race("If-Match", list(etags), writers, lambda path, body: store.replace(path, body, etags[path]) is not None)
    finally:
        for path in paths:
            store.delete(path)
    return created, replaced


def demand_safe(store: ObjectStore) -> None:
    """Refuse a store on which Delta tables would lose commits.

    Raises:
        UnsafeStoreError: a race did not have exactly one winner.
        ObjectStoreError: the store does not answer.
    """
    store.demand()
    failed = [str(result) for result in probe_races(store) if not result.passed]
    if failed:
        raise UnsafeStoreError(
            f"the object store of s3://{store.place.bucket} does not honour conditional writes ({'; '.join(failed)}): Delta tables on "
            "it would lose commits. Use MinIO, AWS S3 or another store with conditional PUT"
        )


def _race(kind: str, paths: list[str], writers: int, won: Callable[[str, bytes], bool]) -> RaceResult:
    start = threading.Barrier(writers)

    def write(path: str, writer: int) -> bool:
        start.wait()
        return won(path, f"{kind} {writer}".encode())

    winners = []
    with ThreadPoolExecutor(writers) as pool:
        for path in paths:
            tries = [pool.submit(write, path, writer) for writer in range(writers)]
            try:
                winners.append(sum(t.result() for t in tries))
            except _RefusedError as error:
                if error.code in _WRONG_CREDENTIALS | _WRONG_REGION | {"NoSuchBucket"}:
                    raise
                return RaceResult(kind, tuple(winners), f"the store refuses the condition ({error})")
    return RaceResult(kind, tuple(winners))


@dataclass(frozen=True)
class _Connection:
    """What a client is made of; equal connections share one."""

    endpoint: str | None
    region: str
    path_style: bool
    credentials: Credentials | None
    process: int


def _connection(settings: Settings) -> _Connection:
    allows_http(settings)
    endpoint = settings.s3_endpoint.rstrip("/") if settings.s3_endpoint else None
    return _Connection(endpoint, settings.s3_region, settings.s3_path_style, credentials(settings), os.getpid())


@functools.lru_cache(maxsize=8)
def _client(connection: _Connection, attempts: int, timeout_seconds: float) -> Any:  # noqa: ANN401 -- botocore makes its classes at run time
    import botocore.session
    from botocore.config import Config

    config = Config(
        connect_timeout=min(timeout_seconds, 5.0),
        read_timeout=timeout_seconds,
        retries={"total_max_attempts": attempts, "mode": "standard"},
        max_pool_connections=16,
        s3={"addressing_style": "path" if connection.path_style else "virtual"},
        # Checksums beyond what S3 asked for since ever are not understood by every store.
        request_checksum_calculation="when_required",
        response_checksum_validation="when_required",
    )
    keys = connection.credentials
    return botocore.session.Session().create_client(
        "s3",
        region_name=connection.region,
        endpoint_url=connection.endpoint,
        aws_access_key_id=keys.access_key if keys else None,
        aws_secret_access_key=keys.secret_key if keys else None,
        config=config,
    )


@functools.lru_cache(maxsize=8)
def _arrow_store(connection: _Connection) -> FileSystem:
    from pyarrow.fs import S3FileSystem

    parts = urlsplit(connection.endpoint) if connection.endpoint else None
    keys = connection.credentials
    return S3FileSystem(
        access_key=keys.access_key if keys else None,
        secret_key=keys.secret_key if keys else None,
        region=connection.region,
        scheme=parts.scheme if parts else "https",
        endpoint_override=parts.netloc if parts else None,
        force_virtual_addressing=not connection.path_style,
        connect_timeout=5,
        request_timeout=60,
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__

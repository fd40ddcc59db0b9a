"""MinIO as one server: building the pinned release, its files, its command, and whether it answers.

MinIO is distributed as source only. A release's tag is no version of a Go module, so the release is named by the pseudo-version of its
commit; Go compares everything it fetches with the public checksum database. Belongs here: everything that knows MinIO. Not here: what any
object store has to do for a lake (`crm_resources.object_store`), or whether a data set has its lake on it (`lake_choice`).
"""

from __future__ import annotations

import fcntl
import os
import re
import shutil
import subprocess
import tempfile
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from pathlib import Path

from crm_resources.settings import Settings
from deploy.local import secret_files
from deploy.local.errors import StackError
from deploy.local.ports import ANSWER_SECONDS, LOOPBACK

MODULE = "github.com/minio/minio"
VERSION = "v0.0.0-20260212201848-7aac2a2c5b7c"
"""The last release that was made as open source."""

OLDEST_GO = (1, 24)
BUCKET = "lake"

_REMEDY = (
    f"install Go {OLDEST_GO[0]}.{OLDEST_GO[1]} or newer (https://go.dev/dl) and put it on PATH, or name a built MinIO with CRM_MINIO_BIN; "
    "without LAKE=minio the lake is on the local disk and needs neither"
)


class GoMissingError(StackError):
    """There is no Go with which MinIO could be built."""


Progress = Callable[[str], None]
"""Called with a line that says what the build is doing."""


def folder(settings: Settings) -> Path:
    """MinIO's data and ports."""
    return settings.home / "minio"


def credentials_dir(settings: Settings) -> Path:
    """Folder with the files `access_key` and `secret_key`."""
    return secret_files.folder(settings.home) / "minio"


def endpoint(port: int) -> str:
    """Address clients are given."""
    return f"http://{LOOPBACK}:{port}"


def program(settings: Settings) -> Path:
    """The program: the one that was named, or the one that is built into the tools of the home."""
    return settings.minio_bin or settings.home / "tools" / f"minio-{VERSION.rpartition('-')[2]}" / "minio"


def ensure_program(settings: Settings, *, go: str = "go", progress: Progress = lambda _line: None) -> bool:
    """Build MinIO when it is not there; returns whether it was built now.

    It takes two minutes on two idle cores, and 1.5 GiB of Go's caches the first time.

    Raises:
        GoMissingError: Go is absent or too old.
        StackError: the named program is absent, or the build failed.
    """
    target = program(settings)
    if target.is_file() and os.access(target, os.X_OK):
        return False
    if settings.minio_bin is not None:
        raise StackError(f"CRM_MINIO_BIN={target} is no program", "correct the variable, or unset it to have MinIO built")
    compiler = _go(go)
    target.parent.mkdir(parents=True, exist_ok=True)
    with (target.parent / ".lock").open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        if target.is_file():
            return False
        with tempfile.TemporaryDirectory(prefix="build-", dir=target.parent) as scratch:
            _build(compiler, Path(scratch), progress)
            (Path(scratch) / "minio").replace(target)
    return True


def go_version(text: str) -> tuple[int, int] | None:
    """Major and minor version from what `go version` prints; None when there is none in it; pure."""
    match = re.search(r"\bgo(\d+)\.(\d+)", text)
    return (int(match.group(1)), int(match.group(2))) if match else None


def prepare(settings: Settings) -> None:
    """Make the folder of the data, and the credentials the first time."""
    (folder(settings) / "data").mkdir(parents=True, exist_ok=True)
    secrets_dir = credentials_dir(settings)
    secret_files.ensure_in(secrets_dir, "access_key", length=12)
    secret_files.ensure_in(secrets_dir, "secret_key")


def server_command(settings: Settings, port: int) -> list[str]:
    """The command that becomes the server."""
    return [str(program(settings)), "server", "--quiet", "--address", f"{LOOPBACK}:{port}", str(folder(settings) / "data")]


def server_environment(settings: Settings) -> dict[str, str]:
    """What the server is told beside its command: where its credentials are, and to keep to itself."""
    return {
        "MINIO_ROOT_USER_FILE": str(credentials_dir(settings) / "access_key"),
        "MINIO_ROOT_PASSWORD_FILE": str(credentials_dir(settings) / "secret_key"),
        "MINIO_BROWSER": "off",
        "MINIO_UPDATE": "off",
        "GOMEMLIMIT": "512MiB",
    }


def answers(port: int) -> bool:
    """Whether the server is ready for requests."""
    try:
        with urllib.request.urlopen(f"{endpoint(port)}/minio/health/ready", timeout=ANSWER_SECONDS) as answer:  # noqa: S310 -- a fixed scheme and host
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _go(go: str) -> str:
    path = shutil.which(go) or shutil.which(go, path="/usr/local/go/bin")
    if path is None:
        raise GoMissingError("MinIO has to be built and there is no `go` on PATH", _REMEDY)
    try:
        asked = subprocess.run([path, "version"], capture_output=True, text=True, timeout=60, check=False, env=_build_environment({}))
    except (OSError, subprocess.TimeoutExpired) as error:
        raise GoMissingError(f"{path} does not run ({error})", _REMEDY) from error
    found = go_version(asked.stdout)
    if found is None or found < OLDEST_GO:
        raise GoMissingError(
            f"MinIO has to be built and {path} is {'.'.join(map(str, found)) if found else 'of no known version'}", _REMEDY
        )
    return path


def _build(compiler: str, target: Path, progress: Progress) -> None:
    log = target.parent / "build.log"
    fetched = compiled = 0
    command = [compiler, "install", "-v", "-trimpath", "-ldflags", "-s -w", f"{MODULE}@{VERSION}"]
    with (
        log.open("w") as out,
        subprocess.Popen(
            command,
            env=_build_environment({"GOBIN": str(target)}),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
        ) as process,
    ):
        for line in process.stdout or ():
            out.write(line)
            fetched, compiled = (fetched + 1, compiled) if line.startswith("go: downloading") else (fetched, compiled + 1)
            progress(f"{fetched} modules fetched, {compiled} packages compiled")
    if process.returncode != 0:
        last = (log.read_text().strip().splitlines() or ["no message"])[-1]
        raise StackError(
            f"MinIO could not be built: {last} (the whole story is in {log})", "check the network and the disk, then try again"
        )


def _build_environment(own: Mapping[str, str]) -> dict[str, str]:
    """The caller's, so that a proxy for modules counts; Go itself is not replaced by another version, and C is not needed."""
    return {**os.environ, "GOTOOLCHAIN": "local", "CGO_ENABLED": "0", "GOFLAGS": "", **own}

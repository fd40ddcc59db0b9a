"""What others ask the stream's driver to do between its batches: it is the only writer of the lake's stream tables.

A request is a small file below the lake's root, so it reaches the driver wherever it runs, and stays until it is answered: a
driver that is killed takes it up again. Belongs here: the files. Not here: what a kind of request means (`upkeep`, `replay`).
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import TYPE_CHECKING, Any

from crm_resources.lake import lake_filesystem, write_whole
from crm_resources.settings import Settings

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

FOLDER = "_requests"


class RequestKind(StrEnum):
    """Work the driver does on request."""

    COMPACT = "compact"
    VACUUM = "vacuum"
    CHECKPOINT = "checkpoint"
    REPLAY = "replay"


@dataclass(frozen=True)
class Request:
    """One piece of work.

    Attributes:
        id: chosen by who asks, e.g. the id of a Dagster run; asking twice under one id is asking once.
        kind: what to do.
        arguments: how, in JSON types; their meaning belongs to the kind.
        asked_at: when (ISO 8601, UTC); older requests are done first.
    """

    id: str
    kind: RequestKind
    arguments: dict[str, Any] = field(default_factory=dict)
    asked_at: str = ""


@dataclass(frozen=True)
class Answer:
    """How a request ended.

    Attributes:
        ok: whether it was done.
        error: why not, with what to do next.
        figures: what was done, in JSON types.
        started_at: when the driver began (ISO 8601, UTC).
        ended_at: when it ended.
    """

    ok: bool
    error: str | None
    figures: dict[str, Any]
    started_at: str
    ended_at: str


class RequestUnanswered(RuntimeError):
    """The driver did not answer: it does not run, or it took too long. The request may still be done."""


def ask(settings: Settings, request: Request) -> None:
    """Leave a request for the driver. One that is there under the same id, answered or not, stays as it is."""
    files = lake_filesystem(settings)
    if _read(files, _request_file(request.id)) is not None:
        return
    stamped = {**asdict(request), "asked_at": request.asked_at or _now()}
    _write(settings, _request_file(request.id), stamped)


def withdraw(settings: Settings, request_id: str) -> None:
    """Take a request back; one the driver has begun is finished all the same."""
    files = lake_filesystem(settings)
    if _read(files, _request_file(request_id)) is not None:
        files.delete_file(_request_file(request_id))


def open_requests(settings: Settings) -> list[Request]:
    """Requests without an answer, oldest first."""
    from pyarrow.fs import FileSelector

    files = lake_filesystem(settings)
    names = {info.base_name for info in files.get_file_info(FileSelector(FOLDER, allow_not_found=True))}
    asked = [n.removesuffix(".json") for n in names if n.endswith(".json") and not n.endswith(".answer.json")]
    found = [_read(files, _request_file(i)) for i in asked if f"{i}.answer.json" not in names]
    requests = [Request(f["id"], RequestKind(f["kind"]), f["arguments"], f["asked_at"]) for f in found if f is not None]
    return sorted(requests, key=lambda r: (r.asked_at, r.id))


def answer(settings: Settings, request_id: str, given: Answer) -> None:
    """Answer a request; for the driver."""
    _write(settings, _answer_file(request_id), asdict(given))


def forget_answered(settings: Settings, before: datetime) -> int:
    """Remove requests that were answered before a time, with their answers; returns how many. For the driver."""
    from pyarrow.fs import FileSelector

    files = lake_filesystem(settings)
    found = files.get_file_info(FileSelector(FOLDER, allow_not_found=True))
    old = [info.base_name.removesuffix(".answer.json") for info in found if info.base_name.endswith(".answer.json") and info.mtime < before]
    for request_id in old:
        # The request first: an answer without its request means nothing, a request without its answer would be done again.
        withdraw(settings, request_id)
        files.delete_file(_answer_file(request_id))
    return len(old)


def answer_to(settings: Settings, request_id: str) -> Answer | None:
    """The answer to a request, `None` while there is none."""
    found = _read(lake_filesystem(settings), _answer_file(request_id))
    return None if found is None else Answer(**found)


def wait_for_answer(
    settings: Settings, request_id: str, *, timeout_seconds: float, alive: Callable[[], bool], poll_seconds: float = 0.5
) -> Answer:
    """Wait until the driver has answered.

    Args:
        settings: data set of the stream.
        request_id: the request.
        timeout_seconds: longest wait.
        alive: whether there is a driver, or will be one in a moment.
        poll_seconds: pause between two looks.

    Raises:
        RequestUnanswered: there is no driver, or the time is over.
    """
    deadline = time.monotonic() + timeout_seconds
    while (found := answer_to(settings, request_id)) is None:
        if not alive():
            raise RequestUnanswered(
                f"the stream of {settings.env} does not run, so request {request_id} waits; start it (materialize stream/driver)"
            )
        if time.monotonic() > deadline:
            raise RequestUnanswered(f"the stream has not answered request {request_id} within {timeout_seconds:.0f} s; it goes on with it")
        time.sleep(poll_seconds)
    return found


def _request_file(request_id: str) -> str:
    return f"{FOLDER}/{request_id}.json"


def _answer_file(request_id: str) -> str:
    return f"{FOLDER}/{request_id}.answer.json"


def _read(files: FileSystem, path: str) -> dict[str, Any] | None:
    from pyarrow.fs import FileType

    if files.get_file_info(path).type != FileType.File:
        return None
    with files.open_input_stream(path) as stream:
        found: dict[str, Any] = json.loads(stream.read())
    return found


def _write(settings: Settings, path: str, content: dict[str, Any]) -> None:
    write_whole(settings, path, json.dumps(content, indent=1).encode() + b"\n")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")

"""What a replay is asked for: its arguments, checked before anything is asked, and asking the stream's driver for it.

Belongs here: the form of the request. Not here: carrying it out (`replay`), or who asks (`replay_job`, `dead_letters_command`).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, model_validator

from crm_assets.streaming.dead_letters import Selection
from crm_assets.streaming.requests import Answer, Request, RequestKind, ask, open_requests, wait_for_answer
from crm_resources.contracts import Reason
from crm_resources.settings import Settings

RECORDS_PER_SECOND = 1000.0
"""Default rate: live batches get most of the refine step's time."""

_COORDINATE = re.compile(r"(?P<topic>[^\[\]]+)\[(?P<partition>-?\d+)\]@(?P<offset>\d+)")


class ReplayInvalid(ValueError):
    """The arguments of a replay are wrong; the message names them and what they may be."""


def _known_reason(value: object) -> object:
    if value not in set(Reason):
        raise ValueError(f"unknown reason; one of {', '.join(Reason)}")
    return value


def _coordinate(value: object) -> object:
    if not isinstance(value, str) or not _COORDINATE.fullmatch(value):
        raise ValueError("not a coordinate; written like demo.orders[3]@1234")
    return value


class ReplayArguments(BaseModel):
    """Arguments of a replay, as they stand in the request's file.

    Args:
        reasons: only dead letters with one of these reasons.
        failed_from: only those whose latest refusal is not before this time (with time zone).
        failed_before: only those whose latest refusal is before this time.
        event_ids: only records with one of these event ids.
        coordinates: only records at one of these, written `topic[partition]@offset`.
        dry_run: judge and count, write nothing.
        records_per_second: most records tried in a second, on average.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    reasons: tuple[Annotated[str, BeforeValidator(_known_reason)], ...] = ()
    failed_from: AwareDatetime | None = None
    failed_before: AwareDatetime | None = None
    event_ids: tuple[Annotated[str, Field(min_length=1)], ...] = ()
    coordinates: tuple[Annotated[str, BeforeValidator(_coordinate)], ...] = ()
    dry_run: bool = True
    records_per_second: float = Field(default=RECORDS_PER_SECOND, gt=0, allow_inf_nan=False)

    @model_validator(mode="after")
    def _ordered(self) -> ReplayArguments:
        if self.failed_from is not None and self.failed_before is not None and self.failed_from >= self.failed_before:
            raise ValueError("failed_from is not before failed_before, so nothing could be selected")
        return self

    def selection(self, asked_at: datetime) -> Selection:
        """The dead letters that are meant: at most those there were when the replay was asked for.

        Args:
            asked_at: when that was.
        """
        return Selection(
            reasons=self.reasons,
            failed_from=self.failed_from,
            failed_before=min(self.failed_before or asked_at, asked_at),
            event_ids=self.event_ids,
            coordinates=tuple(_parts(c) for c in self.coordinates),
        )


def _parts(coordinate: str) -> tuple[str, int, int]:
    found = _COORDINATE.fullmatch(coordinate)
    if found is None:
        raise ReplayInvalid(f"{coordinate} is not a coordinate")
    return found["topic"], int(found["partition"]), int(found["offset"])


def replay_arguments(given: dict[str, Any]) -> ReplayArguments:
    """Check arguments.

    Args:
        given: the fields of `ReplayArguments`; times as ISO 8601 text with a time zone.

    Raises:
        ReplayInvalid: naming each wrong argument.
    """
    try:
        return ReplayArguments.model_validate(given)
    except ValidationError as error:
        wrong = [
            f"{'.'.join(str(part) for part in e['loc']) or 'arguments'}: {e['msg'].removeprefix('Value error, ')}" for e in error.errors()
        ]
        raise ReplayInvalid(f"the replay is not asked for: {'; '.join(wrong)}") from error


def ask_for_replay(settings: Settings, request_id: str, arguments: ReplayArguments) -> str:
    """Leave a replay for the driver, or adopt one with the same arguments that is not answered yet.

    Args:
        settings: data set.
        request_id: id for a new request.
        arguments: what to replay.

    Returns:
        The id of the request to wait for.
    """
    wanted = arguments.model_dump(mode="json")
    for request in open_requests(settings):
        if request.kind is RequestKind.REPLAY and request.arguments == wanted:
            return request.id
    ask(settings, Request(request_id, RequestKind.REPLAY, wanted, datetime.now(UTC).isoformat()))
    return request_id


def outcome_rows(figures: Mapping[str, Any]) -> list[tuple[str, str, int]]:
    """Reason, outcome and records of a driver's answer, in the order of the reasons; pure."""
    return [(reason, outcome, count) for reason, outcomes in figures["outcomes"].items() for outcome, count in outcomes.items()]


def replay_and_wait(
    settings: Settings, request_id: str, arguments: ReplayArguments, *, timeout_seconds: float, alive: Callable[[], bool]
) -> Answer:
    """Ask for a replay and wait for its end.

    Raises:
        RequestUnanswered: there is no driver, or the time is over; the driver takes the request up, or goes on with it.
    """
    asked = ask_for_replay(settings, request_id, arguments)
    return wait_for_answer(settings, asked, timeout_seconds=timeout_seconds, alive=alive)

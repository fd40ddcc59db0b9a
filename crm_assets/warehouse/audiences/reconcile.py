"""What an export has to send: the difference between who is in an audience and who the receiver was told is; pure.

The newest change of a customer counts and no earlier one: who joined and left between two exports is never named, and a join that was not
sent before the customer opted out is not sent afterwards. A leave names the member as the join did, even when the e-mail address has
changed or was erased since. What was begun and not acknowledged may have arrived: it is sent again with the same key, or taken back.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Action(StrEnum):
    """What happened to a member."""

    JOIN = "join"
    LEAVE = "leave"


@dataclass(frozen=True)
class Standing:
    """The newest change of a customer in an audience.

    `member` is the name outside of a customer who is in it; `None` when the customer left, or nothing is known to call the customer by.
    """

    audience: str
    customer_key: str
    version: int
    modified_at: datetime
    member: str | None


@dataclass(frozen=True)
class Sent:
    """What was last sent of a member of an audience to the destination; `acknowledged` whether it said that it arrived."""

    audience: str
    customer_key: str
    member: str
    version: int
    action: Action
    modified_at: datetime
    acknowledged: bool


@dataclass(frozen=True)
class Delivery:
    """One message of an export."""

    audience: str
    version: int
    member: str
    action: Action
    modified_at: datetime
    customer_key: str

    @property
    def idempotency_key(self) -> str:
        """Audience, version, member and action: the same message has the same key however often it is sent, and no other has it."""
        return f"{self.audience}/{self.version}/{self.member}/{self.action}"

    def payload(self) -> dict[str, str | int]:
        """What the receiver is told."""
        return {
            "idempotency_key": self.idempotency_key,
            "audience": self.audience,
            "version": self.version,
            "member": self.member,
            "action": self.action.value,
            "modified_at": self.modified_at.isoformat(),
        }


def due(standings: Iterable[Standing], sent: Iterable[Sent]) -> list[Delivery]:
    """Messages that bring the destination to where the audiences are: leaves first, then joins, each in the order of name and member.

    Args:
        standings: one per audience and customer.
        sent: the last message per audience, customer and member.
    """
    told: dict[tuple[str, str], list[Sent]] = {}
    for message in sent:
        told.setdefault((message.audience, message.customer_key), []).append(message)
    found: list[Delivery] = []
    for standing in standings:
        found += _due_of(standing, {m.member: m for m in told.get((standing.audience, standing.customer_key), ())})
    return sorted(found, key=lambda d: (d.action is Action.JOIN, d.audience, d.member, d.version))


def _due_of(standing: Standing, told: Mapping[str, Sent]) -> list[Delivery]:
    messages = []
    for member, last in told.items():
        if member == standing.member:
            continue
        if last.action is Action.JOIN:
            messages.append(_message(standing, member, Action.LEAVE))
        elif not last.acknowledged:
            messages.append(_again(last))
    if standing.member is not None:
        last_of_member = told.get(standing.member)
        if last_of_member is None or last_of_member.action is Action.LEAVE:
            messages.append(_message(standing, standing.member, Action.JOIN))
        elif not last_of_member.acknowledged:
            messages.append(_again(last_of_member))
    return messages


def _message(standing: Standing, member: str, action: Action) -> Delivery:
    return Delivery(standing.audience, standing.version, member, action, standing.modified_at, standing.customer_key)


def _again(sent: Sent) -> Delivery:
    return Delivery(sent.audience, sent.version, sent.member, sent.action, sent.modified_at, sent.customer_key)

"""Faults ordered in stated shares: resent records, and broken ones beside the good.

A defect is always an additional record: the good ones arrive all the same, so the truth of a run does not depend on its
defects. Resent and conflicting records follow their original by up to a few hundred records.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, fields, replace
from itertools import accumulate
from random import Random

import orjson

from crm_resources.contracts.entities import SCHEMA_VERSION
from crm_resources.contracts.model import MAX_MESSAGE_BYTES
from generator.encode import wire_time
from generator.ids import uuid7
from generator.records import Defect, Outgoing

_TEN_YEARS_US = 3_653 * 86_400 * 1_000_000
# Far enough that a history that began months or years ago still lands in the future.
_DELAY_RECORDS = 300


@dataclass(frozen=True)
class DefectShares:
    """Share of the records that gets an additional faulty one, by kind of fault; each between 0 and 1, together at most 1."""

    duplicate: float = 0.0
    conflicting_duplicate: float = 0.0
    corrupt_json: float = 0.0
    bad_utf8: float = 0.0
    null_value: float = 0.0
    oversized: float = 0.0
    unknown_version: float = 0.0
    far_future: float = 0.0

    def __post_init__(self) -> None:
        for field in fields(self):
            share = getattr(self, field.name)
            if not 0 <= share <= 1:
                raise ValueError(f"the share of {field.name} must lie between 0 and 1, not {share}")
        if sum(getattr(self, f.name) for f in fields(self)) > 1:
            raise ValueError("the shares of all defects together must not exceed 1")

    @classmethod
    def usual(cls, duplicates: float = 0.01, broken: float = 0.002) -> DefectShares:
        """A share of resent records, and a share of broken ones spread over all kinds.

        Args:
            duplicates: share of records sent again with the same bytes.
            broken: share of records that end as dead letters.
        """
        return cls(
            duplicate=duplicates,
            conflicting_duplicate=broken * 0.2,
            corrupt_json=broken * 0.25,
            bad_utf8=broken * 0.15,
            null_value=broken * 0.1,
            oversized=broken * 0.02,
            unknown_version=broken * 0.15,
            far_future=broken * 0.13,
        )


def with_defects(records: Iterable[Outgoing], shares: DefectShares, random: Random) -> Iterator[Outgoing]:
    """The records, each as it is, with the ordered defects among them.

    Args:
        records: good records.
        shares: how many defects of each kind.
        random: seeded source; the same seed gives the same defects.
    """
    kinds = [Defect(f.name) for f in fields(shares)]
    bounds = list(accumulate(getattr(shares, f.name) for f in fields(shares)))
    waiting: list[tuple[int, int, Outgoing]] = []
    for index, record in enumerate(records):
        yield record
        drawn = random.random()
        if drawn < bounds[-1]:
            kind = next(k for k, bound in zip(kinds, bounds, strict=True) if drawn < bound)
            heapq.heappush(waiting, (index + random.randrange(1, _DELAY_RECORDS), index, spoil(record, kind, random)))
        while waiting and waiting[0][0] <= index:
            yield heapq.heappop(waiting)[2]
    while waiting:
        yield heapq.heappop(waiting)[2]


def spoil(record: Outgoing, defect: Defect, random: Random) -> Outgoing:
    """The faulty companion of a good record.

    Resent and conflicting records keep the event id, all others get one of their own.
    """
    if defect is Defect.DUPLICATE:
        return replace(record, defect=defect)
    message = orjson.loads(record.value or b"{}")
    if defect is Defect.CONFLICTING_DUPLICATE:
        message["source"] = f"{message['source']}-changed"
        return replace(record, value=orjson.dumps(message), defect=defect)
    event_id = uuid7(record.event_us // 1000, random)
    message["event_id"] = event_id
    value: bytes | None
    event_us = record.event_us
    match defect:
        case Defect.CORRUPT_JSON:
            whole = orjson.dumps(message)
            value = whole[: random.randrange(1, len(whole) - 1)]
        case Defect.BAD_UTF8:
            value = orjson.dumps(message).replace(b'"source":"', b'"source":"\xff\xfe\x80', 1)
        case Defect.NULL_VALUE:
            value = None
        case Defect.OVERSIZED:
            value = orjson.dumps(message | {"source": "x" * (MAX_MESSAGE_BYTES + 1)})
        case Defect.UNKNOWN_VERSION:
            value = orjson.dumps(message | {"schema_version": SCHEMA_VERSION + 98})
        case Defect.FAR_FUTURE:
            event_us = record.event_us + _TEN_YEARS_US
            message["event_id"] = event_id = uuid7(event_us // 1000, random)
            value = orjson.dumps(message | {"event_time": wire_time(event_us)})
    return replace(record, value=value, event_id=event_id, event_us=event_us, amount=None, defect=defect)

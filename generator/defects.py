"""Faults ordered in stated shares: broken and resent records beside the good, and browsing events that are odd but true.

Most defects are additional records: the good ones arrive all the same, so the truth of a run does not depend on its faults.
Late, out of order, clock skew, DST and unknown reference change a browsing event itself, which carries no money; nothing is
added and nothing is lost. What each defect means and where its record should end: `crm_resources.ordered_defects`.
"""

from __future__ import annotations

import heapq
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime, timedelta
from functools import cached_property
from itertools import accumulate
from random import Random
from zoneinfo import ZoneInfo

import orjson

from crm_resources.contracts.entities import SCHEMA_VERSION
from crm_resources.contracts.model import MAX_MESSAGE_BYTES
from generator.encode import wire_time
from generator.ids import uuid7
from generator.records import Defect, Outgoing

_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_SECOND = 1_000_000
_HOUR = 3_600 * _SECOND
# Far enough that a history that began months or years ago still lands in the future.
_TEN_YEARS_US = 3_653 * 86_400 * _SECOND
_DELAY_RECORDS = 300
_NESTING = 10_000
_DST_ZONE = ZoneInfo("Europe/London")
_MONEY_FIELD = {"order": b'"amount":"', "product": b'"price":"'}
_UNKNOWN_PRODUCT = "P-UNKNOWN"


@dataclass(frozen=True)
class LateDelays:
    """How long late records are under way: log-normal with this median in seconds, cut at `at_most_seconds`."""

    median_seconds: float = 600
    at_most_seconds: float = 86_400
    spread: float = 1.5

    def draw_us(self, random: Random) -> int:
        """One delay in microseconds, at least a second."""
        seconds = self.median_seconds * random.lognormvariate(0, self.spread)
        return round(max(1.0, min(seconds, self.at_most_seconds)) * _SECOND)


@dataclass(frozen=True)
class DefectShares:
    """Share of the good records that a defect is ordered for, by kind; each between 0 and 1, together at most 1."""

    duplicate: float = 0.0
    conflicting_duplicate: float = 0.0
    corrupt_json: float = 0.0
    bad_utf8: float = 0.0
    null_value: float = 0.0
    oversized: float = 0.0
    unknown_version: float = 0.0
    far_future: float = 0.0
    late: float = 0.0
    out_of_order: float = 0.0
    unknown_reference: float = 0.0
    unknown_entity: float = 0.0
    clock_skew: float = 0.0
    dst: float = 0.0
    deep_nesting: float = 0.0
    nan_amount: float = 0.0
    late_delays: LateDelays = field(default_factory=LateDelays)

    def __post_init__(self) -> None:
        for name, share in self.by_name.items():
            if not 0 <= share <= 1:
                raise ValueError(f"the share of {name} must lie between 0 and 1, not {share}")
        if sum(self.by_name.values()) > 1:
            raise ValueError("the shares of all defects together must not exceed 1")

    @cached_property
    def by_name(self) -> dict[str, float]:
        """Each kind's share."""
        return {f.name: getattr(self, f.name) for f in fields(self) if f.name != "late_delays"}

    @cached_property
    def bounds(self) -> tuple[tuple[float, Defect], ...]:
        """The kinds with a share, each with the sum of shares up to its own: a number drawn below it means the kind."""
        wanted = [(Defect(name), share) for name, share in self.by_name.items() if share > 0]
        return tuple(zip(accumulate(share for _, share in wanted), (kind for kind, _ in wanted), strict=True))

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


class Faults:
    """Brings the ordered defects into a stream of good records; the same seed and records give the same faults.

    Resent and broken records follow their original by up to a few hundred records.

    Args:
        random: seeded source.
    """

    def __init__(self, random: Random) -> None:
        self._random = random
        self._index = 0
        self._waiting: list[tuple[int, int, Outgoing]] = []
        self._owed: Counter[Defect] = Counter()
        self._held: dict[tuple[str, bytes], int] = {}
        self._released: set[int] = set()

    def due(self) -> Outgoing | None:
        """A faulty or held-back record whose turn it is; None when the next good one is to leave."""
        while self._waiting and self._waiting[0][0] <= self._index:
            _, number, record = heapq.heappop(self._waiting)
            if number in self._released:
                self._released.discard(number)
                continue
            if self._held.get((record.plural, record.key)) == number:
                del self._held[record.plural, record.key]
            return record
        return None

    def left(self) -> Iterator[Outgoing]:
        """What is still waiting at the end."""
        self._index += _DELAY_RECORDS
        while (record := self.due()) is not None:
            yield record

    def pass_on(self, record: Outgoing, shares: DefectShares) -> Outgoing | None:
        """The good record as it is to leave now, perhaps changed; None when it is held back.

        Args:
            record: a good record.
            shares: what is ordered for it.
        """
        self._index += 1
        leaving = self._ordered(record, self._kind_for(record, shares), shares)
        if self._held and leaving is not None:
            self._release(record)
        return leaving

    def _kind_for(self, record: Outgoing, shares: DefectShares) -> Defect | None:
        """The defect drawn for the record, or one drawn earlier for a record that it did not suit."""
        bounds = shares.bounds
        kind: Defect | None = None
        if bounds:
            drawn = self._random.random()
            if drawn < bounds[-1][0]:
                kind = next(k for bound, k in bounds if drawn < bound)
        if kind is not None and not suits(record, kind):
            self._owed[kind] += 1  # the next record that suits gets it, so that the share is kept
            kind = None
        if kind is None and self._owed:
            kind = next((k for k, count in self._owed.items() if count and suits(record, k)), None)
            if kind is not None:
                self._owed[kind] -= 1
        return kind

    def _ordered(self, record: Outgoing, kind: Defect | None, shares: DefectShares) -> Outgoing | None:
        if kind is None:
            return record
        if not kind.additional and kind is not Defect.OUT_OF_ORDER:
            return spoil(record, kind, self._random, shares.late_delays)
        place = self._index + self._random.randrange(1, _DELAY_RECORDS)
        heapq.heappush(self._waiting, (place, self._index, spoil(record, kind, self._random)))
        if kind is Defect.OUT_OF_ORDER:
            self._held[record.plural, record.key] = self._index
            return None
        return record

    def _release(self, record: Outgoing) -> None:
        """Let a held-back record go once a later one of its key has left."""
        number = self._held.pop((record.plural, record.key), None)
        if number is None:
            return
        held = next((r for _, n, r in self._waiting if n == number), None)
        if held is not None:
            self._released.add(number)
            # Another number: the entry that stays in the heap is passed over when its turn comes.
            heapq.heappush(self._waiting, (self._index, -number, held))


def with_defects(records: Iterable[Outgoing], shares: DefectShares, random: Random) -> Iterator[Outgoing]:
    """The records with the ordered defects among them.

    Args:
        records: good records.
        shares: how many defects of each kind.
        random: seeded source; the same seed gives the same defects.
    """
    faults = Faults(random)
    for record in records:
        leaving = faults.pass_on(record, shares)
        if leaving is not None:
            yield leaving
        while (faulty := faults.due()) is not None:
            yield faulty
    yield from faults.left()


def suits(record: Outgoing, defect: Defect) -> bool:
    """Whether a defect can be put into a record: money needs an amount, what changes a record itself needs a browsing event."""
    value = record.value
    if value is None:
        return defect.additional and defect is not Defect.NAN_AMOUNT
    if defect is Defect.NAN_AMOUNT:
        return record.entity in _MONEY_FIELD
    if defect.additional:
        return True
    if record.entity != "event" or not any(kind in value for kind in _BROWSING):
        return False
    return defect is not Defect.UNKNOWN_REFERENCE or b'"product_id":"' in value


_BROWSING = (b'"event_type":"view"', b'"event_type":"click"', b'"event_type":"search"')


def spoil(record: Outgoing, defect: Defect, random: Random, delays: LateDelays | None = None) -> Outgoing:
    """The faulty companion of a good record, or the good record changed, as the defect says.

    Resent, conflicting and held-back records, and those with an unknown reference, keep the event id; all others get one of their own.

    Args:
        record: a good record that suits the defect.
        defect: what is ordered.
        random: seeded source.
        delays: how late a late record is.
    """
    if defect in (Defect.DUPLICATE, Defect.OUT_OF_ORDER):
        return replace(record, defect=defect)
    message = orjson.loads(record.value or b"{}")
    if defect is Defect.CONFLICTING_DUPLICATE:
        message["source"] = f"{message['source']}-changed"
        return replace(record, value=orjson.dumps(message), defect=defect)
    if defect is Defect.UNKNOWN_REFERENCE:
        message["product_id"] = _UNKNOWN_PRODUCT
        return replace(record, value=orjson.dumps(message), defect=defect)
    event_us = record.event_us + _shift_us(record.event_us, defect, random, delays or LateDelays())
    message["event_id"] = event_id = uuid7(event_us // 1000, random)
    message["event_time"] = wire_time(event_us)
    amount = None if defect.additional else record.amount
    return replace(
        record,
        value=_broken_bytes(message, record.entity, defect, random),
        event_id=event_id,
        event_us=event_us,
        amount=amount,
        defect=defect,
    )


def _broken_bytes(message: dict[str, object], entity: str, defect: Defect, random: Random) -> bytes | None:
    whole = orjson.dumps(message)
    match defect:
        case Defect.CORRUPT_JSON:
            return whole[: random.randrange(1, len(whole) - 1)]
        case Defect.BAD_UTF8:
            return whole.replace(b'"source":"', b'"source":"\xff\xfe\x80', 1)
        case Defect.NULL_VALUE:
            return None
        case Defect.OVERSIZED:
            return orjson.dumps(message | {"source": "x" * (MAX_MESSAGE_BYTES + 1)})
        case Defect.UNKNOWN_VERSION:
            return orjson.dumps(message | {"schema_version": SCHEMA_VERSION + 98})
        case Defect.UNKNOWN_ENTITY:
            return orjson.dumps(message | {"entity": "basket"})
        case Defect.DEEP_NESTING:
            return whole[:-1] + b',"nested":' + b"[" * _NESTING + b"]" * _NESTING + b"}"
        case Defect.NAN_AMOUNT:
            head, field_name, tail = whole.rpartition(_MONEY_FIELD[entity])
            return head + field_name + b"NaN" + tail[tail.index(b'"') :]
        case _:
            return whole


def _shift_us(event_us: int, defect: Defect, random: Random, delays: LateDelays) -> int:
    """By how much the defect moves the event time, in microseconds."""
    match defect:
        case Defect.LATE:
            return -delays.draw_us(random)
        case Defect.FAR_FUTURE:
            return _TEN_YEARS_US
        case Defect.CLOCK_SKEW:
            return random.choice((-1, 1)) * random.randrange(_SECOND, _HOUR)
        case Defect.DST:
            # Summer time read as winter time lands an hour ahead, winter time read as summer time an hour behind.
            summer = (_EPOCH + timedelta(microseconds=event_us)).astimezone(_DST_ZONE).dst()
            return _HOUR if summer else -_HOUR
        case _:
            return 0

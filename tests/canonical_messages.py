"""Messages of any contract with every value the typed checksum has to agree about, as hypothesis strategies."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from typing import Any

from hypothesis import strategies as st

from crm_resources.contracts import Column, ColumnType, Contract

TEXTS = st.one_of(
    st.sampled_from(["", "~", ",", "a,b", "1:x", "[;]", "é", "e\u0301", "😀", "line\nfeed", "\x1f", "C0001", " ", "null"]),
    # PostgreSQL cannot store NUL and UTF-8 no lone surrogate; the stream refuses both.
    st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=12),
)
ZONES = st.sampled_from([timezone.utc, timezone(timedelta(hours=1)), timezone(timedelta(hours=-5, minutes=-30))])  # noqa: UP017 -- beside other zones


def messages(contract: Contract) -> st.SearchStrategy[dict[str, Any]]:
    """Messages on the wire; nullable fields are absent, null or set."""
    return _fields(contract.columns)


def typed(columns: Iterable[Column], message: Mapping[str, Any]) -> dict[str, Any]:
    """The same message with silver's types: decimals, times in UTC, absent fields as null."""
    return {c.name: _typed(c, message.get(c.name)) for c in columns}


def _fields(columns: Iterable[Column]) -> st.SearchStrategy[dict[str, Any]]:
    required = {c.name: _values(c) for c in columns if not c.nullable}
    optional = {c.name: st.none() | _values(c) for c in columns if c.nullable}
    return st.fixed_dictionaries(required, optional=optional)


def _values(column: Column) -> st.SearchStrategy[Any]:
    match column.type:
        case ColumnType.STRING:
            if column.allowed:
                return st.sampled_from(column.allowed)
            return st.uuids().map(str) if column.name == "event_id" else TEXTS
        case ColumnType.INT:
            return st.integers(max(column.minimum or -(2**31), -(2**31)), 2**31 - 1)
        case ColumnType.LONG:
            return st.integers(max(column.minimum or -(2**63), -(2**63)), 2**63 - 1)
        case ColumnType.BOOLEAN:
            return st.booleans()
        case ColumnType.DECIMAL:
            return _money(column)
        case ColumnType.TIMESTAMP:
            return st.datetimes(datetime(1, 1, 3), datetime(9999, 12, 28), timezones=ZONES).flatmap(_spellings)  # noqa: DTZ001 -- zones given
        case ColumnType.LIST:
            return st.lists(_fields(column.items), max_size=4, unique_by=lambda item: item[column.items[0].name])
        case _:
            raise TypeError(column.type)


def _money(column: Column) -> st.SearchStrategy[str]:
    precision, scale = column.precision or 18, column.scale or 4
    unscaled = st.integers(-(10**precision) + 1, 10**precision - 1) | st.integers(-20_000, 20_000)
    plain = unscaled.map(lambda n: f"{Decimal(n).scaleb(-scale):f}")
    return plain | st.sampled_from(["0", "-0", "-0.0000", "+1.0", "1.50", "007.1", ".5", "5.", "-0.0001"])


def _spellings(moment: datetime) -> st.SearchStrategy[str]:
    short = moment.replace(microsecond=0).isoformat()
    return st.sampled_from(
        [
            moment.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z",
            moment.isoformat(timespec="microseconds"),
            short,
            short[:19] + ".5" + short[19:],
        ]
    )


def _typed(column: Column, value: Any) -> Any:
    if value is None:
        return None
    if column.type is ColumnType.DECIMAL:
        return Decimal(value)
    if column.type is ColumnType.TIMESTAMP:
        return datetime.fromisoformat(value).astimezone(UTC)
    if column.type is ColumnType.LIST:
        return [typed(column.items, item) for item in value]
    return value

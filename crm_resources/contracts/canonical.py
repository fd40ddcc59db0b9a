"""Contract → canonical text of a message, three times: from the message itself, from the columns of silver, and in SQL over raw.

The md5 of the text is the typed checksum: what the generator meant, what the lake keeps and what the warehouse holds can be
compared although the bytes are spelled differently. Belongs here: the text and its digest. Not here: who compares them
(`crm_assets.monitoring.audit`).

The text is the contract's fields in contract order, joined by commas; no two messages share a text:

- null is `~`;
- a string is its length in characters, a colon and itself: `5:hello`, and `0:` when it is empty;
- a whole number is its digits, a boolean `true` or `false`;
- money has exactly the digits of its scale after the point, and no sign when it is zero: `0.0000`;
- a time is UTC with six fractional digits: `2011-12-09T12:50:00.000000Z`;
- a field that was added to the contract later (`Column.since`) stands behind all others as a comma, its name, `=` and its value, and
  leaves no trace where it is null: the text of a message is the same before and after the contract grew;
- a list is the number of its items and, in brackets, the items in the order of their key (the line number), joined by semicolons,
  each written by the same rules: `2[1,2:P1,~,3,1.5000,~,~;2,…]`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from decimal import Decimal
from functools import cache, lru_cache
from operator import itemgetter
from typing import TYPE_CHECKING, Any, NamedTuple

from crm_resources.contracts.derive_postgres import RAW_SCHEMA
from crm_resources.contracts.entities import SCHEMA_VERSION, Envelope
from crm_resources.contracts.model import ChildTable, Column, ColumnType, Contract, contract_for, known_fields

if TYPE_CHECKING:
    import pyarrow as pa

NULL = "~"
_UTC_TEXT_LENGTH = len("2011-12-09T12:50:00.000000Z")
_MOST_ITEMS = 250_000
"""List items that are turned into text at once, so that orders of many lines do not add up."""

Message = Mapping[str, Any]


# -- from the message ------------------------------------------------------------------------------------------------------


def message_text(entity: str, message: Message) -> str:
    """Canonical text of a message as it is sent: JSON values, with money and times as strings; fields that are absent are null.

    Args:
        entity: contract the message follows.
        message: its fields; what the contract in the message's schema version does not know is ignored.

    Raises:
        ValueError, TypeError, ArithmeticError: the message does not follow the contract.
    """
    return _text(_of_its_version(entity, message), _writers(entity))


def message_tokens(entity: str, message: Message) -> dict[str, str]:
    """Canonical text of each field of a message; see `message_text`."""
    known = _of_its_version(entity, message)
    return {name: _token(known.get(name), write) for name, write in _writers(entity).every}


def own_text(entity: str, fields: Message) -> str:
    """The part of a message's canonical text that follows the envelope.

    After the texts of the envelope's fields and a comma it completes `message_text`; a producer that knows the envelope saves most
    of the work.

    Args:
        entity: contract the message follows.
        fields: the entity's own fields, as in `message_text`.

    Raises:
        ValueError, TypeError, ArithmeticError: the fields do not follow the contract.
    """
    return _text(fields, _own_writers(entity))


def string_text(value: str) -> str:
    """Canonical text of a string."""
    return f"{len(value)}:{value}"


def message_digest(entity: str, message: Message) -> bytes:
    """Typed checksum of a message, 16 bytes; see `message_text`."""
    return hashlib.md5(message_text(entity, message).encode(), usedforsecurity=False).digest()


_Writer = Callable[[Any], str]
"""Text of a value that is not null."""


class _Writers(NamedTuple):
    """How the fields of a message or an item are written, those of the first schema version and those that came later."""

    first: list[tuple[str, _Writer | None]]
    later: list[tuple[str, _Writer | None]]

    @property
    def every(self) -> list[tuple[str, _Writer | None]]:
        return [*self.first, *self.later]


def _writers_of(columns: Iterable[Column]) -> _Writers:
    made = [(c, (c.name, _writer(c))) for c in columns]
    return _Writers([w for c, w in made if not c.is_later], [w for c, w in made if c.is_later])


@cache
def _writers(entity: str) -> _Writers:
    return _writers_of(contract_for(entity).columns)


@cache
def _own_writers(entity: str) -> _Writers:
    return _writers_of(c for c in contract_for(entity).columns if c.name not in Envelope.model_fields)


def _of_its_version(entity: str, message: Message) -> Message:
    """The message without fields that came after the schema version it follows."""
    version = message.get("schema_version", SCHEMA_VERSION)
    return message if version >= SCHEMA_VERSION else known_fields(contract_for(entity).columns, message, version)


def _writer(column: Column) -> _Writer | None:
    """How values of a column are written; None for strings."""
    match column.type:
        case ColumnType.STRING:
            return None
        case ColumnType.INT | ColumnType.LONG:
            return str
        case ColumnType.BOOLEAN:
            return lambda value: "true" if value else "false"
        case ColumnType.TIMESTAMP:
            return _time
        case ColumnType.DECIMAL:
            scale = column.scale or 0
            return lambda value: _money(value, scale)
        case ColumnType.LIST:
            return _list_writer(column)
        case _:
            raise TypeError(f"{column.name}: {column.type} has no canonical text")


def _time(value: str | datetime) -> str:
    if isinstance(value, str):
        if len(value) == _UTC_TEXT_LENGTH and value[-1] == "Z":
            return value
        value = datetime.fromisoformat(value)
    return value.astimezone(UTC).replace(tzinfo=None).isoformat(timespec="microseconds") + "Z"


@lru_cache(maxsize=65_536)
def _money(value: str | Decimal, scale: int) -> str:
    # Adding zero takes the sign from a negative zero.
    return f"{Decimal(value) + 0:.{scale}f}"


def _list_writer(column: Column) -> _Writer:
    key = column.items[0].name
    fields = _writers_of(column.items)

    def write(items: list[Message]) -> str:
        keys = [item[key] for item in items]
        if keys != sorted(keys):
            items = sorted(items, key=itemgetter(key))
        return f"{len(items)}[{';'.join([_text(item, fields) for item in items])}]"

    return write


def _text(message: Message, fields: _Writers) -> str:
    get = message.get
    # Strings, which most fields are, are written here: a call for each would take as long as all the rest.
    text = ",".join(
        [
            NULL if (value := get(name)) is None else f"{len(value)}:{value}" if write is None else write(value)
            for name, write in fields.first
        ]
    )
    for name, write in fields.later:
        if (value := get(name)) is not None:
            text += f",{name}={_token(value, write)}"
    return text


def _token(value: Any, write: _Writer | None) -> str:  # noqa: ANN401 -- a JSON value
    return NULL if value is None else string_text(value) if write is None else write(value)


# -- from the columns of silver --------------------------------------------------------------------------------------------


def column_texts(contract: Contract, rows: pa.RecordBatch) -> list[str]:
    """Canonical text of each row.

    Args:
        contract: what the rows are.
        rows: the contract's columns in its Arrow types (`derive_arrow`); other columns are ignored.
    """
    return [text.decode() for part in _parts(contract, rows) for text in part]


def column_digests(contract: Contract, rows: pa.RecordBatch) -> bytes:
    """Typed checksums of the rows, 16 bytes each, one after the other; see `column_texts`."""
    md5 = hashlib.md5
    return b"".join([md5(text, usedforsecurity=False).digest() for part in _parts(contract, rows) for text in part])


def column_tokens(contract: Contract, rows: pa.RecordBatch) -> list[dict[str, str]]:
    """Canonical text of each field of each row; for few rows, since it is slow."""
    columns = {c.name: [NULL if v is None else v for v in _tokens(rows.column(c.name), c).to_pylist()] for c in contract.columns}
    return [{name: values[place] for name, values in columns.items()} for place in range(rows.num_rows)]


def _parts(contract: Contract, rows: pa.RecordBatch) -> Iterable[list[bytes]]:
    """Texts of the rows in pieces of bearable size."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if rows.num_rows > 1:
        items = sum(pc.sum(pc.list_value_length(rows.column(c.field))).as_py() or 0 for c in contract.children)
        if items > _MOST_ITEMS:
            half = rows.num_rows // 2
            yield from _parts(contract, rows.slice(0, half))
            yield from _parts(contract, rows.slice(half))
            return
    yield _joined(contract.columns, lambda c: rows.column(c.name)).cast(pa.binary()).to_pylist()


def _joined(columns: Iterable[Column], values: Callable[[Column], pa.Array]) -> pa.Array:
    """Text of each row made of some columns, whose values a function gives."""
    import pyarrow.compute as pc

    columns = tuple(columns)
    first = [_tokens(values(c), c) for c in columns if not c.is_later]
    text = pc.binary_join_element_wise(*first, ",", null_handling="replace", null_replacement=NULL)
    for column in columns:
        if column.is_later:
            named = pc.binary_join_element_wise(f",{column.name}=", _tokens(values(column), column), "")
            text = pc.binary_join_element_wise(text, pc.coalesce(named, ""), "")
    return text


def _tokens(values: pa.Array, column: Column) -> pa.Array:
    """Text of each value; null stays null."""
    import pyarrow as pa
    import pyarrow.compute as pc

    match column.type:
        case ColumnType.STRING:
            return pc.binary_join_element_wise(pc.utf8_length(values).cast(pa.string()), values, ":")
        case ColumnType.TIMESTAMP:
            # Without a zone Arrow writes the digits alone; the values are UTC.
            text = values.cast(pa.int64()).cast(pa.timestamp("us")).cast(pa.string())
            return pc.binary_join_element_wise(pc.binary_replace_slice(text, 10, 11, "T"), "Z", "")
        case ColumnType.LIST:
            return _list_tokens(values, column)
        case ColumnType.INT | ColumnType.LONG | ColumnType.BOOLEAN | ColumnType.DECIMAL:
            return values.cast(pa.string())
        case _:
            raise TypeError(f"{column.name}: {column.type} has no canonical text")


def _list_tokens(lists: pa.Array, column: Column) -> pa.Array:
    import numpy as np
    import pyarrow as pa
    import pyarrow.compute as pc

    items, parents = pc.list_flatten(lists), pc.list_parent_indices(lists).to_numpy()
    texts = _joined(column.items, lambda c: pc.struct_field(items, [c.name]))
    keys = pc.struct_field(items, [column.items[0].name]).to_numpy(zero_copy_only=False)
    if ((parents[1:] == parents[:-1]) & (keys[1:] < keys[:-1])).any():
        texts = texts.take(pa.array(np.lexsort((keys, parents))))
    lengths = pc.fill_null(pc.list_value_length(lists), 0).to_numpy()
    offsets = pa.array(np.concatenate(([0], np.cumsum(lengths))), pa.int32())
    joined = pc.binary_join(pa.ListArray.from_arrays(offsets, texts), ";")
    return pc.binary_join_element_wise(pa.array(lengths).cast(pa.string()), "[", joined, "]", "")


# -- in the warehouse ------------------------------------------------------------------------------------------------------


def digest_sql(contract: Contract, columns: Iterable[str]) -> str:
    """Query over an entity's raw table `r`: the given expressions, and the typed checksum of each row.

    Args:
        contract: the entity.
        columns: what is wanted beside it, e.g. `r.event_id` or `r.amount::text as amount`.

    Returns:
        A `select` whose last columns are `typed_high` and `typed_low`: the halves of the md5 as signed 64-bit numbers, which
        are the unsigned ones modulo 2^64.
    """
    wanted = "".join(f"{column}, " for column in columns)
    digest = f"cross join lateral (select md5(convert_to({text_sql(contract)}, 'UTF8')) as digest) as typed"
    return (
        f"select {wanted}('x' || left(digest, 16))::bit(64)::bigint as typed_high, "  # noqa: S608 -- names come from the contracts
        f"('x' || right(digest, 16))::bit(64)::bigint as typed_low from {RAW_SCHEMA}.{contract.plural} as r{_joins_sql(contract)} {digest}"
    )


def token_sql(contract: Contract, where: str) -> str:
    """Query over an entity's raw table `r`: `event_id`, and the canonical text of each field as `field_<name>`.

    Args:
        contract: the entity.
        where: condition on `r`.
    """
    fields = ", ".join(f"coalesce({_field_sql(c)}, '{NULL}') as field_{c.name}" for c in contract.columns)
    return f"select r.event_id, {fields} from {RAW_SCHEMA}.{contract.plural} as r{_joins_sql(contract)} where {where}"  # noqa: S608 -- as above


def text_sql(contract: Contract) -> str:
    """SQL expression of the canonical text of a row `r` of the raw table, its list columns joined as `of_<field>`."""
    return _joined_sql(contract.columns, _field_sql)


def _joined_sql(columns: Iterable[Column], value: Callable[[Column], str]) -> str:
    """Text made of some columns, whose values' texts a function spells in SQL; null stays null there."""
    columns = tuple(columns)
    first = " || ',' || ".join(f"coalesce({value(c)}, '{NULL}')" for c in columns if not c.is_later)
    return first + "".join(f" || coalesce(',{c.name}=' || {value(c)}, '')" for c in columns if c.is_later)


def _field_sql(column: Column) -> str:
    # Raw keeps no row for an empty list, and a list is never null.
    return f"coalesce(of_{column.name}.items, '0[]')" if column.type is ColumnType.LIST else _value_sql(f"r.{column.name}", column)


def _joins_sql(contract: Contract) -> str:
    return "".join(
        f" left join ({_items_sql(child)}) as of_{child.field} on of_{child.field}.event_id = r.event_id" for child in contract.children
    )


def _items_sql(child: ChildTable) -> str:
    item = _joined_sql(child.columns, lambda c: _value_sql(c.name, c))
    return (
        f"select event_id, count(*)::text || '[' || string_agg({item}, ';' order by {child.key}) || ']' as items "  # noqa: S608 -- as above
        f"from {RAW_SCHEMA}.{child.name} group by event_id"
    )


def _value_sql(name: str, column: Column) -> str:
    match column.type:
        case ColumnType.STRING:
            return f"length({name})::text || ':' || {name}"
        case ColumnType.TIMESTAMP:
            return f"to_char({name} at time zone 'UTC', 'YYYY-MM-DD\"T\"HH24:MI:SS.US\"Z\"')"
        case ColumnType.DECIMAL:
            return f"cast({name} as numeric({column.precision},{column.scale}))::text"
        case ColumnType.INT | ColumnType.LONG | ColumnType.BOOLEAN:
            return f"{name}::text"
        case _:
            raise TypeError(f"{column.name}: {column.type} has no canonical text")

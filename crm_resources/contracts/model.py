"""Reads the pydantic declarations into plain column descriptions that every derivation works from."""

from __future__ import annotations

import types
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from decimal import Decimal
from enum import StrEnum
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import AwareDatetime, BaseModel

from crm_resources.contracts.entities import ENTITIES, Envelope, since


class ColumnType(StrEnum):
    """Logical types of contract columns; each derivation maps these and nothing else. `DATE` and `BINARY` are in no contract."""

    STRING = "string"
    INT = "int"
    LONG = "long"
    BOOLEAN = "boolean"
    DECIMAL = "decimal"
    TIMESTAMP = "timestamp"
    LIST = "list"
    DATE = "date"
    BINARY = "binary"


@dataclass(frozen=True)
class Column:
    """One field of a contract, free of pydantic.

    `minimum`/`maximum` bound integers, `min_length`/`max_length` strings and lists (characters, items),
    `precision`/`scale` decimals; `allowed` lists the permitted strings; `pattern` is a regular expression; `since` is the schema
    version that brought the field, `None` for a column that is in no contract.
    """

    name: str
    type: ColumnType
    nullable: bool
    description: str
    allowed: tuple[str, ...] | None = None
    minimum: int | None = None
    maximum: int | None = None
    min_length: int | None = None
    max_length: int | None = None
    pattern: str | None = None
    precision: int | None = None
    scale: int | None = None
    items: tuple[Column, ...] = ()
    since: int | None = None

    @property
    def is_later(self) -> bool:
        """Whether the field was added to a contract that was in use."""
        return self.since is not None and self.since > 1


@dataclass(frozen=True)
class ChildTable:
    """A list field as a table of its own: one row per item, keyed by the parent's `event_id` and the item's key."""

    name: str
    field: str
    key: str
    columns: tuple[Column, ...]


@dataclass(frozen=True)
class Contract:
    """Everything the platform needs to know of one entity.

    `plural` names its topic, silver table and warehouse table.
    """

    entity: str
    plural: str
    description: str
    model: type[Envelope]
    columns: tuple[Column, ...]

    @property
    def scalar_columns(self) -> tuple[Column, ...]:
        """Columns that are not lists: those of the entity's own table in the warehouse."""
        return tuple(c for c in self.columns if c.type is not ColumnType.LIST)

    @property
    def children(self) -> tuple[ChildTable, ...]:
        """Child tables in the warehouse, one for each list field."""
        return tuple(
            ChildTable(f"{self.entity}_{c.name}", c.name, c.items[0].name, c.items) for c in self.columns if c.type is ColumnType.LIST
        )


MAX_MESSAGE_BYTES = 1024 * 1024
"""Largest message a contract accepts; topics take more, so that a larger one can be kept as a dead letter."""


@cache
def contracts() -> tuple[Contract, ...]:
    """All contracts, in the order event, order, product, profile."""
    return tuple(_contract(entity, model) for entity, model in ENTITIES.items())


def contract_for(name: str) -> Contract:
    """Contract by entity (`order`) or plural (`orders`).

    Raises:
        KeyError: no such entity.
    """
    for contract in contracts():
        if name in (contract.entity, contract.plural):
            return contract
    msg = f"no entity {name!r}; known: {', '.join(c.entity for c in contracts())}"
    raise KeyError(msg)


def known_fields(columns: tuple[Column, ...], fields: Mapping[str, Any], version: int) -> dict[str, Any]:
    """The fields of a message, or of an item of a list, that a schema version knows; the others are left out.

    Args:
        columns: of the contract, or of the list.
        fields: values by name.
        version: schema version the message follows.
    """
    return {
        c.name: [known_fields(c.items, item, version) for item in fields[c.name]] if c.items and fields[c.name] else fields[c.name]
        for c in columns
        if c.name in fields and (c.since or 1) <= version
    }


def version_needed(columns: tuple[Column, ...], fields: Mapping[str, Any]) -> int:
    """Lowest schema version that knows every field that is set.

    A record that does not say its version gets this one: what was sent before a field was added is sent again as the same bytes.

    Args:
        columns: of the contract, or of a list.
        fields: values by name; what the contract does not know, or cannot hold, does not count.
    """
    found = [1]
    for column in columns:
        value = fields.get(column.name)
        if value is not None:
            found.append(column.since or 1)
        if column.items and isinstance(value, list):
            found.extend(version_needed(column.items, item) for item in value if isinstance(item, Mapping))
    return max(found)


def _contract(entity: str, model: type[Envelope]) -> Contract:
    return Contract(
        entity=entity,
        plural=f"{entity}s",
        description=(model.__doc__ or "").strip(),
        model=model,
        columns=_columns(model),
    )


def _columns(model: type[BaseModel]) -> tuple[Column, ...]:
    return tuple(
        _dated(_column(name, field.annotation, list(field.metadata), field.description or ""), since(field))
        for name, field in model.model_fields.items()
    )


def _dated(column: Column, version: int) -> Column:
    """The column with the schema version that brought it."""
    if version > 1 and (not column.nullable or column.type is ColumnType.LIST):
        msg = (
            f"contract field {column.name!r} is added in version {version}: it must be `… | None`, and no list, for older messages lack it"
        )
        raise TypeError(msg)
    return replace(column, since=version)


def _column(name: str, annotation: Any, metadata: list[Any], description: str) -> Column:  # noqa: ANN401 -- a type expression
    nullable = False
    if get_origin(annotation) in (Union, types.UnionType):
        inner = [a for a in get_args(annotation) if a is not type(None)]
        nullable, annotation = True, inner[0]
    while get_origin(annotation) is Annotated:
        base, *extra = get_args(annotation)
        annotation, metadata = base, [*extra, *metadata]
    facts: dict[str, Any] = {}
    for item in _flatten(metadata):
        for source, target in _FACTS.items():
            if getattr(item, source, None) is not None:
                facts[target] = getattr(item, source)
    if get_origin(annotation) is Literal:
        return Column(name, ColumnType.STRING, nullable, description, allowed=tuple(get_args(annotation)))
    if get_origin(annotation) is list:
        (item_model,) = get_args(annotation)
        return Column(name, ColumnType.LIST, nullable, description, items=_columns(item_model), max_length=facts.get("max_length"))
    logical = _TYPES.get(annotation)
    if logical is None:
        msg = f"contract field {name!r} has a type no derivation knows: {annotation!r}"
        raise TypeError(msg)
    if logical is ColumnType.INT and facts.get("maximum", 2**63) > 2**31 - 1:
        logical = ColumnType.LONG
    return Column(name, logical, nullable, description, **facts)


_TYPES: dict[Any, ColumnType] = {
    str: ColumnType.STRING,
    int: ColumnType.INT,
    bool: ColumnType.BOOLEAN,
    Decimal: ColumnType.DECIMAL,
    datetime: ColumnType.TIMESTAMP,
    AwareDatetime: ColumnType.TIMESTAMP,
}

_FACTS = {
    "ge": "minimum",
    "le": "maximum",
    "min_length": "min_length",
    "max_length": "max_length",
    "pattern": "pattern",
    "max_digits": "precision",
    "decimal_places": "scale",
}


def _flatten(metadata: list[Any]) -> list[Any]:
    """Unfold nested `Field(...)` annotations into the single constraints they hold."""
    flat: list[Any] = []
    for item in metadata:
        nested = getattr(item, "metadata", None)
        flat.extend(_flatten(list(nested)) if nested else [item])
    return flat

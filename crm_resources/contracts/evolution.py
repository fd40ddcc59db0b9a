"""What may change when a contract or a declared table does, and what is refused because rows and producers stand on it.

Belongs here: the comparison of what is declared with what is stored or was published, as pure functions. Not here: reading the stored
side or changing it (`crm_resources.lake_tables`, `crm_resources.warehouse`, `derive_files`).

A nullable column may be added, a required one may become optional, and a field may accept more than it did. Everything else needs
another field beside the old one: to remove or rename a column, to change its type in any direction, to require what may be null, to
accept less.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from crm_resources.contracts.model import Column

NEW_FIELD = "keep the field as it is and add another one with `added_in`; docs/changing-a-contract.md shows how"


@dataclass(frozen=True)
class Refusal:
    """A change that is not made: where, why, and what to do instead."""

    table: str
    column: str
    reason: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.table}.{self.column}: {self.reason}; {self.remedy}"


class SchemaRefused(RuntimeError):
    """A declaration differs from what is stored or was published in a way that cannot be made good. Nothing was changed.

    Args:
        refusals: every difference that is refused, at least one.
    """

    def __init__(self, refusals: Iterable[Refusal]) -> None:
        self.refusals = tuple(refusals)
        super().__init__("; ".join(map(str, self.refusals)))


@dataclass(frozen=True)
class TableColumn:
    """A column of a table as one store spells it; fields of a list of structs have names such as `lines.quantity`.

    `nullable` is `None` where the store does not say; `since` is that of the declaration (`Column.since`), and means nothing of a
    stored column.
    """

    name: str
    type: str
    nullable: bool | None
    since: int | None = None


@dataclass(frozen=True)
class SchemaChanges:
    """How a stored table differs from its declaration: columns it lacks, columns that may be null from now on, and what is refused."""

    add: tuple[str, ...] = ()
    relax: tuple[str, ...] = ()
    refused: tuple[Refusal, ...] = ()


def declared_columns(columns: Iterable[Column], spell: Callable[[Column], str], prefix: str = "") -> list[TableColumn]:
    """Declared columns in a store's spelling, fields of lists included.

    Args:
        columns: the declaration.
        spell: name of a column's type in the store.
        prefix: what stands before each name.
    """
    found = []
    for column in columns:
        found.append(TableColumn(prefix + column.name, spell(column), column.nullable, column.since))
        found.extend(declared_columns(column.items, spell, f"{prefix}{column.name}."))
    return found


def compare_table(table: str, declared: Iterable[TableColumn], stored: Iterable[TableColumn]) -> SchemaChanges:
    """What has to happen so that a stored table follows its declaration.

    Args:
        table: its name, for the refusals.
        declared: columns as they should be.
        stored: columns as they are, in the same spelling; their order does not matter.
    """
    wanted, there = {c.name: c for c in declared}, {c.name: c for c in stored}
    refused = [
        Refusal(
            table,
            name,
            "is stored, but not declared: a column is neither removed nor renamed",
            "put it back into the declaration. If somebody added it to the table by hand, drop it there",
        )
        for name in there
        if name not in wanted
    ]
    add, relax = [], []
    for name, column in wanted.items():
        found = there.get(name)
        if found is None:
            refusal = _not_addable(table, column)
            if refusal is None:
                add.append(name)
            else:
                refused.append(refusal)
        elif found.type != column.type:
            refused.append(
                Refusal(table, name, f"is stored as {found.type} and declared as {column.type}: a type does not change", NEW_FIELD)
            )
        elif found.nullable is True and column.nullable is False:
            refused.append(
                Refusal(table, name, "may be null in the table and is declared as required: older rows have no value", NEW_FIELD)
            )
        elif found.nullable is False and column.nullable is True:
            relax.append(name)
    return SchemaChanges(tuple(add), tuple(relax), tuple(refused))


def _not_addable(table: str, column: TableColumn) -> Refusal | None:
    if not column.nullable:
        return Refusal(table, column.name, "is new and required: rows that are there have no value", "declare it as optional (`… | None`)")
    if column.since == 1:
        reason = "is new, and declared as if the first schema version had known it: checksums of older records would change"
        return Refusal(table, column.name, reason, "declare it with `added_in` and the next schema version")
    return None


# -- published contracts ---------------------------------------------------------------------------------------------------


def compare_published(entity: str, published: Mapping[str, Any], declared: Mapping[str, Any]) -> list[Refusal]:
    """Where a contract accepts less than its published JSON Schema promises to producers.

    Args:
        entity: its name, for the refusals.
        published: JSON Schema as pydantic writes it, the one producers know.
        declared: the same, from the contract as it is now.
    """
    before, now = dict(_fields(published, published)), dict(_fields(declared, declared))
    refused = []
    for name, old in before.items():
        new = now.get(name)
        if new is None:
            refused.append(Refusal(entity, name, "was published and is gone: a field is neither removed nor renamed", "put it back"))
        else:
            refused.extend(Refusal(entity, name, reason, NEW_FIELD) for reason in _narrowed(old, new))
    for name, new in now.items():
        if name not in before and new.required:
            refused.append(
                Refusal(entity, name, "is new and required: older messages lack it", "declare it as optional (`… | None`) with `added_in`")
            )
        elif name not in before and _SINCE not in new.facts and not _is_below_new(name, before):
            refused.append(
                Refusal(entity, name, "is new, and declared as if the first schema version had known it", "declare it with `added_in`")
            )
    return refused


@dataclass(frozen=True)
class _Field:
    """What a JSON Schema says of a field: whether it must be there, whether it may be null, and all else."""

    required: bool
    nullable: bool
    facts: Mapping[str, Any]


_SINCE = "since_schema_version"
_WORDS = {"title", "description", "default", "examples"}
_UPPER, _LOWER = ("maximum", "maxLength", "maxItems"), ("minimum", "minLength", "minItems")


def _fields(schema: Mapping[str, Any], root: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, _Field]]:
    """Fields of an object by name, those of the objects in its lists as `lines.quantity`."""
    for name, node in schema.get("properties", {}).items():
        facts = {k: v for k, v in node.items() if k not in _WORDS}
        choices = facts.pop("anyOf", [{}])
        kinds = [c for c in choices if c.get("type") != "null"]
        # Money may be a number or a text; everything else is of one type.
        facts |= kinds[0] if len(kinds) == 1 else {"anyOf": kinds}
        items = facts.pop("items", {})
        yield f"{prefix}{name}", _Field(name in schema.get("required", ()), len(kinds) < len(choices), facts)
        if "$ref" in items:
            yield from _fields(root["$defs"][items["$ref"].rsplit("/", 1)[-1]], root, f"{prefix}{name}.")


def _narrowed(old: _Field, new: _Field) -> Iterable[str]:
    """In which ways a field accepts less than before."""
    if new.required and not old.required:
        yield "was optional and is required now"
    if old.nullable and not new.nullable:
        yield "could be null and no longer can"
    for bound in (*_UPPER, *_LOWER):
        was, now = old.facts.get(bound), new.facts.get(bound)
        if now is not None and (was is None or (now < was if bound in _UPPER else now > was)):
            yield f"has {bound} {now}, was {'unbounded' if was is None else was}"
    if "enum" in old.facts and (gone := set(old.facts["enum"]) - set(new.facts.get("enum", old.facts["enum"]))):
        yield f"no longer accepts {', '.join(sorted(gone))}"
    for fact in sorted((set(old.facts) | set(new.facts)) - {*_UPPER, *_LOWER}):
        was, now = old.facts.get(fact), new.facts.get(fact)
        if was != now and (now is not None or fact == _SINCE) and not (fact == "enum" and was):
            yield f"has {fact} {now}, was {was}"


def _is_below_new(name: str, before: Mapping[str, _Field]) -> bool:
    """Whether a name is that of a field in a list that is new itself, and refused as such."""
    return "." in name and name.rpartition(".")[0] not in before

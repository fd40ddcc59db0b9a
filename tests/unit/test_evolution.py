"""What may change in a contract or a table, and what is refused: pure comparisons, and both on real Delta tables."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa  # noqa: TID253 -- every test here builds Arrow tables
import pytest
from deltalake import DeltaTable, write_deltalake  # noqa: TID253 -- as above
from pydantic import Field

from crm_resources.contracts import Column, ColumnType, contract_for, contracts
from crm_resources.contracts.derive_files import write_files
from crm_resources.contracts.derive_postgres import RawTable, alter_table_sql
from crm_resources.contracts.entities import SCHEMA_VERSION, Envelope, Text, added_in
from crm_resources.contracts.evolution import SchemaChanges, SchemaRefused, TableColumn, compare_published, compare_table
from crm_resources.contracts.model import _columns, known_fields, version_needed
from crm_resources.lake import files_of, read_columns, read_commit
from crm_resources.lake_tables import TableAltered, append_rows, create_table, refuse_altered
from crm_resources.layout import LakeTable
from crm_resources.settings import Settings, load_settings

# -- pure ------------------------------------------------------------------------------------------------------------------


def test_a_nullable_column_is_added_and_a_required_one_may_become_optional():
    declared = [TableColumn("id", "text", False, 1), TableColumn("name", "text", True, 1), TableColumn("note", "text", True, 2)]
    stored = [TableColumn("name", "text", False), TableColumn("id", "text", False)]

    changes = compare_table("raw.things", declared, stored)

    assert changes == SchemaChanges(add=("note",), relax=("name",))
    columns = (Column("note", ColumnType.STRING, True, "", since=2), Column("name", ColumnType.STRING, True, ""))
    assert alter_table_sql(RawTable("things", "", columns, ("id",)), changes) == [
        "alter table raw.things add column note text",
        "alter table raw.things alter column name drop not null",
    ]


@pytest.mark.parametrize(
    ("declared", "stored", "reason"),
    [
        (None, TableColumn("c", "text", True), "is stored, but not declared"),
        (TableColumn("c", "integer", True, 1), TableColumn("c", "bigint", True), "stored as bigint and declared as integer"),
        (TableColumn("c", "decimal(14,2)", True, 1), TableColumn("c", "decimal(14,4)", None), "stored as decimal"),
        (TableColumn("c", "text", False, 1), TableColumn("c", "text", True), "may be null in the table and is declared as required"),
        (TableColumn("c", "text", False, 2), None, "is new and required"),
        (TableColumn("c", "text", True, 1), None, "is new, and declared as if the first schema version had known it"),
    ],
)
def test_everything_else_is_refused_with_table_column_reason_and_remedy(declared, stored, reason):
    changes = compare_table("orders", [c for c in [declared] if c], [c for c in [stored] if c])

    (refusal,) = changes.refused
    assert (changes.add, changes.relax) == ((), ())
    assert str(refusal).startswith("orders.c: ")
    assert reason in refusal.reason
    assert refusal.remedy


Change = Callable[[dict[str, Any]], None]

NARROWER: list[tuple[str, str, Change]] = [
    ("order.channel", "is gone", lambda s: s["properties"].pop("channel")),
    ("order.lines.description", "is gone", lambda s: s["$defs"]["OrderLine"]["properties"].pop("description")),
    ("order.country", "is required now", lambda s: s["required"].append("country")),
    ("order.country", "no longer can", lambda s: s["properties"]["country"].update(anyOf=[s["properties"]["country"]["anyOf"][0]])),
    ("order.status", "no longer accepts refunded", lambda s: s["properties"]["status"]["enum"].remove("refunded")),
    ("order.order_id", "has maxLength 20, was 200", lambda s: s["properties"]["order_id"].update(maxLength=20)),
    ("order.lines.line_number", "has minimum 2, was 1", lambda s: s["$defs"]["OrderLine"]["properties"]["line_number"].update(minimum=2)),
    ("order.sequence", "has type string, was integer", lambda s: s["properties"]["sequence"].update(type="string")),
    ("order.colour", "as if the first", lambda s: s["properties"].update(colour={"anyOf": [{"type": "string"}, {"type": "null"}]})),
]


@pytest.mark.parametrize(("field", "reason", "change"), NARROWER, ids=lambda v: v if isinstance(v, str) else "")
def test_a_contract_that_accepts_less_than_was_published_is_refused(field: str, reason: str, change: Change):
    published = contract_for("order").model.model_json_schema()
    declared = copy.deepcopy(published)
    change(declared)

    (refusal,) = compare_published("order", published, declared)

    assert str(refusal).startswith(f"{field}: ")
    assert reason in refusal.reason


def test_a_contract_may_accept_more():
    published = contract_for("order").model.model_json_schema()
    declared = copy.deepcopy(published)
    declared["properties"]["status"]["enum"].append("lost")
    declared["properties"]["order_id"]["maxLength"] = 400
    declared["properties"]["note"] = {"anyOf": [{"type": "string"}, {"type": "null"}], "since_schema_version": SCHEMA_VERSION + 1}
    declared["required"].remove("channel")

    assert compare_published("order", published, declared) == []
    assert all(r.column == "note" for r in compare_published("order", declared, published) if "gone" in r.reason)


def test_no_file_is_written_for_a_contract_that_is_refused(tmp_path: Path):
    write_files(tmp_path)
    file = tmp_path / "crm_resources/contracts/json_schema/order.schema.json"
    schema = json.loads(file.read_text())
    schema["properties"]["order_id"]["maxLength"] = 999
    file.write_text(json.dumps(schema))
    (tmp_path / "docs/contracts.md").unlink()

    with pytest.raises(SchemaRefused, match=r"order\.order_id: has maxLength 200, was 999"):
        write_files(tmp_path)

    assert not (tmp_path / "docs/contracts.md").exists()


# -- versions --------------------------------------------------------------------------------------------------------------


class Grown(Envelope):
    """An entity with a field that came later."""

    name: Text = Field(description="Name.")
    note: Text | None = added_in(SCHEMA_VERSION + 1, "Note.")


def test_a_field_knows_its_version_and_its_json_schema_tells_it():
    columns = {c.name: c for c in _columns(Grown)}
    assert (columns["name"].since, columns["note"].since, columns["note"].nullable) == (1, SCHEMA_VERSION + 1, True)
    assert Grown.model_json_schema()["properties"]["note"]["since_schema_version"] == SCHEMA_VERSION + 1


def test_a_later_field_cannot_be_required():
    class Wrong(Envelope):
        note: Text = added_in(2, "Note.")

    with pytest.raises(TypeError, match="'note' is added in version 2"):
        _columns(Wrong)


def test_a_message_has_the_fields_of_its_version():
    columns = _columns(Grown)
    old, new = {"name": "a"}, {"name": "a", "note": "b"}
    assert version_needed(columns, old) == version_needed(columns, old | {"note": None}) == 1
    assert version_needed(columns, new) == SCHEMA_VERSION + 1
    assert known_fields(columns, new, 1) == old
    assert known_fields(columns, new, SCHEMA_VERSION + 1) == new


def test_the_contracts_version_is_that_of_their_latest_field():
    every = [c for contract in contracts() for c in (*contract.columns, *(i for c in contract.columns for i in c.items))]
    assert max(c.since or 0 for c in every) == SCHEMA_VERSION


# -- tables of the lake ----------------------------------------------------------------------------------------------------

LINE = (
    Column("line_number", ColumnType.INT, False, "Number.", since=1),
    Column("price", ColumnType.DECIMAL, False, "", precision=14, scale=4),
)
COLUMNS = (
    Column("event_id", ColumnType.STRING, False, "Id.", since=1),
    Column("lines", ColumnType.LIST, False, "Lines.", items=LINE, since=1),
    Column("offset", ColumnType.LONG, False, "Offset."),
)
TABLE = LakeTable("things", "silver/things", COLUMNS, ("event_id",), 100)
ENGRAVING = Column("engraving", ColumnType.STRING, True, "Engraved.", since=2)
NOTE = Column("note", ColumnType.STRING, True, "Note.", since=2)
GROWN = replace(TABLE, columns=(COLUMNS[0], replace(COLUMNS[1], items=(*LINE, ENGRAVING)), NOTE, COLUMNS[2]))


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load_settings({"CRM_HOME": str(tmp_path)})


@pytest.fixture
def table(settings: Settings) -> DeltaTable:
    made = create_table(settings, TABLE)
    for batch in range(3):
        append(made, {"event_id": f"e{batch}", "lines": [{"line_number": 1, "price": 1}], "offset": batch}, batch)
    return made


def append(table: DeltaTable, row: dict[str, Any], batch: int) -> None:
    rows = pa.Table.from_pylist([row], pa.schema(table.schema().to_arrow()))
    append_rows(table, rows, application="refine-generation-things", version=batch)


def test_a_table_gains_the_columns_of_its_declaration_and_keeps_its_rows(settings: Settings, table: DeltaTable):
    grown = create_table(settings, GROWN)
    append(grown, {"event_id": "e3", "lines": [{"line_number": 1, "price": 1, "engraving": "x"}], "note": "n", "offset": 3}, 3)
    version = grown.version()

    rows = {r["event_id"]: (r["note"], r["lines"][0]["engraving"]) for r in pa.table(grown.to_pyarrow_table()).to_pylist()}

    assert rows == {"e0": (None, None), "e1": (None, None), "e2": (None, None), "e3": ("n", "x")}
    notes = read_columns(settings, TABLE.path, files_of(grown), ["event_id", "note"]).to_pylist()
    assert sorted((r["event_id"], r["note"]) for r in notes) == [("e0", None), ("e1", None), ("e2", None), ("e3", "n")]
    assert create_table(settings, GROWN).version() == version, "a second time changes nothing"
    refuse_altered(settings, [(GROWN, GROWN.path)])


@pytest.mark.parametrize(
    ("declared", "message"),
    [
        (replace(TABLE, columns=COLUMNS[:2]), r"things\.offset: is stored, but not declared"),
        (replace(TABLE, columns=(*COLUMNS[:2], replace(COLUMNS[2], type=ColumnType.INT))), r"things\.offset: is stored as long"),
        (
            replace(TABLE, columns=(COLUMNS[0], replace(COLUMNS[1], items=(LINE[0], replace(LINE[1], scale=2))), COLUMNS[2])),
            r"things\.lines\.price: is stored as decimal\(14,4\) and declared as decimal\(14,2\)",
        ),
        (replace(GROWN, columns=(*GROWN.columns, replace(NOTE, name="must", nullable=False))), r"things\.must: is new and required"),
    ],
)
def test_a_declaration_a_table_cannot_follow_changes_nothing(settings: Settings, table: DeltaTable, declared: LakeTable, message: str):
    with pytest.raises(SchemaRefused, match=message):
        create_table(settings, declared)
    with pytest.raises(SchemaRefused, match=message):
        refuse_altered(settings, [(declared, declared.path)])

    assert DeltaTable(table.table_uri).version() == table.version()


FOREIGN: list[tuple[str, Callable[[DeltaTable], Any]]] = [
    ("DELETE", lambda t: t.delete("event_id = 'e1'")),
    ("UPDATE", lambda t: t.update(updates={"offset": "99"}, predicate="event_id = 'e1'")),
    ("WRITE", lambda t: write_deltalake(t, pa.table(t.to_pyarrow_table()).slice(0, 1), mode="append")),
    ("WRITE", lambda t: write_deltalake(t, pa.table(t.to_pyarrow_table()).slice(0, 1), mode="overwrite")),
]


@pytest.mark.parametrize(("operation", "change"), FOREIGN)
def test_rows_changed_by_hand_are_noticed_and_a_restore_is_the_remedy(settings: Settings, table: DeltaTable, operation: str, change: Any):
    good = table.version()
    change(table)
    changed = DeltaTable(table.table_uri)
    assert changed.version() == good + 1

    with pytest.raises(TableAltered, match=rf"^things was changed by hand: version {good + 1} \({operation}\) .*restore\({good}\)"):
        refuse_altered(settings, [(TABLE, TABLE.path)])

    changed.restore(good)
    refuse_altered(settings, [(TABLE, TABLE.path)])


def test_a_change_after_a_restore_is_noticed_too(settings: Settings, table: DeltaTable):
    good = table.version()
    table.delete("event_id = 'e1'")
    table.restore(good)
    table.delete("event_id = 'e2'")

    with pytest.raises(TableAltered, match=rf"version {good + 3} \(DELETE\)"):
        refuse_altered(settings, [(TABLE, TABLE.path)])


def test_a_foreign_column_is_noticed(settings: Settings, table: DeltaTable):
    rows = pa.table(table.to_pyarrow_table()).slice(0, 1).append_column("mine", pa.array([1]))
    write_deltalake(table, rows, mode="append", schema_mode="merge")

    with pytest.raises(SchemaRefused, match=r"things\.mine: is stored, but not declared.*drop it there"):
        refuse_altered(settings, [(TABLE, TABLE.path)])


def test_the_products_own_upkeep_is_no_change_by_hand(settings: Settings, table: DeltaTable):
    table.optimize.compact()
    table.vacuum(retention_hours=0, dry_run=False, enforce_retention_duration=False)
    table.create_checkpoint()
    latest = DeltaTable(table.table_uri).version()
    commit = read_commit(settings, TABLE.path, latest)

    refuse_altered(settings, [(TABLE, TABLE.path)])

    assert commit is not None
    assert not commit.transactions, "else nothing was shown: the commit is not one of the stream's"


def test_a_table_that_does_not_exist_is_passed_over(settings: Settings):
    refuse_altered(settings, [(TABLE, TABLE.path)])

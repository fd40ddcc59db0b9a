"""A refresh that builds only what changed leaves the same tables, row for row, as one that builds everything."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, date, datetime, timedelta
from random import Random
from typing import Any

import pytest

from crm_assets.warehouse.load import load_all, reset_entity
from crm_assets.warehouse.manifest import MANIFEST
from crm_assets.warehouse.mart_digests import digest_marts, models_fingerprint
from crm_assets.warehouse.recorded_refresh import PlannedRefresh, recorded_refresh
from crm_assets.warehouse.table_rules import left_to_the_night, table_rules
from crm_resources import change_marks, warehouse
from crm_resources.change_marks import Scope
from crm_resources.contracts import contract_for
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from tests.oracle.lake_writer import append, event, order, product, profile
from tests.oracle.refresh import WITHOUT_TESTS, data_set, run_dbt

AS_OF = date(2026, 3, 31)
Row = dict[str, Any]


def at(day: int, hour: int = 12) -> datetime:
    return datetime(2026, 3, day, hour, tzinfo=UTC)


FIRST = [
    order("sale", at(1), [("A", 3, "10.00"), ("B", 1, "2.00")], customer_id="ann"),
    order("target", at(2), [("A", 2, "10.00")], customer_id="bob"),
    order("own", at(2), [("A", 1, "5.00")], customer_id="bob", status="placed", sequence=2),
    order("shrinks", at(3), [("A", 1, "5.00"), ("C", 4, "1.00"), ("ONLY-HERE", 1, "1.00")], customer_id="cid", sequence=1),
    order("pile-1", at(4), [("P", 5, "2.00")], customer_id="dot"),
    order("pile-2", at(5), [("P", 5, "2.00")], customer_id="dot"),
    order("pile-c", at(6), [("P", -7, "2.00")], customer_id="dot", status="cancelled"),
    order("moves", at(9), [("A", 1, "7.00")], customer_id="eve", status="paid", sequence=5),
    order("guest", at(9), [("A", 1, "7.00")]),
    order("named-c", at(9), [("A", -1, "3.00")], customer_id="fay", status="cancelled", cancels_order_id="not-yet"),
    order("stray-c", at(9), [("P", -2, "2.00")], customer_id="gus", status="cancelled", sequence=1),
    event("v", at(8), customer_id="looker", product_id="looked-at"),
    profile("ann", at(1), country="France"),
    product("a", at(1), name="Apple", category="Fruit"),
    product("b", at(1), category="Fruit"),
]
BATCHES: dict[str, list[Row]] = {
    "late, by name and by pile": [
        order("target-c", at(20), [("A", -1, "10.00")], customer_id="bob", status="refunded", cancels_order_id="target"),
        order("pile-0", at(4, 11), [("P", 1, "2.00")], customer_id="dot"),
        order("pile-c0", at(5, 13), [("P", -2, "2.00")], customer_id="dot", status="cancelled"),
        order("not-yet", at(7), [("A", 2, "3.00")], customer_id="fay"),
        event("v", at(7), customer_id="looker", product_id="seen-earlier"),
        profile("ann", at(2), country="Spain", sequence=2),
    ],
    "states out of order": [
        # Earlier than all that is known: the day the order counts on moves.
        order("moves", at(7), [("A", 1, "7.00")], customer_id="eve", status="placed", sequence=1),
        order("own", at(12), [("A", 1, "5.00")], customer_id="bob", status="cancelled", sequence=3),
        order("own", at(11), [("A", 1, "6.00")], customer_id="bob", status="paid", sequence=1),
        order("target-c2", at(21), [("A", -5, "10.00")], customer_id="bob", status="refunded", cancels_order_id="target"),
    ],
    "things that are no longer there": [
        order("shrinks", at(4), [("A", 1, "5.00")], customer_id="cid", sequence=2),
        # The order is another customer's, the document names another order, and the credit is none any more.
        order("sale", at(5), [("A", 3, "10.00")], customer_id="zoe", sequence=2),
        order("target-c", at(22), [("A", -1, "3.00")], customer_id="fay", status="refunded", cancels_order_id="not-yet", sequence=2),
        order("pile-c", at(23), [("P", 7, "2.00")], customer_id="dot", status="paid", sequence=2),
        order("stray-c", at(9), [("Q", -2, "2.00")], customer_id="gus", status="cancelled", sequence=2),
        product("a", at(20), name="Apricot", sequence=2),
    ],
    "products are filed elsewhere": [
        product("a", at(21), name="Apricot", category="Stone fruit", sequence=3),
        # Earlier than what is known, so nothing but a message more; and one that was sold before anything was known of it.
        product("b", at(1, 11), category="Berries", sequence=0),
        product("p", at(21), category="Paper"),
    ],
    "first purchases in earlier months": [
        order("jan", at(1) - timedelta(days=45), [("A", 1, "4.00")], customer_id="ann", sequence=5),
        order("feb", at(1) - timedelta(days=20), [("B", 2, "2.00")], customer_id="dot"),
        order("feb-c", at(1) - timedelta(days=19), [("B", -1, "2.00")], customer_id="dot", status="cancelled"),
        order("only", at(2), [("A", 1, "4.00")], customer_id="ivy", sequence=1),
    ],
    "first purchases that move": [
        # An earlier state, of a later day: the cohort of January has nobody left.
        order("jan", at(10), [("A", 1, "4.00")], customer_id="ann", sequence=1),
        # Somebody else's, who bought nothing before; and the only order of a customer, who has bought nothing then.
        order("feb", at(1) - timedelta(days=20), [("B", 2, "2.00")], customer_id="hal", sequence=3),
        order("only", at(2), [("A", 1, "4.00")], customer_id="ivy", status="adjustment", sequence=2),
    ],
    "after the as-of date": [
        order("tomorrow", at(31, 13) + timedelta(days=1), [("A", 1, "1.00")], customer_id="ann"),
        order("guest", at(31) + timedelta(days=2), [("A", 1, "7.00")], status="cancelled", sequence=2),
    ],
}


def refresh(settings: Settings, *arguments: str) -> PlannedRefresh:
    """Load and build the way the platform does; gives what was planned."""
    load_all(settings)
    with recorded_refresh(settings, whole=True, warn=pytest.fail) as planned:
        run_dbt(planned.settings, *(arguments or WITHOUT_TESTS), changed_since=planned.scope.since)
    return planned


def contents(settings: Settings) -> dict[str, list[str]]:
    """Rows of all tables that dbt makes, as text, by name; without the time of the run, the lists of changes, and what keeps the past."""
    found = {}
    with warehouse.connect(settings) as connection, connection.cursor() as cursor:
        for node in json.loads(MANIFEST.read_text())["nodes"].values():
            name = node["name"]
            if node["config"].get("full_refresh") is False:
                continue
            if node["resource_type"] == "model" and node["schema"] != "staging" and not name.startswith("int_changed_"):
                cursor.execute(f"select (to_jsonb(t) - 'scored_at')::text from {node['schema']}.{name} as t")
                found[name] = sorted(text for (text,) in cursor.fetchall())
    return found


def assert_as_if_built_anew(settings: Settings) -> None:
    """Compare the tables with those of a full refresh of the same rows, which the next refresh then goes on from."""
    found = contents(settings)
    assert digest_marts(settings) == digest_marts(settings, read_all=True), "a digest was not kept"
    run_dbt(settings, *WITHOUT_TESTS)
    expected = contents(settings)
    assert found.keys() == expected.keys()
    differing = {
        name: {"missing": sorted(set(expected[name]) - set(found[name])), "surplus": sorted(set(found[name]) - set(expected[name]))}
        for name in expected
        if set(expected[name]) != set(found[name])
    }
    assert not differing, json.dumps(differing, indent=1)
    assert found == expected, "a table holds rows twice"


@pytest.fixture(scope="module")
def started(stack_services: Stack) -> Settings:
    settings = data_set(stack_services.settings, "incremental", as_of=AS_OF)
    append(settings, FIRST)
    assert refresh(settings).scope.whole
    return settings


@pytest.mark.parametrize("batch", BATCHES)
def test_each_batch_ends_as_if_everything_had_been_built(started: Settings, batch: str):
    append(started, BATCHES[batch])
    planned = refresh(started)
    assert not planned.scope.whole, planned.scope.reason
    assert_as_if_built_anew(started)


def test_a_refresh_with_nothing_new_changes_nothing(started: Settings):
    before = contents(started)
    assert not refresh(started).scope.whole
    assert contents(started) == before


RULES_KEPT = """
select t.relname as name, 'null' as kind, array[a.attname::text] as columns
from pg_attribute as a inner join pg_class as t on a.attrelid = t.oid inner join pg_namespace as n on t.relnamespace = n.oid
where a.attnotnull and a.attnum > 0 and n.nspname in ('intermediate', 'marts')
union all
select t.relname, 'key', array(select attname::text from pg_attribute where attrelid = t.oid and attnum = any(i.indkey) order by attname)
from pg_index as i inner join pg_class as t on i.indrelid = t.oid inner join pg_namespace as n on t.relnamespace = n.oid
where i.indisunique and i.indpred is null and n.nspname in ('intermediate', 'marts')
union all
select t.relname, 'check', array[left(c.conname, -9)::text]
from pg_constraint as c inner join pg_class as t on c.conrelid = t.oid inner join pg_namespace as n on t.relnamespace = n.oid
where c.contype = 'c' and c.convalidated and n.nspname in ('intermediate', 'marts')
"""


def test_what_a_refresh_does_not_test_is_a_rule_of_the_table(started: Settings):
    kept = {(name, kind, *columns) for name, kind, columns in warehouse.fetch_rows(started, RULES_KEPT)}
    manifest = json.loads(MANIFEST.read_text())
    wanted: dict[str, tuple[str, ...]] = {}
    for test in table_rules(manifest):
        said, table = test["test_metadata"], manifest["nodes"][test["attached_node"]]["name"]
        match said["name"]:
            case "not_null":
                wanted[test["name"]] = (table, "null", test["column_name"])
            case "unique":
                wanted[test["name"]] = (table, "key", test["column_name"])
            case "unique_combination":
                wanted[test["name"]] = (table, "key", *sorted(said["kwargs"]["columns"]))
            case _:
                wanted[test["name"]] = (table, "check", test["name"][:50])
    assert len(wanted) > 150
    assert {name: rule for name, rule in wanted.items() if rule not in kept} == {}


def test_a_refresh_tests_the_rows_it_has_built_and_no_others(started: Settings):
    def spoil(key: str) -> None:
        with warehouse.connect(started, autocommit=True) as connection, connection.cursor() as cursor:
            cursor.execute("update marts.fct_order_lines set product_key = $1::text where order_id = 'guest'", (key,))

    append(started, [order("tested", at(3), [("A", 1, "1.00")], customer_id="ann")])
    ((before,),) = warehouse.fetch_rows(started, "select distinct product_key from marts.fct_order_lines where order_id = 'guest'")
    spoil("absent")
    try:
        refresh(started, "build", "--exclude", " ".join(left_to_the_night(json.loads(MANIFEST.read_text()))))
        with pytest.raises(AssertionError, match="relationships_fct_order_lines_product_key"):
            run_dbt(started, "test", "--select", "fct_order_lines")
    finally:
        spoil(before)


@pytest.mark.parametrize(
    ("change", "rule"),
    [
        ("update marts.fct_order_lines set line_class = 'odd'", "accepted_values_fct_order_lines_line_class"),
        ("update marts.fct_orders set amount = amount + 1", "order_amount_is_sum_of_classes"),
        ("update marts.segment_history set valid_from = last_seen + 1", "stays_begin_before_they_end"),
        ("update marts.fct_orders set order_id = 'one'", "duplicate key"),
        ("update marts.fct_orders set order_id = null", "null value in column"),
    ],
)
def test_a_table_refuses_what_its_tests_would_find(started: Settings, change: str, rule: str):
    with pytest.raises(Exception, match=rule), warehouse.connect(started, autocommit=True) as connection, connection.cursor() as cursor:
        cursor.execute(change)


def test_a_late_cancellation_restates_its_day_and_leaves_the_others_alone(started: Settings):
    def versions() -> dict[str, str]:
        return dict(warehouse.fetch_rows(started, "select daily_sales_key, xmin::text from marts.daily_sales"))

    append(started, [order("late-sale", at(2, 8), [("L", 1, "4.00")], customer_id="late")])
    refresh(started)
    before = versions()
    append(started, [order("late-c", at(25), [("L", -1, "4.00")], customer_id="late", status="cancelled", cancels_order_id="late-sale")])
    refresh(started)
    written = {key for key, version in versions().items() if version != before.get(key)}
    assert written == {"2026-03-02/known", "2026-03-25/known"}


class Killed(Exception):
    """The run of dbt does not come to its end."""


def planned_scope(settings: Settings) -> Scope:
    """What a refresh would build now."""
    marks = change_marks.current_marks(settings, as_of=AS_OF, models=models_fingerprint())
    return change_marks.decide_scope(change_marks.kept_marks(settings), marks)


def killed_refresh(settings: Settings, last_built: str = "") -> None:
    """A refresh that ends after one of its models, or before the first."""
    with suppress(Killed), recorded_refresh(settings, whole=True, warn=pytest.fail) as planned:
        if last_built:
            run_dbt(planned.settings, *WITHOUT_TESTS, "--select", f"+{last_built}", changed_since=planned.scope.since)
        raise Killed


def test_refreshes_that_were_killed_are_made_good_by_the_next(started: Settings):
    for number, last_built in enumerate(["int_orders_current", "daily_sales"]):
        name = f"killed-after-{last_built}"
        append(started, [order(name, at(10 + number), [("K", 2, "3.00")], customer_id="kim", status="paid", sequence=2)])
        load_all(started)
        killed_refresh(started, last_built)
        # The day that the half refresh has put the order on is not the one it ends on, and nothing but raw remembers it.
        append(started, [order(name, at(8 - number), [("K", 2, "3.00")], customer_id="kim", status="placed", sequence=1)])
        assert not refresh(started).scope.whole
    assert_as_if_built_anew(started)


def test_a_killed_refresh_of_everything_is_not_gone_on_from(started: Settings):
    assert not planned_scope(started).whole
    killed_refresh(started.model_copy(update={"as_of": AS_OF + timedelta(days=1)}))
    assert planned_scope(started).whole
    refresh(started)


def test_a_reset_entity_is_built_from_the_first_row(started: Settings):
    reset_entity(started, contract_for("order"))
    assert planned_scope(started).reason == "raw orders was emptied and loaded again"


def test_any_sequence_of_batches_ends_as_if_everything_had_been_built(stack_services: Stack):
    settings = data_set(stack_services.settings, "incremental_random", as_of=AS_OF)
    random = Random(6)
    messages = list(random_messages(random, 300))
    for start in range(0, len(messages), 100):
        append(settings, messages[start : start + 100])
        assert refresh(settings).scope.whole == (start == 0)
    assert_as_if_built_anew(settings)


def random_messages(random: Random, count: int) -> Iterator[Row]:
    """Orders, documents and later states that few keys share, in an order of arrival that has nothing to do with their times."""
    customers, products = [None, *"abcabcdefgh"], ["p", "P", "q"]
    for number in range(count):
        moment = at(random.randint(1, 30), random.randrange(24)) - timedelta(days=random.choice([0, 0, 31, 59]))
        kind = random.random()
        quantity = random.randint(1, 6)
        lines = [(random.choice(products), quantity, random.choice(["1.00", "2.50"])) for _ in range(random.randint(1, 3))]
        fields: Row = {"customer_id": random.choice(customers), "sequence": random.randint(1, 4)}
        name = f"o{random.randrange(count // 3)}"
        if kind < 0.45:
            yield order(name, moment, lines, status=random.choice(["placed", "paid", "cancelled", "adjustment"]), **fields)
        elif kind < 0.8:
            taken = [(code, -pieces, price) for code, pieces, price in lines]
            named = f"o{random.randrange(count // 3)}" if random.random() < 0.4 else None
            yield order(f"c{random.randrange(count // 4)}", moment, taken, status="cancelled", cancels_order_id=named, **fields)
        elif kind < 0.97:
            # Some minutes from one another, half an hour to the minute among them.
            moment = at(random.randint(8, 9), 0) + timedelta(minutes=10 * random.randrange(60))
            yield event(f"v{number % 5}", moment, customer_id=random.choice(customers), product_id=random.choice(products))
        else:
            yield profile(random.choice(["a", "b", "x"]), moment, sequence=number, country=random.choice(["France", None]))


def test_two_refreshes_of_a_data_set_follow_each_other(started: Settings, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(change_marks, "LOCK_SECONDS", 1)
    with (
        change_marks.only_refresh(started),
        pytest.raises(change_marks.RefreshUnderWay, match="incremental"),
        change_marks.only_refresh(started),
    ):
        pass


def test_dbt_by_hand_that_would_hold_rows_twice_is_refused(started: Settings, monkeypatch: pytest.MonkeyPatch):
    proper = warehouse.dbt_environment
    monkeypatch.setattr(warehouse, "dbt_environment", lambda *arguments: {**proper(*arguments), "DBT_FULL_REFRESH": "false"})
    with pytest.raises(AssertionError, match="--full-refresh"):
        run_dbt(started, *WITHOUT_TESTS, "--select", "int_order_totals")

"""A population's records are reproducible, whole and coherent, and tell nothing of its truth."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections import Counter, defaultdict
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from crm_resources.contracts import ENTITIES, Order, contracts
from crm_resources.contracts.canonical import message_text
from crm_resources.contracts.entities import ENTITY_KEY_FIELDS, kafka_key
from crm_resources.settings import REPOSITORY
from generator.ids import epoch_microseconds
from generator.population_model import BgNbd, GammaGamma, PopulationOptions, PopulationShop
from generator.population_model.baskets import fill
from generator.population_model.catalogue import ADJUSTMENT_ID
from generator.population_model.draws import Purpose, generator_for
from generator.population_model.profile_life import GRADE_CENTS, GRADES
from generator.population_model.season import midnight_us
from generator.population_model.truth import TruthError, read_truth, write_truth
from generator.records import Outgoing

END = date(2026, 10, 31)
OPTIONS = PopulationOptions(end=END, seed=11, customers=150, days=60, products=40, visits_per_customer=20, consent_changes_per_year=8)
DIGEST = """
import hashlib
from tests.unit.test_population_model import OPTIONS, PopulationShop, digest_of
shop = PopulationShop(OPTIONS)
for day in reversed(shop.days[20:30]):
    print(day, digest_of(shop, day))
"""


def digest_of(shop: PopulationShop, day: date) -> str:
    whole = hashlib.sha256()
    for record in shop.records(day):
        whole.update(repr(record).encode())
    return whole.hexdigest()


@pytest.fixture(scope="module")
def shop() -> PopulationShop:
    return PopulationShop(OPTIONS)


@pytest.fixture(scope="module")
def records(shop: PopulationShop) -> list[Outgoing]:
    return [record for day in shop.days for record in shop.records(day)]


@pytest.fixture(scope="module")
def messages(records: list[Outgoing]) -> dict[str, list[dict[str, Any]]]:
    by_entity: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for record in records:
        by_entity[record.entity].append(orjson.loads(record.value or b""))
    return by_entity


@pytest.fixture(scope="module")
def sessions(messages: dict[str, list[dict[str, Any]]]) -> dict[str, list[dict[str, Any]]]:
    found: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for message in messages["event"]:
        found[message["session_id"]].append(message)
    return found


# -- reproducible


def test_another_process_in_another_order_gives_the_same_bytes(shop: PopulationShop) -> None:
    done = subprocess.run([sys.executable, "-c", DIGEST], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    told = dict(line.split() for line in done.stdout.splitlines())
    assert told == {str(day): digest_of(shop, day) for day in shop.days[20:30]}


def test_a_day_does_not_depend_on_the_days_generated_before(shop: PopulationShop) -> None:
    alone = PopulationShop(OPTIONS)
    assert alone.table(OPTIONS.end).equals(shop.table(OPTIONS.end))
    assert alone.table(OPTIONS.start).equals(shop.table(OPTIONS.start))


def test_another_seed_shares_no_id_and_no_customer(records: list[Outgoing]) -> None:
    other = PopulationShop(replace(OPTIONS, seed=12))
    theirs = list(other.records(OPTIONS.start)) + list(other.records(OPTIONS.end))
    assert {r.event_id for r in theirs}.isdisjoint(r.event_id for r in records)
    assert {r.entity_key for r in theirs if r.entity != "product"}.isdisjoint(r.entity_key for r in records)


def test_other_options_give_another_run_id() -> None:
    changed = [replace(OPTIONS, seed=12), replace(OPTIONS, customers=151), replace(OPTIONS, purchase_model=BgNbd(dropout_at_first=True))]
    assert len({OPTIONS.run_id, *(c.run_id for c in changed)}) == 4
    assert replace(OPTIONS).run_id == OPTIONS.run_id
    assert replace(OPTIONS, visits_per_customer=20.0).run_id == OPTIONS.run_id


# -- on the wire


def test_every_record_follows_its_contract_and_its_envelope(records: list[Outgoing]) -> None:
    for record in records:
        message = ENTITIES[record.entity].model_validate_json(record.value or b"", strict=True)
        assert message.event_id == record.event_id
        assert message.entity_key == record.entity_key
        assert message.sequence == record.sequence
        assert record.key == kafka_key(message)
        assert epoch_microseconds(message.event_time) == record.event_us
        assert record.plural == f"{record.entity}s"
        assert record.amount == (message.amount if isinstance(message, Order) else None)
        named = next(v for name in ENTITY_KEY_FIELDS[record.entity] if (v := getattr(message, name)) is not None)
        assert named == record.entity_key


def test_every_record_has_all_fields_in_contract_order_as_a_json_encoder_writes_them(records: list[Outgoing]) -> None:
    names = {c.entity: [column.name for column in c.columns] for c in contracts()}
    for record in records:
        message = orjson.loads(record.value or b"")
        assert list(message) == names[record.entity]
        assert orjson.dumps(message) == record.value
        assert message_text(record.entity, message) == record.canonical


def test_records_come_in_the_order_of_event_time_and_within_their_day(shop: PopulationShop) -> None:
    for day in shop.days:
        times = shop.table(day)["event_us"].to_pylist()
        assert times == sorted(times)
        assert midnight_us(day) <= times[0]
        assert times[-1] < midnight_us(day + timedelta(days=1))


def test_sequences_rise_strictly_per_entity_key(records: list[Outgoing]) -> None:
    last: dict[tuple[str, str], int] = {}
    for record in records:
        assert record.sequence > last.get((record.entity, record.entity_key), -1)
        last[record.entity, record.entity_key] = record.sequence


def test_event_ids_are_unique_and_begin_with_their_time(records: list[Outgoing]) -> None:
    assert len({r.event_id for r in records}) == len(records)
    for record in records:
        digits = record.event_id.replace("-", "")
        assert int(digits[:12], 16) == record.event_us // 1000
        assert (digits[12], digits[16] in "89ab") == ("7", True)


def test_a_day_that_is_not_streamed_is_refused(shop: PopulationShop) -> None:
    for day in (OPTIONS.start - timedelta(days=1), OPTIONS.end + timedelta(days=1)):
        with pytest.raises(ValueError, match="is not among the 60 days up to 2026-10-31"):
            shop.table(day)


# -- coherent


def test_every_reference_leads_somewhere_that_came_before(records: list[Outgoing]) -> None:
    known: dict[str, set[str]] = {"product": set(), "profile": set(), "order": set()}
    payments = []
    for record in records:
        message = orjson.loads(record.value or b"")
        if record.entity in known:
            known[record.entity].add(record.entity_key)
        if record.entity != "product" and message["customer_id"] is not None:
            assert message["customer_id"] in known["profile"]
        for line in message.get("lines", []):
            assert line["product_id"] in known["product"]
        if record.entity == "event" and message["product_id"] is not None:
            assert message["product_id"] in known["product"]
        if message.get("cancels_order_id") is not None:
            assert message["cancels_order_id"] in known["order"]
        if message.get("order_id") is not None and record.entity == "event":
            payments.append((message["event_type"], message["order_id"], message["order_id"] in known["order"]))
    assert {order for _, order, _ in payments} <= known["order"]
    # The order is there when its purchase event comes; the payment that leads to it lies before.
    assert all(there for kind, _, there in payments if kind == "purchase")


def test_every_purchase_of_the_window_is_an_order_at_its_exact_time_and_total(
    shop: PopulationShop, messages: dict[str, list[dict[str, Any]]]
) -> None:
    placed = {m["order_id"]: m for m in messages["order"] if m["status"] == "placed"}
    assert len(placed) == shop.orders > 150
    for number, order_id in enumerate(shop.order_ids):
        message = placed[order_id]
        assert message["sequence"] == int(shop.purchases.at_us[number])
        assert message["customer_id"] == shop.customer_ids[shop.purchases.customer[number]]
        assert Decimal(message["amount"]) == Decimal(int(shop.totals_cents[number])) / 100
        # What the marts add up are lines with quantity and price above zero: all of them are.
        assert all(line["quantity"] > 0 and Decimal(line["unit_price"]) > 0 for line in message["lines"])
        assert sum(line["quantity"] * Decimal(line["unit_price"]) for line in message["lines"]) == Decimal(message["amount"])
        assert [line["product_id"] for line in message["lines"]].count(ADJUSTMENT_ID) <= 1
        assert message["lines"][0]["product_id"] != ADJUSTMENT_ID


def test_an_order_goes_on_from_placed_to_what_becomes_of_it(messages: dict[str, list[dict[str, Any]]]) -> None:
    states: dict[str, list[str]] = defaultdict(list)
    back: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for message in messages["order"]:
        if message["cancels_order_id"]:
            back[message["cancels_order_id"]].append(message)
        else:
            states[message["order_id"]].append(message["status"])
    whole = ["placed", "paid", "shipped", "completed"]
    assert all(found == whole[: len(found)] for found in states.values())
    cancelled = {order for order, documents in back.items() if documents[0]["status"] == "cancelled"}
    assert all(states[order] == ["placed", "paid"] for order in cancelled)
    assert all(len(documents) == 1 for documents in back.values())
    assert {d["status"] for documents in back.values() for d in documents} == {"cancelled", "refunded"}


def test_what_is_taken_back_never_exceeds_what_was_sold(messages: dict[str, list[dict[str, Any]]]) -> None:
    sold = {m["order_id"]: m for m in messages["order"] if m["status"] == "placed"}
    shares = []
    for document in (m for m in messages["order"] if m["cancels_order_id"]):
        order = sold[document["cancels_order_id"]]
        pieces = Counter({line["product_id"]: line["quantity"] for line in order["lines"]})
        for line in document["lines"]:
            assert 0 < -line["quantity"] <= pieces[line["product_id"]]
        shares.append(-Decimal(document["amount"]) / Decimal(order["amount"]))
        if document["status"] == "cancelled":
            assert shares[-1] == 1
    assert all(0 < share <= 1 for share in shares)
    assert min(shares) < 1


def test_each_purchase_has_one_session_that_leads_to_it_in_order(
    shop: PopulationShop, sessions: dict[str, list[dict[str, Any]]], messages: dict[str, list[dict[str, Any]]]
) -> None:
    placed = {m["order_id"]: m for m in messages["order"] if m["status"] == "placed"}
    converting = {s: steps for s, steps in sessions.items() if any(step["event_type"] == "purchase" for step in steps)}
    assert sorted(steps[-1]["order_id"] for steps in converting.values()) == sorted(shop.order_ids)
    for steps in converting.values():
        order = placed[steps[-1]["order_id"]]
        kinds = [step["event_type"] for step in steps if step["event_type"] not in ("login", "payment_failed")]
        bought = [line["product_id"] for line in order["lines"] if line["product_id"] != ADJUSTMENT_ID]
        assert kinds == ["view", "click", "cart"] * len(bought) + ["checkout", "payment", "purchase"]
        assert [step["product_id"] for step in steps if step["event_type"] == "cart"] == bought
        assert {(step["customer_id"], step["channel"]) for step in steps} == {(order["customer_id"], order["channel"])}
        assert steps[-1]["event_time"] == order["event_time"]
        assert len({step["visitor_id"] for step in steps}) == 1


def test_no_session_pauses_for_half_an_hour(sessions: dict[str, list[dict[str, Any]]]) -> None:
    for steps in sessions.values():
        assert all(0 < later["sequence"] - earlier["sequence"] < 1_800_000_000 for earlier, later in pairwise(steps))


def test_visits_without_a_purchase_name_no_order(sessions: dict[str, list[dict[str, Any]]]) -> None:
    abandoned = [steps for steps in sessions.values() if all(step["event_type"] != "purchase" for step in steps)]
    kinds = Counter(step["event_type"] for steps in abandoned for step in steps)
    assert kinds["payment_failed"] > 0
    assert kinds["payment"] == 0
    assert all(step["order_id"] is None for steps in abandoned for step in steps)
    assert {step["customer_id"] is None for steps in abandoned for step in steps} == {True, False}


def test_profiles_begin_before_everything_else_of_the_customer(records: list[Outgoing]) -> None:
    first: dict[bytes, str] = {}
    for record in records:
        if record.entity != "product" and record.key.startswith(b"C"):
            first.setdefault(record.key, record.entity)
    assert set(first.values()) == {"profile"}


def test_the_grade_is_what_was_spent_and_kept_up_to_then(messages: dict[str, list[dict[str, Any]]]) -> None:
    spent: dict[str, list[tuple[int, Decimal]]] = defaultdict(list)
    for message in messages["order"]:
        if message["status"] == "placed" or message["cancels_order_id"]:
            spent[message["customer_id"]].append((message["sequence"], Decimal(message["amount"]) * 100))
    seen = set()
    for message in messages["profile"]:
        net = sum(cents for at_us, cents in spent[message["customer_id"]] if at_us + 300_000_000 <= message["sequence"])
        assert message["grade"] == GRADES[sum(net >= bound for bound in GRADE_CENTS)]
        seen.add(message["grade"])
    assert len(seen) > 1


def test_consents_and_addresses_change(messages: dict[str, list[dict[str, Any]]]) -> None:
    said: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for message in messages["profile"]:
        said[message["customer_id"]].append(message)
    for field in ("consent_email", "consent_ads", "consent_analytics", "opted_out", "email"):
        assert any(len({m[field] for m in states}) > 1 for states in said.values()), field
    assert all(len({m["signed_up_at"] for m in states}) == 1 for states in said.values())


# -- the truth


def test_nothing_of_the_truth_is_in_the_stream(shop: PopulationShop, records: list[Outgoing], tmp_path: Path) -> None:
    truth = read_truth(write_truth(shop, tmp_path))
    hidden = {
        f"{value!r}".encode()
        for name in ("rate_per_week", "dropout_probability", "spend_rate")
        for value in truth.customers[name].to_pylist()
    }
    stream = b"\n".join(record.value or b"" for record in records)
    assert not any(value in stream for value in hidden if len(value) > 8)
    for name in {*truth.customers.column_names, *truth.purchases.column_names} - {"customer_id", "order_id"}:
        assert f'"{name}"'.encode() not in stream
    future = {int(at_us) for at_us in shop.purchases.at_us[shop.orders :]}
    assert future.isdisjoint(record.sequence for record in records)


def test_two_processes_may_seal_the_same_truth_at_once(shop: PopulationShop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = os.fsync

    def other_comes_between(descriptor: int) -> None:
        monkeypatch.setattr(os, "fsync", written)
        write_truth(shop, tmp_path)

    monkeypatch.setattr(os, "fsync", other_comes_between)
    folder = write_truth(shop, tmp_path)
    assert read_truth(folder).customers.num_rows == shop.customers.count
    assert {path.name for path in folder.iterdir()} == {"customers.parquet", "purchases.parquet", "season.parquet", "truth.json"}


def test_the_truth_is_sealed_and_private(shop: PopulationShop, tmp_path: Path) -> None:
    folder = write_truth(shop, tmp_path)
    assert folder.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in folder.iterdir()} == {0o600}
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    write_truth(shop, tmp_path)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    table = folder / "customers.parquet"
    table.write_bytes(table.read_bytes()[:-1] + b"x")
    with pytest.raises(TruthError, match=r"customers\.parquet is not the file that was sealed"):
        read_truth(folder)


def test_the_truth_holds_all_that_judging_needs(shop: PopulationShop, tmp_path: Path) -> None:
    truth = read_truth(write_truth(shop, tmp_path))
    assert truth.bgnbd is True
    assert truth.facts["options"]["purchase_model"] == {"r": 0.243, "alpha": 4.414, "a": 0.793, "b": 2.426, "dropout_at_first": False}
    assert truth.purchases.num_rows == shop.purchases.count
    last = truth.season["hour"].to_pylist()[-1]
    assert (last.date() - OPTIONS.end).days >= 181
    assert truth.purchases["bought_at"].to_pylist()[-1].date() > OPTIONS.end
    assert np.array_equal(truth.purchases["operational_weeks"].to_numpy(), shop.purchases.weeks)
    assert np.all(np.diff(truth.season["operational_weeks"].to_numpy()) > 0)
    left = [at for at in truth.customers["dropped_out_at"].to_pylist() if at is not None]
    assert 0 < len(left) < shop.customers.count


@pytest.mark.parametrize("bgnbd", [None, False])
def test_a_truth_that_is_not_bgnbd_says_so(tmp_path: Path, bgnbd: bool | None) -> None:
    model = BgNbd(dropout_at_first=bgnbd is None)
    other = PopulationShop(replace(OPTIONS, purchase_model=model))
    assert read_truth(write_truth(other, tmp_path, bgnbd=bgnbd)).bgnbd is False


def test_drop_outs_come_after_repeat_purchases_only(shop: PopulationShop) -> None:
    left = np.flatnonzero(shop.customers.dropout_us >= 0)
    repeats = np.bincount(shop.purchases.customer, minlength=shop.customers.count) - 1
    assert (repeats[left] >= 1).all()
    last = np.zeros(shop.customers.count, dtype=np.int64)
    np.maximum.at(last, shop.purchases.customer, shop.purchases.at_us)
    assert np.array_equal(shop.customers.dropout_us[left], last[left])
    other = PopulationShop(replace(OPTIONS, purchase_model=BgNbd(dropout_at_first=True)))
    gone = np.flatnonzero(other.customers.dropout_us >= 0)
    assert (np.bincount(other.purchases.customer, minlength=other.customers.count)[gone] == 1).any()


# -- small parts


@given(st.lists(st.integers(1, 5_000_000), min_size=1, max_size=50), st.integers(0, 2**32))
def test_a_basket_reaches_any_total_to_the_cent(totals: list[int], seed: int) -> None:
    prices = np.array([29, 350, 1_999, 24_999, 1], dtype=np.int64)
    weights = np.array([4.0, 3.0, 2.0, 1.0, 0.0])
    made = fill(np.array(totals), prices, weights, 4, generator_for(seed, Purpose.BASKETS))
    reached = np.add.reduceat(made.quantity * made.cents, made.offsets[:-1])
    assert reached.tolist() == totals
    assert (made.quantity > 0).all()
    assert (made.cents > 0).all()
    for low, high, products in zip(made.offsets[:-1], made.offsets[1:], made.products_in, strict=True):
        assert products >= 1
        assert high - low - products in (0, 1)
        assert len(set(made.product[low:high].tolist())) == high - low
        assert (made.product[low : low + products] != 4).all()


def test_popular_products_follow_zipfs_law() -> None:
    shop = PopulationShop(PopulationOptions(end=END, customers=20_000, products=100))
    first = shop.baskets.product[shop.baskets.offsets[:-1]]
    counts = np.bincount(first, minlength=100)[:100]
    slope = np.polyfit(np.log(np.arange(1, 101)), np.log(counts), 1)[0]
    assert slope == pytest.approx(-1, abs=0.08)


@pytest.mark.parametrize("seed", range(6))
def test_the_smallest_shops_work_even_without_a_customer(seed: int, tmp_path: Path) -> None:
    tiny = PopulationShop(PopulationOptions(end=date(2024, 2, 29), seed=seed, customers=1, days=2, products=1))
    made = [record for day in tiny.days for record in tiny.records(day)]
    assert sum(r.entity == "order" and b'"status":"placed"' in (r.value or b"") for r in made) == tiny.orders
    assert sum(r.entity == "product" for r in made) >= 2
    assert read_truth(write_truth(tiny, tmp_path)).customers.num_rows == tiny.customers.count


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"seed": -1}, "seed must be 0 or above"),
        ({"customers": 0}, "customers must be at least 1"),
        ({"days": 0}, "days must be at least 1"),
        ({"visits_per_customer": -1.0}, "visits_per_customer must be 0 or above"),
        ({"cancelled_share": 0.9, "returned_share": 0.2}, "together at most 1"),
        ({"known_share": 1.5}, "known_share must lie between 0 and 1"),
        ({"truth_days": 179}, "truth_days must be at least 180"),
    ],
)
def test_options_that_make_no_sense_are_refused(changes: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        replace(OPTIONS, **changes)


def test_parameters_that_make_no_sense_are_refused() -> None:
    with pytest.raises(ValueError, match="alpha must be above 0"):
        BgNbd(alpha=0)
    with pytest.raises(ValueError, match="q above 1"):
        GammaGamma(q=1)

"""The Online Retail file as orders: nothing odd is dropped, nothing wrong is sent."""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import orjson
import pytest
from typer.testing import CliRunner

from crm_resources.contracts import Order
from generator.cli import app
from generator.errors import BadInputError
from generator.ids import epoch_microseconds
from generator.online_retail import RetailFile, messages, read_file

REAL = Path(__file__).parents[3] / "shared/data/online-retail/online_retail_2010_2011.csv.gz"
HEADER = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
ROWS = (
    "536365,85123A,WHITE HANGING HEART,6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom",
    "C536379,D,Discount,-1,2010-12-01 09:41:00,27.50,14527.0,United Kingdom",
    '536365,22752,"SET OF 7, NESTING ""BOXES""",2,2010-12-01 08:25:00,7.65,17850.0,United Kingdom',
    "A563185,B,Adjust bad debt,1,2011-08-12 14:50:00,11062.06,,United Kingdom",
    "536414,22139,,56,2010-12-01 11:52:00,0.0,,United Kingdom",
    "536365,22752,same again,2,2010-12-01 08:26:00,7.65,17850.0,United Kingdom",
    "536365,22752,same again,2,2010-12-01 08:26:00,7.65,17850.0,United Kingdom",
)


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def written(*rows: str, header: str = HEADER, name: str = "retail.csv") -> Path:
        path = tmp_path / name
        content = "\n".join([header, *rows, ""]).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return written


def orders(file: RetailFile) -> dict[str, Order]:
    return {m.entity_key: Order.model_validate_json(m.value or b"", strict=True) for m in messages(file)}


def test_one_order_per_invoice_with_all_its_lines_in_file_order(write: Callable[..., Path]) -> None:
    file = read_file(write(*ROWS))
    found = orders(file)
    assert file.rows == 7
    assert list(found) == ["536365", "C536379", "536414", "A563185"]
    assert [(line.line_number, line.source_line, line.product_id) for line in found["536365"].lines] == [
        (1, 1, "85123A"),
        (2, 3, "22752"),
        (3, 6, "22752"),
        (4, 7, "22752"),
    ]
    assert found["536365"].lines[1].description == 'SET OF 7, NESTING "BOXES"'


def test_the_order_has_the_time_of_its_earliest_line_and_lines_keep_theirs(write: Callable[..., Path]) -> None:
    order = orders(read_file(write(*ROWS)))["536365"]
    assert order.event_time == datetime(2010, 12, 1, 8, 25, tzinfo=UTC)
    assert [line.line_time for line in order.lines] == [datetime(2010, 12, 1, 8, 26, tzinfo=UTC), None, *[order.lines[0].line_time] * 2]


def test_times_are_london_times(write: Callable[..., Path]) -> None:
    summer = orders(read_file(write(*ROWS)))["A563185"]
    assert summer.event_time == datetime(2011, 8, 12, 13, 50, tzinfo=UTC)


def test_status_customer_and_amount(write: Callable[..., Path]) -> None:
    found = orders(read_file(write(*ROWS)))
    assert {k: o.status for k, o in found.items()} == {
        "536365": "completed",
        "C536379": "cancelled",
        "536414": "completed",
        "A563185": "adjustment",
    }
    assert found["536365"].customer_id == "17850"
    assert found["536414"].customer_id is None
    assert found["536414"].lines[0].description is None
    assert found["536365"].amount == Decimal("61.20")
    assert found["C536379"].amount == Decimal("-27.50")


def test_a_record_without_a_customer_is_keyed_by_its_order(write: Callable[..., Path]) -> None:
    keys = {m.entity_key: m.key for m in messages(read_file(write(*ROWS)))}
    assert keys == {"536365": b"17850", "C536379": b"14527", "536414": b"536414", "A563185": b"A563185"}


def test_every_replay_sends_the_same_bytes(write: Callable[..., Path]) -> None:
    first = list(messages(read_file(write(*ROWS))))
    assert list(messages(read_file(write(*ROWS, name="again.csv.gz")))) == first


def test_another_file_gives_other_ids(write: Callable[..., Path]) -> None:
    ids = {m.event_id for m in messages(read_file(write(*ROWS)))}
    assert ids.isdisjoint(m.event_id for m in messages(read_file(write(*ROWS[:-1]))))


def test_the_other_spelling_of_columns_and_times(write: Callable[..., Path]) -> None:
    header = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country"
    row = "489434,85048,LIGHTS,12,12/1/2009 7:45,6.95,13085,United Kingdom"
    order = orders(read_file(write(row, header=header)))["489434"]
    assert (order.customer_id, order.event_time) == ("13085", datetime(2009, 12, 1, 7, 45, tzinfo=UTC))


def test_the_first_known_customer_stands_for_lines_that_name_none(write: Callable[..., Path]) -> None:
    rows = ("1,A,x,1,2011-01-01 10:00:00,1,,UK", "1,B,x,1,2011-01-01 10:00:00,1,7.0,UK")
    assert orders(read_file(write(*rows)))["1"].customer_id == "7"


def test_the_facts_of_the_data_set(write: Callable[..., Path]) -> None:
    facts = read_file(write(*ROWS)).facts
    assert (facts.business_timezone, facts.as_of) == ("Europe/London", date(2011, 8, 13))


GOOD = ROWS[0]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ((GOOD, GOOD.replace(",6,", ",six,")), "retail.csv:3: Quantity: 'six' is no whole number"),
        ((GOOD.replace("2.55", "cheap"),), "retail.csv:2: UnitPrice: 'cheap' is no price"),
        ((GOOD.replace("2.55", "2.55555"),), "retail.csv:2: UnitPrice: '2.55555' is no price"),
        ((GOOD.replace("2.55", "NaN"),), "retail.csv:2: UnitPrice: 'NaN' is no price"),
        ((GOOD.replace("2010-12-01 08:26:00", "2010-13-01 08:26:00"),), "retail.csv:2: InvoiceDate: '2010-13-01 08:26:00' is no time"),
        ((GOOD.replace("17850.0", "Smith"),), "retail.csv:2: CustomerID: 'Smith' is no customer number"),
        ((GOOD.replace("85123A", ""),), "retail.csv:2: StockCode: is empty"),
        ((GOOD.replace("536365", ""),), "retail.csv:2: InvoiceNo: is empty"),
        ((GOOD, "536366,22"), "retail.csv:3: has 2 columns, the header has 8"),
        ((GOOD, GOOD.replace("17850.0", "1.0")), "retail.csv:3: CustomerID: invoice 536365 has customer 17850 above and 1 here"),
        ((GOOD, GOOD.replace("United Kingdom", "France")), "retail.csv:3: Country: invoice 536365 has country United Kingdom above"),
        ((GOOD, '536366,22,"open'), "retail.csv:3: is no CSV"),
        ((), "retail.csv: has a header but no records"),
    ],
)
def test_a_bad_record_is_named_by_line_and_column(write: Callable[..., Path], rows: tuple[str, ...], message: str) -> None:
    with pytest.raises(BadInputError) as caught:
        read_file(write(*rows))
    assert str(caught.value).startswith(message)
    assert str(caught.value).endswith("Nothing was sent.")


def test_a_line_number_counts_lines_of_the_file_also_after_a_text_over_two(write: Callable[..., Path]) -> None:
    with pytest.raises(BadInputError, match=r"retail\.csv:4: Quantity"):
        read_file(write(GOOD.replace("WHITE HANGING HEART", '"two\nlines"'), GOOD.replace(",6,", ",six,")))


def test_a_missing_column_is_named_with_both_spellings(write: Callable[..., Path]) -> None:
    with pytest.raises(BadInputError, match=r"retail\.csv:1: UnitPrice or Price: column is missing"):
        read_file(write(GOOD, header=HEADER.replace("UnitPrice", "Cost")))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv.gz", b"InvoiceNo,StockCode\n", "x.csv.gz: is not gzip, although its name says so"),
        ("x.csv.gz", gzip.compress(b"InvoiceNo" * 1000, mtime=0)[:-12], "x.csv.gz: is a damaged or cut off gzip file"),
        ("x.csv.gz", gzip.compress(b"a" * 100, mtime=0)[:12] + b"\xff" * 9, "x.csv.gz: is a damaged or cut off gzip file"),
        ("x.csv", b"", "x.csv: is empty"),
        ("x.csv.gz", gzip.compress(b"", mtime=0), "x.csv.gz: is empty"),
        ("x.csv", b"a\n\xa3", "x.csv:2: is not utf-8 text"),
        ("x.csv", b"\x00\x01\x02", "x.csv:1: InvoiceNo or Invoice: column is missing"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(BadInputError) as caught:
        read_file(path)
    assert str(caught.value).startswith(message)


def test_older_copies_in_latin_1_are_read_when_told(write: Callable[..., Path]) -> None:
    path = write()
    path.write_bytes(f"{HEADER}\n{GOOD.replace('WHITE', '£5')}\n".encode("latin-1"))
    assert orders(read_file(path, encoding="latin-1"))["536365"].lines[0].description == "£5 HANGING HEART"


def test_the_command_ends_with_2_and_leaves_nothing_behind(tmp_path: Path, write: Callable[..., Path]) -> None:
    path = write(GOOD.replace(",6,", ",six,"))
    outcome = CliRunner().invoke(app, ["replay", str(path)], env={"CRM_HOME": str(tmp_path / "home"), "CRM_KAFKA_BOOTSTRAP": "127.0.0.1:1"})
    assert outcome.exit_code == 2
    assert "retail.csv:2: Quantity: 'six' is no whole number" in outcome.stderr
    assert not (tmp_path / "home").exists()


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    outcome = CliRunner().invoke(app, ["replay", str(tmp_path / "absent.csv")], env={"CRM_HOME": str(tmp_path / "home")})
    assert outcome.exit_code == 2
    assert "absent.csv: cannot be read: No such file or directory" in outcome.stderr


def test_preparing_writes_the_facts_without_any_service(tmp_path: Path, write: Callable[..., Path]) -> None:
    env = {"CRM_HOME": str(tmp_path / "home"), "CRM_KAFKA_BOOTSTRAP": "127.0.0.1:1"}
    outcome = CliRunner().invoke(app, ["replay", str(write(*ROWS)), "--env", "shop", "--prepare-only"], env=env)
    assert outcome.exit_code == 0, outcome.output
    written = (tmp_path / "home/shop/environment.env").read_text()
    assert written == "CRM_BUSINESS_TIMEZONE=Europe/London\nCRM_AS_OF=2011-08-13\n"


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.exists(), reason=f"the Online Retail file is absent: {os.path.relpath(REAL)}")
def test_the_real_file_becomes_25900_orders_of_the_known_sum() -> None:
    file = read_file(REAL)
    sent = list(messages(file))
    assert file.rows == 541_909
    assert len(sent) == len({m.event_id for m in sent}) == len({m.entity_key for m in sent}) == 25_900
    assert sum((m.amount or Decimal(0) for m in sent), Decimal(0)) == Decimal("9747747.934")
    assert [m.event_us for m in sent] == sorted(m.event_us for m in sent)
    assert file.facts.as_of == date(2011, 12, 10)
    assert sum(len({line.at for line in i.lines}) > 1 for i in file.invoices) == 43
    assert len({i.customer_id for i in file.invoices} - {None}) == 4_372
    largest = max(sent, key=lambda m: len(m.value or b""))
    assert len(largest.value or b"") < 1024 * 1024
    rows = sorted(line.row for i in file.invoices for line in i.lines)
    assert rows == list(range(1, 541_910))
    first = orjson.loads(sent[0].value or b"")
    assert (first["order_id"], epoch_microseconds(datetime.fromisoformat(first["event_time"]))) == ("536365", sent[0].event_us)

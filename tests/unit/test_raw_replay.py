"""Public data sets in their own formats: every row becomes one message, and a bad file is named by its line."""

from __future__ import annotations

import gzip
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import orjson
import pytest
from typer.testing import CliRunner

from crm_resources import kafka
from crm_resources.raw_topics import raw_topic_spec
from crm_resources.settings import load_settings
from generator.cli import app
from generator.pacing import PerSecond
from generator.raw_formats import UNKNOWN_DEVICE
from generator.raw_reader import RawFileError
from generator.raw_replay import InBatches, RawRecord, RawReplay, check

RETAIL = "InvoiceNo,StockCode,Description,Quantity,InvoiceDate,UnitPrice,CustomerID,Country"
RETAIL_ROWS = (
    '536365,85123A,"HEART, ""T-LIGHT""",6,2010-12-01 08:26:00,2.55,17850.0,United Kingdom',
    "536414,22139,,56,2010-12-01 11:52:00,0.0,,United Kingdom",
    "C536379,D,Discount,-1,2011-07-01 09:41:00,27.50,14527.0,United Kingdom",
)
EVENTS = "timestamp,visitorid,event,itemid,transactionid"
EVENT_ROWS = ("1433221332117,257597,view,355908,", "1433222276276,599528,transaction,356475,4000")
PROPERTIES = "timestamp,itemid,property,value"
PROPERTY_ROWS = ("1435460400000,460429,categoryid,1338", "1441508400000,206783,888,1116713 960601 n277.200")
CATEGORIES = "categoryid,parentid"
AVAZU = (
    "id,click,hour,C1,banner_pos,site_id,site_domain,site_category,app_id,app_domain,app_category,device_id,device_ip,"
    "device_model,device_type,device_conn_type,C14,C15,C16,C17,C18,C19,C20,C21"
)
AVAZU_ROW = (
    "1000009418151094273,0,14102100,1005,0,1fbe01fe,f3845767,28905ebd,ecad2386,7801e8d9,07d7df22,a99f214a,ddd2926e,"
    "44956a24,1,2,15706,320,50,1722,0,35,-1,79"
)
REAL = Path(__file__).parents[3] / "shared/data/online-retail/online_retail_2010_2011.csv.gz"

Write = Callable[..., Path]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def written(header: str, *rows: str, name: str = "data.csv", end: str = "\n") -> Path:
        path = tmp_path / name
        content = ("\n".join([header, *rows]) + end).encode()
        path.write_bytes(gzip.compress(content) if name.endswith(".gz") else content)
        return path

    return written


def records(path: Path, **options: Any) -> list[RawRecord]:
    with RawReplay(path, **options) as replay:
        found = list(replay.records())
        if replay.problem:
            raise replay.problem
        return found


def messages(path: Path, **options: Any) -> list[dict[str, Any]]:
    return [orjson.loads(r.value or b"") for r in records(path, **options)]


def test_a_row_of_online_retail_keeps_its_text_under_the_names_of_its_file(write: Write) -> None:
    first, _, summer = messages(write(RETAIL, *RETAIL_ROWS))
    event_id = first.pop("event_id")
    assert first == {
        "event_time": "2010-12-01T08:26:00.000000Z",
        "row": 1,
        "InvoiceNo": "536365",
        "StockCode": "85123A",
        "Description": 'HEART, "T-LIGHT"',
        "Quantity": "6",
        "InvoiceDate": "2010-12-01 08:26:00",
        "UnitPrice": "2.55",
        "CustomerID": "17850.0",
        "Country": "United Kingdom",
    }
    assert event_id.startswith("012ca109-c1c0-7")  # 1291191960000 ms
    assert summer["event_time"] == "2011-07-01T08:41:00.000000Z"  # London, in summer


def test_the_other_spelling_of_online_retail_is_the_same_data_set(write: Write) -> None:
    header = "Invoice,StockCode,Description,Quantity,InvoiceDate,Price,Customer ID,Country"
    path = write(header, "489434,85048,LIGHTS,12,12/1/2009 7:45,6.95,13085,United Kingdom")
    (record,) = records(path)
    message = orjson.loads(record.value or b"")
    assert (record.plural, record.key, message["event_time"]) == ("raw.online_retail", b"13085", "2009-12-01T07:45:00.000000Z")
    assert (message["Invoice"], message["Price"], message["Customer ID"]) == ("489434", "6.95", "13085")


def test_the_key_is_the_customer_and_for_a_guest_the_invoice(write: Write) -> None:
    assert [r.key for r in records(write(RETAIL, *RETAIL_ROWS))] == [b"17850", b"536414", b"14527"]


def test_retailrocket_events_are_keyed_by_visitor_and_timed_in_milliseconds(write: Write) -> None:
    view, bought = records(write(EVENTS, *EVENT_ROWS))
    assert (view.plural, view.key, bought.key) == ("raw.retailrocket_events", b"257597", b"599528")
    assert view.event_us == 1_433_221_332_117_000
    message = orjson.loads(view.value or b"")
    assert (message["event_time"], message["timestamp"], message["transactionid"]) == (
        "2015-06-02T05:02:12.117000Z",
        "1433221332117",
        "",
    )


def test_retailrocket_item_properties_are_keyed_by_item(write: Write) -> None:
    found = records(write(PROPERTIES, *PROPERTY_ROWS, name="item_properties_part1.csv"))
    assert [(r.plural, r.key) for r in found] == [("raw.retailrocket_item_properties", key) for key in (b"460429", b"206783")]


def test_the_category_tree_has_no_time_and_says_so(write: Write) -> None:
    root, leaf = messages(write(CATEGORIES, "231,", "1016,213"))
    assert (root["event_time"], root["parentid"], leaf["parentid"]) == (None, "", "213")
    assert root["event_id"] != leaf["event_id"]


def avazu_rows(count: int) -> Iterator[str]:
    return (AVAZU_ROW.replace("1000009418151094273", str(10_000_000_000_000_000_000 + 7_919 * i)) for i in range(count))


def test_the_minute_of_avazu_is_labelled_synthetic_and_the_hour_is_the_files(write: Write) -> None:
    first, second = messages(write(AVAZU, AVAZU_ROW, AVAZU_ROW))
    assert first["event_time_synthetic"] == "minute"
    assert first["event_time"].startswith("2014-10-21T00:")
    assert first["event_time"] == second["event_time"]  # the same id has the same minute
    assert (first["hour"], first["click"]) == ("14102100", "0")


def test_the_minutes_of_avazu_fill_the_hour_evenly(write: Write) -> None:
    minutes = Counter(m["event_time"][14:16] for m in messages(write(AVAZU, *avazu_rows(6_000))))
    assert len(minutes) == 60
    # chi-squared with 59 degrees of freedom exceeds 98.3 once in a thousand
    assert sum((n - 100) ** 2 / 100 for n in minutes.values()) < 98.3


def test_an_unknown_device_of_avazu_goes_by_address_and_model(write: Write) -> None:
    known = AVAZU_ROW.replace(UNKNOWN_DEVICE, "c357dbff")
    assert [r.key for r in records(write(AVAZU, AVAZU_ROW, known))] == [b"ddd2926e/44956a24", b"c357dbff"]


def test_the_test_file_of_avazu_lacks_the_click(write: Write) -> None:
    (message,) = messages(write(AVAZU.replace("click,", ""), AVAZU_ROW.replace(",0,", ",", 1), name="test.gz"))
    assert "click" not in message


def test_a_file_and_its_gzip_give_the_same_messages(write: Write) -> None:
    assert records(write(EVENTS, *EVENT_ROWS)) == records(write(EVENTS, *EVENT_ROWS, name="again.csv.gz"))


def test_rows_that_are_alike_are_rows_of_their_own(write: Write) -> None:
    ids = [m["event_id"] for m in messages(write(RETAIL, *RETAIL_ROWS[:1] * 3))]
    assert len(set(ids)) == 3


def test_a_repaired_file_gives_the_rows_it_shares_the_same_ids(write: Write) -> None:
    with RawReplay(write(EVENTS, *EVENT_ROWS, "14332", end="")) as cut_off:
        before = list(cut_off.records())
    assert cut_off.problem is not None
    assert records(write(EVENTS, *EVENT_ROWS, EVENT_ROWS[0]))[:2] == before


def test_the_order_of_columns_does_not_matter(write: Write) -> None:
    (message,) = messages(write("itemid,timestamp,value,property", "7,1433221332117,x,888"))
    assert message["event_time"] == "2015-06-02T05:02:12.117000Z"


def test_a_limit_reads_no_further(write: Write) -> None:
    path = write(EVENTS, *EVENT_ROWS, "bad")
    assert len(records(path, limit=2)) == check(path, limit=2) == 2


BAD_EVENT = EVENT_ROWS[0].replace("1433221332117", "yesterday")


@pytest.mark.parametrize(
    ("rows", "end", "message"),
    [
        (("1433221332117,2575",), "", "data.csv:3: the last line is cut off: 2 of 5 columns and no line end; fetch the file again"),
        (('1433221332117,"2575',), "", "data.csv:3: a quotation mark is opened in this line and never closed"),
        (('1433221332117,"2575', *EVENT_ROWS), "\n", "data.csv:3: a quotation mark is opened in this line and never closed"),
        (("1433221332117,2575",), "\n", "data.csv:3: has 2 columns, the header has 5; correct the line"),
        ((f"{EVENT_ROWS[0]},more",), "\n", "data.csv:3: has 6 columns, the header has 5"),
        ((BAD_EVENT,), "\n", "data.csv:3: timestamp: 'yesterday' is no time in milliseconds since 1970, such as"),
        (("1433221332,1,view,2,",), "\n", "data.csv:3: timestamp: '1433221332' is no time in milliseconds"),
        (("1433221332117,,view,355908,",), "\n", "data.csv:3: visitorid: is empty"),
        (('1433221332117,"two\nlines",view,1,', BAD_EVENT), "\n", "data.csv:5: timestamp: 'yesterday'"),
        (('1433221332117,"2"5,view,1,',), "\n", "data.csv:3: is no CSV"),
    ],
)
def test_a_bad_row_ends_the_replay_at_its_line_after_the_rows_before_it(
    write: Write, rows: tuple[str, ...], end: str, message: str
) -> None:
    with RawReplay(write(EVENTS, EVENT_ROWS[1], *rows, end=end)) as replay:
        given = list(replay.records())
    assert str(replay.problem).startswith(message)
    assert [r.sequence for r in given[:1]] == [1]


@pytest.mark.parametrize(
    ("header", "row", "message"),
    [
        (RETAIL, RETAIL_ROWS[0].replace("2010-12-01", "2010-13-01"), "InvoiceDate: '2010-13-01 08:26:00' is no time such as"),
        (RETAIL, RETAIL_ROWS[1].replace("536414", ""), "InvoiceNo: is empty"),
        (AVAZU, AVAZU_ROW.replace("14102100", "14102124"), "hour: '14102124' is no hour as YYMMDDHH"),
        (AVAZU, AVAZU_ROW.replace("14102100", "2014102100"), "hour: '2014102100' is no hour as YYMMDDHH"),
        (AVAZU, AVAZU_ROW.replace("1000009418151094273", ""), "id: is empty"),
    ],
)
def test_a_cell_that_is_needed_is_named_by_its_column(write: Write, header: str, row: str, message: str) -> None:
    with pytest.raises(RawFileError) as caught:
        records(write(header, row))
    assert str(caught.value).startswith(f"data.csv:2: {message}")


def test_a_cut_off_gzip_file_gives_its_whole_rows_and_names_the_line(tmp_path: Path) -> None:
    path = tmp_path / "events.csv.gz"
    rows = [f"{1_433_221_332_117 + 977 * i},{i * i},view,{i * 31 % 997}," for i in range(20_000)]
    path.write_bytes(gzip.compress("\n".join([EVENTS, *rows]).encode())[:-3_000])
    with RawReplay(path) as replay:
        given = list(replay.records())
    assert 1_000 < len(given) < 20_000
    assert str(replay.problem) == f"events.csv.gz:{len(given) + 2}: the gzip data is cut off in this line; fetch the file again"


def test_a_last_line_that_lacks_only_its_end_is_sent_and_told(write: Write) -> None:
    with RawReplay(write(EVENTS, *EVENT_ROWS, end="")) as replay:
        assert len(list(replay.records())) == 2
    assert (replay.problem, replay.table.unfinished_line) == (None, 3)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        (
            EVENTS.replace("visitorid", "visitor"),
            "data.csv:1: is no header of RetailRocket events: missing: visitorid; not known: visitor; "
            "expected is timestamp,visitorid,event,itemid,transactionid; see --format",
        ),
        (RETAIL.replace(",UnitPrice", ""), "data.csv:1: is no header of Online Retail: missing: UnitPrice or Price; expected"),
        (f"{RETAIL},Price", "data.csv:1: is no header of Online Retail: there twice: UnitPrice"),
        (EVENT_ROWS[0], "data.csv:1: is the header of none of the known formats (online_retail, retailrocket_events,"),
    ],
)
def test_a_wrong_header_is_told_with_what_differs_from_the_nearest_format(write: Write, header: str, message: str) -> None:
    with pytest.raises(RawFileError) as caught:
        RawReplay(write(header, *EVENT_ROWS))
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.csv.gz", EVENTS.encode(), "x.csv.gz: is not gzip, although its name says so"),
        ("x.csv", b"PK\x03\x04....", "x.csv: is a zip archive; unpack it"),
        ("x.csv", b"", "x.csv: is empty"),
        ("x.csv.gz", gzip.compress(EVENTS.encode(), mtime=0)[:-9], "x.csv.gz:1: the gzip data is cut off in this line"),
        ("x.csv", b"\xff\xfe", "x.csv:1: is not utf-8 text; for a file in another encoding pass --encoding"),
        ("x.csv", b"x" * (1024 * 1024 + 1), "x.csv:1: is longer than 1048576 bytes, so it is no row"),
    ],
)
def test_a_file_of_another_kind_is_refused(tmp_path: Path, name: str, content: bytes, message: str) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    with pytest.raises(RawFileError) as caught:
        RawReplay(path)
    assert str(caught.value).startswith(message)


def test_a_mark_at_the_start_of_the_text_is_no_part_of_the_first_title(write: Write) -> None:
    assert check(write(f"\ufeff{EVENTS}", *EVENT_ROWS)) == 2


def test_older_copies_in_latin_1_are_read_when_told(tmp_path: Path) -> None:
    path = tmp_path / "retail.csv"
    path.write_bytes(f"{RETAIL}\n{RETAIL_ROWS[0].replace('HEART', '£5')}\n".encode("latin-1"))
    with pytest.raises(RawFileError, match=r"retail\.csv:2: is not utf-8 text"):
        check(path)
    assert messages(path, encoding="latin-1")[0]["Description"] == '£5, "T-LIGHT"'


def test_a_large_file_is_read_in_little_memory(write: Write) -> None:
    path = write(EVENTS, *(f"{1_433_221_332_117 + i},{i},view,355908," for i in range(30_000)))
    tracemalloc.start()
    try:
        assert check(path) == 30_000
        assert tracemalloc.get_traced_memory()[1] < path.stat().st_size
    finally:
        tracemalloc.stop()


def test_a_batch_leaves_together_and_the_rate_stays() -> None:
    pace = InBatches(PerSecond(100), 10)
    assert [pace.due_seconds(i, 0) for i in (0, 9, 10, 19, 20)] == [0.0, 0.0, 0.1, 0.1, 0.2]


def test_raw_topics_stand_beside_those_of_the_contracts() -> None:
    settings = load_settings({"CRM_ENV": "shop"})
    spec = raw_topic_spec(settings, "avazu")
    assert spec.name == "shop.raw.avazu"
    assert spec.name not in {s.name for s in kafka.topic_specs(settings)}


def run(tmp_path: Path, *arguments: str) -> tuple[int, str, str]:
    env = {"CRM_HOME": str(tmp_path / "home"), "CRM_KAFKA_BOOTSTRAP": "127.0.0.1:1"}
    done = CliRunner().invoke(app, ["replay-raw", *arguments], env=env)
    return done.exit_code, done.stdout, done.stderr


def test_every_header_is_checked_before_kafka_is_asked(tmp_path: Path, write: Write) -> None:
    good, bad = write(EVENTS, *EVENT_ROWS, name="good.csv"), write("a,b", "1,2", name="bad.csv")
    code, _, stderr = run(tmp_path, str(good), str(bad))
    assert code == 2
    assert stderr.startswith("bad.csv:1: is the header of none of the known formats")
    assert stderr.endswith("Nothing was sent.\n")
    assert not (tmp_path / "home").exists()


def test_a_format_that_is_named_is_the_only_one_considered(tmp_path: Path, write: Write) -> None:
    code, _, stderr = run(tmp_path, str(write(EVENTS, *EVENT_ROWS)), "--format", "avazu")
    assert code == 2
    assert "data.csv:1: is no header of Avazu click-through: missing: id, hour, C1" in stderr


def test_checking_first_finds_a_bad_last_row_before_anything_is_sent(tmp_path: Path, write: Write) -> None:
    code, _, stderr = run(tmp_path, str(write(EVENTS, *EVENT_ROWS, "14332", end="")), "--check-first")
    assert (code, stderr) == (
        2,
        "data.csv:4: the last line is cut off: 1 of 5 columns and no line end; fetch the file again\nNothing was sent.\n",
    )


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    code, _, stderr = run(tmp_path, str(tmp_path / "absent.csv"))
    assert code == 2
    assert "absent.csv: cannot be read: No such file or directory" in stderr


@pytest.mark.real_data
@pytest.mark.skipif(not REAL.exists(), reason="REAL DATA ABSENT: the Online Retail file is not beside the checkout")
def test_every_row_of_the_real_file_is_one(tmp_path: Path) -> None:
    code, stdout, stderr = run(tmp_path, str(REAL), "--check-only")
    assert code == 0, stderr
    assert stdout == "online_retail_2010_2011.csv.gz: 541,909 rows, no fault found\n"

"""Every mart against an independent computation from the real file, and the figures that are known of it, to the last digit."""

from __future__ import annotations

from datetime import UTC, date, datetime
from decimal import Decimal
from pathlib import Path

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from crm_assets.build import build_defs
from crm_assets.warehouse.marts_page import NothingToShow, model_pictures, pictures, read_marts, write_page
from crm_assets.warehouse.models.evaluation import HORIZON_DAYS
from crm_assets.warehouse.models.reading import read_hold_out
from crm_resources import warehouse
from crm_resources.contracts import contract_for
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from tests.oracle import marts as oracle
from tests.oracle import sales as sales_oracle
from tests.oracle.lake_writer import append, product, write
from tests.oracle.online_retail import ZONE, read_lines, silver_orders
from tests.oracle.refresh import WITHOUT_TESTS, data_set, mart, refresh
from tests.statistics.models_judgement import REAL_AS_OF
from tests.statistics.purchase_splits import of_real_file

pytestmark = [pytest.mark.integration, pytest.mark.real_data]

FILE = Path("online-retail") / "online_retail_2010_2011.csv.gz"


@pytest.fixture(scope="module")
def file_lines(shared_data: Path) -> pl.DataFrame:
    return read_lines(shared_data / FILE)


@pytest.fixture(scope="module")
def lines(file_lines: pl.DataFrame) -> pl.DataFrame:
    return oracle.classified(file_lines)


@pytest.fixture(scope="module")
def matching(lines: pl.DataFrame) -> oracle.Matching:
    return oracle.match(lines)


@pytest.fixture(scope="module")
def channels(lines: pl.DataFrame) -> dict[str, str]:
    """The file knows one channel; the last digit of the invoice says which one it takes part in here."""
    names = ("web", "phone", "app")
    return {invoice: names[int(invoice[-1]) % 3] for invoice in lines["invoice"].unique()}


@pytest.fixture(scope="module")
def categories(lines: pl.DataFrame) -> dict[str, str]:
    """The file knows no categories; a catalogue made up here gives one to most products, by their first digit."""
    names = {"1": "toys", "2": "home", "4": "garden", "8": "gifts"}
    return {code: names[code[0]] for code in lines["product_code"].unique() if code[0] in names}


@pytest.fixture(scope="module")
def entries(lines: pl.DataFrame, matching: oracle.Matching, channels: dict[str, str], categories: dict[str, str]) -> pl.DataFrame:
    return sales_oracle.entries(lines, matching, channels, categories)


@pytest.fixture(scope="module")
def built(stack_services: Stack, file_lines: pl.DataFrame, channels: dict[str, str], categories: dict[str, str]) -> Settings:
    settings = data_set(stack_services.settings, "marts_real", as_of=oracle.AS_OF, timezone=ZONE)
    orders = silver_orders(file_lines)
    place = orders.schema.get_field_index("channel")
    by_order = [channels[invoice.as_py()] for invoice in orders["order_id"]]
    write(settings, contract_for("order"), orders.set_column(place, orders.field(place), [by_order]))
    listed = datetime(2010, 12, 1, tzinfo=UTC)
    append(settings, [product(code.lower(), listed, category=category) for code, category in categories.items()])
    refresh(settings)
    return settings


def same(actual: pl.DataFrame, expected: pl.DataFrame, *keys: str) -> None:
    """Every column of the expectation, every row, exactly."""
    casts = [pl.col(name).cast(expected.schema[name]) for name in expected.columns]
    assert_frame_equal(actual.select(casts).sort(keys), expected.sort(keys), check_exact=True)


def one(settings: Settings, sql: str) -> tuple[object, ...]:
    return warehouse.fetch_rows(settings, sql)[0]


class TestAgainstTheOracle:
    def test_order_lines(self, built: Settings, lines: pl.DataFrame, matching: oracle.Matching):
        same(mart(built, "fct_order_lines", money=("unit_price", "amount")), oracle.order_lines(lines, matching), "source_line")

    def test_orders(self, built: Settings, lines: pl.DataFrame, matching: oracle.Matching):
        money = ("sale_amount", "cancellation_amount", "adjustment_amount", "other_amount", "cancelled_amount", "restated_amount")
        same(mart(built, "fct_orders", money=money), oracle.orders(lines, matching), "order_id")

    def test_cancellations(self, built: Settings, lines: pl.DataFrame, matching: oracle.Matching):
        credits = matching.credits.join(lines, on="source_line").select(
            "source_line",
            applied_amount=(pl.col("matched").cast(oracle.MONEY) * pl.col("unit_price").cast(oracle.MONEY)).cast(oracle.MONEY),
            cancellation_outcome=pl.when(pl.col("matched") == pl.col("asked"))
            .then(pl.lit("matched in full"))
            .when(pl.col("matched") > 0)
            .then(pl.lit("matched in part"))
            .otherwise(pl.lit("unmatched")),
        )
        where = "line_class = 'cancellation' and customer_key <> 'unknown'"
        same(mart(built, "fct_order_lines", money=("applied_amount",), where=where), credits, "source_line")

    def test_daily_sales(self, built: Settings, lines: pl.DataFrame, matching: oracle.Matching):
        money = ("gross_amount", "cancelled_amount_booked", "cancelled_amount_restated", "adjustment_amount", "other_amount")
        same(mart(built, "daily_sales", money=money), oracle.daily_sales(lines, matching), "business_date", "customer_known")

    def test_customers(self, built: Settings, lines: pl.DataFrame):
        same(mart(built, "dim_customers", where="not is_unknown"), oracle.customers(lines), "customer_key")

    def test_products(self, built: Settings, lines: pl.DataFrame):
        same(mart(built, "dim_products", where="not is_unknown"), oracle.products(lines), "product_key")

    @pytest.mark.parametrize("basis", ["booked", "restated"])
    def test_rfm(self, built: Settings, lines: pl.DataFrame, matching: oracle.Matching, basis: str):
        scores = mart(built, "rfm_scores", money=("monetary",), where=f"basis = '{basis}'")
        segments = mart(built, "rfm_segments").select("rfm_score_key", "segment")
        same(scores.join(segments, on="rfm_score_key"), oracle.rfm(lines, matching, basis), "customer_key")


class TestAsOfAnyDate:
    """`rfm_as_of` of the one build against the file up to a date, and the movements between two dates."""

    DATES = (date(2011, 3, 31), date(2011, 9, 10), oracle.AS_OF)

    @pytest.fixture(scope="class")
    def expected(self, lines: pl.DataFrame) -> dict[tuple[date, str], pl.DataFrame]:
        found = {}
        for day in self.DATES:
            known = lines.filter(pl.col("business_date") <= day)
            matching = oracle.match(known)
            found |= {(day, basis): oracle.rfm(known, matching, basis, day) for basis in ("booked", "restated")}
        return found

    @pytest.mark.parametrize("day", DATES, ids=str)
    def test_scores_and_segments(self, built: Settings, expected: dict[tuple[date, str], pl.DataFrame], day: date):
        found = mart(built, f"rfm_as_of(date '{day}')", money=("monetary",))
        for basis in ("booked", "restated"):
            same(found.filter(pl.col("basis") == basis), expected[day, basis], "customer_key")

    def test_the_date_of_the_build_gives_the_marts(self, built: Settings):
        of_marts = mart(built, "rfm_scores").join(
            mart(built, "rfm_segments").select("rfm_score_key", "rfm_code", "segment"), on="rfm_score_key"
        )
        found = mart(built, f"rfm_as_of(date '{oracle.AS_OF}')")
        names = [name for name in found.columns if name in of_marts.columns]
        assert len(names) == len(found.columns) - 2, "segment_rank and is_lapsed follow from the segment"
        same(found, of_marts.select(names), "customer_key", "basis")

    @pytest.mark.parametrize("basis", ["booked", "restated"])
    def test_migration_between_two_dates(self, built: Settings, expected: dict[tuple[date, str], pl.DataFrame], basis: str):
        earlier, later = self.DATES[1:]
        sql = f"select * from marts.segment_migration(date '{earlier}', date '{later}', '{basis}')"
        rows = warehouse.fetch_rows(built, sql)
        assert {(before, after): count for before, after, _, count in rows} == oracle.migration(
            expected[earlier, basis], expected[later, basis]
        )
        assert {change for before, after, change, _ in rows if before == after} == {"unchanged"}
        assert {after for _, after, change, _ in rows if change == "churned"} == {"Hibernating", "Lost"}
        assert {before for before, _, change, _ in rows if change == "new"} == {None}


class TestSalesAgainstTheOracle:
    def test_by_channel(self, built: Settings, entries: pl.DataFrame):
        found = mart(built, "daily_sales_by_channel", money=(*sales_oracle.SUMS, *sales_oracle.AVERAGES))
        same(found, sales_oracle.by_channel(entries), "business_date", "channel")

    def test_by_category(self, built: Settings, entries: pl.DataFrame):
        found = mart(built, "daily_sales_by_category", money=sales_oracle.SUMS)
        same(found, sales_oracle.by_category(entries), "business_date", "category", "is_merchandise")

    @pytest.mark.parametrize("period", ["day", "month"])
    def test_new_and_returning_customers(self, built: Settings, entries: pl.DataFrame, period: str):
        money = (*sales_oracle.SUMS, *sales_oracle.AVERAGES)
        found = mart(built, "sales_by_customer_type", money=money, where=f"period = '{period}'")
        same(found, sales_oracle.by_customer_type(entries, period), "period_start", "customer_type")

    def test_cohorts(self, built: Settings, entries: pl.DataFrame):
        found = mart(built, "customer_cohorts", money=(*sales_oracle.SUMS[:5], *sales_oracle.AVERAGES))
        same(found, sales_oracle.cohorts(entries), "cohort_month", "activity_month")

    def test_product_performance(self, built: Settings, entries: pl.DataFrame):
        money = ("gross_amount", "cancelled_amount", "unmatched_amount", "net_amount")
        found = mart(built, "product_performance", money=money)
        same(found, sales_oracle.product_performance(entries), "product_code")
        shares = found.filter(pl.col("gross_amount") > 0).select("cancellation_share", "cancelled_amount", "gross_amount")
        assert all(share == pytest.approx(float(-c / g)) for share, c, g in shares.iter_rows())
        assert found.filter(pl.col("gross_amount") == 0)["cancellation_share"].is_null().all()


class TestKnownFigures:
    def test_sales_of_known_customers(self, built: Settings):
        sql = (
            "select count(*), count(distinct customer_key), count(distinct order_id), sum(amount) from marts.fct_order_lines "
            "where line_class = 'sale' and customer_key <> 'unknown'"
        )
        lines, customers, invoices, revenue = one(built, sql)
        assert (lines, customers, invoices, Decimal(str(revenue))) == (397_884, 4_338, 18_532, Decimal("8911407.904"))

    def test_all_lines_by_class(self, built: Settings):
        rows = warehouse.fetch_rows(built, "select line_class, sum(amount), count(*) from marts.fct_order_lines group by line_class")
        assert {kind: Decimal(amount) for kind, amount, _ in rows} == {
            "sale": Decimal("10655622.484"),
            "cancellation": Decimal("-896812.49"),
            "adjustment": Decimal("-11062.06"),
            "other": Decimal(0),
        }
        assert sum(count for _, _, count in rows) == 541_909

    def test_totals_agree_as_booked_and_restated(self, built: Settings):
        sql = "select sum(total_amount_booked), sum(total_amount_restated) from marts.daily_sales"
        assert [Decimal(str(v)) for v in one(built, sql)] == [Decimal("9747747.934")] * 2

    def test_dimensions(self, built: Settings):
        sql = (
            "select (select count(*) from marts.fct_orders), (select count(*) from marts.dim_customers where not is_unknown), "
            "(select count(*) from marts.dim_customers where is_unknown), (select count(*) from marts.dim_products where is_unknown)"
        )
        assert one(built, sql) == (25_900, 4_372, 1, 1)

    def test_cancellations(self, built: Settings):
        rows = warehouse.fetch_rows(
            built,
            "select cancellation_outcome, count(*), sum(applied_amount), sum(unmatched_amount) from marts.fct_order_lines "
            "where line_class = 'cancellation' and customer_key <> 'unknown' group by 1",
        )
        assert {outcome: count for outcome, count, _, _ in rows} == {
            "matched in full": 7_181,
            "matched in part": 53,
            "unmatched": 1_671,
        }
        assert sum(Decimal(str(applied)) for _, _, applied, _ in rows) == Decimal("464239.77")
        assert sum(Decimal(str(unmatched)) for _, _, _, unmatched in rows) == Decimal("147102.32")
        assert one(built, "select count(*) from marts.fct_orders where is_wholly_cancelled") == (144,)

    @pytest.mark.parametrize(
        ("basis", "customers", "frequency", "monetary"),
        [("booked", 4_338, 18_532, "8911407.904"), ("restated", 4_327, 18_388, "8311069.954")],
    )
    def test_rfm_sums(self, built: Settings, basis: str, customers: int, frequency: int, monetary: str):
        count, orders, amount = one(built, f"select count(*), sum(frequency), sum(monetary) from marts.rfm_scores where basis = '{basis}'")
        assert (count, int(str(orders)), Decimal(str(amount))) == (customers, frequency, Decimal(monetary))

    @pytest.mark.parametrize(
        ("basis", "counts"),
        [
            ("booked", [788, 672, 572, 402, 402, 359, 299, 254, 234, 231, 125]),
            ("restated", [810, 657, 573, 390, 373, 360, 317, 243, 240, 235, 129]),
        ],
    )
    def test_segments(self, built: Settings, basis: str, counts: list[int]):
        order = ["Champions", "Hibernating", "Lost", "New Customers", "Loyal", "At Risk", "Potential Loyalist", "Need Attention"]
        order += ["Promising", "About To Sleep", "Cannot Lose Them"]
        rows = warehouse.fetch_rows(built, f"select segment, count(*) from marts.rfm_segments where basis = '{basis}' group by segment")
        assert dict(rows) == dict(zip(order, counts, strict=True))

    def test_customers_who_change_segment(self, built: Settings):
        sql = (
            "select count(*) from marts.rfm_segments as booked join marts.rfm_segments as restated using (customer_key) "
            "where booked.basis = 'booked' and restated.basis = 'restated' and booked.segment <> restated.segment"
        )
        assert one(built, sql) == (129,)

    def test_a_customer_whose_only_order_was_cancelled_has_no_score(self, built: Settings):
        rows = warehouse.fetch_rows(built, "select basis, monetary from marts.rfm_scores where customer_key = 'id:12346'")
        assert [(basis, Decimal(amount)) for basis, amount in rows] == [("booked", Decimal("77183.60"))]

    def test_a_customer_who_falls_from_promising_to_lost(self, built: Settings):
        rows = warehouse.fetch_rows(
            built,
            "select basis, monetary, recency_days, segment from marts.rfm_scores join marts.rfm_segments using (rfm_score_key, basis) "
            "where rfm_scores.customer_key = 'id:16446' order by basis",
        )
        assert [(basis, Decimal(amount), recency, segment) for basis, amount, recency, segment in rows] == [
            ("booked", Decimal("168472.50"), 1, "Promising"),
            ("restated", Decimal("2.90"), 206, "Lost"),
        ]


def test_the_hold_out_that_purchase_models_are_judged_by(built: Settings, shared_data: Path):
    found = read_hold_out(built, REAL_AS_OF, HORIZON_DAYS)
    expected, _ = of_real_file(shared_data / FILE).split(REAL_AS_OF, HORIZON_DAYS)
    assert found is not None
    assert (found.seen.count, int(found.bought.sum())) == (3370, 1921)
    assert found.seen.data_hash() == expected.seen.data_hash()
    assert found.season_ratio == pytest.approx(expected.season_ratio)


def test_loading_and_building_again_changes_nothing(built: Settings):
    def fingerprint() -> tuple[object, ...]:
        rows = "select (to_jsonb(t) - 'scored_at')::text as row from marts.{table} as t"
        one = "select '{table}', md5(string_agg(row, '|' order by row)) from (" + rows + ") as rows"
        tables = ("fct_orders", "daily_sales", "rfm_scores", "rfm_segments", "dim_customers", "dim_products")
        sql = " union all ".join(one.format(table=table) for table in tables)
        return tuple(sorted(warehouse.fetch_rows(built, sql)))

    before = fingerprint()
    refresh(built, *WITHOUT_TESTS)
    assert fingerprint() == before


def test_the_page_shows_what_the_marts_hold(built: Settings, tmp_path: Path):
    found = read_marts(built)
    assert {segment: booked for segment, _, booked, _ in found.sizes}["Champions"] == 788
    assert sum(restated for *_, restated in found.sizes) == 4_327
    assert sum(count for _, after, count in found.movements if after is not None) == 4_327
    sections = [*pictures(found), *model_pictures(built, found.as_of)]

    index = write_page(tmp_path, "Customers", sections)

    assert [section.name for section in sections] == ["segments", "movements", "cohorts", "model-bgnbd", "model-mbgnbd"]
    assert index.read_text().count("data:image/png;base64,") == len(sections)
    for section in sections:
        assert (tmp_path / f"{section.name}.png").read_bytes().startswith(b"\x89PNG")
        assert f"({section.name}.png)" in (tmp_path / "README.md").read_text()


def test_the_ui_shows_the_plots(built: Settings, monkeypatch: pytest.MonkeyPatch):
    variables = {"CRM_HOME": built.home, "CRM_ENV": built.env, "CRM_AS_OF": built.as_of, "CRM_BUSINESS_TIMEZONE": built.business_timezone}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))

    done = build_defs().resolve_job_def("show_customers").execute_in_process()

    (materialization,) = done.asset_materializations_for_node("reports__customers")
    shown = {name: str(value.value) for name, value in materialization.metadata.items()}
    assert shown["as_of"] == str(built.as_of)
    assert [name for name, text in shown.items() if "](data:image/png;base64,iVBOR" in text] == ["segments", "movements", "cohorts"]
    assert Path(shown["page"]).read_text().count("data:image/png;base64,") == 3


def test_a_data_set_without_marts_has_no_page(stack_services: Stack):
    with pytest.raises(NothingToShow, match="nothing_yet"):
        read_marts(data_set(stack_services.settings, "nothing_yet"))

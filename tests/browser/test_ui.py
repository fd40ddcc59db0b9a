"""What a person sees in the web UI: the whole lineage, a topic, the stream, a Delta table, a dbt model with its checks.

Needs headless Chromium (Debian's package `chromium`); skipped loudly where it is absent. Screenshots are kept below the
reports folder, and where `CRM_SCREENSHOTS` points.
"""

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Page, expect, sync_playwright

from crm_assets.conventions import Group
from crm_resources import lake
from crm_resources.layout import SILVER
from crm_resources.settings import REPOSITORY
from tests.browser.chromium import CHROMIUM, FLAGS
from tests.conftest import Pipeline

SCREENSHOTS = Path(os.environ.get("CRM_SCREENSHOTS") or REPOSITORY / ".crm" / "reports" / "screenshots")
PATIENCE_MS = 90_000
"""The UI loads a megabyte of scripts from a webserver that shares two cores with everything else."""

pytestmark = [
    pytest.mark.browser,
    pytest.mark.skipif(CHROMIUM is None, reason="CHROMIUM ABSENT: install Debian's package chromium to test the web UI"),
]


@pytest.fixture(scope="module")
def page(pipeline: Pipeline) -> Iterator[Page]:
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        page = browser.new_page(viewport={"width": 1800, "height": 1100}, base_url=pipeline.url)
        page.set_default_timeout(PATIENCE_MS)
        expect.set_options(timeout=PATIENCE_MS)
        yield page
        browser.close()


def keep(page: Page, name: str) -> None:
    SCREENSHOTS.mkdir(parents=True, exist_ok=True)
    page.screenshot(path=SCREENSHOTS / f"{name}.png")


def test_the_whole_lineage_from_the_broker_to_the_marts_is_one_graph(page: Page):
    """What lies between the broker and the segments is drawn as one graph.

    Only the nodes in view are part of the page, and the graph outgrows any window: each is looked for where the UI centred it.
    """
    between = quote('key:"infrastructure/kafka"+ and +key:"marts/rfm_segments"', safe="")
    expanded = ",".join(f"global@global:{group}" for group in Group)
    for key in ("infrastructure/kafka", "topics/orders", "stream/driver", "lake/bronze", "silver/orders", "marts/rfm_segments"):
        page.goto(f"/asset-groups~{between}/{quote(key, safe='')}?expanded={expanded}")
        expect(page.locator("svg foreignObject").get_by_text(key.split("/")[-1], exact=True).first).to_be_visible()
    keep(page, "lineage")


def test_a_topic_shows_its_declaration_and_its_check(page: Page):
    page.goto("/assets/topics/orders")
    expect(page.get_by_text("max_message_bytes").first).to_be_visible()
    page.goto("/assets/topics/orders?view=checks")
    expect(page.get_by_text("no_drift").first).to_be_visible()
    keep(page, "topic")


def test_the_stream_shows_its_queries(page: Page):
    page.goto("/assets/stream/driver")
    expect(page.get_by_text("refine_query_id").first).to_be_visible()
    keep(page, "stream")


def test_a_delta_table_shows_its_columns_and_its_row_count(page: Page, pipeline: Pipeline):
    rows = lake.row_count(pipeline.settings, SILVER["orders"].path)
    assert rows > 0
    page.goto("/assets/silver/orders")
    expect(page.get_by_text("Row count").first).to_be_visible()
    expect(page.get_by_text("entity_key", exact=True).first).to_be_visible()
    expect(page.get_by_text("non-nullable").first).to_be_visible()
    expect(page.get_by_text(re.compile(r"^[\d,]+$")).first).to_be_visible()
    keep(page, "delta_table")


def test_a_dbt_model_shows_its_checks_as_passed(page: Page):
    page.goto("/assets/marts/rfm_segments?view=checks")
    expect(page.get_by_text("unique_rfm_segments_rfm_score_key").first).to_be_attached()
    expect(page.get_by_text("Succeeded").first).to_be_visible()
    expect(page.get_by_text("Failed", exact=True)).to_have_count(0)
    keep(page, "dbt_checks")

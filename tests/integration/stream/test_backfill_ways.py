"""A backfill through Kafka and one straight into bronze end in the same silver, but for where and when the records were captured."""

from __future__ import annotations

from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crm_assets.streaming.catch_up import run_both_steps
from crm_assets.streaming.refine import BatchCounts
from crm_resources import kafka
from crm_resources.contracts import contracts
from crm_resources.layout import COORDINATES, PAYLOAD_HASH, SILVER
from crm_resources.settings import Settings
from deploy.local.stack import Stack
from generator.backfill import run_backfill
from generator.backfill_state import FileState
from generator.bronze_path import run_bronze_backfill
from generator.population_model.options import PopulationOptions
from generator.population_model.shop import PopulationShop
from tests.integration.stream.lake_fixtures import Lake

if TYPE_CHECKING:
    from pyspark.sql import SparkSession

OPTIONS = PopulationOptions(end=date(2026, 3, 10), seed=9, customers=60, days=6, products=15)


def silver(lake: Lake) -> dict[str, list[dict[str, Any]]]:
    """Every silver row without its coordinates, by table, in the order of ids."""
    where = {c.name for c in COORDINATES}
    names = {c.plural: [x.name for x in SILVER[c.plural].columns if x.name not in where] for c in contracts()}
    return {plural: sorted(lake.rows(plural, *columns), key=lambda row: str(row["event_id"])) for plural, columns in names.items()}


def test_both_ways_give_the_same_silver(spark: SparkSession, stack_services: Stack, jars_dir: Path, tmp_path: Path) -> None:
    def settings_in(name: str) -> Settings:
        return stack_services.settings.model_copy(update={"env": "ways", "home": tmp_path / name, "jars_dir": jars_dir})

    by_kafka, by_bronze = settings_in("kafka"), settings_in("bronze")
    kafka.ensure(by_kafka)
    store = FileState(by_kafka.environment_dir / "backfill", OPTIONS.run_id)
    sent = run_backfill(by_kafka, PopulationShop(OPTIONS), store)
    store.close()
    caught_up = run_both_steps(spark, by_kafka)
    added = run_bronze_backfill(by_bronze, OPTIONS, workers=1)
    refined = Lake(spark, by_bronze).refine().total

    assert sent.records == added.rows > 500
    assert caught_up.refined == refined == BatchCounts(read=sent.records, silver=sent.records)
    found = silver(Lake(spark, by_bronze))
    assert found == silver(Lake(spark, by_kafka))
    assert all(rows and PAYLOAD_HASH.name in rows[0] for rows in found.values())
    assert {row["source"] for rows in found.values() for row in rows} == {"backfill"}

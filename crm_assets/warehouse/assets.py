"""The warehouse's assets: raw tables loaded from silver, and the dbt models as assets with their tests as checks.

Belongs here: what Dagster shows and runs. Not here: the load itself (`load`), SQL (the dbt project), or when it runs
(`crm_assets.monitoring.refresh`).
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from functools import cached_property
from typing import TYPE_CHECKING, Any

import dagster as dg
from dagster_dbt import DagsterDbtTranslator, DbtCliResource, DbtProject, dbt_assets
from dagster_dbt.compat import DBT_PYTHON_VERSION

from crm_assets.conventions import OWNERS, POSTGRES_KEY, Group, raw_key, raw_lineage, raw_schema, raw_table_owners, silver_key
from crm_assets.monitoring.refresh import EVERYTHING_JOB, EVERYTHING_TAG, LOAD_STEP, REFRESH_JOB
from crm_assets.warehouse.dbt_command import PROJECT as DBT_PROJECT
from crm_assets.warehouse.dbt_command import program
from crm_assets.warehouse.lineage import kept_lineage
from crm_assets.warehouse.table_rules import left_to_the_night
from crm_resources.contracts import Contract, contracts
from crm_resources.contracts.derive_postgres import RawTable, raw_tables
from crm_resources.dagster_resources import SettingsResource
from crm_resources.settings import Settings

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import UnresolvedAssetJobDefinition

DBT_MANIFEST = DBT_PROJECT / "manifest.json"

QUICKLY = {"DBT_LOG_LEVEL_FILE": "info", "DBT_WRITE_JSON": "false"}
"""Variables of a refresh's dbt: without its debug log and its artifacts, which nobody reads and which are a tenth of its work."""

CHANGES = {"DBT_EXCLUDE_RESOURCE_TYPES": "unit_test seed"}
"""Variables of a dbt that builds only what changed: a seed changes with the models, and then everything is built."""

TABLES_ONLY = ("--exclude", "config.materialized:view")
"""Options of a dbt that builds only what changed: a view shows new rows by itself, and its SQL changes with the models."""

FRESHNESS = dg.FreshnessPolicy.time_window(fail_window=timedelta(hours=26), warn_window=timedelta(seconds=60))
"""Marts show an event within a minute while events come, so a minute without a refresh is a warning: in a busy shop it is late, in a
quiet one nothing has happened. The business date turns every day, and that alone refreshes everything; a day without is a failure."""


def raw_specs() -> list[dg.AssetSpec]:
    """One spec per raw table, child tables included."""
    return [
        dg.AssetSpec(
            raw_key(table.name),
            deps=[silver_key(contract.plural), POSTGRES_KEY],
            description=f"{table.description} Loaded from silver by Delta version, exactly once.",
            group_name=Group.WAREHOUSE.value,
            kinds={"postgres", "arrow"},
            owners=OWNERS,
            skippable=True,
            metadata={"dagster/column_schema": raw_schema(table), "dagster/table_name": f"raw.{table.name}"},
        )
        for contract in contracts()
        for table in raw_tables(contract)
    ]


def schema_check_specs() -> list[dg.AssetCheckSpec]:
    """A blocking check per raw table: the database's columns are the contract's."""
    return [
        dg.AssetCheckSpec(
            "columns_match_contract",
            asset=raw_key(name),
            blocking=True,
            description="Column names and types in PostgreSQL are those derived from the contract.",
        )
        for name in raw_table_owners()
    ]


@dg.multi_asset(
    name=LOAD_STEP,
    specs=raw_specs(),
    check_specs=schema_check_specs(),
    can_subset=True,
)
def load_raw(context: dg.AssetExecutionContext, settings: SettingsResource) -> Iterator[dg.MaterializeResult[None] | dg.AssetCheckResult]:
    """Load what silver has gained since the bookmark, one transaction per entity."""
    from crm_resources import change_marks, warehouse

    hold_connections(context.instance)
    loaded = settings.load()
    # Models that are being built must not see some rows in one table and more in the next.
    with change_marks.only_refresh(loaded):
        warehouse.prepare(loaded)
        for contract in contracts():
            tables = [table for table in raw_tables(contract) if raw_key(table.name) in context.selected_asset_keys]
            if tables:
                yield from _loaded(context, loaded, contract, tables)


def _loaded(context: dg.AssetExecutionContext, settings: Settings, contract: Contract, tables: list[RawTable]) -> Iterator[Any]:
    from crm_assets.warehouse.load import load_entity
    from crm_resources import warehouse

    result = load_entity(settings, contract)
    context.log.info("%s: %s", contract.plural, result)
    for table in tables:
        expected = {c.name: c.data_type for c in warehouse.expected_columns(table)}
        actual = {c.name: c.data_type for c in warehouse.actual_columns(settings, "raw", table.name)}
        yield dg.MaterializeResult(
            asset_key=raw_key(table.name),
            metadata={
                "dagster/row_count": warehouse.raw_row_count(settings, table.name),
                "dagster/column_lineage": raw_lineage(contract, table),
                "rows_read": result.rows_read,
                "rows_inserted": result.rows_inserted,
                "delta_version": result.version if result.version is not None else -1,
                "seconds": result.seconds,
            },
            check_results=[
                dg.AssetCheckResult(
                    asset_key=raw_key(table.name),
                    check_name="columns_match_contract",
                    passed=expected == actual,
                    metadata={"expected": expected, "actual": actual},
                )
            ],
        )


def hold_connections(instance: dg.DagsterInstance) -> None:
    """Have this run keep its connections to Dagster's storage, as the webserver does.

    By default each event is two or three logins, which for the five hundred events of a refresh take a fifth of its time.
    """
    instance.optimize_for_webserver(statement_timeout=60_000, pool_recycle=600, max_overflow=10)


class ModelTranslator(DagsterDbtTranslator):
    """dbt models as assets: key by layer and name, grouped, owned, with their columns."""

    def get_asset_spec(self, manifest: Mapping[str, Any], unique_id: str, project: DbtProject | None) -> dg.AssetSpec:
        """The default spec with the house's key, group and owners."""
        spec = super().get_asset_spec(manifest, unique_id, project)
        node = manifest["nodes"].get(unique_id) or manifest["sources"][unique_id]
        if node["resource_type"] == "source":
            return spec
        key = model_key(node)
        return spec.replace_attributes(
            key=key,
            group_name=(Group.MARTS if key.path[0] == "marts" else Group.WAREHOUSE).value,
            owners=OWNERS,
            freshness_policy=FRESHNESS if key.path[0] == "marts" else None,
        )


def model_lineage() -> dict[dg.AssetKey, dg.TableColumnLineage]:
    """Column lineage of every dbt model by asset key, from the file kept beside the manifest."""
    manifest: dict[str, Any] = json.loads(DBT_MANIFEST.read_text())
    keys = {
        **{uid: model_key(node) for uid, node in manifest["nodes"].items() if node["resource_type"] in ("model", "seed")},
        **{uid: dg.AssetKey(node["meta"]["dagster"]["asset_key"]) for uid, node in manifest["sources"].items()},
    }
    return {
        keys[uid]: dg.TableColumnLineage(
            {name: [dg.TableColumnDep(keys[parent], column) for parent, column in deps] for name, deps in columns.items()}
        )
        for uid, columns in kept_lineage().items()
    }


def whole_project() -> set[dg.AssetKey]:
    """Keys of all models and seeds."""
    manifest: dict[str, Any] = json.loads(DBT_MANIFEST.read_text())
    return {model_key(node) for node in manifest["nodes"].values() if node["resource_type"] in ("model", "seed")}


def model_key(node: Mapping[str, Any]) -> dg.AssetKey:
    """Asset key of a model or seed: its layer and its name."""
    layer = node["fqn"][1] if node["resource_type"] == "model" else "seeds"
    return dg.AssetKey([layer, node["name"]])


def dbt_assets_definition() -> dg.AssetsDefinition:
    """The dbt project's models, seeds and tests as one multi-asset, from the manifest kept in the repository."""

    @dbt_assets(manifest=DBT_MANIFEST, dagster_dbt_translator=ModelTranslator(), name="dbt_models")
    def dbt_models(context: dg.AssetExecutionContext, settings: SettingsResource, dbt: DbtCliResource) -> Iterator[Any]:
        from crm_assets.warehouse.recorded_refresh import recorded_refresh

        hold_connections(context.instance)
        loaded = settings.load()
        whole = whole_project() <= context.selected_asset_keys
        everything = context.run.tags.get(EVERYTHING_TAG) == "true"
        with ExitStack() as block:
            planned = block.enter_context(recorded_refresh(loaded, whole=whole, warn=context.log.warning, everything=everything))
            changes_only = whole and not planned.scope.whole
            block.enter_context(environment({**planned.dbt_environment(), **QUICKLY, **(CHANGES if changes_only else {})}))
            context.log.info("builds %s: %s", "everything" if planned.scope.whole else "changes", planned.scope.reason)
            for key, lineage in model_lineage().items():
                if key in context.selected_asset_keys:
                    context.add_asset_metadata({"dagster/column_lineage": lineage}, asset_key=key)
            # One target folder per data set: dbt keeps what it parsed there, which saves five seconds of each refresh.
            command = ["build", *(TABLES_ONLY if changes_only else ())]
            yield from dbt.cli(command, context=context, target_path=loaded.environment_dir / "dbt").stream()

    return dbt_models


class DbtCommand(DbtCliResource):
    """dagster-dbt's resource without what it prepares for row counts and column metadata, which nobody here asks it for.

    It runs `dbt --version`, a process of dbt for one line, and parses dbt's macros to open connections of its own: four seconds of each
    refresh on two busy cores. Both are private to it; should they be named otherwise one day, refreshes are slower and not wrong.
    """

    @cached_property
    def _cli_version(self) -> Any:  # noqa: ANN401 -- as the library declares it
        return DBT_PYTHON_VERSION

    def _initialize_dbt_core_adapter(self, args: Sequence[str]) -> Any:  # noqa: ANN401 -- as the library declares it
        return None


def dbt_resource() -> DbtCliResource:
    """Run dbt as a command; which database it talks to comes with the environment of each run."""
    return DbtCommand(project_dir=os.fspath(DBT_PROJECT), profiles_dir=os.fspath(DBT_PROJECT), dbt_executable=program())


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the processes started inside the block; a run is a process of its own, so nobody else sees them."""
    before = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def refresh_jobs(models: dg.AssetsDefinition) -> list["UnresolvedAssetJobDefinition"]:
    """The load and dbt in one process, twice: with the checks of what changed, and with all of them.

    Checks that are no part of a job are not planned in its runs either: an event each in Dagster's storage, before a run begins.

    Args:
        models: the dbt project as assets.
    """
    left_out = left_to_the_night(json.loads(DBT_MANIFEST.read_text()))
    nightly = [spec.key for spec in models.check_specs if spec.name in left_out]
    everything = dg.AssetSelection.assets(*[spec.key for spec in raw_specs()]) | dg.AssetSelection.assets(*models.keys)
    return [
        dg.define_asset_job(
            REFRESH_JOB,
            selection=everything - dg.AssetSelection.checks(*nightly),
            executor_def=dg.in_process_executor,
            description="Loads what is new in silver and runs dbt over what it touches, in one process.",
        ),
        dg.define_asset_job(
            EVERYTHING_JOB,
            selection=everything,
            executor_def=dg.in_process_executor,
            tags={EVERYTHING_TAG: "true"},
            description="Loads what is new in silver, builds all marts from the first row, and tests every row.",
        ),
    ]
